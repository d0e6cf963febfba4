//! The module that misbehaves, by itself: each fault does what it says, to a caller that is not the plugin.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "whatever fails, fails the test")]

#[path = "../softhsm/bench.rs"]
#[expect(dead_code, reason = "it serves other tests as well")]
mod bench;
mod control;
mod plugin;
mod recovery;
mod vendors;

use std::{
    os::unix::process::ExitStatusExt,
    path::Path,
    process::{Command, ExitStatus, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use bench::{Bench, PIN, on_softhsm};
use control::{AlwaysAuthenticate, Control, EVERY_TOKEN, module};
use cryptoki::{
    context::{CInitializeArgs, CInitializeFlags, Pkcs11},
    error::{Error, RvError},
    mechanism::{Mechanism, MechanismType},
    object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle},
    session::{Session, SessionState, UserType},
    slot::{Limit, Slot},
    types::RawAuthPin,
};

/// A caller of the module, and the test's end of it.
struct Caller {
    library: Pkcs11,
    control: Control,
}

impl Caller {
    /// On one token, `keys`, with a pair of keys on P-256 and one for RSA.
    fn new(bench: &Bench) -> Self {
        bench.token("keys");
        bench.generate("keys", "EC:prime256v1", "p256", "01");
        bench.generate("keys", "rsa:2048", "rsa", "02");
        Self::with(Control::listen())
    }

    fn with(control: Control) -> Self {
        let library = Pkcs11::new(module()).unwrap();
        initialise(&library);
        Self { library, control }
    }

    fn slot(&self) -> Slot {
        self.library.get_slots_with_initialized_token().unwrap()[0]
    }

    fn session(&self) -> Session {
        self.library.open_rw_session(self.slot()).unwrap()
    }

    fn user_session(&self) -> Session {
        let session = self.session();
        login(&session, UserType::User, PIN).unwrap();
        session
    }
}

fn initialise(library: &Pkcs11) {
    library.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)).unwrap();
}

fn login(session: &Session, user: UserType, pin: &str) -> Result<(), Error> {
    session.login_with_raw(user, &RawAuthPin::new(Box::new(pin.as_bytes().to_vec())))
}

fn find(session: &Session, class: ObjectClass) -> Vec<ObjectHandle> {
    session.find_objects(&[Attribute::Class(class), Attribute::KeyType(KeyType::EC)]).unwrap()
}

fn key(session: &Session) -> ObjectHandle {
    find(session, ObjectClass::PRIVATE_KEY)[0]
}

fn sign(session: &Session, key: ObjectHandle) -> Result<Vec<u8>, Error> {
    session.sign(&Mechanism::Ecdsa, key, &[7; 32])
}

/// What a call was answered with that failed.
fn refused<T>(result: Result<T, Error>) -> RvError {
    match result {
        Err(Error::Pkcs11(code, _)) => code,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("it works"),
    }
}

/// Another process that has the module loaded: it lists the tokens.
fn other_process() -> Command {
    let mut tool = Command::new("pkcs11-tool");
    tool.arg("--module").arg(module()).arg("--list-token-slots").env("LC_ALL", "C");
    tool
}

fn output(command: &mut Command) -> (ExitStatus, String) {
    let output = command.output().unwrap();
    (output.status, String::from_utf8_lossy(&output.stdout).into_owned())
}

const CKF_USER_PIN_FINAL_TRY: u64 = 0x2_0000;
const CKF_USER_PIN_LOCKED: u64 = 0x4_0000;
const CKF_USER_PIN_COUNT_LOW: u64 = 0x1_0000;
const CKR_FUNCTION_FAILED: u64 = 0x06;
const CKR_PIN_INCORRECT: u64 = 0xa0;
const CKR_PIN_EXPIRED: u64 = 0xa3;
const CKR_TOKEN_WRITE_PROTECTED: u64 = 0xe2;
const CKR_DEVICE_ERROR: u64 = 0x30;
const CKR_DEVICE_REMOVED: u64 = 0x32;
const CKR_KEY_HANDLE_INVALID: u64 = 0x60;

on_softhsm!(without_a_test_that_listens_it_refuses_to_load, |_bench| {
    assert_eq!(refused(Pkcs11::new(module())), RvError::GeneralError);
});

