//! The fake, held against Google's own client: what that takes for Cloud KMS, may the plugin take for it.

use std::{fs, path::Path, process::Command, time::Duration};

use keystead_fakes::gcp::RING;
use keystead_plugin_host::testing;
use serde_json::{Value, json};

use crate::{ALGORITHMS, world::World};

/// What the client may be, to be known by it.
fn credentials(world: &World, folder: &Path) -> Value {
    let token = folder.join("subject-token");
    fs::write(&token, world.subject_token(Duration::from_secs(3600))).unwrap();
    let account = world.service_account();
    let workload = json!({
        "type": "external_account",
        "audience": world.audience(),
        "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
        "token_url": "https://sts.googleapis.com/v1/token",
        "credential_source": {"file": token},
    });
    let mut acting = workload.clone();
    acting["service_account_impersonation_url"] = format!(
        "https://iamcredentials.googleapis.com/v1/projects/-/serviceAccounts/{}:generateAccessToken",
        account["client_email"].as_str().unwrap()
    )
    .into();
    json!([account, world.authorized_user(), workload, acting])
}

#[test]
fn googles_own_client_takes_the_fake_for_cloud_kms() {
    let world = World::start();
    let keys = ALGORITHMS.map(|algorithm| (algorithm.to_owned(), algorithm.to_lowercase()));
    for (algorithm, name) in &keys {
        world.make_key(name, algorithm);
    }
    for _ in 0..3 {
        world.make_key("rotated", "EC_SIGN_P256_SHA256");
    }
    world.set_state("rotated", 2, "DISABLED");

    let folder = tempfile::tempdir().unwrap();
    let site = json!({
        "ring": RING,
        "keys": keys.into_iter().collect::<std::collections::BTreeMap<_, _>>(),
        "credentials": credentials(&world, folder.path()),
        "email": world.service_account()["client_email"],
    });
    let file = folder.path().join("site.json");
    fs::write(&file, site.to_string()).unwrap();

    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let packages = testing::from_pypi(&tests.join("google-cloud-kms.txt"));
    let mut python = Command::new("python3");
    python.arg("-B").arg(tests.join("it/sdk.py")).arg(&file).env("PYTHONPATH", packages);
    python.env("HTTPS_PROXY", world.proxy()).env("REQUESTS_CA_BUNDLE", world.ca()).env("HOME", folder.path());
    python.env("GCE_METADATA_HOST", world.metadata().trim_start_matches("http://"));
    for variable in
        ["HTTP_PROXY", "http_proxy", "https_proxy", "NO_PROXY", "no_proxy", "ALL_PROXY", "all_proxy"]
    {
        python.env_remove(variable);
    }
    let output = python.output().unwrap();
    let (said, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && said == "content\n", "{said}{errors}");
    assert_eq!(world.signatures(), 11, "each algorithm, and one without a checksum");
    let client = |asked: &keystead_fakes::Asked| {
        asked.header("x-goog-api-client").is_some_and(|client| client.contains("gl-python"))
    };
    assert!(world.server().asked().iter().any(client), "it was asked by that client");
}
