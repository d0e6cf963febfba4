//! The plugin on real SoftHSM2 tokens, through the C table, as the server drives it.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "whatever fails, fails the test")]

mod bench;
mod kryoptic;
mod opencryptoki;
mod p11_kit;
mod remote;
mod tpm;

use std::{
    sync::{Arc, Barrier},
    thread,
    time::{Duration, Instant},
};

use bench::{PIN, TABLE, in_process, key, lines, on_softhsm, prove, softhsm, spy, store, uri, uri_at};
use cryptoki::{
    context::{CInitializeArgs, CInitializeFlags, Pkcs11},
    object::{Attribute, ObjectClass},
};
use keystead_plugin_api::{
    Algorithm, CallClass, Code, Severity,
    algorithm::{Family, Operation},
    conformance::{self, Request, Subject},
};
use openssl::{
    asn1::Asn1Time,
    hash::MessageDigest,
    pkey::PKey,
    x509::{X509, X509Name},
};
use serde_json::json;

on_softhsm!(only_what_takes_microseconds_signs_on_the_spot, |bench| {
    bench.token("keys");
    let types = [
        ("EC:prime256v1", "p256"),
        ("EC:edwards25519", "ed25519"),
        ("EC:secp384r1", "p384"),
        ("rsa:2048", "rsa"),
    ];
    for (number, (key_type, label)) in types.iter().enumerate() {
        bench.generate("keys", key_type, label, &format!("0{number}"));
    }
    let on_the_spot = |subject: &Subject| -> Vec<String> {
        let keys = subject.open().unwrap().listing().unwrap().keys.into_iter();
        keys.filter(|key| key.call_class == CallClass::Inline).map(|key| key.label).collect()
    };
    assert_eq!(
        on_the_spot(&store(&types.map(|(_, label)| uri("keys", &format!("object={label}"))))),
        ["p256", "ed25519"]
    );
    let spied = store(&[uri_at(&spy(), "keys", "object=p256", PIN)]);
    assert_eq!(on_the_spot(&spied), [""; 0], "what speaks for the library may be far away");
});

on_softhsm!(passes_the_conformance_suite, |bench| {
    let types = [
        ("rsa:2048", "rsa", Family::Rsa),
        ("EC:secp224r1", "p224", Family::Ecdsa),
        ("EC:prime256v1", "p256", Family::Ecdsa),
        ("EC:secp384r1", "p384", Family::Ecdsa),
        ("EC:secp521r1", "p521", Family::Ecdsa),
        ("EC:edwards25519", "ed25519", Family::Ed25519),
    ];
    bench.token("keys");
    for (number, (key_type, label, _)) in types.iter().enumerate() {
        bench.generate("keys", key_type, label, &format!("0{number}"));
    }
    let private = bench.tool("keys", &["--list-objects", "--type", "privkey"]);
    assert_eq!(private.matches("never extractable").count(), types.len(), "{private}");

    let uris = types.map(|(_, label, _)| uri("keys", &format!("object={label}")));
    let subject = store(&uris);
    conformance::run(&subject);
    conformance::run(&in_process(&uris));
    let listing = subject.open().unwrap().listing().unwrap();
    let faults = listing.findings.iter().filter(|finding| finding.severity != Severity::Note);
    assert_eq!(faults.count(), 0, "{:?}", listing.findings);
    for (_, label, family) in types {
        assert_eq!(key(&listing, label).algorithms, Algorithm::of(family).collect::<Vec<_>>(), "{label}");
    }
});

