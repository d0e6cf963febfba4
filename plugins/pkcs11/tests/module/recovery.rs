//! What a fault costs, and how soon after its cure the plugin serves again: under load, here and in a process.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use keystead_plugin_api::{
    Algorithm, Code, Key,
    algorithm::{Family, Operation},
    conformance::{self, Request, Session, Subject},
};
use openssl::pkey::PKey;
use serde_json::json;

use crate::{
    bench::{Bench, PIN, TABLE, in_process, key, on_softhsm, prove, store, uri_at},
    control::{AlwaysAuthenticate, Control, module},
};

/// Within so long after its cure, a fault must be over.
const BACK: Duration = Duration::from_secs(2);

/// Lanes that call all the time.
const LANES: u32 = 4;

const CKR_FUNCTION_FAILED: u64 = 0x06;
const CKR_DEVICE_ERROR: u64 = 0x30;
const CKR_DEVICE_REMOVED: u64 = 0x32;
const CKR_KEY_HANDLE_INVALID: u64 = 0x60;
const CKR_SESSION_HANDLE_INVALID: u64 = 0xb3;

/// A fault: how it begins, and how it is cured.
struct Fault {
    name: &'static str,
    begins: fn(&Control),
    ends: fn(&Control),
    /// Whether calls may fail while it lasts.
    fails: bool,
    /// Logins that it may cost, in each process.
    logins: u64,
}

const FAULTS: [Fault; 9] = [
    Fault {
        name: "sessions forgotten",
        begins: |control| control.forgets_sessions("keys"),
        ends: |_| (),
        fails: false,
        logins: 2,
    },
    Fault {
        name: "handles forgotten",
        begins: |control| control.forgets_objects("keys", CKR_KEY_HANDLE_INVALID),
        ends: |_| (),
        fails: false,
        logins: 0,
    },
    Fault {
        name: "login forgotten",
        begins: |control| control.forgets_login("keys"),
        ends: |_| (),
        fails: false,
        logins: 2,
    },
    Fault {
        name: "token gone and back",
        begins: |control| control.goes("keys", CKR_DEVICE_REMOVED),
        ends: |control| control.comes_back("keys"),
        fails: true,
        logins: 3,
    },
    Fault {
        name: "token back once initialised anew",
        begins: |control| control.goes("keys", CKR_DEVICE_ERROR),
        ends: |control| control.comes_back_once_initialised_anew("keys", CKR_DEVICE_ERROR),
        fails: true,
        logins: 3,
    },
    Fault {
        name: "each signature fails",
        begins: |control| control.fails("C_Sign", CKR_FUNCTION_FAILED),
        ends: |control| control.works("C_Sign"),
        fails: true,
        logins: u64::MAX,
    },
    Fault {
        name: "a session breaks in a signature",
        begins: |control| control.fails_next(1, "C_Sign", CKR_SESSION_HANDLE_INVALID),
        ends: |_| (),
        fails: false,
        logins: 0,
    },
    Fault {
        name: "fewer sessions than lanes",
        begins: |control| {
            control.limits_sessions("keys", 3);
            control.forgets_sessions("keys");
        },
        ends: |control| control.limits_sessions("keys", 0),
        fails: true,
        logins: 2,
    },
    Fault {
        name: "signatures hang",
        begins: |control| control.hangs("C_Sign"),
        ends: |control| control.release("C_Sign"),
        fails: true,
        logins: 0,
    },
];

fn uri(token: &str) -> String {
    uri_at(module(), token, "object=p256", PIN)
}

fn tokens(bench: &Bench, labels: &[&str]) {
    for label in labels {
        bench.token(label);
        bench.generate(label, "EC:prime256v1", "p256", "01");
    }
}

fn sign(session: &Session, key: &Key, lane: u32) -> Result<(), Code> {
    let mut request = Request::new(key, Algorithm::EcdsaSha256, &[7; 32]);
    request.lane = lane;
    request.time = Some(Duration::from_secs(5));
    session.perform(Operation::Sign, &request).map(drop).map_err(|failure| failure.error.code)
}

/// What calls came to.
#[derive(Default)]
struct Tally {
    good: AtomicU64,
    bad: AtomicU64,
}

impl Tally {
    fn count(&self, done: Result<(), Code>) {
        match done {
            Ok(()) => self.good.fetch_add(1, Ordering::Relaxed),
            Err(Code::Unavailable | Code::Throttled | Code::Deadline) => {
                self.bad.fetch_add(1, Ordering::Relaxed)
            }
            Err(code) => panic!("a fault of the device is no fault of the request: {code}"),
        };
    }
}

