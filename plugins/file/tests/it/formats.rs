//! What a key file may look like, and what is said of one that isn't understood.

use std::fs;

use keystead_plugin_api::{Code, Severity};
use openssl::{
    ec::{EcGroup, EcKey},
    nid::Nid,
    pkey::{PKey, Private},
    rsa::Rsa,
};
use pkcs8::{
    EncryptedPrivateKeyInfoRef,
    der::{Encode, asn1::OctetStringRef},
    pkcs5::{
        EncryptionScheme,
        pbes2::{EncryptionScheme as Cipher, Kdf, Parameters, Pbkdf2Params, ScryptParams},
    },
};

use crate::place::{EVERY_KEY, PASSPHRASE, Place, fixture, key};

const ENCRYPTED: [&str; 4] = [
    "encrypted-3des-sha1.pem",
    "encrypted-aes128-sha512.der",
    "encrypted-aes256-sha256.pem",
    "encrypted-scrypt.pem",
];

/// Asserts that a file of these bytes serves this key.
fn serves(name: &str, bytes: &[u8], expected: &PKey<Private>) {
    let place = Place::new();
    place.put("a.key", bytes);
    let listing = place.listing();
    assert!(listing.findings.is_empty(), "{name}: {:?}", listing.findings);
    assert_eq!(listing.keys[0].spki, expected.public_key_to_der().unwrap(), "{name}");
}

/// Asserts that a file of these bytes is refused with this code, and words in the message and hint.
fn refuses(bytes: &[u8], code: Code, words: &str) {
    let place = Place::new();
    place.put("a.key", bytes);
    place.put("good.key", &fixture("ed25519.pem"));
    assert_eq!(place.served(), ["good.key"], "{words}");
    let finding = place.finding_about("a.key");
    assert_eq!((finding.severity, finding.error.code), (Severity::Error, code), "{finding:?}");
    let text = format!("{}; {}", finding.error.message, finding.hint);
    assert!(text.contains(words), "{text}");
}

#[test]
fn reads_pkcs8_in_pem_and_der() {
    for name in EVERY_KEY {
        let key = key(name);
        serves(name, &fixture(name), &key);
        serves(name, &key.private_key_to_pkcs8().unwrap(), &key);
    }
}

#[test]
fn reads_pkcs1_in_pem_and_der() {
    let key = key("rsa-2048.pem");
    serves("PEM", &key.rsa().unwrap().private_key_to_pem().unwrap(), &key);
    serves("DER", &key.rsa().unwrap().private_key_to_der().unwrap(), &key);
}

#[test]
fn reads_sec1_in_pem_and_der() {
    for name in ["p-224.pem", "p-256.pem", "p-384.pem", "p-521.pem"] {
        let key = key(name);
        serves(name, &key.ec_key().unwrap().private_key_to_pem().unwrap(), &key);
        serves(name, &key.ec_key().unwrap().private_key_to_der().unwrap(), &key);
    }
}

#[test]
fn reads_pem_with_other_things_around_the_key() {
    let key = key("p-256.pem");
    let sec1 = String::from_utf8(key.ec_key().unwrap().private_key_to_pem().unwrap()).unwrap();
    let parameters = "-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n";
    let certificate = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    serves("parameters first", format!("{parameters}{sec1}").as_bytes(), &key);
    serves("certificate first", format!("{certificate}{sec1}").as_bytes(), &key);
    serves("certificate after", format!("{sec1}{certificate}").as_bytes(), &key);
    serves("text around", format!("Bag Attributes\n  0: x\n{sec1}\nthe end").as_bytes(), &key);
    let another = String::from_utf8(fixture("p-384.pem")).unwrap();
    serves("the first of two keys", format!("{sec1}{another}").as_bytes(), &key);
}