on_softhsm!(a_signature_goes_through_and_every_step_is_counted, |bench| {
    let caller = Caller::new(bench);
    let session = caller.user_session();
    let key = key(&session);
    for _ in 0..3 {
        assert_eq!(sign(&session, key).unwrap().len(), 64);
    }
    let counts = ["C_Initialize", "C_OpenSession", "C_Login", "C_SignInit", "C_Sign", "C_CloseSession"];
    assert_eq!(counts.map(|name| caller.control.calls(name)), [1, 1, 1, 3, 3, 0]);
    assert_eq!(caller.control.queries("C_Sign"), 3, "cryptoki asks for the length first");
    drop(session);
    assert_eq!(caller.control.calls("C_CloseSession"), 1);
    caller.library.finalize().unwrap();
    assert_eq!(caller.control.violations(), [""; 0]);
});

on_softhsm!(latency_is_the_whole_time_of_a_call, |bench| {
    let caller = Caller::new(bench);
    let session = caller.user_session();
    let key = key(&session);
    caller.control.latency("C_Sign", Duration::from_millis(60));
    let start = Instant::now();
    sign(&session, key).unwrap();
    let taken = start.elapsed();
    assert!(taken >= Duration::from_millis(60), "{taken:?}");
    // None of the others is slow, and to ask for the length isn't either.
    caller.control.latency("any", Duration::from_millis(40));
    caller.control.latency("C_Sign", Duration::from_millis(10));
    let start = Instant::now();
    session.get_session_info().unwrap();
    assert!(start.elapsed() >= Duration::from_millis(40));
    caller.control.works("any");
    caller.control.works("C_Sign");
    assert_eq!(caller.control.at_once("C_Sign"), 1);
});

on_softhsm!(sessions_are_limited_and_counted, |bench| {
    let caller = Caller::new(bench);
    caller.control.limits_sessions("keys", 2);
    let slot = caller.slot();
    let (_one, two) = (caller.session(), caller.session());
    assert_eq!(refused(caller.library.open_rw_session(slot)), RvError::SessionCount);
    assert!(!matches!(caller.library.get_token_info(slot).unwrap().max_session_count(), Limit::Max(2)));
    assert_eq!((caller.control.sessions("keys"), caller.control.peak_sessions("keys")), (2, 2));
    drop(two);
    assert_eq!((caller.control.sessions("keys"), caller.control.peak_sessions("keys")), (1, 2));
    caller.control.tells_its_session_limit("keys", 3);
    let told = caller.library.get_token_info(slot).unwrap();
    assert!(matches!(told.max_session_count(), Limit::Max(3)));
    assert!(matches!(told.max_rw_session_count(), Limit::Max(3)));
    let _more = (caller.session(), caller.session());
    assert_eq!(refused(caller.library.open_rw_session(slot)), RvError::SessionCount);
    caller.control.limits_sessions("keys", 0);
    let _one_more = caller.session();
});

on_softhsm!(forgotten_sessions_take_the_login_along, |bench| {
    let caller = Caller::new(bench);
    let session = caller.user_session();
    caller.control.forgets_sessions("keys");
    assert_eq!(refused(session.get_session_info()), RvError::SessionHandleInvalid);
    assert_eq!(caller.control.sessions("keys"), 0);
    let session = caller.session();
    assert_eq!(session.get_session_info().unwrap().session_state(), SessionState::RwPublic);
    login(&session, UserType::User, PIN).unwrap();
    sign(&session, key(&session)).unwrap();
});

on_softhsm!(forgotten_objects_are_found_again, |bench| {
    let caller = Caller::new(bench);
    let session = caller.user_session();
    let old = key(&session);
    caller.control.forgets_objects("keys", CKR_KEY_HANDLE_INVALID);
    assert_eq!(refused(sign(&session, old)), RvError::KeyHandleInvalid);
    assert_eq!(refused(session.get_attributes(old, &[AttributeType::EcParams])), RvError::KeyHandleInvalid);
    let new = key(&session);
    assert_ne!(new, old);
    sign(&session, new).unwrap();
    caller.control.forgets_objects(EVERY_TOKEN, 0x82);
    assert_eq!(refused(sign(&session, new)), RvError::ObjectHandleInvalid);
});

