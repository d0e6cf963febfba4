//! Azure Key Vault.

use std::time::Duration;

use keystead_fakes::{
    Answer,
    azure::{Azure, Type},
};
use keystead_protocol::Opcode;
use serde_json::json;
use tempfile::TempDir;

use super::{Build, Client, Cloud, Files, Public, Server};

/// The vault of the keys.
const VAULT: &str = "demo.vault.azure.net";

/// A cloud, and its folder.
struct Vault {
    azure: Azure,
    _folder: TempDir,
}

impl Vault {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self { azure: Azure::start(folder.path()), _folder: folder }
    }
}

impl Cloud for Vault {
    const PACKAGE: &str = "keystead-plugin-azure";
    const SIGNING: &str = "/sign";
    const HANDSHAKES: &[(&str, &str, &str)] = &[
        ("rsa", "1.3", "rsa_pss_rsae_sha256"),
        ("rsa", "1.3", "rsa_pss_rsae_sha384"),
        ("rsa", "1.3", "rsa_pss_rsae_sha512"),
        ("rsa", "1.2", "RSA+SHA256"),
        ("rsa", "1.2", "RSA+SHA512"),
        ("p256", "1.3", "ecdsa_secp256r1_sha256"),
        ("p256", "1.2", "ECDSA+SHA256"),
        ("p384", "1.3", "ecdsa_secp384r1_sha384"),
    ];

    fn server(&self) -> &keystead_fakes::Server {
        self.azure.vaults()
    }

    fn make_keys(&self) -> Vec<Public> {
        let types = [("rsa", Type::RsaHsm(2048)), ("p256", Type::P256), ("p384", Type::P384Hsm)];
        types.map(|(name, key_type)| (name, self.azure.make_key(VAULT, name, key_type))).into()
    }

    fn store(&self, files: &Files) -> String {
        let secret = files.write("client-secret", self.azure.client_secret().as_bytes());
        let (ca, proxy) = (self.azure.ca().display(), self.azure.proxy());
        let reached = format!("ca: {ca}, proxy: \"{proxy}\"");
        format!(
            "- name: vault\n  plugin: azure\n  config:\n    uris: [\"https://{VAULT}/keys\"]\n\
             \x20   credential: {{type: client_secret, client_id: {}}}\n  secrets:\n\
             \x20   client_secret: {{file: {}}}\n  grants:\n    http:\n\
             \x20   - {{url: \"https://{VAULT}\", methods: [GET, POST], {reached}}}\n\
             \x20   - {{url: \"https://login.microsoftonline.com\", methods: [POST], secrets: [client_secret], {reached}}}\n",
            self.azure.client_id(),
            secret.display(),
        )
    }

    fn legacy(&self, _: &Files, key: &str) -> (String, Vec<(&'static str, String)>) {
        let version = self.azure.version(VAULT, key);
        let environment = [
            ("AZURE_TENANT_ID", self.azure.tenant().to_owned()),
            ("AZURE_CLIENT_ID", self.azure.client_id().to_owned()),
            ("AZURE_CLIENT_SECRET", self.azure.client_secret().to_owned()),
            ("HTTPS_PROXY", self.azure.proxy()),
            ("SSL_CERT_FILE", self.azure.ca().display().to_string()),
        ];
        (format!("- uri: https://{VAULT}/keys/{key}/{version}\n"), environment.into())
    }

    fn exceeded(&self) -> Answer {
        let message = "Request was not processed because too many requests were received.";
        Answer::json(429, &json!({"error": {"code": "Throttled", "message": message}}))
    }

    fn credentials(&self) -> Vec<String> {
        let mut credentials = self.azure.tokens();
        credentials.push(self.azure.client_secret().to_owned());
        credentials
    }
}

#[test]
fn curl_shakes_hands_with_keys_in_azure_by_a_component() {
    super::shakes_hands(&Vault::start(), Build::Component);
}

#[test]
fn curl_shakes_hands_with_keys_in_azure_by_a_library() {
    super::shakes_hands(&Vault::start(), Build::Library);
}

#[test]
fn an_entry_of_the_reference_for_azure_is_served_as_its_environment_says() {
    super::serves_an_entry_of_the_reference(&Vault::start());
}

#[test]
fn a_vault_that_stalls_leaves_other_stores_alone() {
    super::stalls_alone(&Vault::start());
}

#[test]
fn the_quota_of_a_vault_sheds_requests_and_no_store() {
    super::sheds_what_the_quota_does_not_let_through(&Vault::start());
}

#[test]
fn a_vault_that_is_away_and_back_is_served_again() {
    super::comes_back_after_an_outage(&Vault::start());
}

#[test]
fn a_workload_whose_token_has_expired_is_served_by_itself_once_another_is_written() {
    let vault = Vault::start();
    let (files, directory) = (Files::new(), super::directory::<Vault>(Build::Component));
    let keys = vault.make_keys();
    let write = |lives| {
        let token = vault.azure.federated_token(Duration::from_secs(lives));
        files.write("federated-token", token.as_bytes())
    };
    let (entry, environment) = vault.legacy(&files, "p256");
    let mut keystead = super::keystead(&files.config(&format!("private_key_stores:\n{entry}")), &directory);
    keystead.envs(environment).env_remove("AZURE_CLIENT_SECRET").env("AZURE_FEDERATED_TOKEN_FILE", write(0));
    let server = Server::spawn(keystead);
    server.wait_for("AADSTS700024");
    write(3600);
    server.wait_until_ready();
    let mut client = Client::connect(&files, &server);
    let signature = client.ask(super::ski_of(&keys, "p256"), Opcode::ECDSA_SIGN_SHA256, &[1; 32]);
    assert!(signature.is_ok(), "{signature:?}\n{}", server.log());
}

#[test]
fn a_vault_that_throttles_at_the_start_is_left_alone_until_it_may_be_asked_or_an_operator_says_so() {
    super::is_left_alone_while_it_wants_to_be(&Vault::start());
}

#[test]
fn a_wrong_secret_at_a_reload_changes_nothing_and_brings_no_store_down() {
    let vault = Vault::start();
    let (files, directory) = (Files::new(), super::directory::<Vault>(Build::Component));
    let (server, ski) = super::beside_files(&vault, &files, &directory, "");
    files.write("client-secret", b"another");
    let (code, _, said) = server.admin(&["reload"]);
    assert!(code == 1 && said.contains("AADSTS7000215"), "{said}");
    let mut client = Client::connect(&files, &server);
    assert!(client.ask(ski, Opcode::ECDSA_SIGN_SHA256, &[1; 32]).is_ok(), "{}", server.log());
    server.wait_for("the reload is refused");
    assert!(!server.log().contains("the store is down"), "{}", server.log());
}
