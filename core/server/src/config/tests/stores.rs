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
            r#"azure-1 azure {"legacy":true,"uris":["https://v.example/keys/k/1"]}"#,
            r#"gcp-1 gcp {"legacy":true,"uris":["projects/p/locations/l"]}"#,
        ]
    );
    let both = BTreeSet::from([Operation::Sign, Operation::Decrypt]);
    assert!(config.stores.iter().all(|store| store.legacy && store.operations == both && !store.critical));
    assert_eq!(config.stores[1].position, Some(Position { line: 3, column: 3 }));
    assert_eq!(
        warnings(&config),
        [
            "2:3: clients may also decrypt with the keys of `file-1`, `pkcs11-1`, `file-2`, `azure-1` and `gcp-1`, as in \
          gokeyless"
        ]
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
    assert_eq!(
        store.limits,
        StoreLimits { lanes: None, queue: 256, deadline: None, health_interval: Duration::from_secs(30) }
    );
    assert_eq!(config.warnings, []);
}

#[test]
fn a_native_entry_has_every_option() {
    let config = accept(
        "private_key_stores:\n- name: inhouse\n  plugin: inhouse-kms\n  config: {base: [1, 2.5, null, true, {a: x}]}\n  \
         secrets: {a: {file: f}, b: {env: e}, c: {credential: d}, d: {value: v}}\n  grants: {http: []}\n  \
         operations: [sign, decrypt]\n  isolation: process\n  critical: true\n  prove: start\n  verify_signatures: on\n  \
         limits: {lanes: 2, queue: 3, deadline: 4s, health_interval: 5s, memory: 64MiB, instances: 8}\n  env: {A: b}\n  workdir: /w\n  \
         user: u\n  groups: [g]",
    );
    let store = &config.stores[0];
    assert_eq!(store.config, serde_json::json!({"base": [1, 2.5, null, true, {"a": "x"}]}));
    let sources = [
        ("a", SecretSource::File("f".into())),
        ("b", SecretSource::Env("e".into())),
        ("c", SecretSource::Credential("d".into())),
        ("d", SecretSource::Value("v".to_owned().into())),
    ];
    assert_eq!(store.secrets, BTreeMap::from(sources.map(|(name, source)| (name.to_owned(), source))));
    assert_eq!(store.grants, Some(serde_json::json!({"http": []})));
    assert_eq!(store.operations.len(), 2);
    assert_eq!((store.isolation, store.critical), (Some(Isolation::Process), true));
    assert_eq!((store.prove, store.verify_signatures), (Prove::Start, VerifySignatures::On));
    assert_eq!(
        store.limits,
        StoreLimits {
            lanes: Some(2),
            queue: 3,
            deadline: Some(Duration::from_secs(4)),
            health_interval: Duration::from_secs(5)
        }
    );
    let path = "private_key_stores[0]";
    assert_eq!(
        warnings(&config),
        [
            format!(
                "13:3: `{path}.env`, `{path}.workdir`, `{path}.user` and `{path}.groups` have no effect yet: plugins \
                 run in the server"
            ),
            format!("8:3: `{path}.isolation`: `process` has no effect yet: the plugin runs in the server"),
            format!(
                "12:67: `{path}.limits.memory` and `{path}.limits.instances` have no effect yet: they bound WASM plugins"
            ),
        ]
    );
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