on_softhsm!(a_forgotten_login_is_made_anew, |bench| {
    let caller = Caller::new(bench);
    let session = caller.user_session();
    let old = key(&session);
    caller.control.forgets_login("keys");
    assert_eq!(session.get_session_info().unwrap().session_state(), SessionState::RwPublic);
    assert_eq!(find(&session, ObjectClass::PRIVATE_KEY).len(), 0);
    assert_eq!(find(&session, ObjectClass::PUBLIC_KEY).len(), 1);
    assert_eq!(refused(sign(&session, old)), RvError::UserNotLoggedIn);
    login(&session, UserType::User, PIN).unwrap();
    assert_eq!(refused(sign(&session, old)), RvError::ObjectHandleInvalid);
    caller.control.answers_stale_handles("keys", CKR_KEY_HANDLE_INVALID);
    assert_eq!(refused(sign(&session, old)), RvError::KeyHandleInvalid);
    sign(&session, key(&session)).unwrap();
    assert_eq!(caller.control.violations(), [""; 0]);
});

on_softhsm!(a_token_goes_and_comes_back_by_itself, |bench| {
    let caller = Caller::new(bench);
    let slot = caller.slot();
    let session = caller.user_session();
    let old = key(&session);
    caller.control.goes("keys", CKR_DEVICE_REMOVED);
    assert_eq!(refused(sign(&session, old)), RvError::DeviceRemoved);
    assert_eq!(refused(session.get_session_info()), RvError::DeviceRemoved);
    assert_eq!(refused(caller.library.open_rw_session(slot)), RvError::DeviceRemoved);
    assert_eq!(refused(caller.library.get_mechanism_list(slot)), RvError::DeviceRemoved);
    assert_eq!(refused(caller.library.get_token_info(slot)), RvError::TokenNotPresent);
    assert!(!caller.library.get_slot_info(slot).unwrap().token_present());
    assert!(!caller.library.get_slots_with_token().unwrap().contains(&slot));
    caller.control.comes_back("keys");
    assert_eq!(refused(sign(&session, old)), RvError::SessionHandleInvalid);
    let session = caller.user_session();
    sign(&session, key(&session)).unwrap();
});

on_softhsm!(a_token_comes_back_once_the_module_is_initialised_anew, |bench| {
    let caller = Caller::new(bench);
    let slot = caller.slot();
    let session = caller.user_session();
    caller.control.goes("keys", 0x8000_001f);
    assert_eq!(refused(session.get_session_info()), RvError::VendorDefined(0x8000_001f));
    caller.control.comes_back_once_initialised_anew("keys", CKR_DEVICE_ERROR);
    assert_eq!(refused(session.get_session_info()), RvError::DeviceError);
    assert_eq!(refused(caller.library.open_rw_session(slot)), RvError::DeviceError);
    caller.library.clone().finalize().unwrap();
    initialise(&caller.library);
    let session = caller.user_session();
    sign(&session, key(&session)).unwrap();
});

on_softhsm!(one_token_goes_and_the_other_serves, |bench| {
    bench.token("one");
    bench.token("two");
    let caller = Caller::with(Control::listen());
    let labels = || -> Vec<String> {
        let slots = caller.library.get_slots_with_initialized_token().unwrap();
        slots
            .into_iter()
            .filter_map(|slot| Some(caller.library.get_token_info(slot).ok()?.label().to_owned()))
            .collect()
    };
    assert_eq!(labels().len(), 2);
    caller.control.goes("one", CKR_DEVICE_REMOVED);
    assert_eq!(labels(), ["two"]);
    caller.control.goes(EVERY_TOKEN, CKR_DEVICE_REMOVED);
    assert_eq!(labels(), [""; 0]);
    caller.control.comes_back("one");
    assert_eq!(labels(), ["one"]);
});

on_softhsm!(calls_hang_until_they_are_released, |bench| {
    let caller = Caller::new(bench);
    let session = caller.user_session();
    let key = key(&session);
    caller.control.hangs_next(1, "C_Sign");
    thread::scope(|scope| {
        let hanging = scope.spawn(move || sign(&session, key).unwrap());
        // Not the call that only asks for the length, which comes first and hangs in nothing.
        caller.control.wait_until("a call hangs", |control| {
            control.calls("C_Sign") == 1 && control.inside("C_Sign") == 1
        });
        thread::sleep(Duration::from_millis(20)); // it has begun, and now it hangs
        // Others go on, also in the same function.
        let other = caller.session();
        sign(&other, find(&other, ObjectClass::PRIVATE_KEY)[0]).unwrap();
        assert!(!hanging.is_finished());
        assert_eq!(caller.control.inside("C_Sign"), 1);
        caller.control.release("C_Sign");
        assert_eq!(hanging.join().unwrap().len(), 64);
    });
    assert_eq!(caller.control.inside("any"), 0);
    assert_eq!(caller.control.at_once("C_Sign"), 2);
});