on_softhsm!(fifty_uris_on_a_token_share_one_login, |bench| {
    bench.token("keys");
    bench.generate("keys", "EC:prime256v1", "one", "01");
    bench.generate("keys", "EC:prime256v1", "two", "02");
    let uris: Vec<String> =
        (0..50).map(|number| uri_at(&spy(), "keys", ["object=one", "id=%02"][number % 2], PIN)).collect();
    let session = store(&uris).open().unwrap();
    let listing = session.listing().unwrap();
    assert_eq!(listing.keys.len(), 2);
    assert_eq!(lines(&listing.findings, Severity::Warning).matches("is the same key as uri ").count(), 48);
    listing.keys.iter().for_each(|key| prove(&session, key));
    assert_eq!(bench.calls("C_Login"), 1);
    assert_eq!(bench.calls("C_Initialize"), 1);
    assert_eq!(bench.calls("C_OpenSession"), 2, "the anchor and one lane");
    session.close().unwrap();
    assert_eq!(bench.calls("C_CloseSession"), 2);
    assert_eq!(bench.calls("C_Logout") + bench.calls("C_Finalize"), 0);
});

on_softhsm!(a_wrong_pin_is_presented_once, |bench| {
    bench.token("keys");
    bench.generate("keys", "EC:prime256v1", "one", "01");
    let wrong = "wrong-pin-1";
    let uris = vec![uri_at(&spy(), "keys", "object=one", wrong); 50];
    let host = Subject::new(&TABLE).config(json!({"uris": uris})).secret("decoy", wrong.as_bytes()).host();
    let refused = host.open(&TABLE).unwrap_err();
    assert_eq!(refused.code, Code::Credentials);
    let vendor = refused.vendor.clone().unwrap();
    assert_eq!((vendor.name.as_str(), vendor.number), ("CKR_PIN_INCORRECT", 0xa0));
    assert!(
        refused.message.starts_with("uri 1 (pkcs11:token=keys;object=one) (and 49 more): login on token")
    );
    assert_eq!(bench.calls("C_Login"), 1);

    // Another store, the same memory.
    let again = host.open(&TABLE).unwrap_err();
    assert_eq!(again.code, Code::Credentials);
    assert!(again.message.contains("has refused this PIN before; it was not tried again"), "{again}");
    assert_eq!(bench.calls("C_Login"), 1);
    assert_eq!(host.refusals().len(), 1);
    assert!(host.leaks().is_empty(), "{:?}", host.leaks());
});

on_softhsm!(two_stores_at_once_present_a_wrong_pin_once, |bench| {
    bench.token("keys");
    let uris = [uri_at(&spy(), "keys", "object=one", "wrong-pin-1")];
    let host = Subject::new(&TABLE).config(json!({"uris": uris})).host();
    let start = Barrier::new(4);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                start.wait();
                assert_eq!(host.open(&TABLE).unwrap_err().code, Code::Credentials);
            });
        }
    });
    assert_eq!(bench.calls("C_Login"), 1);
});

