//! The plugin on the module: well-behaved, and as the modules of vendors behave.

use std::{
    thread,
    time::{Duration, Instant},
};

use keystead_plugin_api::{Algorithm, Code, conformance};

use crate::{
    bench::{Bench, PIN, in_process, key, on_softhsm, prove, store, uri_at},
    control::{Control, module},
    vendors::LUNA_UNABLE_TO_CONNECT,
};

/// Keys of all kinds that every vendor has.
const KEYS: [(&str, &str); 4] =
    [("rsa:2048", "rsa"), ("EC:prime256v1", "p256"), ("EC:secp384r1", "p384"), ("EC:secp521r1", "p521")];

fn token(bench: &Bench, label: &str) {
    bench.token(label);
    for (number, (key_type, label_of_key)) in KEYS.iter().enumerate() {
        bench.generate(label, key_type, label_of_key, &format!("0{number}"));
    }
}

fn uris(token: &str, pin: &str) -> Vec<String> {
    KEYS.iter().map(|(_, label)| uri_at(module(), token, &format!("object={label}"), pin)).collect()
}

/// The conformance cases, here and in a process for plugins, and nothing that a caller shouldn't do.
fn conforms(uris: &[String], control: &Control) {
    conformance::run(&store(uris));
    let calls = control.calls("C_Sign");
    conformance::run(&in_process(uris));
    assert!(control.calls("C_Sign") > calls, "the process is told, and counts");
    let listing = store(uris).open().unwrap().listing().unwrap();
    assert_eq!(listing.keys.len(), uris.len(), "{:?}", listing.findings);
    assert_eq!(control.violations(), [""; 0]);
}

on_softhsm!(a_well_behaved_module_passes_the_conformance_suite, |bench| {
    token(bench, "keys");
    let control = Control::listen();
    conforms(&uris("keys", PIN), &control);
});

on_softhsm!(cloudhsm_passes_the_conformance_suite, |bench| {
    token(bench, "hsm1");
    let control = Control::listen();
    control.is_cloudhsm("crypto_user");
    conforms(&uris("hsm1", &format!("crypto_user:{PIN}")), &control);
    let logins = control.calls("C_Login");
    let refused = store(&uris("hsm1", PIN)).open().unwrap_err();
    assert_eq!(refused.code, Code::InvalidInput, "{refused}");
    assert!(refused.message.contains("has no colon; it was not presented"), "{refused}");
    assert_eq!(control.calls("C_Login"), logins, "a PIN of the wrong form would count as a wrong one");
});

on_softhsm!(nshield_passes_the_conformance_suite, |bench| {
    token(bench, "accelerator");
    token(bench, "softcard");
    let control = Control::listen();
    control.is_nshield(PIN);
    let without_pin = uris("accelerator", "").into_iter().map(|uri| uri.replace("&pin-value=", ""));
    conforms(&without_pin.collect::<Vec<_>>(), &control);
    assert_eq!(control.calls("C_Login"), 0);
    conforms(&uris("softcard", PIN), &control);
});

on_softhsm!(luna_passes_the_conformance_suite, |bench| {
    token(bench, "group");
    let control = Control::listen();
    control.is_luna();
    conforms(&uris("group", PIN), &control);
});

on_softhsm!(a_fault_reaches_the_plugin_in_its_process, |bench| {
    token(bench, "keys");
    let control = Control::listen();
    let subject = in_process(&uris("keys", PIN));
    let session = subject.open().unwrap();
    let listing = session.listing().unwrap();
    let p256 = key(&listing, "p256");
    prove(&session, p256);
    control.goes("keys", 0x32);
    let gone = session.sign(p256, Algorithm::EcdsaSha256, &[7; 32]).unwrap_err();
    assert_eq!(gone.code, Code::Unavailable, "{gone}");
    assert!(control.sessions("keys") == 0 && control.processes() == 1);
    control.comes_back("keys");
    control.wait_until("the token is back", |_| session.health().is_ok());
    prove(&session, p256);
});

on_softhsm!(luna_is_lost_and_found, |bench| {
    token(bench, "group");
    let control = Control::listen();
    control.is_luna();
    let session = store(&uris("group", PIN)).open().unwrap();
    let listing = session.listing().unwrap();
    let p256 = key(&listing, "p256");
    prove(&session, p256);
    control.loses_luna("group");
    thread::scope(|scope| {
        let lost = scope.spawn(|| session.sign(p256, Algorithm::EcdsaSha256, &[7; 32]).unwrap_err());
        control.wait_until("a call hangs", |control| control.inside("any") == 1);
        control.release("any");
        let lost = lost.join().unwrap();
        assert_eq!(lost.vendor.unwrap().number, LUNA_UNABLE_TO_CONNECT, "{}", lost.message);
    });
    control.finds_luna("group");
    control.wait_until("the plugin initialises the module anew", |_| session.health().is_ok());
    prove(&session, p256);
    assert!(control.calls("C_Finalize") > 0);
    assert_eq!(control.violations(), [""; 0]);
});

on_softhsm!(a_device_that_is_far_away_is_slow, |bench| {
    token(bench, "keys");
    let control = Control::listen();
    let session = store(&uris("keys", PIN)).open().unwrap();
    let listing = session.listing().unwrap();
    control.is_far_away(Duration::from_millis(50));
    let start = Instant::now();
    prove(&session, key(&listing, "p256"));
    assert!(start.elapsed() >= Duration::from_millis(50));
});
