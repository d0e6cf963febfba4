use keystead_plugin_host::{ClientCertificate, Grant, Surroundings};

use super::*;

#[test]
fn legacy_entries_become_stores_of_their_plugins() {
    let config = accept(
        "private_key_stores:\n- dir: /keys\n- uri: pkcs11:object=a\n- file: /one.key\n- uri: PKCS11:object=b\n\
         - uri: https://v.example/keys/k/1\n- uri: projects/p/locations/l\n",
    );
    let stores: Vec<_> = config
        .stores
        .iter()
        .map(|store| format!("{} {} {}", store.name, store.plugin, store.config))
        .collect();
    assert_eq!(
        stores,
        [
            r#"file-1 file {"dir":"/keys","permissions":"warn"}"#,
            r#"pkcs11-1 pkcs11 {"legacy":true,"uris":["pkcs11:object=a","PKCS11:object=b"]}"#,
            r#"file-2 file {"file":"/one.key","permissions":"warn"}"#,
            r#"azure-1 azure {"credential":{"type":"managed_identity"},"uris":["https://v.example/keys/k/1"]}"#,
            r#"gcp-1 gcp {"credential":{"endpoint":"http://metadata.google.internal","type":"metadata"},"uris":["projects/p/locations/l"]}"#,
        ]
    );
    assert!(config.stores.iter().all(|store| store.legacy && !store.critical));
    let decrypt = config.stores.iter().map(|store| store.operations.contains(&Operation::Decrypt));
    assert_eq!(decrypt.collect::<Vec<_>>(), [true, true, true, false, false], "clouds have no raw RSA");
    assert_eq!(config.stores[1].position, Some(Position { line: 3, column: 3 }));
    assert_eq!(
        warnings(&config),
        ["2:3: clients may also decrypt with the keys of `file-1`, `pkcs11-1` and `file-2`, as in gokeyless"]
    );
}

#[test]
fn a_native_entry_signs_only_and_has_defaults() {
    let config = accept("limits: {deadline: 3s}\nprivate_key_stores:\n- plugin: hsm\n- plugin: hsm");
    let store = &config.stores[0];
    assert_eq!((store.name.as_str(), store.plugin.as_str()), ("hsm-1", "hsm"));
    assert_eq!(config.stores[1].name, "hsm-2");
    assert_eq!(store.config, serde_json::json!({}));
    assert_eq!(store.operations, BTreeSet::from([Operation::Sign]));
    assert_eq!((store.isolation, store.critical, store.legacy), (None, false, false));
    assert_eq!((store.prove, store.verify_signatures), (Prove::Background, VerifySignatures::Auto));
    assert_eq!(store.surroundings, Surroundings::default());
    assert_eq!(
        store.limits,
        StoreLimits {
            lanes: None,
            queue: 256,
            deadline: None,
            instances: None,
            health_interval: Duration::from_secs(30)
        }
    );
    assert_eq!(config.warnings, []);
}

