//! Every opcode with every type of key, from files and from a PKCS#11 token: right answers verify with OpenSSL, and
//! combinations that don't fit are refused.

use std::{collections::BTreeMap, path::Path, process::Command};

use keystead::service;
use keystead_plugin_api::{Algorithm, Input, algorithm::Family, conformance};
use keystead_protocol::{ErrorCode, Opcode, Ski};
use openssl::{
    bn::BigNumContext,
    ec::{EcGroup, EcKey, EcPoint},
    encrypt::Encrypter,
    nid::Nid,
    pkey::{Id, PKey},
    rsa::Padding,
};

use crate::world::{Client, Files, Server, skis, unhex};

const MODULE: &str = "/usr/lib/softhsm/libsofthsm2.so";
const PIN: &str = "hunter2-pin";

/// DER SubjectPublicKeyInfo of the keys to ask for.
type Keys = BTreeMap<String, Vec<u8>>;

/// Asks for every opcode with every key.
fn assert_matrix(client: &mut Client, keys: &Keys, pkcs11: bool) {
    for (name, spki) in keys {
        let ski = Ski::from_spki(spki).unwrap();
        for opcode in (0..=u8::MAX).map(Opcode) {
            let Some(algorithm) = service::algorithm(opcode) else { continue };
            let what = format!("{algorithm} with {name}");
            let input = input(algorithm, spki);
            let answer = client.ask(ski, opcode, &input);
            if family(spki) != algorithm.family() {
                assert_eq!(answer, Err(ErrorCode::CRYPTOGRAPHY), "{what}");
                continue;
            }
            let result = answer.unwrap_or_else(|code| panic!("{what}: {code}"));
            match algorithm {
                Algorithm::RsaRaw => assert!(result.len() == 256 && result.ends_with(b"a secret"), "{what}"),
                _ => conformance::verify(spki, algorithm, &input, &result)
                    .unwrap_or_else(|error| panic!("{what}: {error}")),
            }
            if let Input::Digest(len) = algorithm.input() {
                let longer = client.ask(ski, opcode, &vec![1; len + 1]);
                assert_eq!(
                    longer,
                    Err(ErrorCode::CRYPTOGRAPHY),
                    "{what}, one byte too long (token: {pkcs11})"
                );
            }
        }
    }
}

fn family(spki: &[u8]) -> Family {
    match PKey::public_key_from_der(spki).unwrap().id() {
        Id::RSA => Family::Rsa,
        Id::EC => Family::Ecdsa,
        _ => Family::Ed25519,
    }
}

/// A digest, a message, or a block that decrypts to a secret.
fn input(algorithm: Algorithm, spki: &[u8]) -> Vec<u8> {
    let key = PKey::public_key_from_der(spki).unwrap();
    match algorithm.input() {
        Input::Digest(len) => vec![0xa5; len],
        Input::Block if key.id() == Id::RSA => {
            let mut encrypter = Encrypter::new(&key).unwrap();
            encrypter.set_rsa_padding(Padding::PKCS1).unwrap();
            let mut block = vec![0; encrypter.encrypt_len(b"a secret").unwrap()];
            let len = encrypter.encrypt(b"a secret", &mut block).unwrap();
            block.truncate(len);
            block
        }
        _ => b"the message itself".to_vec(),
    }
}

#[test]
fn keys_in_files() {
    let files = Files::new();
    let server = Server::with_keys(&files, "");
    let key = |name: &str| {
        let der = std::fs::read(files.path(&format!("keys/{name}.key"))).unwrap();
        PKey::private_key_from_pkcs8(&der).unwrap().public_key_to_der().unwrap()
    };
    let keys: Keys = skis().into_keys().map(|name| (name.clone(), key(&name))).collect();
    assert_matrix(&mut Client::connect(&files, &server), &keys, false);
}

