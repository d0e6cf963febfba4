//! Every opcode with every type of key, from files and from a PKCS#11 token: right answers verify with OpenSSL, and
//! combinations that don't fit are refused.

use std::collections::BTreeMap;

use keystead::service;
use keystead_plugin_api::{Algorithm, Input, algorithm::Family, conformance};
use keystead_protocol::{ErrorCode, Opcode, Ski};
use openssl::{
    encrypt::Encrypter,
    pkey::{Id, PKey},
    rsa::Padding,
};

use crate::{
    token::{PIN, Token},
    world::{Client, Files, Server, skis},
};

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
    let stores = token.store(keys.keys().map(String::as_str));
    let server =
        token.serve(&format!("private_key_stores:\n- dir: {}\n{stores}", files.path("keys").display()));
    server.wait_for("store=\"token\" plugin=\"pkcs11\" keys=4");
    let mut client = Client::connect(&files, &server);
    assert_matrix(&mut client, &keys, true);
    assert!(
        client.ask(skis()["p256"], Opcode::ECDSA_SIGN_SHA256, &[1; 32]).is_ok(),
        "the file store serves too"
    );
    assert!(!server.log().contains(PIN));
}
