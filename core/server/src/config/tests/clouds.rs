use keystead_plugin_host::Grant;

use super::*;

const VAULT: &str = "https://v.vault.azure.net/keys/k/1";
const VERSION: &str = "projects/p/locations/l/keyRings/r/cryptoKeys/k/cryptoKeyVersions/1";

fn read(uris: &[&str], variables: &[(&str, &str)]) -> Config {
    let list: String = uris.iter().map(|uri| format!("- uri: {uri}\n")).collect();
    let yaml = format!("private_key_stores:\n{list}");
    settings::resolve(&yaml, &Flags::default(), &env(variables)).unwrap()
}

/// The first store of a list.
fn store(uri: &str, variables: &[(&str, &str)]) -> Store {
    read(&[uri], variables).stores.remove(0)
}

/// Grants in one line each.
fn grants(store: &Store) -> Vec<String> {
    let words = |set: &BTreeSet<String>| set.iter().cloned().collect::<Vec<_>>().join(" ");
    let line = |grant: &Grant| {
        let by = grant.proxy.as_ref().map(|proxy| format!(" by {proxy}")).unwrap_or_default();
        format!("{} {} [{}]{by}", words(&grant.methods), grant.origin, words(&grant.secrets))
    };
    store.grants.iter().map(line).collect()
}

fn credential(store: &Store) -> String {
    store.config["credential"].to_string()
}