/// Ends a load when dropped.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Has lanes sign all the time while `work` is done; answers how many calls failed.
fn under_load(session: &Session, key: &Key, work: impl FnOnce(&Tally)) -> u64 {
    let (stop, tally) = (AtomicBool::new(false), Tally::default());
    thread::scope(|scope| {
        for lane in 0..LANES {
            let (stop, tally) = (&stop, &tally);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    tally.count(sign(session, key, lane));
                }
            });
        }
        let _stop = Stop(&stop); // also where `work` fails
        work(&tally);
    });
    tally.bad.load(Ordering::Relaxed)
}

/// Waits until so many more calls have gone well; answers how long that took.
fn wait_for_good(tally: &Tally, more: u64) -> Duration {
    let (start, before) = (Instant::now(), tally.good.load(Ordering::Relaxed));
    while tally.good.load(Ordering::Relaxed) < before + more {
        assert!(start.elapsed() < Duration::from_secs(20), "it never serves again");
        thread::sleep(Duration::from_millis(1));
    }
    start.elapsed()
}

#[expect(clippy::print_stdout, reason = "a test that is asked tells the times")]
fn survives(place: &str, subject: &Subject, control: &Control) {
    let session = subject.open().unwrap();
    let listing = session.listing().unwrap();
    let key = key(&listing, "p256");
    for Fault { name, begins, ends, fails, logins } in FAULTS {
        let before = control.calls("C_Login");
        let mut took = Duration::ZERO;
        let bad = under_load(&session, key, |tally| {
            wait_for_good(tally, 50);
            begins(control);
            thread::sleep(Duration::from_millis(300));
            ends(control);
            took = wait_for_good(tally, 50);
        });
        let logins_made = control.calls("C_Login") - before;
        println!(
            "{place:8} {name:34} served {took:>8.1?} after the cure; {bad:6} failed; {logins_made} logins"
        );
        assert!(took < BACK, "{name}: {took:?}");
        assert!(fails || bad == 0, "{name}: {bad} calls failed");
        assert!(logins_made <= logins, "{name}: {logins_made} logins");
    }
    assert_eq!(control.violations(), [""; 0]);
}

on_softhsm!(every_fault_is_over_soon_after_its_cure, |bench| {
    tokens(bench, &["keys"]);
    let control = Control::listen();
    survives("inline", &store(&[uri("keys")]), &control);
});

on_softhsm!(every_fault_is_over_soon_after_its_cure_in_a_process, |bench| {
    tokens(bench, &["keys"]);
    let control = Control::listen();
    survives("process", &in_process(&[uri("keys")]), &control);
});

on_softhsm!(a_module_whose_signatures_all_fail_is_initialised_anew_ever_less_often, |bench| {
    tokens(bench, &["keys"]);
    let control = Control::listen();
    let session = store(&[uri("keys")]).open().unwrap();
    let listing = session.listing().unwrap();
    let key = key(&listing, "p256");
    control.fails("C_Sign", CKR_DEVICE_ERROR);
    under_load(&session, key, |_| {
        control.wait_until("it is initialised anew", |control| control.calls("C_Finalize") > 1);
        let (start, before) = (Instant::now(), control.calls("C_Finalize"));
        control.wait_until("and again", |control| control.calls("C_Finalize") > before + 2);
        assert!(start.elapsed() > Duration::from_millis(300), "it is a burden to other users of the device");
    });
    // Whoever waits for that may end the process, and the module with it: nothing is in it any more.
    session.close().unwrap();
    assert_eq!(control.violations(), [""; 0]);
});

on_softhsm!(a_token_does_not_notice_what_happens_to_another_of_its_module, |bench| {
    tokens(bench, &["keys", "others"]);
    let control = Control::listen();
    let session = store(&[uri("keys"), uri("others")]).open().unwrap();
    let listing = session.listing().unwrap();
    let [ill, well] = [0, 1].map(|number| listing.keys.get(number).unwrap());
    assert_eq!(sign(&session, ill, 0), Ok(()));
    let calls = [control.calls("C_Finalize"), control.calls("C_Initialize")];
    let failed = under_load(&session, well, |tally| {
        control.goes("keys", CKR_DEVICE_ERROR);
        assert_eq!(sign(&session, ill, LANES), Err(Code::Unavailable));
        wait_for_good(tally, 200);
        control.comes_back("keys");
        control.wait_until("it is back", |_| sign(&session, ill, LANES).is_ok());
    });
    assert_eq!(failed, 0);
    assert_eq!(
        [control.calls("C_Finalize"), control.calls("C_Initialize")],
        calls,
        "never under a healthy token"
    );
});

