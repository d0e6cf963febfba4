//! Whom the server lets in, and the settings with which it refuses to start.

use std::process::Command;

use rcgen::ExtendedKeyUsagePurpose;
use rustls::version::TLS12;

use crate::world::{CLIENT, Client, Files, Server};

/// What a server says that refuses to start.
fn refusal(files: &Files, lines: &str) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_keystead"));
    let output = command.arg("run").arg("-c").arg(files.config(lines)).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    String::from_utf8(output.stderr).unwrap()
}

/// Whether a client gets in. TLS 1.2, where the client's handshake ends after the server's verdict.
fn is_let_in(files: &Files, name: &str, server: &Server) -> bool {
    Client::connect_with(files.client_tls_as(name, &[&TLS12]), server.address).is_ok()
}

#[test]
fn a_file_without_a_revocation_list_is_refused() {
    let files = Files::new();
    let said = refusal(&files, &format!("tls: {{crl: {}}}\n", files.path("ca.pem").display()));
    assert!(said.contains("ca.pem: it holds no PEM revocation list"), "{said}");
}

#[test]
fn a_damaged_revocation_list_is_refused_by_its_name() {
    let files = Files::new();
    let list = files.write("damaged.crl", &[0x30, 0x03, 0x02, 0x01, 0x01]);
    let said = refusal(&files, &format!("tls: {{crl: {}}}\n", list.display()));
    assert!(said.contains("damaged.crl: "), "{said}");
}

#[test]
fn a_revoked_client_is_refused_and_another_is_not() {
    let files = Files::new();
    files.issue("other", CLIENT + 1, ExtendedKeyUsagePurpose::ClientAuth);
    let list = files.revoke(CLIENT, 2999);
    let server = Server::with_keys(&files, &format!("tls: {{crl: {}}}\n", list.display()));
    assert!(!is_let_in(&files, "client", &server));
    assert!(is_let_in(&files, "other", &server));
}

#[test]
fn a_revocation_list_that_has_expired_lets_nobody_in() {
    let files = Files::new();
    files.issue("other", CLIENT + 1, ExtendedKeyUsagePurpose::ClientAuth);
    let list = files.revoke(CLIENT, 2021);
    let server = Server::with_keys(&files, &format!("tls: {{crl: {}}}\n", list.display()));
    assert!(!is_let_in(&files, "client", &server));
    assert!(!is_let_in(&files, "other", &server));
}