on_softhsm!(what_is_wrong_gets_a_line_each_and_the_rest_is_served, |bench| {
    bench.token("keys");
    bench.token("locked");
    bench.generate("keys", "EC:prime256v1", "good", "01");
    bench.generate("keys", "EC:prime256v1", "twin", "02");
    bench.generate("keys", "EC:prime256v1", "twin", "03");
    let text = bench.file("text.so", b"not a library");
    let libm = library_of_another_kind();
    let session = store(&[
        uri("nowhere", "object=good"),
        uri("keys", "object=nothing"),
        uri_at("/no/such/module.so".as_ref(), "keys", "object=good", PIN),
        uri_at(&text, "keys", "object=good", PIN),
        uri_at(libm.as_ref(), "keys", "object=good", PIN),
        uri("keys", "object=twin"),
        uri_at(&softhsm(), "locked", "object=good", "wrong-pin-1"),
        format!("pkcs11:token=keys;objekt=good?pin-value={PIN}"),
        format!("pkcs11:object=good?module-path={}&pin-value={PIN}", softhsm().display()),
        format!("pkcs11:token=keys;object=good?pin-value={PIN}"),
        uri("keys", "object=twin;id=%03"),
        uri("keys", "object=good"),
    ])
    .open()
    .unwrap();
    let listing = session.listing().unwrap();
    let errors = lines(&listing.findings, Severity::Error);
    for expected in [
        "unavailable: uri 1 (pkcs11:token=nowhere;object=good): token `token=nowhere` is not there: no such token \
         is there; the module has",
        "not found: uri 2 (pkcs11:token=keys;object=nothing): no such private key on the token; it has `",
        "invalid input: uri 3 (pkcs11:token=keys;object=good): module `/no/such/module.so` can't be opened",
        "invalid input: uri 4 (pkcs11:token=keys;object=good): module `",
        "invalid input: uri 5 (pkcs11:token=keys;object=good): `",
        "credentials: uri 7 (pkcs11:token=locked;object=good): login on token `locked`: C_Login failed (CKR",
        "invalid input: uri 8: no such attribute; before the `?` there are token, ",
        "invalid input: uri 9 (pkcs11:object=good): more than one token matches: `",
        "invalid input: uri 10 (pkcs11:token=keys;object=good): the URI names no module; add ?module-path=",
    ] {
        assert_eq!(errors.matches(expected).count(), 1, "{expected}\nin\n{errors}");
    }
    assert_eq!(errors.lines().count(), 9, "{errors}");
    assert_eq!(listing.keys.len(), 3, "one called good, and two called twin");
    listing.keys.iter().for_each(|key| prove(&session, key));
    assert!(session.host().leaks().is_empty(), "{:?}", session.host().leaks());
});

on_softhsm!(a_store_of_which_nothing_opens_says_so_in_one_line, |bench| {
    bench.token("keys");
    for (uris, code, text) in [
        (
            vec![uri("nowhere", "object=a"); 3],
            Code::Unavailable,
            "uri 1 (pkcs11:token=nowhere;object=a) (and 2 more): no such token is there; the module has",
        ),
        (vec!["pkcs11:token".to_owned()], Code::InvalidInput, "uri 1: expected `name=value` (character 8)"),
        (vec![], Code::InvalidInput, "`uris`: has 0 entries, expected at least 1"),
    ] {
        let error = store(&uris).open().unwrap_err();
        assert_eq!(error.code, code, "{error}");
        assert!(error.message.contains(text) && !error.message.contains('\n'), "{error}");
    }
});

on_softhsm!(a_configuration_of_the_wrong_shape_is_not_quoted, |bench| {
    bench.token("keys");
    for config in [
        json!({"uris": uri("keys", "object=a")}),
        json!({"uris": [[uri("keys", "object=a")]]}),
        json!({"uris": {"uri": uri("keys", "object=a")}}),
        json!({"uris": [uri("keys", "object=a")], "pin": PIN}),
    ] {
        let subject = Subject::new(&TABLE).config(config).secret("decoy", PIN.as_bytes());
        let host = subject.host();
        assert_eq!(host.open(&TABLE).unwrap_err().code, Code::InvalidInput);
        assert!(host.leaks().is_empty(), "{:?}", host.leaks());
    }
});

on_softhsm!(legacy_uris_read_a_plus_as_a_blank_and_warn, |bench| {
    bench.token("My keys");
    bench.generate("My keys", "EC:prime256v1", "my key", "01");
    let uris = [uri_at(&softhsm(), "My+keys", "object=my+key", PIN)];
    let subject = Subject::new(&TABLE).config(json!({"uris": uris, "legacy": true}));
    let session = subject.open().unwrap();
    let listing = session.listing().unwrap();
    prove(&session, key(&listing, "my key"));
    let warnings = lines(&listing.findings, Severity::Warning);
    assert!(
        warnings.contains("uri 1 (pkcs11:token=My%20keys;object=my%20key): `+` is read as a blank"),
        "{warnings}"
    );
    assert_eq!(store(&uris).open().unwrap_err().code, Code::Unavailable, "there is no token called My+keys");
});

