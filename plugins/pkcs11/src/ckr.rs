//! What a module answers (PKCS#11 v3.1 section 4.17 and the annex of return values), as the contract's errors.

use cryptoki::error::{Error as Failure, RvError};
use keystead_plugin_api::{Code, Error};

/// An error of the contract for a failed call, with the module's own code.
///
/// `doing` says what was tried and on what; the failing function and its code are added.
pub(crate) fn error(doing: &str, failure: &Failure) -> Error {
    match failure {
        Failure::Pkcs11(rv, function) => {
            let Answer { name, number, code } = answer(*rv);
            Error::new(code, format!("{doing}: C_{function:?} failed")).with_vendor(name, number)
        }
        other => Error::new(Code::Internal, format!("{doing}: {other}")),
    }
}

/// What may cure a failed call: a ladder, whose next step is taken where one wasn't enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Remedy {
    /// Nothing here: the same call would fail the same way.
    None,
    /// Another session.
    Session,
    /// Logging in and finding the keys again.
    Login,
    /// Looking whether the token is there at all and, where it isn't, initialising the module anew.
    Token,
}

/// What may cure a call that failed with one of PKCS#11's own codes; `None` for one that a vendor has defined.
pub(crate) fn remedy(number: u64) -> Option<Remedy> {
    match number {
        // Cancelled, an operation is or isn't active, the session is gone.
        0x50 | 0x90 | 0x91 | 0xb0 | 0xb3 => Some(Remedy::Session),
        // An object's handle isn't known (any more), or nobody is logged in: modules answer either where a login was
        // lost.
        0x60 | 0x82 | 0x101 => Some(Remedy::Login),
        // No such slot, general, function and device errors, device removed, no token, module not initialised.
        0x03 | 0x05 | 0x06 | 0x30 | 0x32 | 0xe0 | 0xe1 | 0x190 => Some(Remedy::Token),
        number if number < VENDOR_DEFINED => Some(Remedy::None),
        _ => None,
    }
}

/// Codes from here on are vendors' own (CKR_VENDOR_DEFINED).
const VENDOR_DEFINED: u64 = 0x8000_0000;

/// Whether a call failed for what it asked, so that its session is as good as before.
pub(crate) fn spares_session(error: &Error) -> bool {
    matches!(error.code, Code::NotFound | Code::Unsupported | Code::InvalidInput | Code::Denied)
}

/// Whether the same call may succeed later.
pub(crate) fn may_pass(error: &Error) -> bool {
    matches!(error.code, Code::Unavailable | Code::Throttled | Code::Deadline)
}

struct Answer {
    name: &'static str,
    number: u64,
    code: Code,
}

macro_rules! answers {
    ($($variant:ident = $number:literal, $name:literal, $code:ident;)*) => {
        fn answer(rv: RvError) -> Answer {
            match rv {
                $(RvError::$variant => Answer { name: $name, number: $number, code: Code::$code },)*
                // What it means is the vendor's secret, unless the profile knows it; until then it may pass.
                RvError::VendorDefined(number) => {
                    Answer { name: "CKR_VENDOR_DEFINED", number, code: Code::Unavailable }
                }
                RvError::UnknownErrorCode(number) => {
                    Answer { name: "CKR_UNKNOWN", number, code: Code::Unavailable }
                }
            }
        }
    };
}

