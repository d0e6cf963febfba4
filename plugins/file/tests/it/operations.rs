//! What keys do: every algorithm with every type of key, and the recorded results of the reference.

use keystead_plugin_api::{
    Algorithm, CallClass, Code,
    algorithm::{Family, Input, Operation},
    conformance::{Request, verify},
};
use serde_json::Value;

use crate::place::{Place, fixture, key as key_of, labelled};

#[test]
fn does_every_algorithm_that_fits_the_key_and_refuses_the_rest() {
    let place = Place::with_every_key();
    let session = place.open();
    let listing = session.listing().unwrap();
    assert_eq!(listing.keys.len(), 9);
    for key in &listing.keys {
        for algorithm in Algorithm::ALL.iter().copied() {
            let input = match algorithm.input() {
                Input::Digest(len) => vec![0xc3; len],
                _ => vec![0x4d; 64],
            };
            let result = session.perform(algorithm.operation(), &Request::new(key, algorithm, &input));
            match result {
                Ok(result) => verify(&key.spki, algorithm, &input, &result).unwrap(),
                Err(failure) => {
                    assert_eq!(failure.error.code, Code::Unsupported, "{} {algorithm}", key.label)
                }
            }
            let fits = algorithm.family() == family(&key.label);
            assert_eq!(key.algorithms.contains(&algorithm), fits, "{} {algorithm}", key.label);
        }
    }
}

fn family(label: &str) -> Family {
    match label {
        _ if label.contains("rsa-") => Family::Rsa,
        _ if label.contains("p-") => Family::Ecdsa,
        _ => Family::Ed25519,
    }
}

#[test]
fn gives_the_results_that_were_recorded_from_the_reference() {
    let recorded: Value = serde_json::from_slice(&fixture("recorded.json")).unwrap();
    let bytes = |value: &Value| hex(value.as_str().unwrap());
    let place = Place::new();
    for (name, der) in recorded["keys"].as_object().unwrap() {
        place.put(&format!("{name}.key"), &bytes(der));
    }
    let session = place.open();
    let listing = session.listing().unwrap();
    for case in recorded["cases"].as_array().unwrap() {
        let key = labelled(&listing, &format!("/{}.key", case["key"].as_str().unwrap()));
        let named = |algorithm: &&Algorithm| algorithm.name() == case["algorithm"];
        let algorithm = *Algorithm::ALL.iter().find(named).unwrap();
        let input = bytes(&case["input"]);
        let result = session.perform(algorithm.operation(), &Request::new(key, algorithm, &input)).unwrap();
        assert_eq!(result, bytes(&case["result"]), "{}", case["case"]);
    }
}

fn hex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

#[test]
fn takes_raw_blocks_of_any_length_below_the_modulus() {
    let place = Place::new();
    place.put("rsa.key", &fixture("rsa-2048.pem"));
    let session = place.open();
    let listing = session.listing().unwrap();
    let key = labelled(&listing, "rsa.key");
    let zeros = session.decrypt(key, Algorithm::RsaRaw, b"").unwrap();
    assert_eq!(zeros, [0; 256]);
    let rsa = key_of("rsa-2048.pem").rsa().unwrap();
    let mut most = rsa.n().to_vec();
    most[255] ^= 1;
    assert_eq!(session.decrypt(key, Algorithm::RsaRaw, &most).unwrap(), most);
    let longer = [[0; 100].as_slice(), &[0x7f; 200]].concat();
    let result = session.decrypt(key, Algorithm::RsaRaw, &longer).unwrap();
    verify(&key.spki, Algorithm::RsaRaw, &longer[44..], &result).unwrap();
}

#[test]
fn calls_only_large_rsa_keys_blocking() {
    for key in Place::with_every_key().listing().keys {
        let large = ["rsa-3072", "rsa-4096", "rsa-8192"].iter().any(|name| key.label.contains(name));
        let expected = if large { CallClass::Blocking } else { CallClass::Inline };
        assert_eq!(key.call_class, expected, "{}", key.label);
    }
}

#[test]
fn does_not_begin_a_blocking_operation_that_nobody_waits_for() {
    let place = Place::new();
    place.put("rsa.key", &fixture("rsa-4096.pem"));
    let session = place.open();
    let listing = session.listing().unwrap();
    let mut request = Request::new(&listing.keys[0], Algorithm::RsaPkcs1Sha256, &[1; 32]);
    request.time = Some(std::time::Duration::ZERO);
    assert_eq!(session.perform(Operation::Sign, &request).unwrap_err().error.code, Code::Deadline);
}