#[test]
fn a_native_entry_has_every_option() {
    let config = accept(
        "private_key_stores:\n- name: inhouse\n  plugin: inhouse-kms\n  config: {base: [1, 2.5, null, true, {a: x}]}\n  \
         secrets: {a: {file: f, expose: true}, b: {env: e}, c: {credential: d}, d: {value: v}, e: {file: f, pointer: /key}}\n  grants: {http: [{url: \"https://KMS.example\", methods: [GET, POST], secrets: [a], addresses: [10.0.0.0/8], ca: /c, client_certificate: /k, client_key: /l, proxy: \"http://p:3128\"}]}\n  \
         operations: [sign, decrypt]\n  isolation: process\n  critical: true\n  prove: start\n  verify_signatures: on\n  \
         limits: {lanes: 2, queue: 3, deadline: 4s, health_interval: 5s, memory: 64MiB, stuck_after: 90s, instances: 8}\n  env: {A: b}\n  workdir: /w\n  \
         user: 1001\n  groups: [g, 20]\n  isolation_group: vendor\n  core_dumps: true",
    );
    let store = &config.stores[0];
    assert_eq!(store.config, serde_json::json!({"base": [1, 2.5, null, true, {"a": "x"}]}));
    let sources = [
        ("a", SecretSource::File("f".into())),
        ("b", SecretSource::Env("e".into())),
        ("c", SecretSource::Credential("d".into())),
        ("d", SecretSource::Value("v".to_owned().into())),
        ("e", SecretSource::Member(SecretSource::File("f".into()).into(), "/key".into())),
    ];
    assert_eq!(store.secrets, BTreeMap::from(sources.map(|(name, source)| (name.to_owned(), source))));
    assert_eq!(store.exposed, BTreeSet::from(["a".to_owned()]));
    let grant = Grant {
        origin: "https://kms.example:443".parse().unwrap(),
        methods: ["GET", "POST"].map(str::to_owned).into(),
        secrets: BTreeSet::from(["a".to_owned()]),
        addresses: vec!["10.0.0.0/8".parse().unwrap()],
        ca: Some("/c".into()),
        client: Some(ClientCertificate { certificate: "/k".into(), key: "/l".into() }),
        proxy: Some("http://p:3128".parse().unwrap()),
    };
    assert_eq!(store.grants, [grant]);
    assert_eq!(store.operations.len(), 2);
    assert_eq!((store.isolation, store.critical), (Some(Isolation::Process), true));
    assert_eq!((store.prove, store.verify_signatures), (Prove::Start, VerifySignatures::On));
    assert_eq!(
        store.limits,
        StoreLimits {
            lanes: Some(2),
            queue: 3,
            deadline: Some(Duration::from_secs(4)),
            instances: Some(8),
            health_interval: Duration::from_secs(5)
        }
    );
    let surroundings = Surroundings {
        group: Some("vendor".into()),
        env: BTreeMap::from([("A".to_owned(), "b".to_owned())]),
        workdir: Some("/w".into()),
        user: Some("1001".into()),
        groups: vec!["g".into(), "20".into()],
        memory: Some(64 << 20),
        core_dumps: true,
        stuck_after: Some(Duration::from_secs(90)),
    };
    assert_eq!(store.surroundings, surroundings);
    let path = "private_key_stores[0]";
    assert_eq!(
        warnings(&config),
        [format!("18:3: `{path}.core_dumps`: a core dump of this process holds its keys and PINs")]
    );
}

#[test]
fn who_says_what_a_process_gets_wants_one() {
    let isolation = |options: &str| {
        accept(&format!("private_key_stores: [{{plugin: x, {options}}}]")).stores[0].isolation
    };
    for options in
        ["isolation_group: a", "env: {}", "workdir: /w", "user: u", "groups: g", "core_dumps: false"]
    {
        assert_eq!(isolation(options), Some(Isolation::Process), "{options}");
    }
    // Bounds hold wherever the plugin would rather run.
    for (options, expected) in [
        ("name: a", None),
        ("limits: {memory: 64MiB, stuck_after: 20s}", None),
        ("isolation: inline", Some(Isolation::Inline)),
        ("isolation: process", Some(Isolation::Process)),
    ] {
        assert_eq!(isolation(options), expected, "{options}");
    }
}

#[test]
fn what_a_process_gets_is_refused_for_a_plugin_in_the_server() {
    let refused = |options: &str| {
        refusal(&format!("private_key_stores: [{{plugin: x, isolation: inline, {options}}}]"))
    };
    let hint = "hint: it is for a plugin in a process of its own: write `isolation: process`, or remove it";
    for (options, column, key) in [
        ("isolation_group: a", 53, "isolation_group"),
        ("env: {A: b}", 53, "env"),
        ("workdir: /w", 53, "workdir"),
        ("user: u", 53, "user"),
        ("groups: [g]", 53, "groups"),
        ("core_dumps: true", 53, "core_dumps"),
        ("limits: {memory: 64MiB}", 62, "limits.memory"),
        ("limits: {lanes: 1, stuck_after: 5s}", 72, "limits.stuck_after"),
    ] {
        let place = format!("k.yaml:1:{column}: `private_key_stores[0].{key}`");
        let message = format!("{place}: expected nothing of a process beside `isolation: inline`\n{hint}");
        assert_eq!(refused(options), message);
    }
}

