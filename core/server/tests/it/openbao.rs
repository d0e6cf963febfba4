//! Keys in a real OpenBao, from a plugin in the sandbox to curl: the server with the example of a plugin for it, and the
//! example of an edge.

#[path = "../../../../examples/plugin-wasm/tests/it/openbao.rs"]
mod server;

use std::{
    fs,
    path::Path,
    process::Command,
    sync::LazyLock,
    thread,
    time::{Duration, Instant},
};

use keystead_plugin_host::testing;
use serde_json::json;

use crate::{
    site::Site,
    world::{Files, PATIENCE, Server},
};
use server::OpenBao;

/// The directory with the plugin.
static PLUGINS: LazyLock<testing::PluginDir> =
    LazyLock::new(|| testing::PluginDir::with_components(&["keystead-plugin-openbao-transit"]));

/// The names of the keys, which are the sites' too, and their types.
const KEYS: [(&str, &str); 4] =
    [("rsa", "rsa-2048"), ("p256", "ecdsa-p256"), ("p384", "ecdsa-p384"), ("ed25519", "ed25519")];

/// Configuration lines of a store `bao` that has a token.
fn store(files: &Files, openbao: &OpenBao, token: &str) -> String {
    let token = files.write("token", token.as_bytes());
    let (url, ca, token) = (openbao.url(), openbao.ca().display().to_string(), token.display());
    format!(
        "private_key_stores:\n- name: bao\n  plugin: openbao-transit\n  config: {{url: \"{url}\"}}\n  \
         secrets: {{token: {{file: {token}}}}}\n  grants:\n    http:\n    - {{url: \"{url}\", methods: [GET, POST], \
         secrets: [token], ca: {ca}}}\n"
    )
}

/// The command line, with the plugin in place.
fn keystead(command: &str, config: &Path) -> Command {
    let mut keystead = Command::new(env!("CARGO_BIN_EXE_keystead"));
    keystead.arg(command).arg("-c").arg(config).env("KEYSTEAD_PLUGIN_PATH", PLUGINS.path());
    keystead
}

/// All of it, running, with keys of every type.
fn site<'a>(files: &'a Files, openbao: &OpenBao, token: &str) -> Site<'a> {
    KEYS.iter().for_each(|(name, key_type)| openbao.make(name, key_type));
    let keys = KEYS.map(|(name, _)| (name, openbao.public_key(name)));
    Site::start(files, keystead("run", &files.config(&store(files, openbao, token))), &keys)
}

#[test]
fn curl_shakes_hands_with_each_type_of_key_that_the_sandboxed_plugin_signs_with() {
    let (files, openbao) = (Files::new(), OpenBao::start());
    let token = openbao.token();
    let site = site(&files, &openbao, &token);
    for (name, version, signature) in [
        ("rsa", "1.3", "rsa_pss_rsae_sha256"),
        ("rsa", "1.3", "rsa_pss_rsae_sha384"),
        ("rsa", "1.3", "rsa_pss_rsae_sha512"),
        ("p256", "1.3", "ecdsa_secp256r1_sha256"),
        ("p384", "1.3", "ecdsa_secp384r1_sha384"),
        ("ed25519", "1.3", "ed25519"),
        ("rsa", "1.2", "RSA+SHA256"),
        ("rsa", "1.2", "RSA+SHA512"),
        ("p256", "1.2", "ECDSA+SHA256"),
    ] {
        site.must_serve(name, version, signature);
    }
    assert!(site.visit("p256", "1.3", "rsa_pss_rsae_sha256").is_err(), "no signature of another key passes");
    let status = site.server.status();
    assert_eq!(status["stores"][0]["keys"], KEYS.len());
    assert!(!site.server.log().contains(&token) && !status.to_string().contains(&token));

    // Another token in the file is used from the next request on, without a reload.
    fs::write(files.path("token"), openbao.token()).unwrap();
    openbao.bao(&["token", "revoke", &token]);
    site.visit("p256", "1.3", "ecdsa_secp256r1_sha256").unwrap();
}