#[test]
fn reads_pem_with_any_white_space() {
    let key = key("p-256.pem");
    let pem = String::from_utf8(fixture("p-256.pem")).unwrap();
    serves("CRLF", pem.replace('\n', "\r\n").as_bytes(), &key);
    serves("no newline at the end", pem.trim_end().as_bytes(), &key);
    serves("indented", pem.replace('\n', "\n  ").as_bytes(), &key);
    let mut lines: Vec<&str> = pem.lines().collect();
    let body = lines.drain(1..lines.len() - 1).collect::<String>();
    serves("one long line", format!("{}\n{body}\n{}", lines[0], lines[1]).as_bytes(), &key);
}

#[test]
fn writes_public_keys_uncompressed_whatever_the_file_has() {
    let original = key("p-256.pem");
    let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap();
    let ec = original.ec_key().unwrap();
    let number = ec.private_key().to_vec_padded(32).unwrap();
    let mut context = openssl::bn::BigNumContext::new().unwrap();
    let form = openssl::ec::PointConversionForm::COMPRESSED;
    let point = ec.public_key().to_bytes(&group, form, &mut context).unwrap();
    let curve = [0xa0, 10, 6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7];
    let public = [[0xa1, 36, 3, 34, 0].as_slice(), &point].concat();
    let body = [[2, 1, 1, 4, 32].as_slice(), &number, &curve, &public].concat();
    let der = [[0x30, u8::try_from(body.len()).unwrap()].as_slice(), &body].concat();
    serves("compressed", &der, &original);
}

#[test]
fn decrypts_with_the_passphrase_of_the_store() {
    for name in ENCRYPTED {
        let place = Place::new();
        place.put("a.key", &fixture(name));
        let listing = place.subject().secret("passphrase", PASSPHRASE).open().unwrap().listing().unwrap();
        assert!(listing.findings.is_empty(), "{name}: {:?}", listing.findings);
        assert_eq!(listing.keys[0].spki, key("p-256.pem").public_key_to_der().unwrap(), "{name}");
    }
}

#[test]
fn reads_the_passphrase_once_and_only_for_encrypted_keys() {
    let place = Place::new();
    place.put("plain.key", &fixture("p-384.pem"));
    let session = place.subject().secret("passphrase", PASSPHRASE).open().unwrap();
    session.listing().unwrap();
    assert_eq!(session.host().secret_reads(), 0);
    for (index, name) in ENCRYPTED.iter().enumerate() {
        place.put(&format!("{index}.key"), &fixture(name));
    }
    session.listing().unwrap();
    assert_eq!(session.host().secret_reads(), 1);
}

#[test]
fn says_how_to_give_a_passphrase_that_is_missing_or_wrong() {
    for name in ENCRYPTED {
        let place = Place::new();
        place.put("a.key", &fixture(name));
        for subject in [place.subject(), place.subject().secret("passphrase", b"incorrect-horse")] {
            let session = subject.open().unwrap();
            let listing = session.listing().unwrap();
            assert!(listing.keys.is_empty());
            assert_eq!(listing.findings[0].error.code, Code::Credentials, "{name}");
            assert!(listing.findings[0].subject.ends_with("/a.key"));
            assert!(listing.findings[0].hint.contains("secrets: {passphrase: {file:"));
            assert_eq!(session.host().leaks(), [""; 0]);
        }
    }
}

#[test]
fn says_how_to_convert_what_it_cannot_decrypt() {
    refuses(&fixture("encrypted-legacy.pem"), Code::Unsupported, "Proc-Type: 4,ENCRYPTED");
    refuses(&fixture("encrypted-legacy.pem"), Code::Unsupported, "openssl pkcs8 -topk8");
    refuses(&fixture("encrypted-pbes1.pem"), Code::Unsupported, "openssl pkcs8 -topk8");
}

#[test]
fn refuses_a_key_derivation_that_would_take_minutes() {
    let mut pbkdf2 = Pbkdf2Params::hmac_sha256(1, b"saltsalt").unwrap();
    pbkdf2.iteration_count = 10_000_001;
    let scrypt = ScryptParams {
        salt: b"saltsalt".as_slice().try_into().unwrap(),
        cost_parameter: 1 << 20,
        block_size: 8,
        parallelization: 1,
        key_length: None,
    };
    for kdf in [Kdf::Pbkdf2(pbkdf2), Kdf::Scrypt(scrypt)] {
        let parameters = Parameters { kdf, encryption: Cipher::Aes256Cbc { iv: [0; 16] } };
        let info = EncryptedPrivateKeyInfoRef {
            encryption_algorithm: EncryptionScheme::from(parameters),
            encrypted_data: OctetStringRef::new(&[0; 160]).unwrap(),
        };
        refuses(&info.to_der().unwrap(), Code::Denied, "would take too long");
    }
}

