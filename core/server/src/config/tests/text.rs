use super::*;

#[test]
fn an_unknown_key_is_refused_with_its_place_and_the_nearest_name() {
    claim_refusals(&[
        ("port: 1\nlistne: x", "k.yaml:2:1: unknown key `listne`\nhint: did you mean `listen`?"),
        (
            "private_key_store: []",
            "k.yaml:1:1: unknown key `private_key_store`\nhint: did you mean `private_key_stores`?",
        ),
        ("auth-cert: x", "k.yaml:1:1: unknown key `auth-cert`\nhint: did you mean `auth_cert`?"),
        (
            "limits:\n  idel_timeout: 3s",
            "k.yaml:2:3: unknown key `limits.idel_timeout`\nhint: did you mean `idle_timeout`?",
        ),
        (
            "tls: {certificates: 1}",
            "k.yaml:1:7: unknown key `tls.certificates`\nhint: the keys here are `versions`, `resumption` and `crl`",
        ),
        (
            "private_key_stores:\n- plugin: file\n  nmae: x",
            "k.yaml:3:3: unknown key `private_key_stores[0].nmae`\nhint: did you mean `name`?",
        ),
    ]);
}

#[test]
fn a_duplicate_key_is_refused_with_both_places() {
    claim_refusals(&[
        ("port: 1\n\nport: 2", "k.yaml:3:1: duplicate key `port`, first at 1:1\nhint: remove one of them"),
        ("port: 1\nPort: 2", "k.yaml:2:1: duplicate key `Port`, first at 1:1\nhint: remove one of them"),
        (
            "private_key_stores:\n- plugin: x\n  config: {a: {b: 1, c: 2, b: 3}}",
            "k.yaml:3:28: duplicate key `b`, first at 3:16\nhint: remove one of them",
        ),
    ]);
}

#[test]
fn keys_must_be_strings() {
    let hint = "hint: put the key in quotes";
    for (yaml, place) in [
        ("1: x", "1:1"),
        ("true: x", "1:1"),
        ("tls: {? [a] : b}", "1:9"),
        ("tls: {~: b}", "1:7"),
        ("private_key_stores:\n- plugin: x\n  config: {5: b}", "3:12"),
    ] {
        assert_eq!(
            refusal(yaml),
            format!("k.yaml:{place}: expected a key that is a string\n{hint}"),
            "{yaml}"
        );
    }
}

#[test]
fn keys_are_case_insensitive_as_in_the_reference_but_not_those_of_plugins() {
    let config = accept("PORT: 1\nPrivate_Key_Stores:\n- Plugin: x\n  Config: {aB: 1, Ab: 2}");
    assert_eq!(config.listen, ["[::]:1".parse().unwrap()]);
    assert_eq!(config.stores[0].config, serde_json::json!({"aB": 1, "Ab": 2}));
}

#[test]
fn json_is_accepted() {
    let config = accept(r#"{"port": 7, "private_key_stores": [{"dir": "/k"}]}"#);
    assert_eq!((config.listen[0].port(), config.stores.len()), (7, 1));
}

#[test]
fn an_empty_file_is_all_defaults() {
    for yaml in ["", "# only a comment\n", "---\n", "{}", "\u{feff}"] {
        assert_eq!(accept(yaml), accept("{}"), "{yaml:?}");
    }
}

#[test]
fn a_key_with_nothing_behind_it_is_unset() {
    assert_eq!(accept("port:\nprivate_key_stores:\nlimits:\n  grace:\ntls: ~"), accept(""));
}

#[test]
fn scalars_may_be_aliases() {
    let config = accept("auth_cert: &both /x\nauth_key: *both");
    assert_eq!(config.auth_key, Path::new("/x"));
}

#[test]
fn what_yaml_can_and_a_configuration_should_not_is_refused() {
    claim_refusals(&[
        (
            "port: 1\n---\nport: 2",
            "k.yaml:2:1: expected one document, got a second\nhint: remove the `---` and what follows",
        ),
        (
            "tls: &t {resumption: true}\nlimits: *t",
            "k.yaml:2:9: expected an alias of a scalar, got one of a list or map\nhint: write the value out",
        ),
        (
            "limits: &l [*l]",
            "k.yaml:1:13: expected an alias of a scalar, got one of a list or map\nhint: write the value out",
        ),
        ("log:\n  <<: {level: info}", "k.yaml:2:3: merge keys are not supported\nhint: write the keys out"),
        ("port: !secret 1", "k.yaml:1:7: tags are not supported\nhint: remove the word with the `!`"),
        ("port: .nan", "k.yaml:1:7: expected a finite number\nhint: put it in quotes if it is meant as text"),
        (
            "port: 1 # a\u{2028}[[[[",
            "k.yaml:1:12: the invisible character U+2028 is not allowed\nhint: delete it; in a quoted string it can \
             be written as an escape",
        ),
        ("port: [1", "k.yaml:2:1: not valid YAML: while parsing a flow sequence, expected ',' or ']'"),
        ("- 1", "k.yaml:1:1: expected a map of keys and values, got a list"),
        ("hello", "k.yaml:1:1: expected a map of keys and values, got a string"),
    ]);
}

#[test]
fn an_alias_bomb_is_refused() {
    let scalars = format!("auth_cert: &a x\ntls: [{}]", "*a,".repeat(65));
    assert_eq!(refusal(&scalars), "k.yaml:2:199: more than 64 aliases\nhint: write the values out");
    let laughs = (1..9).map(|n| format!("l{n}: &l{n} [{}]\n", vec![format!("*l{}", n - 1); 9].join(",")));
    let bomb = format!("l0: &l0 [ha]\n{}", laughs.collect::<String>());
    assert_eq!(
        refusal(&bomb),
        "k.yaml:2:10: expected an alias of a scalar, got one of a list or map\nhint: write the value out"
    );
}

#[test]
fn deep_nesting_is_refused_at_its_33rd_level() {
    let hint = "hint: look for an unclosed bracket or brace before this place";
    let levels = 100_000;
    for (yaml, place) in [
        ("[".repeat(levels), "1:256"),
        ("{a: ".repeat(levels), "1:1021"),
        ("- ".repeat(levels), "1:65"),
        (format!("{}{}", "[".repeat(levels), "]".repeat(levels)), "1:256"),
    ] {
        assert_eq!(refusal(&yaml), format!("k.yaml:{place}: nested deeper than 32 levels\n{hint}"));
    }
    let deep = |levels| {
        format!(
            "private_key_stores: [{{plugin: x, config: {{a: {}1{}}}}}]",
            "[".repeat(levels),
            "]".repeat(levels)
        )
    };
    assert_eq!(accept(&deep(28)).stores.len(), 1);
    assert!(refusal(&deep(29)).contains("nested deeper than 32 levels"));
}

#[test]
fn more_values_than_anyone_writes_are_refused() {
    let list =
        |items| format!("private_key_stores: [{{plugin: x, config: {{a: [{}]}}}}]", "1,".repeat(items));
    assert_eq!(
        refusal(&list(65_536)),
        "k.yaml:1:131107: more than 65536 values\nhint: use a `dir` entry in place of many `file` entries"
    );
    assert_eq!(accept(&list(65_000)).stores.len(), 1);
}

#[test]
fn an_oversized_text_is_refused_and_the_largest_legal_one_is_not() {
    let message = "k.yaml: the configuration is larger than 1 MiB\nhint: use a `dir` entry in place of many `file` entries";
    assert_eq!(refusal(&"#".repeat(1024 * 1024 + 1)), message);
    assert_eq!(accept(&"#".repeat(1024 * 1024)), accept(""));
}