#[test]
fn what_a_process_gets_has_its_forms_and_bounds() {
    for (option, problem) in [
        ("isolation: child", "isolation`: expected `inline` or `process`, got another string"),
        ("env: [A]", "env`: expected a map of variables, got a list"),
        ("env: {A: 1}", "env`: expected a string, got a number; put it in quotes"),
        ("env: {'A=': b}", "env`: expected names without `=`, and values without a zero byte"),
        ("env: {A: \"b\\0\"}", "env`: expected names without `=`, and values without a zero byte"),
        ("workdir: var", "workdir`: expected an absolute path, got another string"),
        ("user: ''", "user`: expected a name or a number, got another string"),
        ("user: -1", "user`: expected a name or a number, got a number"),
        ("user: 4294967295", "user`: expected a name or a number, got a number"),
        ("groups: []", "groups`: expected at least one item, got an empty list"),
        ("core_dumps: yes please", "core_dumps`: expected `true` or `false`, got a string"),
        ("limits: {memory: 63MiB}", "limits.memory`: expected 64MiB to 1024GiB, got 63MiB"),
        ("limits: {memory: 1025GiB}", "limits.memory`: expected 64MiB to 1024GiB, got 1025GiB"),
        ("limits: {memory: much}", "limits.memory`: expected a size such as `64MiB`, got a string"),
        ("limits: {stuck_after: 900ms}", "limits.stuck_after`: expected 1s to 3600s, got 900ms"),
        ("limits: {stuck_after: 61m}", "limits.stuck_after`: expected 1s to 3600s, got 3660s"),
        ("limits: {instances: 0}", "limits.instances`: expected a whole number from 1 to 1024, got 0"),
    ] {
        let message = refusal(&format!("private_key_stores: [{{plugin: x, {option}}}]"));
        assert!(message.ends_with(&format!(": `private_key_stores[0].{problem}")), "{option}: {message}");
    }
}

#[test]
fn a_grant_that_grants_nothing_or_something_else_is_refused_with_its_place() {
    for (grants, problem) in [
        ("{htpp: []}", "unknown key `private_key_stores[0].grants.htpp`\nhint: did you mean `http`?"),
        ("{http: {}}", "`private_key_stores[0].grants.http`: expected a list, got a map"),
        (
            "{http: [{methods: [GET]}]}",
            "`private_key_stores[0].grants.http[0]`: expected a `url`, got none\nhint: name the service: `url: \
             \"https://kms.example:443\"`",
        ),
        (
            "{http: [{url: 'https://k'}]}",
            "`private_key_stores[0].grants.http[0]`: expected a `methods`, got none\nhint: name those that the plugin \
             needs: `methods: [GET, POST]`",
        ),
        (
            "{http: [{url: 'https://k/v1', methods: [GET]}]}",
            "`private_key_stores[0].grants.http[0].url`: expected nothing after host and port: a grant is for the whole \
             service",
        ),
        (
            "{http: [{url: 'https://k', methods: [get]}]}",
            "`private_key_stores[0].grants.http[0].methods`: expected a method such as `GET`, in capitals",
        ),
        (
            "{http: [{url: 'https://k', methods: [GET], addresses: [10.0.0.0/33]}]}",
            "`private_key_stores[0].grants.http[0].addresses`: expected an address, or a network such as `10.0.0.0/8`",
        ),
        (
            "{http: [{url: 'https://k', methods: [GET], client_key: /k}]}",
            "`private_key_stores[0].grants.http[0]`: expected both of `client_certificate` and `client_key`, got one",
        ),
        (
            "{http: [{url: 'http://k', methods: [GET], ca: /c}]}",
            "`private_key_stores[0].grants.http[0]`: `ca`, `client_certificate`, `client_key` and `proxy` are for a `url` \
             with `https://`",
        ),
        (
            "{http: [{url: 'https://k', methods: [GET], proxy: 'https://p'}]}",
            "`private_key_stores[0].grants.http[0].proxy`: expected a proxy that speaks plain HTTP, such as \
             `http://proxy.example:3128`",
        ),
    ] {
        let message = refusal(&format!("private_key_stores: [{{plugin: x, grants: {grants}}}]"));
        let (_, found) = message.split_once(": ").unwrap();
        assert_eq!(found, problem, "{grants}");
    }
    let message = refusal("private_key_stores: [{plugin: x, secrets: {a: {file: f, expose: maybe}}}]");
    assert!(message.contains("secrets.a.expose`: expected `true` or `false`"), "{message}");
}

#[test]
fn stores_that_share_a_process_agree_on_what_it_gets() {
    let two = |one: &str, other: &str| {
        format!(
            "private_key_stores:\n- {{plugin: x, name: a, isolation_group: g, {one}}}\n\
             - {{plugin: y, name: b, isolation_group: g, {other}}}"
        )
    };
    accept(&two("env: {A: b}, limits: {lanes: 1}", "env: {A: b}, limits: {lanes: 2}"));
    accept(&two("user: u", "user: v").replacen("isolation_group: g", "isolation_group: h", 1));
    for (key, one, other) in [
        ("env", "env: {A: b}", "env: {A: c}"),
        ("workdir", "workdir: /a", "prove: never"),
        ("user", "prove: never", "user: u"),
        ("groups", "groups: [a, b]", "groups: [b, a]"),
        ("core_dumps", "core_dumps: true", "core_dumps: false"),
        ("limits.memory", "limits: {memory: 1GiB}", "limits: {memory: 2GiB}"),
        ("limits.stuck_after", "limits: {stuck_after: 60s}", "limits: {stuck_after: 61s}"),
    ] {
        assert_eq!(
            refusal(&two(one, other)),
            format!(
                "k.yaml:3:3: stores `a` and `b` share the process `g`, and `{key}` isn't the same for both\nhint: say \
                 the same in both entries, or give them an `isolation_group` each"
            )
        );
    }
}