on_softhsm!(every_call_hangs_where_all_are_to, |bench| {
    let caller = Caller::new(bench);
    caller.control.hangs("any");
    thread::scope(|scope| {
        let calls = [(); 3].map(|()| scope.spawn(|| caller.library.get_all_slots().unwrap()));
        caller.control.wait_until("all hang", |control| control.inside("C_GetSlotList") == 3);
        assert!(calls.iter().all(|call| !call.is_finished()));
        caller.control.works("any");
    });
    caller.library.get_all_slots().unwrap();
});

on_softhsm!(a_session_that_is_forgotten_under_a_hanging_call_is_no_good_to_it, |bench| {
    let caller = Caller::new(bench);
    let session = caller.user_session();
    let key = key(&session);
    caller.control.hangs("C_SignInit");
    thread::scope(|scope| {
        let hanging = scope.spawn(move || refused(sign(&session, key)));
        caller.control.wait_until("a call hangs", |control| control.inside("C_SignInit") == 1);
        caller.control.forgets_sessions("keys");
        caller.control.release("C_SignInit");
        assert_eq!(hanging.join().unwrap(), RvError::SessionHandleInvalid);
    });
});

on_softhsm!(hanging_calls_go_on_when_the_test_is_over, |bench| {
    let Caller { library, control } = Caller::new(bench);
    control.hangs("C_GetInfo");
    thread::scope(|scope| {
        let hanging = scope.spawn(|| library.get_library_info().unwrap());
        control.wait_until("a call hangs", |control| control.inside("C_GetInfo") == 1);
        drop(control);
        hanging.join().unwrap();
    });
    library.get_library_info().expect("it goes on without a test");
});

on_softhsm!(a_function_answers_with_any_code, |bench| {
    let caller = Caller::new(bench);
    let session = caller.user_session();
    let key = key(&session);
    caller.control.fails_next(2, "C_Sign", CKR_DEVICE_ERROR);
    for _ in 0..2 {
        assert_eq!(refused(sign(&session, key)), RvError::DeviceError);
    }
    sign(&session, key).expect("an operation that failed is over");
    caller.control.fails("C_SignInit", 0x8000_0024);
    for _ in 0..2 {
        assert_eq!(refused(sign(&session, key)), RvError::VendorDefined(0x8000_0024));
    }
    caller.control.works("C_SignInit");
    sign(&session, key).unwrap();
    caller.control.fails("any", 5);
    assert_eq!(refused(session.get_session_info()), RvError::GeneralError);
    assert_eq!(refused(caller.library.get_all_slots()), RvError::GeneralError);
    caller.control.works("any");
    session.get_session_info().unwrap();
});

on_softhsm!(a_failed_initialisation_is_none, |bench| {
    bench.token("keys");
    let control = Control::listen();
    control.fails_next(1, "C_Initialize", 5);
    let library = Pkcs11::new(module()).unwrap();
    let arguments = || CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK);
    assert_eq!(refused(library.initialize(arguments())), RvError::GeneralError);
    assert_eq!(refused(library.get_all_slots()), RvError::CryptokiNotInitialized);
    library.initialize(arguments()).unwrap();
    assert_eq!(refused(library.initialize(arguments())), RvError::CryptokiAlreadyInitialized);
});

on_softhsm!(a_crash_is_the_end_of_its_process_and_what_it_did_stays_counted, |bench| {
    bench.token("keys");
    let control = Control::listen();
    control.crashes_next("C_GetSlotList");
    let (status, _) = output(&mut other_process());
    assert_eq!(status.signal(), Some(11), "{status}");
    assert_eq!(["C_Initialize", "C_GetSlotList"].map(|name| control.calls(name)), [1, 1]);
    assert_eq!(control.processes(), 0);
    let (status, listed) = output(&mut other_process());
    assert!(status.success() && listed.contains("keys"), "it was one call: {listed}");
    assert_eq!(control.calls("C_Initialize"), 2);
});