#[test]
fn refuses_what_is_not_a_key() {
    refuses(b"", Code::InvalidInput, "not a private key");
    refuses(b"nonsense", Code::InvalidInput, "not a private key");
    refuses(&[0x30, 0x84, 0xff, 0xff, 0xff, 0xff], Code::InvalidInput, "not a private key");
    let der = key("p-256.pem").private_key_to_pkcs8().unwrap();
    refuses(&[der.as_slice(), b"\n"].concat(), Code::InvalidInput, "not a private key");
    refuses(&der[..der.len() - 1], Code::InvalidInput, "not a private key");
    let pem = fixture("p-256.pem");
    refuses(&pem[..pem.len() - 10], Code::InvalidInput, "no whole private key");
    let certificate = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    refuses(certificate, Code::InvalidInput, "no whole private key");
    let damaged = String::from_utf8(pem).unwrap().replacen('M', "!", 1);
    refuses(damaged.as_bytes(), Code::InvalidInput, "not base64");
}

#[test]
fn refuses_keys_it_does_not_serve() {
    let pkcs8 = |key: PKey<Private>| key.private_key_to_pkcs8().unwrap();
    let small = PKey::from_rsa(Rsa::generate(1024).unwrap()).unwrap();
    refuses(&pkcs8(small), Code::Unsupported, "RSA keys of 1024 bits are not supported, 2048 to 8192 are");
    let koblitz = EcKey::generate(&EcGroup::from_curve_name(Nid::SECP256K1).unwrap()).unwrap();
    refuses(&pkcs8(PKey::from_ec_key(koblitz).unwrap()), Code::Unsupported, "P-224, P-256, P-384 and P-521");
    refuses(&pkcs8(PKey::generate_x25519().unwrap()), Code::Unsupported, "RSA, EC and Ed25519");
    refuses(&pkcs8(PKey::generate_ed448().unwrap()), Code::InvalidInput, "supported are RSA");
    let block = |label| format!("-----BEGIN {label}-----\nAAAA\n-----END {label}-----\n");
    refuses(block("OPENSSH PRIVATE KEY").as_bytes(), Code::Unsupported, "ssh-keygen -p -m PKCS8");
    refuses(block("DSA PRIVATE KEY").as_bytes(), Code::Unsupported, "DSA");
}

#[test]
fn refuses_keys_whose_parts_do_not_fit_together() {
    let rsa = key("rsa-2048.pem").rsa().unwrap();
    let mut der = rsa.private_key_to_der().unwrap();
    let end = der.len() - 1;
    der[end] ^= 2;
    refuses(&der, Code::InvalidInput, "can't be read");

    let mut pkcs8 = key("p-256.pem").private_key_to_pkcs8().unwrap();
    let other = key("p-256.pem").ec_key().unwrap();
    let number = other.private_key().to_vec_padded(32).unwrap();
    let at = pkcs8.windows(32).position(|window| window == number).unwrap();
    pkcs8[at + 31] ^= 1;
    refuses(&pkcs8, Code::InvalidInput, "can't be read");
}

#[test]
fn refuses_files_that_are_too_large_or_not_files() {
    refuses(&vec![b'\n'; (1 << 20) + 1], Code::InvalidInput, "at most 1048576 are read");

    let place = Place::new();
    let pipe = place.path().join("pipe.key");
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    assert!(place.finding_about("pipe.key").error.message.contains("not a regular file"));
    fs::remove_file(pipe).unwrap();

    std::os::unix::fs::symlink("/nonexistent", place.path().join("link.key")).unwrap();
    assert_eq!(place.finding_about("link.key").error.code, Code::NotFound);
}
