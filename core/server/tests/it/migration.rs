//! Moving over from gokeyless: its configuration file and its command line work as they are.

use std::{fs, process::Command};

use keystead_protocol::Opcode;

use crate::world::{Client, Files, Server, plugins, skis};

/// Every key of the reference's documentation, with the values of its packages where they can be kept.
fn gokeyless_yaml(files: &Files) -> String {
    let path = |name: &str| files.path(name).display().to_string();
    format!(
        "loglevel: 1\nhostname: keys.example.com\nzone_id: 0123456789abcdef\norigin_ca_api_key: v1.0-secret-thing\n\
         init_endpoint: https://api.cloudflare.com/client/v4/certificates/\nauth_cert: {}\nauth_key: {}\n\
         auth_csr: {}\ncloudflare_ca_cert: {}\nport: {}\nmetrics_port: {}\npid_file: {}\n\
         tracing_enabled: false\ntracing_address: localhost:6831\ntracing_sample_rate: 0.1\n\
         sign_timeout: 2s\nsign_retry_count: 1\n\
         private_key_stores:\n- dir: {}\n- file: {}\n\
         - uri: pkcs11:token=nowhere;object=www?module-path=/nonexistent/libpkcs11.so&pin-value=987654&max-sessions=1\n",
        path("server.pem"),
        path("server-key.pem"),
        path("server.csr"),
        path("ca.pem"),
        free_port(),
        free_port(),
        path("keystead.pid"),
        path("keys"),
        path("keys/rsa.key"),
    )
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn started_with(files: &Files, arguments: &[&str]) -> Server {
    let config = files.write("gokeyless.yaml", gokeyless_yaml(files).as_bytes());
    let mut command = Command::new(env!("CARGO_BIN_EXE_keystead"));
    command.args(arguments).arg(config).env("KEYSTEAD_PLUGIN_PATH", plugins());
    let server = Server::spawn(command);
    server.wait_until_ready();
    server
}

#[test]
fn a_gokeyless_yaml_runs_unchanged() {
    let files = Files::new();
    let server = started_with(&files, &["run", "-c"]);
    let mut client = Client::connect(&files, &server);
    assert!(client.ask(skis()["p256"], Opcode::ECDSA_SIGN_SHA256, &[1; 32]).is_ok());
    assert_eq!(fs::read_to_string(files.path("keystead.pid")).unwrap(), server.pid().to_string());
    let line = server.wait_for("/nonexistent/libpkcs11.so");
    assert!(!line.contains("987654"), "{line}");
}

#[test]
fn the_bare_flags_of_gokeyless_mean_run() {
    let files = Files::new();
    let server = started_with(&files, &["--loglevel", "0", "--config-file"]);
    let mut client = Client::connect(&files, &server);
    assert!(client.ask(skis()["rsa"], Opcode::RSA_PSS_SIGN_SHA256, &[1; 32]).is_ok());
}

#[test]
fn key_directories_come_by_flag_and_by_variable() {
    let files = Files::new();
    let config = files.config("");
    let keys = files.path("keys").display().to_string();
    let mut by_flag = Command::new(env!("CARGO_BIN_EXE_keystead"));
    by_flag.arg("-c").arg(&config).args(["--private-key-dirs", &keys]);
    let mut by_variable = Command::new(env!("CARGO_BIN_EXE_keystead"));
    by_variable.arg("-c").arg(&config).env("KEYLESS_PRIVATE_KEY_DIRS", &keys);
    for command in [by_flag, by_variable] {
        let server = Server::spawn(command);
        server.wait_until_ready();
        let mut client = Client::connect(&files, &server);
        assert!(client.ask(skis()["ed25519"], Opcode::ED25519_SIGN, b"message").is_ok());
    }
}
