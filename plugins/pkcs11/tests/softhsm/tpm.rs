//! A TPM (swtpm, by tpm2-pkcs11): a slow device by other hands, that makes one signature at a time and knows no PSS.

use std::{
    env,
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use keystead_plugin_api::{
    Algorithm, Input,
    algorithm::Family,
    conformance::{self, Subject},
};
use serde_json::json;

use crate::{
    bench::{Bench, PIN, Succeed, TABLE, TPM_STORE, command, installed, key, on_softhsm, uri_at},
    until,
};

fn module() -> PathBuf {
    let places = ["/usr/lib/x86_64-linux-gnu/libtpm2_pkcs11.so.1", "/usr/lib64/pkcs11/libtpm2_pkcs11.so.0"];
    installed("libtpm2-pkcs11-1", &places)
}

/// A TPM in a process of its own.
struct Tpm(Child);

impl Tpm {
    fn start(bench: &Bench) -> Self {
        let state = bench.path("tpm-state");
        std::fs::create_dir(&state).unwrap();
        std::fs::create_dir(bench.path(TPM_STORE)).unwrap();
        let place = env::var("TPM2TOOLS_TCTI").unwrap();
        let port: u16 = place.rsplit('=').next().unwrap().parse().unwrap();
        let socket = |port: u16| format!("type=tcp,port={port},bindaddr=127.0.0.1");
        let mut tpm = Command::new("swtpm");
        tpm.args(["socket", "--tpm2", "--flags", "not-need-init,startup-clear", "--tpmstate"]);
        tpm.arg(format!("dir={}", state.display()));
        tpm.args(["--server", &socket(port), "--ctrl", &socket(port + 1)]);
        let started = tpm.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        let tpm = Self(started.unwrap_or_else(|error| panic!("these tests need the package swtpm: {error}")));
        until("the TPM answers", || flush().status().is_ok_and(|status| status.success()));
        tpm
    }
}

impl Drop for Tpm {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Without a resource manager, what one program leaves in the TPM is in the next one's way.
fn flush() -> Command {
    let mut flush = command("tpm2_flushcontext");
    flush.arg("-t").stdout(Stdio::null()).stderr(Stdio::null());
    flush
}

fn tool(arguments: &[&str]) {
    command("pkcs11-tool").arg("--module").arg(module()).args(arguments).succeed();
    flush().succeed();
}

on_softhsm!(a_tpm_signs_with_pss_that_is_padded_here, |bench| {
    let _tpm = Tpm::start(bench);
    let so_pin = ["--so-pin", "4711-so-pin"];
    tool(&[&["--init-token", "--slot-index", "0", "--label", "tpm"], &so_pin[..]].concat());
    let init_pin = ["--token-label", "tpm", "--login", "--login-type", "so", "--init-pin", "--new-pin", PIN];
    tool(&[&init_pin[..], &so_pin].concat());
    for (key_type, label, id) in [("rsa:2048", "rsa", "01"), ("EC:prime256v1", "p256", "02")] {
        let pair = ["--keypairgen", "--key-type", key_type, "--label", label, "--id", id];
        tool(&[&["--token-label", "tpm", "--login", "--pin", PIN], &pair[..]].concat());
    }

    let uris = ["rsa", "p256"].map(|label| uri_at(&module(), "tpm", &format!("object={label}"), PIN));
    let without = Subject::new(&TABLE).config(json!({"uris": uris})).open().unwrap();
    let pss = Algorithm::RsaPssSha256;
    assert!(!key(&without.listing().unwrap(), "rsa").algorithms.contains(&pss), "it has no PSS of its own");
    without.close().unwrap();

    let subject = Subject::new(&TABLE).config(json!({"uris": uris, "raw_rsa": true}));
    let session = subject.open().unwrap();
    let listing = session.listing().unwrap();
    let all = |family| Algorithm::of(family).filter(|algorithm| *algorithm != Algorithm::RsaRaw);
    for (label, family) in [("rsa", Family::Rsa), ("p256", Family::Ecdsa)] {
        let key = key(&listing, label);
        for algorithm in all(family).filter(|algorithm| key.algorithms.contains(algorithm)) {
            let Input::Digest(len) = algorithm.input() else { panic!("{algorithm} signs no digest") };
            let digest = vec![0x5a; len];
            let signature = session.sign(key, algorithm, &digest).unwrap();
            conformance::verify(&key.spki, algorithm, &digest, &signature).unwrap();
        }
    }
    assert!(key(&listing, "rsa").algorithms.contains(&pss));
});