on_softhsm!(one_session_serves_eight_lanes_and_is_reported_as_the_bottleneck, |bench| {
    bench.token("keys");
    bench.generate("keys", "rsa:2048", "rsa", "01");
    let session =
        store(&[format!("{}&max-sessions=1", uri_at(&spy(), "keys", "object=rsa", PIN))]).open().unwrap();
    let listing = session.listing().unwrap();
    let rsa = key(&listing, "rsa");
    let faults = listing.findings.iter().filter(|finding| finding.severity != Severity::Note);
    assert_eq!(faults.count(), 0, "{:?}", listing.findings);
    let before = session.health().unwrap();
    let start = Arc::new(Barrier::new(8));
    thread::scope(|scope| {
        for lane in 0..8 {
            let (session, start) = (&session, Arc::clone(&start));
            scope.spawn(move || {
                start.wait();
                for _ in 0..8 {
                    let request = Request::new(rsa, Algorithm::RsaPkcs1Sha256, &[7; 32]);
                    let request = with_lane(request, lane);
                    let signature = session.perform(Operation::Sign, &request).unwrap();
                    conformance::verify(&rsa.spki, Algorithm::RsaPkcs1Sha256, &[7; 32], &signature).unwrap();
                }
            });
        }
    });
    assert_eq!(bench.calls("C_OpenSession"), 2, "the anchor and the one that lanes share");
    assert_ne!(session.health().unwrap(), before, "the listing has something new to tell");
    let warnings = lines(&session.listing().unwrap().findings, Severity::Warning);
    assert!(
        warnings.contains(
            "token `keys`: lanes had to wait for a session: max-sessions, or the token, allows 1 at once"
        ),
        "{warnings}"
    );
});

on_softhsm!(lanes_get_sessions_of_their_own_where_nothing_limits_them, |bench| {
    bench.token("keys");
    bench.generate("keys", "EC:prime256v1", "p256", "01");
    let session = store(&[uri_at(&spy(), "keys", "object=p256", PIN)]).open().unwrap();
    let listing = session.listing().unwrap();
    for _ in 0..3 {
        listing.keys.iter().for_each(|key| prove(&session, key));
    }
    assert_eq!(bench.calls("C_OpenSession"), 2, "an idle session is used again");
    assert_eq!(
        bench.calls("C_FindObjectsInit"),
        4,
        "a key is found once per session: itself and its public half"
    );
    assert!(lines(&session.listing().unwrap().findings, Severity::Warning).is_empty());
});

on_softhsm!(pins_and_modules_may_be_named_in_other_ways, |bench| {
    bench.token("keys");
    bench.generate("keys", "EC:prime256v1", "p256", "01");
    let file = bench.file("pin", format!("{PIN}\n").as_bytes());
    let bare = format!("pkcs11:token=keys;object=p256?module-path={}", softhsm().display());
    let from_file = store(&[format!("{bare}&pin-source=file:{}", file.display())]);
    let from_secret = Subject::new(&TABLE)
        .config(json!({"uris": ["pkcs11:token=keys;object=p256"], "module": softhsm()}))
        .secret("pin", PIN.as_bytes());
    let by_name = store(&[format!("pkcs11:token=keys;object=p256?module-name=softhsm2&pin-value={PIN}")]);
    for subject in [from_file, from_secret, by_name] {
        let session = subject.open().unwrap();
        prove(&session, key(&session.listing().unwrap(), "p256"));
        session.close().unwrap();
    }
    let missing = store(&[format!("{bare}&pin-source=/no/such/file")]).open().unwrap_err();
    assert!(missing.message.contains("pin-source can't be read"), "{missing}");
    assert!(!missing.message.contains("/no/such/file"), "{missing}");
});

