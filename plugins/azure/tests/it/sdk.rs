//! The fake, looked at by Microsoft's own client.

use std::{
    path::Path,
    process::{Command, Stdio},
};

use keystead_plugin_api::encode;

use super::*;

/// Runs a script of the tests' with packages of PyPI's; answers the JSON that it prints.
pub(super) fn python(script: &str, packages: &Path, change: impl FnOnce(&mut Command)) -> Value {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let mut command = Command::new("python3");
    command.arg("-B").arg(tests.join(script)).env("PYTHONPATH", packages).stdin(Stdio::null());
    change(&mut command);
    let output = command.output().unwrap_or_else(|error| panic!("python3: {error}; is it installed?"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script} fails:\n{errors}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// What a file of the tests' pins.
pub(super) fn pins(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(name)
}

/// An algorithm of the contract by its name in Azure; `None` for ES256K.
pub(super) fn algorithm(name: &str) -> Option<Algorithm> {
    Some(match name {
        "RS256" => Algorithm::RsaPkcs1Sha256,
        "RS384" => Algorithm::RsaPkcs1Sha384,
        "RS512" => Algorithm::RsaPkcs1Sha512,
        "PS256" => Algorithm::RsaPssSha256,
        "PS384" => Algorithm::RsaPssSha384,
        "PS512" => Algorithm::RsaPssSha512,
        "ES256" => Algorithm::EcdsaSha256,
        "ES384" => Algorithm::EcdsaSha384,
        "ES512" => Algorithm::EcdsaSha512,
        _ => return None,
    })
}

fn hex(text: &Value) -> Vec<u8> {
    let text = text.as_str().unwrap();
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

#[test]
fn the_official_client_finds_the_fake_to_be_a_vault() {
    let cloud = Cloud::start();
    let types =
        [("rsa", Type::Rsa(2048)), ("p256", Type::P256), ("p384", Type::P384Hsm), ("p521", Type::P521)];
    cloud.make_key(DEMO, "rsa", Type::Rsa(2048));
    let spki = types.map(|(name, key_type)| (name, cloud.make_key(DEMO, name, key_type)));
    cloud.change_key(DEMO, "rsa", &json!({"tags": {"tls": "yes"}}));
    (0..28).for_each(|number| drop(cloud.make_key(DEMO, &format!("more-{number:02}"), Type::P256)));
    cloud.make_key(DEMO, "disabled", Type::P256);
    cloud.change_key(DEMO, "disabled", &json!({"attributes": {"enabled": false}}));

    let packages = testing::from_pypi(&pins("azure-sdk.txt"));
    let said = python("sdk.py", &packages, |command| {
        command.env("HTTPS_PROXY", cloud.proxy()).env("REQUESTS_CA_BUNDLE", cloud.ca());
        command.env("CLIENT_ID", cloud.client_id()).env("CLIENT_SECRET", cloud.client_secret());
    });
    assert_eq!(said["types"], json!({"rsa": "RSA", "p384": "EC-HSM"}));
    assert_eq!(said["listed"].as_array().unwrap().len(), types.len() + 28 + 1);
    assert_eq!((&said["tags"], &said["versions"]), (&json!({"tls": "yes"}), &json!(2)));
    let signatures = said["signatures"].as_array().unwrap();
    assert_eq!(signatures.len(), 9);
    for made in signatures {
        let (algorithm, signature) =
            (algorithm(made["algorithm"].as_str().unwrap()).unwrap(), hex(&made["signature"]));
        let (_, spki) = spki.iter().find(|(name, _)| made["key"] == *name).unwrap();
        let is_ec = algorithm.family() == keystead_plugin_api::algorithm::Family::Ecdsa;
        let signature = if is_ec { encode::ecdsa_signature(&signature).unwrap() } else { signature };
        conformance::verify(spki, algorithm, &hex(&made["digest"]), &signature).unwrap();
    }
    assert_eq!(said["decrypted"], json!(["a secret", "a secret", "a secret"]));
    assert_eq!(said["missing"], json!([404, "KeyNotFound"]));
    assert_eq!(said["disabled"], json!([403, "Forbidden"]));
    assert_eq!(said["asked"][0], json!(["https://vault.azure.net/.default", cloud.tenant()]));
}