#[test]
fn legacy_uris_are_a_store_for_each_module() {
    let uri = |rest: &str| format!("- uri: 'pkcs11:object=a{rest}'\n");
    let modules = [
        "?module-path=/a.so&pin-value=1",
        "?pin-value=2&module-path=/b.so",
        "?module-name=a",
        "",
        "?module-path=/b.so&module-path=/a.so",
        "?max-sessions=2&module-name=a",
        "?pin-value=3",
        "?module-path=/b.so?module-path=/a.so",
    ];
    let list: String = modules.iter().map(|module| uri(module)).collect();
    let config = accept(&format!("private_key_stores:\n{list}- {{plugin: pkcs11, config: {{uris: []}}}}"));
    let stores = config.stores.iter().map(|store| {
        let uris = store.config["uris"].as_array().unwrap().iter();
        (store.name.as_str(), uris.map(|uri| &uri.as_str().unwrap()["pkcs11:object=a".len()..]).collect())
    });
    let expected: [(&str, Vec<&str>); 5] = [
        ("pkcs11-1", vec![modules[0], modules[4]]),
        ("pkcs11-2", vec![modules[1], modules[7]]),
        ("pkcs11-3", vec![modules[2], modules[5]]),
        ("pkcs11-4", vec![modules[3], modules[6]]),
        ("pkcs11-5", vec![]),
    ];
    assert_eq!(stores.collect::<Vec<_>>(), expected);
}

#[test]
fn an_entry_that_makes_no_store_is_refused() {
    let forms = "hint: give each directory, file, URI and plugin an entry of its own";
    let entry =
        "k.yaml:1:22: `private_key_stores[0]`: expected exactly one of `dir`, `file`, `uri` or `plugin`, got";
    for (yaml, got) in [("{}", "none"), ("{name: x}", "none"), ("{dir: /a, uri: b}", "`dir` and `uri`")] {
        assert_eq!(refusal(&format!("private_key_stores: [{yaml}]")), format!("{entry} {got}\n{forms}"));
    }
    claim_refusals(&[
        ("private_key_stores: /keys", "k.yaml:1:21: `private_key_stores`: expected a list, got a string"),
        (
            "private_key_stores: [/keys]",
            "k.yaml:1:22: `private_key_stores[0]`: expected a map of keys and values, got a string",
        ),
        (
            "private_key_stores: [{dir: ''}]",
            "k.yaml:1:22: `private_key_stores[0].dir`: expected a path or URI, got an empty string",
        ),
        (
            "private_key_stores: [{dir: 7}]",
            "k.yaml:1:28: `private_key_stores[0].dir`: expected a string, got a number; put it in quotes",
        ),
        (
            "private_key_stores: [{dir: /a, operations: [sign]}]",
            "k.yaml:1:32: `private_key_stores[0].operations`: expected nothing beside `dir`\nhint: options need the native \
             form: `plugin: file` with `config: {dir: PATH}`",
        ),
        (
            "private_key_stores: [{plugin: ../evil}]",
            "k.yaml:1:31: `private_key_stores[0].plugin`: expected 1 to 64 letters, digits, `-`, `_` and `.`, not \
             beginning with a dot, got another string",
        ),
        (
            "private_key_stores: [{plugin: x, config: [1]}]",
            "k.yaml:1:42: `private_key_stores[0].config`: expected a map, got a list",
        ),
        (
            "private_key_stores: [{plugin: x, operations: [sing]}]",
            "k.yaml:1:46: `private_key_stores[0].operations`: expected `sign` or `decrypt`, got another string",
        ),
    ]);
}

#[test]
fn two_stores_of_one_name_are_refused_with_both_places() {
    let hint = "hint: give each its own `name`; one without is called after its plugin and a number";
    assert_eq!(
        refusal("private_key_stores:\n- {plugin: x, name: a}\n- {plugin: y, name: a}"),
        format!("k.yaml:3:3: two stores are named `a`, first at 2:3\n{hint}")
    );
    assert_eq!(
        refusal("private_key_stores:\n- {plugin: x, name: file-1}\n- dir: /keys"),
        format!("k.yaml:3:3: two stores are named `file-1`, first at 2:3\n{hint}")
    );
}