on_softhsm!(no_more_sessions_are_open_than_may_be, |bench| {
    tokens(bench, &["keys"]);
    let control = Control::listen();
    let capped = format!("{}&max-sessions=3", uri("keys"));
    let session = store(&[capped]).open().unwrap();
    let listing = session.listing().unwrap();
    let key = key(&listing, "p256");
    control.latency("C_Sign", Duration::from_millis(1));
    under_load(&session, key, |tally| {
        wait_for_good(tally, 50);
        for _ in 0..5 {
            control.forgets_sessions("keys");
            wait_for_good(tally, 50);
            session.health().unwrap();
        }
    });
    assert_eq!(control.peak_sessions("keys"), 3);
});

on_softhsm!(the_last_try_of_a_pin_is_left_to_people, |bench| {
    const CKF_USER_PIN_FINAL_TRY: u64 = 0x20_000;
    tokens(bench, &["keys"]);
    let control = Control::listen();
    control.shows_flags("keys", CKF_USER_PIN_FINAL_TRY);
    let left = store(&[uri("keys")]).open().unwrap_err();
    assert_eq!(left.code, Code::Credentials, "{left}");
    assert!(left.message.contains("has one try left before it is locked; it was not presented"), "{left}");
    assert_eq!(control.calls("C_Login"), 0);
});

on_softhsm!(a_key_that_wants_a_login_for_each_use_gets_it, |bench| {
    tokens(bench, &["keys"]);
    let control = Control::listen();
    control.always_authenticate(AlwaysAuthenticate::Yes);
    let session = store(&[uri("keys")]).open().unwrap();
    let listing = session.listing().unwrap();
    let key = key(&listing, "p256");
    let before = control.calls("C_Login");
    for _ in 0..3 {
        assert_eq!(sign(&session, key, 0), Ok(()));
    }
    assert_eq!(control.calls("C_Login") - before, 3);
    assert_eq!(control.violations(), [""; 0]);
});

on_softhsm!(a_signature_takes_two_calls_of_the_module, |bench| {
    tokens(bench, &["keys"]);
    let control = Control::listen();
    let session = store(&[uri("keys")]).open().unwrap();
    let listing = session.listing().unwrap();
    let key = key(&listing, "p256");
    assert_eq!(sign(&session, key, 0), Ok(()));
    let calls = || {
        [
            "C_SignInit",
            "C_Sign",
            "C_OpenSession",
            "C_GetSessionInfo",
            "C_FindObjectsInit",
            "C_GetAttributeValue",
        ]
        .map(|function| control.calls(function))
    };
    let before = calls();
    for _ in 0..10 {
        assert_eq!(sign(&session, key, 0), Ok(()));
    }
    let made: Vec<_> = calls().iter().zip(before).map(|(after, before)| after - before).collect();
    assert_eq!(made, [10, 10, 0, 0, 0, 0], "none to find, none to ask");
    assert_eq!(control.queries("C_Sign"), 0);
});

on_softhsm!(a_token_without_padding_gets_it_from_here_where_that_is_allowed, |bench| {
    const CKM_RSA_PKCS: u64 = 0x01;
    const CKM_RSA_PKCS_PSS: u64 = 0x0d;
    bench.token("keys");
    bench.generate("keys", "rsa:2048", "rsa", "01");
    let control = Control::listen();
    control.hides_mechanism(CKM_RSA_PKCS);
    control.hides_mechanism(CKM_RSA_PKCS_PSS);
    let uris = [uri_at(module(), "keys", "object=rsa", PIN)];
    let refused = store(&uris).open().unwrap().listing().unwrap();
    let rsa = key(&refused, "rsa");
    assert_eq!(rsa.algorithms, [Algorithm::RsaRaw], "not without leave");
    let subject = Subject::new(&TABLE).config(json!({"uris": uris, "raw_rsa": true}));
    conformance::run(&subject);
    let listing = subject.open().unwrap().listing().unwrap();
    let all: Vec<_> = Algorithm::of(Family::Rsa).collect();
    assert_eq!(key(&listing, "rsa").algorithms, all);
});

on_softhsm!(a_public_half_may_be_given_where_the_token_has_none, |bench| {
    tokens(bench, &["keys"]);
    let control = Control::listen();
    control.has_raw_points();
    let spki = key(&store(&[uri("keys")]).open().unwrap().listing().unwrap(), "p256").spki.clone();
    control.hides_public_keys();
    let hidden = store(&[uri("keys")]).open().unwrap().listing().unwrap();
    assert!(hidden.keys.is_empty());
    let pem = PKey::public_key_from_der(&spki).unwrap().public_key_to_pem().unwrap();
    let file = bench.file("p256.pem", &pem);
    let config = json!({"uris": [{"uri": uri("keys"), "public_key": file}]});
    let session = Subject::new(&TABLE).config(config).open().unwrap();
    let listing = session.listing().unwrap();
    prove(&session, key(&listing, "p256"));
});