on_softhsm!(processes_that_come_later_meet_the_same_faults, |bench| {
    let caller = Caller::new(bench);
    caller.control.is_labelled("keys", "another");
    for _ in 0..2 {
        let (_, listed) = output(&mut other_process());
        assert!(listed.contains("token label        : another"), "{listed}");
    }
    caller.control.fails_next(2, "C_GetSlotList", CKR_DEVICE_ERROR);
    caller.library.get_all_slots().unwrap_err();
    assert!(!output(&mut other_process()).0.success(), "the second of both calls");
    assert!(output(&mut other_process()).0.success());
});

on_softhsm!(several_processes_are_told_at_once, |bench| {
    let caller = Caller::new(bench);
    caller.control.hangs("C_GetSlotInfo");
    let mut others = [(); 2].map(|()| other_process().stdout(Stdio::piped()).spawn().unwrap());
    caller.control.wait_until("both hang", |control| control.inside("C_GetSlotInfo") == 2);
    assert_eq!(caller.control.processes(), 3);
    caller.control.is_labelled("keys", "another");
    caller.control.release("C_GetSlotInfo");
    for other in &mut others {
        let listed = std::io::read_to_string(other.stdout.take().unwrap()).unwrap();
        assert!(listed.contains("token label        : another"), "{listed}");
        assert!(other.wait().unwrap().success());
    }
    assert_eq!(caller.control.processes(), 1);
});

on_softhsm!(public_keys_are_hidden, |bench| {
    let caller = Caller::new(bench);
    let session = caller.user_session();
    let all = session.find_objects(&[]).unwrap().len();
    caller.control.hides_public_keys();
    assert_eq!(find(&session, ObjectClass::PUBLIC_KEY), []);
    assert_eq!(session.find_objects(&[]).unwrap().len(), all - 2);
    sign(&session, key(&session)).unwrap();
});

on_softhsm!(points_are_raw, |bench| {
    let caller = Caller::new(bench);
    bench.generate("keys", "EC:secp521r1", "p521", "03");
    let session = caller.user_session();
    let points = || -> Vec<Vec<u8>> {
        let keys = find(&session, ObjectClass::PUBLIC_KEY);
        let mut points: Vec<_> = keys.into_iter().map(|key| point(&session, key)).collect();
        points.sort_by_key(Vec::len);
        points
    };
    let wrapped = points();
    caller.control.has_raw_points();
    let raw = points();
    assert_eq!(raw.iter().map(Vec::len).collect::<Vec<_>>(), [65, 133]);
    for (raw, wrapped) in raw.iter().zip(wrapped) {
        assert!(wrapped.len() > raw.len() && wrapped.ends_with(raw));
        assert_eq!(raw[0], 4, "uncompressed");
    }
});

fn point(session: &Session, key: ObjectHandle) -> Vec<u8> {
    match &session.get_attributes(key, &[AttributeType::KeyType, AttributeType::EcPoint]).unwrap()[..] {
        [Attribute::KeyType(_), Attribute::EcPoint(point)] => point.clone(),
        other => panic!("{other:?}"),
    }
}

on_softhsm!(sessions_of_one_kind_are_refused, |bench| {
    let caller = Caller::new(bench);
    let slot = caller.slot();
    caller.control.refuses_read_only_sessions(CKR_FUNCTION_FAILED);
    assert_eq!(refused(caller.library.open_ro_session(slot)), RvError::FunctionFailed);
    caller.library.open_rw_session(slot).unwrap();
    caller.control.refuses_read_only_sessions(0);
    caller.control.refuses_read_write_sessions(CKR_TOKEN_WRITE_PROTECTED);
    assert_eq!(refused(caller.library.open_rw_session(slot)), RvError::TokenWriteProtected);
    let session = caller.library.open_ro_session(slot).unwrap();
    login(&session, UserType::User, PIN).unwrap();
    sign(&session, key(&session)).unwrap();
});

on_softhsm!(mechanisms_are_hidden_and_refused, |bench| {
    let caller = Caller::new(bench);
    let (slot, session) = (caller.slot(), caller.user_session());
    let key = key(&session);
    let listed = || caller.library.get_mechanism_list(slot).unwrap().contains(&MechanismType::ECDSA);
    assert!(listed());
    caller.control.hides_mechanism(0x1041);
    assert!(!listed());
    assert_eq!(refused(sign(&session, key)), RvError::MechanismInvalid);
    assert_eq!(
        refused(caller.library.get_mechanism_info(slot, MechanismType::ECDSA)),
        RvError::MechanismInvalid
    );
    caller.library.get_mechanism_info(slot, MechanismType::RSA_PKCS).expect("others are there");
    caller.control.shows_mechanism(0x1041);
    assert!(listed());
    sign(&session, key).unwrap();
});