#[test]
fn an_openbao_that_is_killed_and_comes_back_is_served_again() {
    let (files, mut openbao) = (Files::new(), OpenBao::start());
    let token = openbao.token();
    let site = site(&files, &openbao, &token);
    let visit = || site.visit("p256", "1.3", "ecdsa_secp256r1_sha256");
    assert!(visit().is_ok(), "{}", site.server.log());
    openbao.kill();
    assert!(visit().is_err());
    let failure = site.server.status()["failures"][0].clone();
    assert_eq!((&failure["store"], &failure["class"]), (&json!("bao"), &json!("unavailable")), "{failure}");
    openbao.restart();
    assert!(visit().is_err(), "it is sealed");
    openbao.unseal();
    let end = Instant::now() + PATIENCE;
    while let Err(error) = visit() {
        assert!(Instant::now() < end, "never served again: {error}\n{}", site.server.log());
        thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn a_token_that_is_refused_is_one_line_and_check_says_it() {
    let (files, openbao) = (Files::new(), OpenBao::start());
    openbao.make("p256", "ecdsa-p256");
    let token = openbao.token();
    openbao.bao(&["token", "revoke", &token]);
    let config = files.config(&store(&files, &openbao, &token));
    let why =
        "the server says permission denied: it doesn't know the token, which is wrong, revoked or expired";

    let output = keystead("check", &config).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert_eq!(text.matches(why).count(), 1, "{text}");

    let server = Server::spawn(keystead("run", &config));
    let line = server.wait_for("the store is down");
    assert!(line.contains(why) && line.contains("HTTP 403"), "{line}");
    let last = server.status()["stores"][0]["last_error"].clone();
    assert_eq!(
        (&last["class"], &last["vendor"]),
        (&json!("credentials"), &json!({"name": "HTTP", "code": 403}))
    );
    assert_eq!(server.log().matches(why).count(), 1, "{}", server.log());

    // A reload with the same one doesn't present it again, and says so.
    let warnings = server.reload()["warnings"].to_string();
    assert!(
        warnings.contains("store `bao` stays down: ") && warnings.contains("give it another one"),
        "{warnings}"
    );
    // Another token in the file is taken up by a reload.
    fs::write(files.path("token"), openbao.token()).unwrap();
    server.reload();
    server.wait_until_ready();
    assert_eq!(server.status()["stores"][0]["keys"], 1, "{}", server.log());
    assert!(!server.log().contains(&token) && !text.contains(&token));
}

#[test]
fn one_call_from_the_command_line_shows_what_the_plugin_asks_for_and_gets() {
    let (files, openbao) = (Files::new(), OpenBao::start());
    openbao.make("p256", "ecdsa-p256");
    let token = openbao.token();
    let config = files.config(&store(&files, &openbao, &token));
    let plugin = PLUGINS.path().join("openbao-transit.wasm");
    let call = |what: &[&str], config: &Path| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_keystead"));
        command.args(["plugin", "call"]).arg(&plugin).args(what).arg("--config").arg(config);
        let output = command.output().unwrap();
        let (text, log) =
            (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
        assert!(!text.contains(&token) && !log.contains(&token), "{text}{log}");
        (output.status.code(), text, log)
    };
    let (code, text, log) = call(&["keys"], &config);
    assert_eq!(code, Some(0), "{log}");
    assert!(text.contains("p256 version 1") && text.contains("ecdsa-sha256"), "{text}");
    let reading =
        format!("granted store=\"bao\" method=\"GET\" url=\"{}/v1/transit/keys/p256\"", openbao.url());
    assert!(log.contains(&reading) && log.contains("status=200"), "{log}");

    let (code, text, log) = call(&["sign", "--key", "p256 version 1"], &config);
    assert_eq!(code, Some(0), "{log}");
    assert!(text.starts_with("`p256 version 1` signed by ecdsa-sha256: "), "{text}");
    assert!(text.contains("and they verify") && log.contains("/v1/transit/sign/p256"), "{text}{log}");
    assert!(call(&["health"], &config).1.starts_with("well, generation "));

    let ungranted = store(&files, &openbao, &token).replace("[GET, POST]", "[GET]");
    let (code, _, log) = call(&["sign"], &files.config(&ungranted));
    assert_eq!(code, Some(1));
    assert!(
        log.contains("denied store=\"bao\" method=\"POST\"") && log.contains("methods: [GET, POST]"),
        "{log}"
    );
    assert!(log.contains("keystead: error: denied: POST https://127.0.0.1:"), "{log}");
    let nowhere = files.config("private_key_stores: []\n");
    let (code, _, log) = call(&["keys"], &nowhere);
    assert_eq!((code, log.contains("has no store with `plugin: openbao-transit`")), (Some(1), true), "{log}");
}
