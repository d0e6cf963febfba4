//! SoftHSM2 tokens for the tests that need a PKCS#11 module.

use std::{fs, path::Path, process::Command};

use openssl::{
    bn::BigNumContext,
    ec::{EcGroup, EcKey, EcPoint},
    nid::Nid,
    pkey::{Id, PKey},
};

use crate::world::{Files, Server, unhex};

/// SoftHSM2's library.
pub(crate) const MODULE: &str = "/usr/lib/softhsm/libsofthsm2.so";

/// The PIN of every token.
pub(crate) const PIN: &str = "hunter2-pin";

/// A token `keys` of the test's own; `softhsm2.conf` leads to it, and `tokens` holds it.
pub(crate) struct Token<'a> {
    files: &'a Files,
}

impl<'a> Token<'a> {
    /// Makes it, with the PIN [`PIN`].
    pub(crate) fn new(files: &'a Files) -> Self {
        assert!(Path::new(MODULE).exists(), "{MODULE} is missing; run `apt-get install softhsm2 opensc`");
        fs::create_dir(files.path("tokens")).unwrap();
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
    pub(crate) fn generate(&self, label: &str, kind: &str) -> Vec<u8> {
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
                fs::read(file).unwrap()
            }
        }
    }

    /// Configuration lines of a store `token` with keys of these labels, for the list of stores.
    pub(crate) fn store<'k>(&self, labels: impl IntoIterator<Item = &'k str>) -> String {
        let pin = self.files.write("pin", PIN.as_bytes());
        let uri = |label| format!("\"pkcs11:token=keys;object={label}?module-path={MODULE}\"");
        let uris: Vec<String> = labels.into_iter().map(uri).collect();
        let (uris, pin) = (uris.join(", "), pin.display());
        let softhsm = self.files.path("softhsm2.conf").display().to_string();
        format!(
            "- {{name: token, plugin: pkcs11, config: {{uris: [{uris}]}}, secrets: {{pin: {{file: {pin}}}}}, \
             operations: [sign, decrypt], env: {{SOFTHSM2_CONF: {softhsm}}}}}\n"
        )
    }

    /// Starts a server that has the token, with these lines of configuration, and waits until it listens.
    pub(crate) fn serve(&self, lines: &str) -> Server {
        Server::spawn(self.command(lines))
    }

    /// What starts such a server.
    pub(crate) fn command(&self, lines: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_keystead"));
        command.arg("run").arg("-c").arg(self.files.config(lines));
        command.env("SOFTHSM2_CONF", self.files.path("softhsm2.conf"));
        command
    }

    /// Runs pkcs11-tool; answers what it prints.
    pub(crate) fn tool(&self, arguments: &[&str]) -> String {
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