on_softhsm!(always_authenticate_is_unknown, |bench| {
    let caller = Caller::new(bench);
    let session = caller.user_session();
    let key = key(&session);
    let ask = || {
        let attributes = [AttributeType::Label, AttributeType::AlwaysAuthenticate, AttributeType::Class];
        session.get_attributes(key, &attributes).unwrap()
    };
    assert!(ask().contains(&Attribute::AlwaysAuthenticate(false)));
    caller.control.always_authenticate(AlwaysAuthenticate::Unknown);
    let answer = ask();
    assert!(answer.contains(&Attribute::Label(b"p256".to_vec())), "the others are answered: {answer:?}");
    assert!(answer.contains(&Attribute::Class(ObjectClass::PRIVATE_KEY)), "{answer:?}");
    assert_eq!(answer.len(), 2);
    sign(&session, key).unwrap();
    caller.control.always_authenticate(AlwaysAuthenticate::AsItIs);
    assert_eq!(ask().len(), 3);
});

on_softhsm!(every_signature_demands_a_login_of_its_own, |bench| {
    let caller = Caller::new(bench);
    let session = caller.user_session();
    let rsa =
        session.find_objects(&[Attribute::Class(ObjectClass::PRIVATE_KEY), Attribute::KeyType(KeyType::RSA)]);
    let rsa = rsa.unwrap()[0];
    let mechanism = Mechanism::Sha256RsaPkcs;
    caller.control.always_authenticate(AlwaysAuthenticate::Yes);
    let attributes = session.get_attributes(rsa, &[AttributeType::AlwaysAuthenticate]).unwrap();
    assert_eq!(attributes, [Attribute::AlwaysAuthenticate(true)]);
    assert_eq!(refused(session.sign(&mechanism, rsa, b"one")), RvError::UserNotLoggedIn);
    for _ in 0..2 {
        session.sign_init(&mechanism, rsa).unwrap();
        assert_eq!(refused(session.sign_update(b"one")), RvError::UserNotLoggedIn);
        assert_eq!(refused(login(&session, UserType::ContextSpecific, "wrong")), RvError::PinIncorrect);
        login(&session, UserType::ContextSpecific, PIN).unwrap();
        session.sign_update(b"one").unwrap();
        assert_eq!(session.sign_final().unwrap().len(), 256);
    }
    assert_eq!(
        refused(login(&session, UserType::ContextSpecific, PIN)),
        RvError::OperationNotInitialized,
        "there is nothing to log in for"
    );
});

on_softhsm!(objects_are_good_in_their_own_session_only, |bench| {
    let caller = Caller::new(bench);
    let (one, two) = (caller.user_session(), caller.session());
    sign(&two, key(&one)).expect("as a rule they are good in all");
    caller.control.has_objects_of_sessions();
    let (of_one, of_two) = (key(&one), key(&two));
    assert_ne!(of_one, of_two);
    assert_eq!(refused(sign(&two, of_one)), RvError::ObjectHandleInvalid);
    caller.control.answers_stale_handles("keys", CKR_KEY_HANDLE_INVALID);
    assert_eq!(refused(sign(&two, of_one)), RvError::KeyHandleInvalid);
    sign(&one, of_one).unwrap();
    sign(&two, of_two).unwrap();
});