#[test]
fn an_entry_of_azure_asks_as_the_environment_says() {
    let machine = store(VAULT, &[("AZURE_CLIENT_ID", "c")]);
    assert_eq!(credential(&machine), r#"{"client_id":"c","type":"managed_identity"}"#);
    let metadata = "GET http://169.254.169.254:80 []";
    assert_eq!(grants(&machine), ["GET POST https://v.vault.azure.net:443 []", metadata]);

    let app =
        store(VAULT, &[("IDENTITY_ENDPOINT", "http://127.0.0.1:41/msi/token"), ("IDENTITY_HEADER", "h")]);
    assert_eq!(credential(&app), r#"{"endpoint":"http://127.0.0.1:41/msi/token","type":"app_service"}"#);
    assert_eq!(grants(&app)[1], "GET http://127.0.0.1:41 [identity_header]");
    assert_eq!(app.secrets["identity_header"], SecretSource::Env("IDENTITY_HEADER".to_owned()));

    let id = [("AZURE_TENANT_ID", "t"), ("AZURE_CLIENT_ID", "c")];
    let secret = store(VAULT, &[&id[..], &[("AZURE_CLIENT_SECRET", "sesame")]].concat());
    assert_eq!(
        credential(&secret),
        r#"{"authority":"https://login.microsoftonline.com","client_id":"c","tenant":"t","type":"client_secret"}"#
    );
    assert_eq!(grants(&secret)[1], "POST https://login.microsoftonline.com:443 [client_secret]");
    assert_eq!(secret.secrets["client_secret"], SecretSource::Env("AZURE_CLIENT_SECRET".to_owned()));
    assert!(!format!("{secret:?}").contains("sesame") && secret.exposed.is_empty());

    let workload =
        [&id[..], &[("AZURE_FEDERATED_TOKEN_FILE", "/t"), ("AZURE_AUTHORITY_HOST", "https://a.example/")]];
    let workload = store(VAULT, &workload.concat());
    assert_eq!(
        credential(&workload),
        r#"{"authority":"https://a.example","client_id":"c","tenant":"t","type":"workload_identity"}"#
    );
    assert_eq!(grants(&workload)[1], "POST https://a.example:443 [federated_token]");

    let file = store(VAULT, &[("AZURE_AUTH_LOCATION", "/auth.json"), ("AZURE_CLIENT_SECRET", "sesame")]);
    assert_eq!(
        credential(&file),
        r#"{"authority":"https://login.microsoftonline.com","type":"client_secret"}"#
    );
    let source =
        SecretSource::Member(SecretSource::File("/auth.json".into()).into(), "/clientSecret".to_owned());
    assert_eq!(file.secrets["client_secret"], source);
    assert_eq!(file.exposed, ["client_id", "tenant"].map(str::to_owned).into());
}

#[test]
fn each_vault_is_a_store_and_each_cloud_has_its_authority() {
    let uris = [VAULT, "https://h.managedhsm.azure.cn/keys/k/1", "https://v.vault.azure.net/keys/j/2"];
    let config = read(&uris, &[("AZURE_CLIENT_SECRET", "s")]);
    let served: Vec<_> = config.stores.iter().map(|store| store.config["uris"].to_string()).collect();
    assert_eq!(served, [format!("[{VAULT:?},{:?}]", uris[2]), format!("[{:?}]", uris[1])]);
    assert_eq!(grants(&config.stores[1])[1], "POST https://login.chinacloudapi.cn:443 [client_secret]");
    let government = store("https://v.vault.usgovcloudapi.net/keys/k/1", &[("AZURE_CLIENT_SECRET", "s")]);
    assert_eq!(grants(&government)[1], "POST https://login.microsoftonline.us:443 [client_secret]");
    assert_eq!(config.warnings, [], "nothing decrypts");
}

#[test]
fn a_service_with_a_private_endpoint_is_reached_as_in_the_reference() {
    for (uri, variables) in [(VAULT, [("AZURE_CLIENT_SECRET", "s")]), (VERSION, [("GCE_METADATA_HOST", "m")])]
    {
        let store = store(uri, &variables);
        assert!(store.grants[0].addresses.contains(&"10.0.0.0/8".parse().unwrap()), "{uri}");
        let other = store.grants[1].addresses.contains(&"10.0.0.0/8".parse().unwrap());
        assert_eq!(other, uri == VERSION, "where tokens are made is public: {uri}");
    }
}

#[test]
fn what_the_environment_has_and_nobody_can_use_is_said() {
    let config = read(&[VAULT], &[("AZURE_CERTIFICATE_PATH", "/c.pfx")]);
    let warning = config.warnings[0].to_string();
    assert!(
        warning.contains("2:3") && warning.contains("`AZURE_CERTIFICATE_PATH` has no effect"),
        "{warning}"
    );
    assert!(warning.contains("client_certificate"), "{warning}");
    let config =
        read(&[VAULT], &[("AZURE_TENANT_ID", "t"), ("AZURE_CLIENT_ID", "c"), ("AZURE_CLIENT_SECRET", "")]);
    let warning = config.warnings[0].to_string();
    assert!(
        warning.contains("`AZURE_CLIENT_SECRET` isn't: the entries of Azure ask as the machine"),
        "{warning}"
    );
    let variables = [("HTTPS_PROXY", "https://me:sesame@p:1"), ("AZURE_CLIENT_SECRET", "s")];
    let config = read(&[VAULT], &variables);
    assert_eq!(config.warnings.len(), 1, "once for all grants");
    let warning = config.warnings[0].to_string();
    assert!(warning.contains("`HTTPS_PROXY` has no effect") && !warning.contains("sesame"), "{warning}");
}

#[test]
fn the_proxy_of_the_environment_is_gone_by_except_where_it_says() {
    let by = |exceptions: &str| {
        let proxy = [("https_proxy", "http://p:3128"), ("NO_PROXY", exceptions)];
        grants(&store(VAULT, &proxy)).remove(0).ends_with(" by http://p:3128")
    };
    for elsewhere in ["", ",", "other.example", "ault.azure.net", "v.vault.azure.net.example"] {
        assert!(by(elsewhere), "{elsewhere}");
    }
    assert!(grants(&store(VAULT, &[("HTTPS_PROXY", "p:3128")]))[0].ends_with(" by http://p:3128"));
    for excepted in ["*", "a, v.vault.azure.net", ".azure.net", "*.vault.azure.net", "azure.net"] {
        assert!(!by(excepted), "{excepted}");
    }
    assert!(
        !grants(&store(VAULT, &[("HTTPS_PROXY", "http://p:3128")]))[1].contains("by"),
        "not to the machine's own"
    );
}

#[test]
fn an_entry_of_google_asks_as_the_default_credentials_say() {
    let machine = store(VERSION, &[("GCE_METADATA_HOST", "m:8080"), ("GOOGLE_CLOUD_QUOTA_PROJECT", "q")]);
    assert_eq!(credential(&machine), r#"{"endpoint":"http://m:8080","type":"metadata"}"#);
    assert_eq!(machine.config["quota_project"], "q");
    assert_eq!(grants(&machine), ["GET POST https://cloudkms.googleapis.com:443 []", "GET http://m:8080 []"]);

    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join(".config/gcloud");
    fs::create_dir_all(&folder).unwrap();
    let file = folder.join("application_default_credentials.json");
    let with = |json: &str| {
        fs::write(&file, json).unwrap();
        store(VERSION, &[("HOME", home.path().to_str().unwrap())])
    };
    let account = with(r#"{"type": "service_account", "private_key": "sesame"}"#);
    assert_eq!(credential(&account), r#"{"type":"service_account"}"#);
    assert_eq!(grants(&account).len(), 1, "its tokens are its own");
    assert_eq!(account.exposed, ["client_email", "private_key_id"].map(str::to_owned).into());
    assert_eq!(
        account.secrets["private_key"],
        SecretSource::Member(SecretSource::File(file.clone()).into(), "/private_key".to_owned())
    );

    let person = with(r#"{"type": "authorized_user", "quota_project_id": "q"}"#);
    assert_eq!(person.config["quota_project"], "q");
    assert_eq!(credential(&person), r#"{"type":"authorized_user"}"#);
    assert_eq!(
        grants(&person)[1],
        "POST https://oauth2.googleapis.com:443 [client_id client_secret refresh_token]"
    );
    assert!(person.exposed.is_empty());
}

#[test]
fn an_entry_of_google_takes_a_token_of_elsewhere_from_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("federation.json");
    let with = |source: &str| {
        let json = format!(
            r#"{{"type": "external_account", "audience": "//iam/p", "subject_token_type": "jwt",
            "token_url": "https://sts.googleapis.com/v1/token", "credential_source": {source},
            "service_account_impersonation_url":
            "https://iam.example/v1/projects/-/serviceAccounts/a@p.example:generateAccessToken"}}"#
        );
        fs::write(&file, json).unwrap();
        read(&[VERSION], &[("GOOGLE_APPLICATION_CREDENTIALS", file.to_str().unwrap())])
    };
    let config = with(r#"{"file": "/token", "format": {"type": "json", "subject_token_field_name": "a/t"}}"#);
    let store = &config.stores[0];
    let expected = serde_json::json!({
        "type": "workload_identity", "audience": "//iam/p", "subject_token_type": "jwt",
        "token_url": "https://sts.googleapis.com/v1/token",
        "impersonate": "a@p.example", "impersonation_endpoint": "https://iam.example",
    });
    assert_eq!(store.config["credential"], expected);
    let token = SecretSource::Member(SecretSource::File("/token".into()).into(), "/a~1t".to_owned());
    assert_eq!(store.secrets["subject_token"], token);
    let asked = ["POST https://sts.googleapis.com:443 [subject_token]", "POST https://iam.example:443 []"];
    assert_eq!(grants(store)[1..], asked);
    let elsewhere = with(r#"{"environment_id": "aws1"}"#);
    assert!(elsewhere.warnings[0].to_string().contains("is no `file`"), "{:?}", elsewhere.warnings);
}

#[test]
fn a_file_that_cannot_be_read_or_used_is_left_to_the_plugin_or_said() {
    let missing = store(VERSION, &[("GOOGLE_APPLICATION_CREDENTIALS", "/nowhere/a.json")]);
    assert_eq!(credential(&missing), r#"{"type":"service_account"}"#);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.json");
    fs::write(&file, r#"{"type": "gdch_service_account"}"#).unwrap();
    let config = read(&[VERSION], &[("GOOGLE_APPLICATION_CREDENTIALS", file.to_str().unwrap())]);
    assert!(config.warnings[0].to_string().contains("type `gdch_service_account` are not supported"));
}
