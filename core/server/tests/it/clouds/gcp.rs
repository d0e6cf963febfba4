//! Google Cloud KMS.

use std::time::Duration;

use keystead_fakes::{
    Answer,
    gcp::{Gcp, RING},
};
use keystead_protocol::Opcode;
use openssl::{pkey::PKey, rsa::Rsa};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{Build, Client, Cloud, Files, Public, Server};

/// A cloud, and its folder.
struct Google {
    gcp: Gcp,
    _folder: TempDir,
}

impl Google {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self { gcp: Gcp::start(folder.path()), _folder: folder }
    }
}

impl Cloud for Google {
    const PACKAGE: &str = "keystead-plugin-gcp";
    const SIGNING: &str = ":asymmetricSign";
    const HANDSHAKES: &[(&str, &str, &str)] = &[
        ("rsa", "1.3", "rsa_pss_rsae_sha256"),
        ("rsa", "1.2", "RSA+SHA256"),
        ("p256", "1.3", "ecdsa_secp256r1_sha256"),
        ("p256", "1.2", "ECDSA+SHA256"),
        ("p384", "1.3", "ecdsa_secp384r1_sha384"),
        ("ed25519", "1.3", "ed25519"),
    ];

    fn server(&self) -> &keystead_fakes::Server {
        self.gcp.server()
    }

    /// RSA for both versions of TLS is one key that is imported twice, for a padding each: one site, one SKI.
    fn make_keys(&self) -> Vec<Public> {
        let rsa = PKey::from_rsa(Rsa::generate(2048).unwrap()).unwrap().private_key_to_pkcs8().unwrap();
        self.gcp.import_key("rsa-pkcs1", "RSA_SIGN_PKCS1_2048_SHA256", &rsa);
        vec![
            ("rsa", self.gcp.import_key("rsa-pss", "RSA_SIGN_PSS_2048_SHA256", &rsa)),
            ("p256", self.gcp.make_key("p256", "EC_SIGN_P256_SHA256")),
            ("p384", self.gcp.make_key("p384", "EC_SIGN_P384_SHA384")),
            ("ed25519", self.gcp.make_key("ed25519", "EC_SIGN_ED25519")),
        ]
    }

    fn store(&self, files: &Files) -> String {
        let account = super::json_file(files, "account.json", &self.gcp.service_account());
        let (ca, proxy) = (self.gcp.ca().display(), self.gcp.proxy());
        format!(
            "- name: kms\n  plugin: gcp\n  config: {{uris: [{RING}], credential: {{type: service_account}}}}\n  secrets:\n\
             \x20   private_key: {{file: {account}, pointer: /private_key}}\n\
             \x20   private_key_id: {{file: {account}, pointer: /private_key_id, expose: true}}\n\
             \x20   client_email: {{file: {account}, pointer: /client_email, expose: true}}\n  grants:\n    http:\n\
             \x20   - {{url: \"https://cloudkms.googleapis.com\", methods: [GET, POST], ca: {ca}, proxy: \"{proxy}\"}}\n"
        )
    }

    fn legacy(&self, files: &Files, key: &str) -> (String, Vec<(&'static str, String)>) {
        let account = super::json_file(files, "account.json", &self.gcp.service_account());
        let entry = format!("- uri: {RING}/cryptoKeys/{key}/cryptoKeyVersions/1\n");
        let environment = [
            ("GOOGLE_APPLICATION_CREDENTIALS", account),
            ("HTTPS_PROXY", self.gcp.proxy()),
            ("SSL_CERT_FILE", self.gcp.ca().display().to_string()),
        ];
        (entry, environment.into())
    }

    fn exceeded(&self) -> Answer {
        let message = "Quota exceeded for quota metric 'HSM asymmetric cryptographic requests'";
        let error = json!({"code": 429, "message": message, "status": "RESOURCE_EXHAUSTED"});
        Answer::json(429, &json!({"error": error}))
    }

    /// A service account has its key, and what it signs with it for each hour.
    fn credentials(&self) -> Vec<String> {
        let account = self.gcp.service_account();
        let key: Vec<_> = account["private_key"].as_str().unwrap().lines().map(str::to_owned).collect();
        let bearers = self
            .gcp
            .server()
            .asked()
            .into_iter()
            .filter_map(|asked| Some(asked.header("authorization")?.strip_prefix("Bearer ")?.to_owned()));
        key.into_iter().filter(|line| line.len() >= 32 && !line.starts_with("-----")).chain(bearers).collect()
    }
}

#[test]
fn curl_shakes_hands_with_keys_in_google_cloud_by_a_component() {
    super::shakes_hands(&Google::start(), Build::Component);
}

#[test]
fn curl_shakes_hands_with_keys_in_google_cloud_by_a_library() {
    super::shakes_hands(&Google::start(), Build::Library);
}

#[test]
fn an_entry_of_the_reference_for_google_cloud_is_served_as_its_environment_says() {
    super::serves_an_entry_of_the_reference(&Google::start());
}

#[test]
fn a_google_cloud_that_stalls_leaves_other_stores_alone() {
    super::stalls_alone(&Google::start());
}

#[test]
fn the_quota_of_google_cloud_sheds_requests_and_no_store() {
    super::sheds_what_the_quota_does_not_let_through(&Google::start());
}

#[test]
fn a_google_cloud_that_is_away_and_back_is_served_again() {
    super::comes_back_after_an_outage(&Google::start());
}

/// The file of a workload that acts as the service account, with its token in a member of a JSON file.
fn workload(google: &Google, token: &str) -> Value {
    let account = google.gcp.service_account();
    let services = "https://iamcredentials.googleapis.com/v1/projects/-/serviceAccounts";
    json!({
        "type": "external_account",
        "audience": google.gcp.audience(),
        "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
        "token_url": "https://sts.googleapis.com/v1/token",
        "service_account_impersonation_url":
            format!("{services}/{}:generateAccessToken", account["client_email"].as_str().unwrap()),
        "credential_source": {"file": token, "format": {"type": "json", "subject_token_field_name": "id_token"}},
    })
}

#[test]
fn a_workload_whose_token_was_stale_is_served_by_itself_once_another_is_written() {
    let google = Google::start();
    let (files, directory) = (Files::new(), super::directory::<Google>(Build::Component));
    let keys = google.make_keys();
    let write = |lives| {
        let token = google.gcp.subject_token(Duration::from_secs(lives));
        super::json_file(&files, "token.json", &json!({"id_token": token}))
    };
    let credentials = super::json_file(&files, "workload.json", &workload(&google, &write(0)));
    let (entry, environment) = google.legacy(&files, "p256");
    let mut keystead = super::keystead(&files.config(&format!("private_key_stores:\n{entry}")), &directory);
    keystead.envs(environment).env("GOOGLE_APPLICATION_CREDENTIALS", credentials);
    let server = Server::spawn(keystead);
    server.wait_for("invalid_grant: ID Token issued is stale");
    write(3600);
    server.wait_until_ready();
    let mut client = Client::connect(&files, &server);
    let signature = client.ask(super::ski_of(&keys, "p256"), Opcode::ECDSA_SIGN_SHA256, &[1; 32]);
    assert!(signature.is_ok(), "{signature:?}\n{}", server.log());
}

#[test]
fn a_google_cloud_that_throttles_at_the_start_is_left_alone_until_it_may_be_asked_or_an_operator_says_so() {
    super::is_left_alone_while_it_wants_to_be(&Google::start());
}
