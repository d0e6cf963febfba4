//! Whom the server lets in, and the settings with which it refuses to start.

use std::{
    process::Command,
    sync::Arc,
    thread,
    time::{Duration, SystemTime},
};

use rcgen::ExtendedKeyUsagePurpose;
use rustls::{
    ClientConfig,
    version::{TLS12, TLS13},
};

use crate::world::{CLIENT, Client, Files, Server, ping};

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

/// Connects and has a ping answered: whether that worked, and whether the session was resumed. In TLS 1.3 a client
/// hears of the server's verdict only with the first answer.
fn visit(tls: &Arc<ClientConfig>, server: &Server) -> Option<bool> {
    let mut client = Client::connect_with(Arc::clone(tls), server.address).ok()?;
    let answered =
        client.try_send(&ping(1, b"x")) && client.try_receive().is_ok_and(|answer| answer.is_some());
    answered.then(|| client.is_resumed())
}

#[test]
fn who_was_revoked_can_neither_connect_nor_resume_after_a_reload() {
    for version in [&TLS12, &TLS13] {
        let files = Files::new();
        files.issue("other", CLIENT + 1, ExtendedKeyUsagePurpose::ClientAuth);
        let server = Server::with_keys(&files, "tls: {resumption: true}\n");
        let [revoked, other] = ["client", "other"].map(|name| files.client_tls_as(name, &[version]));
        for client in [&revoked, &other] {
            assert_eq!(visit(client, &server), Some(false));
            assert_eq!(visit(client, &server), Some(true), "sessions are resumed where that is on");
        }
        let mut open = Client::connect_with(Arc::clone(&revoked), server.address).unwrap();
        let list = files.revoke(CLIENT, 2999);
        let keys = files.path("keys");
        files.change_config(&format!(
            "private_key_stores: [{{dir: {}}}]\ntls: {{resumption: true, crl: {}}}\n",
            keys.display(),
            list.display()
        ));
        assert_eq!(server.reload()["tls"], true);
        assert_eq!(open.receive(), None, "its connection is closed");
        assert_eq!(visit(&revoked, &server), None);
        assert_eq!(
            visit(&files.client_tls_as("client", &[version]), &server),
            None,
            "without a session neither"
        );
        assert_eq!(visit(&other, &server), Some(false), "no session outlives the list's generation");
        assert_eq!(visit(&other, &server), Some(true));
        server.wait_for_metric("keystead_tls_handshake_failures_total{reason=\"revoked\"} 2");
        server.wait_for("a client is refused: ");
    }
}

#[test]
fn a_session_is_not_resumed_once_the_clients_certificate_has_expired() {
    for version in [&TLS12, &TLS13] {
        let files = Files::new();
        let server = Server::with_keys(&files, "tls: {resumption: true}\nlimits: {idle_timeout: 5m}\n");
        let expires = SystemTime::now() + Duration::from_secs(4);
        files.issue_until("brief", CLIENT + 2, expires);
        let brief = files.client_tls_as("brief", &[version]);
        assert_eq!(visit(&brief, &server), Some(false));
        assert_eq!(visit(&brief, &server), Some(true));
        let mut open = Client::connect_with(Arc::clone(&brief), server.address).unwrap();
        while let Ok(left) = expires.duration_since(SystemTime::now()) {
            thread::sleep(left + Duration::from_secs(2)); // certificates have whole seconds
        }
        assert_eq!(visit(&brief, &server), None);
        server.wait_for_metric("keystead_tls_handshake_failures_total{reason=\"expired\"} 1");
        server.reload();
        assert_eq!(open.receive(), None, "its connection is closed");
    }
}

#[test]
fn a_revocation_list_is_shown_and_warned_of_a_day_before_it_expires() {
    let files = Files::new();
    let list = files.revoke_until(CLIENT + 5, SystemTime::now() + Duration::from_secs(5 * 3_600 + 60));
    let server = Server::with_keys(&files, &format!("tls: {{crl: {}}}\n", list.display()));
    server.wait_for("revoked.pem expires in 5 hours; renew it");
    let certificates = server.status()["certificates"].clone();
    let shown = certificates.as_array().unwrap().iter().find(|one| one["role"] == "crl").unwrap();
    assert!(shown["file"].as_str().unwrap().ends_with("revoked.pem"), "{shown}");
    let (_, metrics) = server.get("/metrics");
    let labels = "ca=\"false\",client=\"false\",cn=\"first\"";
    assert!(metrics.lines().any(|line| line.contains(labels) && line.contains("revoked.pem")), "{metrics}");
}

#[test]
fn a_reload_without_change_leaves_connections_and_sessions() {
    let files = Files::new();
    let server = Server::with_keys(&files, "tls: {resumption: true}\n");
    let client = files.client_tls(&[&TLS13]);
    assert_eq!(visit(&client, &server), Some(false));
    let mut open = Client::connect_with(Arc::clone(&client), server.address).unwrap();
    assert_eq!(server.reload()["tls"], false);
    assert_eq!(visit(&client, &server), Some(true));
    open.send(&ping(1, b"still here"));
    assert!(open.answer().1.is_ok());
}

#[test]
fn certificates_and_peers_are_shown_with_their_expiry() {
    let files = Files::new();
    let expires = SystemTime::now() + Duration::from_secs(20 * 24 * 60 * 60);
    let seconds = expires.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    files.issue_until("brief", CLIENT + 2, expires);
    let server = Server::with_keys(&files, "");
    let clients =
        [0, 1].map(|_| Client::connect_with(files.client_tls_as("brief", &[&TLS12]), server.address));
    server.wait_for_metric("keystead_connections 2");
    let status = server.status();
    let peer = &status["connections"]["peers"][0];
    assert_eq!((&peer["name"], &peer["connections"]), (&"localhost".into(), &2.into()));
    assert_eq!(peer["expires"], seconds);
    let roles: Vec<_> =
        status["certificates"].as_array().unwrap().iter().map(|one| one["role"].clone()).collect();
    assert_eq!(roles, ["server", "client_ca"]);
    let (_, metrics) = server.get("/metrics");
    let line = metrics.lines().find(|line| line.contains("source=\"listener\"")).unwrap();
    assert!(line.contains("client=\"true\"") && line.contains("serial_no=\"4\""), "{line}");
    assert!(line.ends_with(&format!(" {seconds}")), "{line}");
    drop(clients);
    server.wait_for_metric("keystead_connections 0");
    assert!(!server.get("/metrics").1.contains("source=\"listener\""), "who has left is no series");
}

#[test]
fn a_certificate_of_its_own_that_expires_soon_is_warned_of() {
    let files = Files::new();
    files.issue_until("server", 9, SystemTime::now() + Duration::from_secs(20 * 24 * 60 * 60 + 60));
    let server = Server::with_keys(&files, "");
    server.wait_for("server.pem expires in 20 days; renew it");
}