on_softhsm!(without_a_pin_there_is_no_login_but_a_hint, |bench| {
    bench.token("keys");
    bench.generate("keys", "EC:prime256v1", "p256", "01");
    let session =
        store(&[format!("pkcs11:token=keys;object=p256?module-path={}", spy().display())]).open().unwrap();
    let errors = lines(&session.listing().unwrap().findings, Severity::Error);
    assert!(
        errors.contains("no such private key on the token; the token shows no private key at all"),
        "{errors}"
    );
    assert!(errors.contains("login with a PIN"), "{errors}");
    assert_eq!(bench.calls("C_Login"), 0);
});

on_softhsm!(the_first_pin_of_a_token_counts_and_another_is_reported, |bench| {
    bench.token("keys");
    bench.generate("keys", "EC:prime256v1", "p256", "01");
    let session = store(&[
        uri_at(&spy(), "keys", "object=p256", PIN),
        uri_at(&spy(), "keys", "id=%01", "another-pin-1"),
    ])
    .open()
    .unwrap();
    let warnings = lines(&session.listing().unwrap().findings, Severity::Warning);
    assert!(
        warnings.contains("uri 2 (pkcs11:token=keys;id=%01): has another PIN for the same token than uri 1"),
        "{warnings}"
    );
    assert_eq!(bench.calls("C_Login"), 1);
});

on_softhsm!(the_public_half_may_be_in_a_certificate, |bench| {
    bench.token("keys");
    bench.generate("keys", "EC:prime256v1", "p256", "01");
    let subject = store(&[uri("keys", "object=p256")]);
    let session = subject.open().unwrap();
    let spki = key(&session.listing().unwrap(), "p256").spki.clone();
    bench.tool("keys", &["--delete-object", "--type", "pubkey", "--id", "01"]);
    let errors = lines(&session.listing().unwrap().findings, Severity::Error);
    assert!(
        errors.contains("the key's public half is not on the token; store the public key or the certificate"),
        "{errors}"
    );

    let certificate = bench.file("certificate.der", &certificate(&spki));
    bench.tool("keys", &["--write-object", certificate.to_str().unwrap(), "--type", "cert", "--id", "01"]);
    let listing = session.listing().unwrap();
    assert_eq!(key(&listing, "p256").spki, spki);
    prove(&session, key(&listing, "p256"));
});

on_softhsm!(after_a_logout_the_next_call_logs_in_and_finds_its_key_again, |bench| {
    bench.token("keys");
    bench.generate("keys", "EC:prime256v1", "p256", "01");
    let session = store(&[uri("keys", "object=p256")]).open().unwrap();
    let listing = session.listing().unwrap();
    let p256 = key(&listing, "p256");
    prove(&session, p256);
    other_session(|session| session.logout().unwrap());
    prove(&session, p256);
    other_session(|session| session.logout().unwrap());
    assert_eq!(session.listing().unwrap().keys.len(), 1);
    other_session(|session| session.logout().unwrap());
    session.health().unwrap();
    prove(&session, p256);
});

on_softhsm!(a_token_that_comes_later_is_found, |bench| {
    let late = store(&[uri_at(&spy(), "late", "object=p256", PIN)]);
    let absent = late.open().unwrap_err();
    assert_eq!(absent.code, Code::Unavailable, "{absent}");
    assert!(absent.message.contains("no such token is there; the module has no token"), "{absent}");
    bench.token("late");
    bench.generate("late", "EC:prime256v1", "p256", "01");
    let session = late.open().unwrap();
    prove(&session, key(&session.listing().unwrap(), "p256"));
    assert_eq!(bench.calls("C_Finalize"), 2, "once for each look that found no token at first");
});

on_softhsm!(a_module_that_cannot_be_initialised_is_tried_again, |bench| {
    bench.token("keys");
    bench.generate("keys", "EC:prime256v1", "p256", "01");
    bench.unplug();
    let subject = store(&[uri("keys", "object=p256")]);
    for _ in 0..2 {
        let failed = subject.open().unwrap_err();
        assert_eq!(failed.code, Code::Unavailable, "{failed}");
        assert_eq!(failed.vendor.unwrap().name, "CKR_GENERAL_ERROR");
    }
    bench.plug_in();
    let session = subject.open().unwrap();
    prove(&session, key(&session.listing().unwrap(), "p256"));
});

