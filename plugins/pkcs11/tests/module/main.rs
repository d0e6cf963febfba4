//! The module that misbehaves, by itself: each fault does what it says, to a caller that is not the plugin.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "whatever fails, fails the test")]

#[path = "../softhsm/bench.rs"]
#[expect(dead_code, reason = "it serves other tests as well")]
mod bench;
mod control;

use std::{
    sync::Barrier,
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
        caller.control.wait_until("a call hangs", |control| control.inside("C_Sign") == 1);
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