#[test]
fn keys_in_a_token_beside_keys_in_files() {
    let files = Files::new();
    let token = Token::new(&files);
    let keys: Keys = [
        ("rsa", "rsa:2048"),
        ("p256", "EC:prime256v1"),
        ("p384", "EC:secp384r1"),
        ("ed25519", "EC:edwards25519"),
    ]
    .into_iter()
    .map(|(name, kind)| (name.to_owned(), token.generate(name, kind)))
    .collect();
    files.write("pin", PIN.as_bytes());
    let uris: Vec<String> =
        keys.keys().map(|name| format!("\"pkcs11:token=keys;object={name}?module-path={MODULE}\"")).collect();
    let config = files.config(&format!(
        "private_key_stores:\n- dir: {}\n- {{name: token, plugin: pkcs11, config: {{uris: [{}]}}, \
         secrets: {{pin: {{file: {}}}}}, operations: [sign, decrypt]}}\n",
        files.path("keys").display(),
        uris.join(", "),
        files.path("pin").display()
    ));
    let mut command = Command::new(env!("CARGO_BIN_EXE_keystead"));
    command.arg("run").arg("-c").arg(config).env("SOFTHSM2_CONF", files.path("softhsm2.conf"));
    let server = Server::spawn(command);
    server.wait_for("store=\"token\" plugin=\"pkcs11\" keys=4");
    let mut client = Client::connect(&files, &server);
    assert_matrix(&mut client, &keys, true);
    assert!(
        client.ask(skis()["p256"], Opcode::ECDSA_SIGN_SHA256, &[1; 32]).is_ok(),
        "the file store serves too"
    );
    assert!(!server.log().contains(PIN));
}

/// A SoftHSM2 token of the test's own.
struct Token<'a> {
    files: &'a Files,
}

impl<'a> Token<'a> {
    fn new(files: &'a Files) -> Self {
        assert!(Path::new(MODULE).exists(), "{MODULE} is missing; run `apt-get install softhsm2 opensc`");
        std::fs::create_dir(files.path("tokens")).unwrap();
        let config =
            format!("directories.tokendir = {}\nlog.level = ERROR\n", files.path("tokens").display());
        files.write("softhsm2.conf", config.as_bytes());
        let token = Self { files };
        token.tool(&["--init-token", "--slot-index", "0", "--label", "keys", "--so-pin", "env:SO_PIN"]);
        token.tool(&[
            "--token-label",
            "keys",
            "--init-pin",
            "--login",
            "--login-type",
            "so",
            "--so-pin",
            "env:SO_PIN",
            "--new-pin",
            "env:PIN",
        ]);
        token
    }

    /// Makes a key pair inside the token; answers its public half.
    fn generate(&self, label: &str, kind: &str) -> Vec<u8> {
        let id =
            format!("{:02x}", label.bytes().fold(0_u8, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte)));
        self.tool(&[
            "--token-label",
            "keys",
            "--login",
            "--pin",
            "env:PIN",
            "--keypairgen",
            "--key-type",
            kind,
            "--label",
            label,
            "--id",
            &id,
        ]);
        let public = ["--token-label", "keys", "--type", "pubkey"];
        match kind.strip_prefix("EC:") {
            Some(curve) => public_half(
                curve,
                &listed_point(&self.tool(&[&public[..], &["--list-objects"]].concat()), label),
            ),
            None => {
                let file = self.files.path(&format!("{label}.spki")).display().to_string();
                self.tool(
                    &[&public[..], &["--label", label, "--read-object", "--output-file", &file]].concat(),
                );
                std::fs::read(file).unwrap()
            }
        }
    }

    /// Runs pkcs11-tool; answers what it prints.
    fn tool(&self, arguments: &[&str]) -> String {
        let output = Command::new("pkcs11-tool")
            .args(["--module", MODULE])
            .args(arguments)
            .env("SOFTHSM2_CONF", self.files.path("softhsm2.conf"))
            .env("PIN", PIN)
            .env("SO_PIN", "87654321")
            .output()
            .expect("pkcs11-tool runs; `apt-get install opensc`");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }
}

/// The CKA_EC_POINT of a public key in a listing; pkcs11-tool shows it for every curve, but writes few.
fn listed_point(listing: &str, label: &str) -> Vec<u8> {
    let mut objects = listing.split("Public Key Object");
    let object = objects.find(|object| object.contains(&format!("{label}\n"))).unwrap();
    unhex(object.split("EC_POINT:").nth(1).unwrap().split_whitespace().next().unwrap())
}

/// The SubjectPublicKeyInfo of a CKA_EC_POINT, which is a DER OCTET STRING.
fn public_half(curve: &str, point: &[u8]) -> Vec<u8> {
    let point = &point[2..]; // tag and a length below 128, which is that of every curve here
    let curve = match curve {
        "prime256v1" => Nid::X9_62_PRIME256V1,
        "secp384r1" => Nid::SECP384R1,
        _ => {
            let key = PKey::public_key_from_raw_bytes(point, Id::ED25519).unwrap();
            return key.public_key_to_der().unwrap();
        }
    };
    let group = EcGroup::from_curve_name(curve).unwrap();
    let point = EcPoint::from_bytes(&group, point, &mut BigNumContext::new().unwrap()).unwrap();
    let key = EcKey::from_public_key(&group, &point).unwrap();
    PKey::from_ec_key(key).unwrap().public_key_to_der().unwrap()
}