on_softhsm!(two_stores_that_wait_for_their_tokens_do_not_keep_each_other_from_them, |bench| {
    let stores = ["one", "two"].map(|token| store(&[uri(token, "object=p256")]));
    for store in &stores {
        assert_eq!(store.open().unwrap_err().code, Code::Unavailable);
    }
    for token in ["one", "two"] {
        bench.token(token);
        bench.generate(token, "EC:prime256v1", "p256", "01");
    }
    let start = Barrier::new(2);
    thread::scope(|scope| {
        for store in &stores {
            scope.spawn(|| {
                start.wait();
                let session = (0..100).find_map(|_| store.open().ok()).expect("one of many tries works");
                prove(&session, key(&session.listing().unwrap(), "p256"));
            });
        }
    });
});

on_softhsm!(a_module_in_use_is_not_initialised_anew, |bench| {
    bench.token("keys");
    bench.generate("keys", "EC:prime256v1", "p256", "01");
    let session = store(&[uri_at(&spy(), "keys", "object=p256", PIN)]).open().unwrap();
    let listing = session.listing().unwrap();
    let late = store(&[uri_at(&spy(), "late", "object=p256", PIN)]);
    assert_eq!(late.open().unwrap_err().code, Code::Unavailable);
    assert_eq!(bench.calls("C_Finalize"), 0);
    prove(&session, key(&listing, "p256"));
    session.close().unwrap();
    assert_eq!(late.open().unwrap_err().code, Code::Unavailable);
    assert_eq!(bench.calls("C_Finalize"), 1, "nobody uses it any more");
});

on_softhsm!(a_token_that_goes_and_comes_back_serves_again, |bench| {
    bench.token("keys");
    bench.generate("keys", "EC:prime256v1", "p256", "01");
    let session = store(&[uri("keys", "object=p256")]).open().unwrap();
    let listing = session.listing().unwrap();
    let p256 = key(&listing, "p256");
    prove(&session, p256);
    bench.unplug();
    for _ in 0..2 {
        let gone = session.sign(p256, Algorithm::EcdsaSha256, &[1; 32]).unwrap_err();
        assert_eq!(gone.code, Code::Unavailable, "{gone}");
        assert_eq!(session.health().unwrap_err().code, Code::Unavailable);
        assert_eq!(session.listing().unwrap().keys.len(), 1, "the key stays listed meanwhile");
    }
    let keys_changed = session.host().keys_changed();
    bench.plug_in();
    until("the token is back", || session.sign(p256, Algorithm::EcdsaSha256, &[1; 32]).is_ok());
    session.health().unwrap();
    prove(&session, p256);
    assert!(session.host().keys_changed() > keys_changed, "the host is to list its keys again");
});

on_softhsm!(a_token_that_was_away_between_two_calls_serves_again, |bench| {
    bench.token("keys");
    bench.generate("keys", "EC:prime256v1", "p256", "01");
    let session = store(&[uri_at(&spy(), "keys", "object=p256", PIN)]).open().unwrap();
    let listing = session.listing().unwrap();
    let p256 = key(&listing, "p256");
    prove(&session, p256);
    bench.unplug();
    session.sign(p256, Algorithm::EcdsaSha256, &[1; 32]).unwrap_err();
    bench.plug_in();
    until("the token is back", || session.sign(p256, Algorithm::EcdsaSha256, &[1; 32]).is_ok());
    assert!(bench.calls("C_Finalize") > 0, "without it, SoftHSM2 doesn't find the token again");
});