// Everything about sessions, handles and the login is `Unavailable`: it says that the module or the device lost its
// state, and a new session may cure it.
answers! {
    Cancel = 0x01, "CKR_CANCEL", Unavailable;
    HostMemory = 0x02, "CKR_HOST_MEMORY", Throttled;
    SlotIdInvalid = 0x03, "CKR_SLOT_ID_INVALID", Unavailable;
    GeneralError = 0x05, "CKR_GENERAL_ERROR", Unavailable;
    FunctionFailed = 0x06, "CKR_FUNCTION_FAILED", Unavailable;
    ArgumentsBad = 0x07, "CKR_ARGUMENTS_BAD", Internal;
    NoEvent = 0x08, "CKR_NO_EVENT", Internal;
    NeedToCreateThreads = 0x09, "CKR_NEED_TO_CREATE_THREADS", Unsupported;
    CantLock = 0x0a, "CKR_CANT_LOCK", Unsupported;
    AttributeReadOnly = 0x10, "CKR_ATTRIBUTE_READ_ONLY", Internal;
    AttributeSensitive = 0x11, "CKR_ATTRIBUTE_SENSITIVE", Denied;
    AttributeTypeInvalid = 0x12, "CKR_ATTRIBUTE_TYPE_INVALID", Unsupported;
    AttributeValueInvalid = 0x13, "CKR_ATTRIBUTE_VALUE_INVALID", Unsupported;
    ActionProhibited = 0x1b, "CKR_ACTION_PROHIBITED", Denied;
    DataInvalid = 0x20, "CKR_DATA_INVALID", InvalidInput;
    DataLenRange = 0x21, "CKR_DATA_LEN_RANGE", InvalidInput;
    DeviceError = 0x30, "CKR_DEVICE_ERROR", Unavailable;
    DeviceMemory = 0x31, "CKR_DEVICE_MEMORY", Throttled;
    DeviceRemoved = 0x32, "CKR_DEVICE_REMOVED", Unavailable;
    EncryptedDataInvalid = 0x40, "CKR_ENCRYPTED_DATA_INVALID", InvalidInput;
    EncryptedDataLenRange = 0x41, "CKR_ENCRYPTED_DATA_LEN_RANGE", InvalidInput;
    FunctionCanceled = 0x50, "CKR_FUNCTION_CANCELED", Unavailable;
    FunctionNotParallel = 0x51, "CKR_FUNCTION_NOT_PARALLEL", Internal;
    FunctionNotSupported = 0x54, "CKR_FUNCTION_NOT_SUPPORTED", Unsupported;
    KeyHandleInvalid = 0x60, "CKR_KEY_HANDLE_INVALID", Unavailable;
    KeySizeRange = 0x62, "CKR_KEY_SIZE_RANGE", Unsupported;
    KeyTypeInconsistent = 0x63, "CKR_KEY_TYPE_INCONSISTENT", Unsupported;
    KeyNotNeeded = 0x64, "CKR_KEY_NOT_NEEDED", Internal;
    KeyChanged = 0x65, "CKR_KEY_CHANGED", Internal;
    KeyNeeded = 0x66, "CKR_KEY_NEEDED", Internal;
    KeyIndigestible = 0x67, "CKR_KEY_INDIGESTIBLE", Internal;
    KeyFunctionNotPermitted = 0x68, "CKR_KEY_FUNCTION_NOT_PERMITTED", Denied;
    KeyNotWrappable = 0x69, "CKR_KEY_NOT_WRAPPABLE", Internal;
    KeyUnextractable = 0x6a, "CKR_KEY_UNEXTRACTABLE", Internal;
    MechanismInvalid = 0x70, "CKR_MECHANISM_INVALID", Unsupported;
    MechanismParamInvalid = 0x71, "CKR_MECHANISM_PARAM_INVALID", Unsupported;
    ObjectHandleInvalid = 0x82, "CKR_OBJECT_HANDLE_INVALID", Unavailable;
    OperationActive = 0x90, "CKR_OPERATION_ACTIVE", Unavailable;
    OperationNotInitialized = 0x91, "CKR_OPERATION_NOT_INITIALIZED", Unavailable;
    PinIncorrect = 0xa0, "CKR_PIN_INCORRECT", Credentials;
    PinInvalid = 0xa1, "CKR_PIN_INVALID", Credentials;
    PinLenRange = 0xa2, "CKR_PIN_LEN_RANGE", Credentials;
    PinExpired = 0xa3, "CKR_PIN_EXPIRED", Credentials;
    PinLocked = 0xa4, "CKR_PIN_LOCKED", Credentials;
    SessionClosed = 0xb0, "CKR_SESSION_CLOSED", Unavailable;
    SessionCount = 0xb1, "CKR_SESSION_COUNT", Throttled;
    SessionHandleInvalid = 0xb3, "CKR_SESSION_HANDLE_INVALID", Unavailable;
    SessionParallelNotSupported = 0xb4, "CKR_SESSION_PARALLEL_NOT_SUPPORTED", Internal;
    SessionReadOnly = 0xb5, "CKR_SESSION_READ_ONLY", Denied;
    SessionExists = 0xb6, "CKR_SESSION_EXISTS", Unavailable;
    SessionReadOnlyExists = 0xb7, "CKR_SESSION_READ_ONLY_EXISTS", Unavailable;
    SessionReadWriteSoExists = 0xb8, "CKR_SESSION_READ_WRITE_SO_EXISTS", Unavailable;
    SignatureInvalid = 0xc0, "CKR_SIGNATURE_INVALID", Internal;
    SignatureLenRange = 0xc1, "CKR_SIGNATURE_LEN_RANGE", Internal;
    TemplateIncomplete = 0xd0, "CKR_TEMPLATE_INCOMPLETE", Internal;
    TemplateInconsistent = 0xd1, "CKR_TEMPLATE_INCONSISTENT", Internal;
    TokenNotPresent = 0xe0, "CKR_TOKEN_NOT_PRESENT", Unavailable;
    TokenNotRecognized = 0xe1, "CKR_TOKEN_NOT_RECOGNIZED", Unavailable;
    TokenWriteProtected = 0xe2, "CKR_TOKEN_WRITE_PROTECTED", Denied;
    UnwrappingKeyHandleInvalid = 0xf0, "CKR_UNWRAPPING_KEY_HANDLE_INVALID", Internal;
    UnwrappingKeySizeRange = 0xf1, "CKR_UNWRAPPING_KEY_SIZE_RANGE", Internal;
    UnwrappingKeyTypeInconsistent = 0xf2, "CKR_UNWRAPPING_KEY_TYPE_INCONSISTENT", Internal;
    UserAlreadyLoggedIn = 0x100, "CKR_USER_ALREADY_LOGGED_IN", Unavailable;
    UserNotLoggedIn = 0x101, "CKR_USER_NOT_LOGGED_IN", Unavailable;
    UserPinNotInitialized = 0x102, "CKR_USER_PIN_NOT_INITIALIZED", Denied;
    UserTypeInvalid = 0x103, "CKR_USER_TYPE_INVALID", Denied;
    UserAnotherAlreadyLoggedIn = 0x104, "CKR_USER_ANOTHER_ALREADY_LOGGED_IN", Denied;
    UserTooManyTypes = 0x105, "CKR_USER_TOO_MANY_TYPES", Denied;
    WrappedKeyInvalid = 0x110, "CKR_WRAPPED_KEY_INVALID", Internal;
    WrappedKeyLenRange = 0x112, "CKR_WRAPPED_KEY_LEN_RANGE", Internal;
    WrappingKeyHandleInvalid = 0x113, "CKR_WRAPPING_KEY_HANDLE_INVALID", Internal;
    WrappingKeySizeRange = 0x114, "CKR_WRAPPING_KEY_SIZE_RANGE", Internal;
    WrappingKeyTypeInconsistent = 0x115, "CKR_WRAPPING_KEY_TYPE_INCONSISTENT", Internal;
    RandomSeedNotSupported = 0x120, "CKR_RANDOM_SEED_NOT_SUPPORTED", Internal;
    RandomNoRng = 0x121, "CKR_RANDOM_NO_RNG", Unavailable;
    DomainParamsInvalid = 0x130, "CKR_DOMAIN_PARAMS_INVALID", Unsupported;
    CurveNotSupported = 0x140, "CKR_CURVE_NOT_SUPPORTED", Unsupported;
    BufferTooSmall = 0x150, "CKR_BUFFER_TOO_SMALL", Internal;
    SavedStateInvalid = 0x160, "CKR_SAVED_STATE_INVALID", Internal;
    InformationSensitive = 0x170, "CKR_INFORMATION_SENSITIVE", Denied;
    StateUnsaveable = 0x180, "CKR_STATE_UNSAVEABLE", Internal;
    CryptokiNotInitialized = 0x190, "CKR_CRYPTOKI_NOT_INITIALIZED", Unavailable;
    CryptokiAlreadyInitialized = 0x191, "CKR_CRYPTOKI_ALREADY_INITIALIZED", Unavailable;
    MutexBad = 0x1a0, "CKR_MUTEX_BAD", Internal;
    MutexNotLocked = 0x1a1, "CKR_MUTEX_NOT_LOCKED", Internal;
    NewPinMode = 0x1b0, "CKR_NEW_PIN_MODE", Denied;
    NextOtp = 0x1b1, "CKR_NEXT_OTP", Denied;
    ExceededMaxIterations = 0x1b5, "CKR_EXCEEDED_MAX_ITERATIONS", Internal;
    FipsSelfTestFailed = 0x1b6, "CKR_FIPS_SELF_TEST_FAILED", Unavailable;
    LibraryLoadFailed = 0x1b7, "CKR_LIBRARY_LOAD_FAILED", Unavailable;
    PinTooWeak = 0x1b8, "CKR_PIN_TOO_WEAK", Credentials;
    PublicKeyInvalid = 0x1b9, "CKR_PUBLIC_KEY_INVALID", Unsupported;
    FunctionRejected = 0x200, "CKR_FUNCTION_REJECTED", Denied;
}

