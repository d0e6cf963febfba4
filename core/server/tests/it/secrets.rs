//! No PIN or passphrase in any log, error, page of the metrics port, or process argument.

use std::{fs, process::Command};

use keystead_protocol::Opcode;

use crate::world::{Client, Files, Server, skis};

/// What must never be seen.
const SECRETS: [&str; 3] = ["hunter2-passphrase", "hunter2-pin", "hunter2-value"];

fn assert_none_in(text: &str, place: &str) {
    for secret in SECRETS {
        assert!(!text.contains(secret), "{secret} stands in {place}:\n{text}");
    }
}

/// Stores with a secret of each kind: some are used, some are refused.
fn stores(files: &Files) -> String {
    let key =
        openssl::pkey::PKey::private_key_from_pkcs8(&fs::read(files.path("keys/p256.key")).unwrap()).unwrap();
    let cipher = openssl::symm::Cipher::aes_256_cbc();
    let encrypted = key.private_key_to_pem_pkcs8_passphrase(cipher, SECRETS[0].as_bytes()).unwrap();
    let encrypted = files.write("encrypted.key", &encrypted);
    let passphrase = files.write("passphrase", SECRETS[0].as_bytes());
    format!(
        "private_key_stores:\n\
         - {{name: right, plugin: file, config: {{file: {0}}}, secrets: {{passphrase: {{file: {1}}}}}}}\n\
         - {{name: wrong, plugin: file, config: {{file: {0}}}, secrets: {{passphrase: {{value: {2}}}}}}}\n\
         - {{uri: \"pkcs11:token=t;object=o?module-path=/nonexistent.so&pin-value={3}\"}}\n\
         - {{uri: \"pkcs11:token=t;object=o;bogus?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-value={3}\"}}\n",
        encrypted.display(),
        passphrase.display(),
        SECRETS[2],
        SECRETS[1]
    )
}

#[test]
fn no_secret_is_seen_at_the_most_talkative_level() {
    let files = Files::new();
    let server = Server::start(&files, &format!("{}log: {{level: trace}}\n", stores(&files)));
    let mut client = Client::connect(&files, &server);
    server.wait_for("store=\"wrong\"");
    assert!(client.ask(skis()["p256"], Opcode::ECDSA_SIGN_SHA256, &[1; 32]).is_ok(), "the secret was used");
    for page in ["/metrics", "/readyz", "/healthz", "/"] {
        assert_none_in(&server.get(page).1, page);
    }
    let arguments = fs::read(format!("/proc/{}/cmdline", server.pid())).unwrap();
    assert_none_in(&String::from_utf8_lossy(&arguments), "the arguments");
    assert_none_in(&server.log(), "the log");
}

#[test]
fn no_secret_is_printed_by_a_command() {
    let files = Files::new();
    let config = files.config(&stores(&files)).display().to_string();
    for command in [&["check"][..], &["check", "--json"], &["keys"], &["plugin", "list"], &["-o"], &["-d"]] {
        let mut keystead = Command::new(env!("CARGO_BIN_EXE_keystead"));
        let output = keystead.args(command).args(["-c", &config]).output().unwrap();
        assert_none_in(&String::from_utf8_lossy(&output.stdout), &format!("the output of {command:?}"));
        assert_none_in(&String::from_utf8_lossy(&output.stderr), &format!("the errors of {command:?}"));
    }
}

#[test]
fn a_configuration_that_is_refused_keeps_its_secrets() {
    let files = Files::new();
    for broken in [
        "private_key_stores: [{uri: [hunter2-pin]}]\n",
        "private_key_stores: [{name: a, plugin: file, secrets: {passphrase: {valeu: hunter2-value}}}]\n",
        "private_key_stores: [{name: a, plugin: file, secrets: {passphrase: hunter2-value}}]\n",
        "private_key_stores: [{uri: \"nonsense?pin-value=hunter2-pin\"}]\n",
    ] {
        let config = files.config(broken).display().to_string();
        let output =
            Command::new(env!("CARGO_BIN_EXE_keystead")).args(["run", "-c", &config]).output().unwrap();
        assert_eq!(output.status.code(), Some(64), "{broken}");
        assert_none_in(&String::from_utf8_lossy(&output.stderr), broken);
    }
}