on_softhsm!(a_key_in_the_place_of_another_never_signs_for_it, |bench| {
    bench.token("keys");
    bench.generate("keys", "EC:prime256v1", "p256", "01");
    let session = store(&[uri("keys", "object=p256")]).open().unwrap();
    let listing = session.listing().unwrap();
    let old = key(&listing, "p256");
    prove(&session, old);
    other_session(|session| {
        for object in session.find_objects(&[Attribute::Label(b"p256".to_vec())]).unwrap() {
            session.destroy_object(object).unwrap();
        }
    });
    bench.generate("keys", "EC:prime256v1", "p256", "01");
    let replaced = session.sign(old, Algorithm::EcdsaSha256, &[1; 32]).unwrap_err();
    assert_eq!(replaced.code, Code::NotFound, "{replaced}");
    assert_eq!(session.host().keys_changed(), 1);
    let listing = session.listing().unwrap();
    assert_ne!(key(&listing, "p256").id, old.id);
    prove(&session, key(&listing, "p256"));
});

on_softhsm!(a_key_that_may_not_decrypt_does_not_offer_to, |bench| {
    bench.token("keys");
    bench.generate("keys", "rsa:2048", "rsa", "01");
    let session = store(&[uri("keys", "object=rsa")]).open().unwrap();
    let rsa = key(&session.listing().unwrap(), "rsa").clone();
    assert!(rsa.algorithms.contains(&Algorithm::RsaRaw));
    other_session(|session| {
        let key = session.find_objects(&[Attribute::Class(ObjectClass::PRIVATE_KEY)]).unwrap()[0];
        session.update_attributes(key, &[Attribute::Decrypt(false)]).unwrap();
    });
    let denied = session.decrypt(&rsa, Algorithm::RsaRaw, &[1]).unwrap_err();
    assert_eq!(denied.code, Code::Denied, "{denied}");
    let rsa = key(&session.listing().unwrap(), "rsa").clone();
    assert!(!rsa.algorithms.contains(&Algorithm::RsaRaw));
    assert_eq!(session.decrypt(&rsa, Algorithm::RsaRaw, &[1]).unwrap_err().code, Code::Unsupported);
    prove(&session, &rsa);
});

/// Waits until something holds, for a few seconds.
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let give_up = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < give_up, "in vain: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

fn with_lane(mut request: Request<'_>, lane: u32) -> Request<'_> {
    request.lane = lane;
    request
}

/// A library of every Linux that isn't a PKCS#11 module.
fn library_of_another_kind() -> &'static str {
    let places = ["/lib/x86_64-linux-gnu/libm.so.6", "/lib/aarch64-linux-gnu/libm.so.6", "/lib64/libm.so.6"];
    places.into_iter().find(|path| std::path::Path::new(path).exists()).expect("a libm")
}

/// What another part of the same process does to the token behind the plugin's back.
fn other_session<T>(work: impl FnOnce(&cryptoki::session::Session) -> T) -> T {
    let library = Pkcs11::new(softhsm()).unwrap();
    library
        .initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK))
        .expect_err("the plugin did that");
    let slot = library.get_slots_with_initialized_token().unwrap()[0];
    work(&library.open_rw_session(slot).unwrap())
}

/// A certificate for a public key, signed by some other key.
fn certificate(spki: &[u8]) -> Vec<u8> {
    let issuer = PKey::generate_ed25519().unwrap();
    let mut name = X509Name::builder().unwrap();
    name.append_entry_by_text("CN", "p256").unwrap();
    let name = name.build();
    let mut builder = X509::builder().unwrap();
    builder.set_version(2).unwrap();
    builder.set_subject_name(&name).unwrap();
    builder.set_issuer_name(&name).unwrap();
    builder.set_pubkey(&PKey::public_key_from_der(spki).unwrap()).unwrap();
    builder.set_not_before(&Asn1Time::days_from_now(0).unwrap()).unwrap();
    builder.set_not_after(&Asn1Time::days_from_now(1).unwrap()).unwrap();
    builder.sign(&issuer, MessageDigest::null()).unwrap();
    builder.build().to_der().unwrap()
}
