use super::*;

/// Stands for every PIN, passphrase and token below.
const SESAME: &str = "0xSesame";

#[test]
fn debug_output_holds_no_secret() {
    let yaml = format!(
        "origin_ca_api_key: {SESAME}\napi_token: {SESAME}\nprivate_key_stores:\n\
         - uri: pkcs11:object=x?pin-value={SESAME}\n- plugin: x\n  config: {{pin: {SESAME}}}\n  \
         secrets: {{pin: {{value: {SESAME}}}}}\n  grants: {{http: []}}\n  \
         env: {{PIN: {SESAME}}}"
    );
    let config = accept(&yaml);
    assert_eq!(config.stores.len(), 2);
    let shown = format!("{config:?} {config:#?}");
    assert!(!shown.contains("Sesame"), "{shown}");
    let flags = flags(&format!("--api-token {SESAME} --origin-ca-api-key {SESAME}"));
    assert!(!format!("{flags:?}").contains("Sesame"));
}

#[test]
fn no_refusal_repeats_a_secret() {
    for entry in [
        "{plugin: x, secrets: SESAME}",
        "{plugin: x, secrets: {pin: SESAME}}",
        "{plugin: x, secrets: {pin: [SESAME]}}",
        "{plugin: x, secrets: {pin: {SESAME}}}",
        "{plugin: x, secrets: {pin: {vlaue: SESAME}}}",
        "{plugin: x, secrets: {pin: {value: [SESAME]}}}",
        "{plugin: x, secrets: {pin: {value: SESAME, file: SESAME}}}",
        "{plugin: x, secrets: {pin: {value: 1234}}}",
        "{plugin: x, secrets: {pin: {file: 1234}}}",
        "{plugin: x, secrets: {pin: {env: 'SESAME=1'}}}",
        "{plugin: x, secrets: {pin: {file: f, pointer: SESAME}}}",
        "{plugin: x, secrets: {pin: {pointer: /SESAME}}}",
        "{plugin: x, secrets: {pin: {credential: '../SESAME'}}}",
        "{plugin: x, config: SESAME}",
        "{plugin: x, config: [SESAME]}",
        "{plugin: x, config: {1234: SESAME}}",
        "{plugin: x, config: {pin: &a [SESAME], again: *a}}",
        "{plugin: x, config: {pin: !x SESAME}}",
        "{plugin: x, config: {pin: \"SESAME}}",
        "{plugin: x, grants: SESAME}",
        "{plugin: x, env: SESAME}",
        "{plugin: x, env: {'A=SESAME': SESAME}}",
        "{plugin: x, env: {PIN: [SESAME]}}",
        "{plugin: x, env: {PIN: SESAME}, isolation: inline}",
        "{plugin: SESAME:1, config: {}}",
        "{uri: 'pkcs12:object=x?pin-value=SESAME'}",
        "{uri: ['pkcs11:object=x?pin-value=SESAME']}",
        "{uri: pkcs11:object=x?pin-value=SESAME, name: x}",
        "{uri: pkcs11:object=x?pin-value=SESAME, file: x}",
        "pkcs11:object=x?pin-value=SESAME",
    ] {
        let message = refusal(&format!("private_key_stores:\n- {}", entry.replace("SESAME", SESAME)));
        assert!(!message.contains("Sesame") && !message.contains("1234"), "{entry}: {message}");
    }
    for yaml in ["api_token: [SESAME]", "origin_ca_api_key: {SESAME: 1}", "loglevel: SESAME", "SESAME"] {
        let message = refusal(&yaml.replace("SESAME", SESAME));
        assert!(!message.contains("Sesame"), "{yaml}: {message}");
    }
}

#[test]
fn a_pin_without_quotes_is_refused_rather_than_mangled() {
    let yaml = "private_key_stores: [{plugin: x, secrets: {pin: {value: 0x12}}}]";
    assert_eq!(
        refusal(yaml),
        "k.yaml:1:57: `private_key_stores[0].secrets.pin`: expected a string, got a number; put it in quotes"
    );
}

#[test]
fn what_belongs_to_the_server_is_not_handed_on_to_a_process() {
    let mut stores = accept(
        "private_key_stores:\n- uri: pkcs11:object=x\n- {plugin: x, isolation: process, secrets: {pin: {env: HSM_PIN}}}\n\
         - {plugin: y, env: {CREDENTIALS_DIRECTORY: /own}}",
    )
    .stores;
    let environment = [
        ("SOFTHSM2_CONF", "/etc/softhsm2.conf"),
        ("PATH", "/usr/bin"),
        ("HSM_PIN", SESAME),
        ("KEYLESS_API_TOKEN", SESAME),
        ("KEYSTEAD_PLUGIN_PATH", "/p"),
        ("LISTEN_FDNAMES", "keys"),
        ("NOTIFY_SOCKET", "/run/notify"),
        ("WATCHDOG_USEC", "1"),
        ("CREDENTIALS_DIRECTORY", "/run/credentials"),
    ];
    store::hand_on(&mut stores, environment.iter().map(|(name, value)| (name.into(), value.into())));
    let handed_on = |store: &Store| store.surroundings.env.keys().cloned().collect::<Vec<_>>();
    assert_eq!(handed_on(&stores[0]), ["CREDENTIALS_DIRECTORY", "PATH", "SOFTHSM2_CONF"]);
    assert_eq!(handed_on(&stores[1]), ["CREDENTIALS_DIRECTORY"], "for the rest, a native entry has `env`");
    assert_eq!(stores[2].surroundings.env["CREDENTIALS_DIRECTORY"], "/own");
}