on_softhsm!(idle_sessions_are_dropped, |bench| {
    let caller = Caller::new(bench);
    let (idle, busy) = (caller.user_session(), caller.session());
    caller.control.drops_idle_sessions(Duration::from_millis(200));
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(400) {
        busy.get_session_info().expect("it is used all the time");
        thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(caller.control.sessions("keys"), 1);
    assert_eq!(refused(idle.get_session_info()), RvError::SessionHandleInvalid);
    thread::sleep(Duration::from_millis(250));
    assert_eq!(refused(busy.get_session_info()), RvError::SessionHandleInvalid);
});

on_softhsm!(flags_of_the_pin_are_told_and_a_last_try_is_seen, |bench| {
    let caller = Caller::new(bench);
    let (slot, session) = (caller.slot(), caller.session());
    let flags = || {
        let info = caller.library.get_token_info(slot).unwrap();
        [info.user_pin_count_low(), info.user_pin_final_try(), info.user_pin_locked()]
    };
    assert_eq!(flags(), [false; 3]);
    caller.control.shows_flags("keys", CKF_USER_PIN_COUNT_LOW);
    assert_eq!(flags(), [true, false, false]);
    assert_eq!(refused(login(&session, UserType::User, "wrong-pin")), RvError::PinIncorrect);
    caller.control.shows_flags("keys", CKF_USER_PIN_FINAL_TRY);
    assert_eq!(flags()[1..], [true, false]);
    assert_eq!(caller.control.violations(), [""; 0]);
    login(&session, UserType::User, PIN).unwrap();
    assert_eq!(caller.control.violations(), ["C_Login: it was the last try before the PIN is locked"]);
    caller.control.forgets_login("keys");
    caller.control.shows_flags("keys", CKF_USER_PIN_LOCKED);
    assert_eq!(flags()[2..], [true]);
    assert_eq!(refused(login(&session, UserType::User, PIN)), RvError::PinLocked);
    caller.control.shows_flags("keys", 0);
    caller.control.lacks_flags("keys", 0x400);
    assert_eq!(flags(), [false; 3]);
    assert!(!caller.library.get_token_info(slot).unwrap().token_initialized());
});

on_softhsm!(it_goes_by_other_names, |bench| {
    let caller = Caller::new(bench);
    caller.control.library("A Vendor", "A Library", (7, 12));
    let info = caller.library.get_library_info().unwrap();
    assert_eq!((info.manufacturer_id(), info.library_description()), ("A Vendor", "A Library"));
    assert_eq!(info.library_version().to_string(), "7.12");
    caller.control.is_labelled("keys", "another");
    caller.control.is_made_by("keys", "A Maker", "A Model");
    let info = caller.library.get_token_info(caller.slot()).unwrap();
    assert_eq!((info.label(), info.manufacturer_id(), info.model()), ("another", "A Maker", "A Model"));
    caller.control.goes("keys", CKR_DEVICE_REMOVED);
    assert!(
        caller.library.get_slots_with_token().unwrap().len() < caller.library.get_all_slots().unwrap().len()
    );
});

on_softhsm!(a_pin_has_a_user_before_a_colon, |bench| {
    let caller = Caller::new(bench);
    let session = caller.session();
    caller.control.expects_user_in_pin("someone", CKR_PIN_EXPIRED);
    for wrong in [PIN, "someone", &format!("other:{PIN}"), &format!("someone{PIN}")] {
        assert_eq!(refused(login(&session, UserType::User, wrong)), RvError::PinExpired, "{wrong}");
    }
    caller.control.expects_user_in_pin("someone", CKR_PIN_INCORRECT);
    assert_eq!(refused(login(&session, UserType::User, PIN)), RvError::PinIncorrect);
    assert_eq!(refused(login(&session, UserType::User, "someone:wrong")), RvError::PinIncorrect);
    login(&session, UserType::User, &format!("someone:{PIN}")).unwrap();
    sign(&session, key(&session)).unwrap();
});

on_softhsm!(a_vendors_user_stands_for_the_user_or_in_its_place, |bench| {
    let caller = Caller::new(bench);
    let session = caller.session();
    let (vendor, other) = (UserType::VendorExtension(0x8000_0001), UserType::VendorExtension(0x8000_0002));
    assert_eq!(refused(login(&session, vendor, PIN)), RvError::UserTypeInvalid);
    caller.control.accepts_user(0x8000_0001);
    assert_eq!(refused(login(&session, other, PIN)), RvError::UserTypeInvalid);
    login(&session, vendor, PIN).unwrap();
    sign(&session, key(&session)).unwrap();
    assert_eq!(refused(login(&session, vendor, PIN)), RvError::UserAlreadyLoggedIn);
    assert_eq!(refused(login(&session, UserType::User, PIN)), RvError::UserAnotherAlreadyLoggedIn);
    caller.control.forgets_login("keys");
    caller.control.accepts_only_user(0x8000_0001);
    assert_eq!(refused(login(&session, UserType::User, PIN)), RvError::UserTypeInvalid);
    login(&session, vendor, PIN).unwrap();
});

on_softhsm!(a_token_needs_no_login, |bench| {
    let caller = Caller::new(bench);
    let slot = caller.slot();
    assert!(caller.library.get_token_info(slot).unwrap().login_required());
    caller.control.needs_no_login("keys", PIN, 0x102);
    assert!(!caller.library.get_token_info(slot).unwrap().login_required());
    let session = caller.session();
    assert_eq!(refused(login(&session, UserType::User, PIN)), RvError::UserPinNotInitialized);
    assert_eq!(session.get_session_info().unwrap().session_state(), SessionState::RwPublic);
    sign(&session, key(&session)).unwrap();
    caller.control.needs_no_login("keys", "", 0);
    assert_eq!(session.get_session_info().unwrap().session_state(), SessionState::RwUser);
});

on_softhsm!(what_a_caller_should_not_do_is_seen, |bench| {
    let caller = Caller::new(bench);
    let session = caller.user_session();
    let former = caller.session();
    session.logout().unwrap();
    assert_eq!(caller.control.violations(), ["C_Logout: logs everybody out"]);
    drop(session);
    caller.library.clone().finalize().unwrap();
    assert_eq!(caller.control.violations()[1..], ["C_Finalize: 1 sessions are open"]);
    initialise(&caller.library);
    assert_eq!(refused(former.get_session_info()), RvError::SessionHandleInvalid);
    drop(former);
    let seen =
        ["C_GetSessionInfo", "C_CloseSession"].map(|name| format!("{name}: a session of a former life"));
    assert_eq!(caller.control.violations()[2..], seen);
    // Another one's number is the first one's again, but not its handle.
    let session = caller.user_session();
    sign(&session, key(&session)).unwrap();
    assert_eq!(caller.control.violations().len(), 4);
});

on_softhsm!(a_finalize_around_a_call_is_seen, |bench| {
    let caller = Caller::new(bench);
    caller.control.hangs("C_GetSlotList");
    thread::scope(|scope| {
        let hanging = scope.spawn(|| refused(caller.library.get_all_slots()));
        caller.control.wait_until("a call hangs", |control| control.inside("C_GetSlotList") == 1);
        caller.library.clone().finalize().unwrap();
        assert_eq!(caller.control.violations(), ["C_Finalize: 1 calls are inside"]);
        caller.control.release("C_GetSlotList");
        assert_eq!(hanging.join().unwrap(), RvError::CryptokiNotInitialized);
    });
});

on_softhsm!(two_calls_at_once_on_one_session_are_seen, |bench| {
    bench.token("keys");
    let control = Control::listen();
    let program = bench.file("rude", b"");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/module/rude.c");
    control::compile_program(&source, &program);
    control.hangs("C_GenerateRandom");
    let mut rude = Command::new(program).arg(module()).spawn().unwrap();
    control.wait_until("both hang", |control| control.inside("C_GenerateRandom") == 2);
    assert_eq!(control.violations(), ["C_GenerateRandom: two calls at once on one session"]);
    control.release("C_GenerateRandom");
    assert!(rude.wait().unwrap().success());
});

on_softhsm!(faults_among_calls_of_many_threads_are_survived, |bench| {
    let Caller { library, control } = Caller::new(bench);
    let slot = library.get_slots_with_initialized_token().unwrap()[0];
    let over = AtomicBool::new(false);
    let work = || -> Result<(), Error> {
        let session = library.open_rw_session(slot)?;
        match login(&session, UserType::User, PIN) {
            Ok(()) | Err(Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => {}
            Err(error) => return Err(error),
        }
        let template = [Attribute::Class(ObjectClass::PRIVATE_KEY), Attribute::KeyType(KeyType::EC)];
        let Some(key) = session.find_objects(&template)?.pop() else { return Ok(()) };
        sign(&session, key).map(|_| ())
    };
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !over.load(Ordering::SeqCst) {
                    let _failed = work();
                }
            });
        }
        for round in 0..100 {
            let begun = control.calls("C_Sign");
            match round % 5 {
                0 => control.forgets_sessions("keys"),
                1 => control.forgets_objects("keys", CKR_KEY_HANDLE_INVALID),
                2 => control.forgets_login("keys"),
                3 => control.goes("keys", CKR_DEVICE_REMOVED),
                _ => control.fails_next(3, "any", CKR_DEVICE_ERROR),
            }
            control.comes_back("keys");
            control.wait_until("signatures go on", |control| control.calls("C_Sign") > begun);
        }
        over.store(true, Ordering::SeqCst);
    });
    control.works("any");
    work().unwrap();
    assert_eq!(control.inside("any"), 0);
    assert_eq!(control.violations(), [""; 0]);
});