#[cfg(test)]
mod tests {
    use cryptoki::context::Function;

    use super::*;

    fn failed(rv: RvError) -> Error {
        error("signing", &Failure::Pkcs11(rv, Function::SignInit))
    }

    #[test]
    fn carries_name_and_number() {
        let error = failed(RvError::PinIncorrect);
        assert_eq!(error.code, Code::Credentials);
        assert_eq!(error.to_string(), "signing: C_SignInit failed (CKR_PIN_INCORRECT 0xa0)");
        assert_eq!(failed(RvError::VendorDefined(0x8000_abcd)).vendor.unwrap().number, 0x8000_abcd);
    }

    #[test]
    fn numbers_are_those_of_the_headers() {
        use cryptoki::error::Rv;
        for number in 1..=0x200 {
            let Rv::Error(rv) = Rv::from(number) else { panic!("{number:#x} counts as success") };
            assert_eq!(answer(rv).number, number);
        }
    }

    #[test]
    fn a_refused_pin_is_never_taken_for_a_fault_that_may_pass() {
        use RvError::{PinExpired, PinIncorrect, PinInvalid, PinLenRange, PinLocked};
        for rv in [PinExpired, PinIncorrect, PinInvalid, PinLenRange, PinLocked] {
            assert_eq!(failed(rv).code, Code::Credentials, "{rv:?}");
            assert!(!may_pass(&failed(rv)), "{rv:?}");
        }
    }

    #[test]
    fn the_ladder_has_a_step_for_every_loss_and_none_for_a_wrong_request() {
        let number = |rv| failed(rv).vendor.unwrap().number;
        for (rv, expected) in [
            (RvError::SessionHandleInvalid, Remedy::Session),
            (RvError::OperationActive, Remedy::Session),
            (RvError::ObjectHandleInvalid, Remedy::Login),
            (RvError::KeyHandleInvalid, Remedy::Login),
            (RvError::UserNotLoggedIn, Remedy::Login),
            (RvError::DeviceError, Remedy::Token),
            (RvError::CryptokiNotInitialized, Remedy::Token),
            (RvError::PinIncorrect, Remedy::None),
            (RvError::MechanismInvalid, Remedy::None),
            (RvError::SessionCount, Remedy::None),
        ] {
            assert_eq!(remedy(number(rv)), Some(expected), "{rv:?}");
        }
        assert_eq!(remedy(0x8000_001a), None);
    }
}
