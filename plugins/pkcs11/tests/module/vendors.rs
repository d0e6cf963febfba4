//! Modules of vendors, as far as it is known what is special about them: what a caller has to put up with.
//!
//! The names are those of nShield's tokens and of Luna's library as tools print them; CloudHSM's are a likeness.

use std::time::Duration;

use crate::control::{AlwaysAuthenticate, Control, EVERY_TOKEN};

const CKR_FUNCTION_FAILED: u64 = 0x06;
const CKR_DEVICE_ERROR: u64 = 0x30;
const CKR_PIN_INCORRECT: u64 = 0xa0;
const CKR_USER_PIN_NOT_INITIALIZED: u64 = 0x102;
const CKF_USER_PIN_INITIALIZED: u64 = 0x8;
const CKF_TOKEN_INITIALIZED: u64 = 0x400;
const CKM_EDDSA: u64 = 0x1057;

/// Thales' user type for the Crypto User, who may use keys and nothing else.
pub(crate) const CRYPTO_USER: u64 = 0x8000_0001;
/// Thales' code for an appliance that can't be reached.
pub(crate) const LUNA_UNABLE_TO_CONNECT: u64 = 0x8000_001f;

impl Control {
    /// Entrust nShield with load sharing: the token `accelerator` holds what its modules protect, for which nobody can
    /// log in; every other is a softcard, with a passphrase. To no token it says that it is initialised, and of no key
    /// whether CKA_ALWAYS_AUTHENTICATE.
    pub(crate) fn is_nshield(&self, pin: &str) {
        self.library("nCipher Corp. Ltd", "nCipher PKCS#11", (13, 6));
        self.is_made_by(EVERY_TOKEN, "nCipher Corp. Ltd", " ");
        self.always_authenticate(AlwaysAuthenticate::Unknown);
        self.lacks_flags(EVERY_TOKEN, CKF_TOKEN_INITIALIZED);
        self.lacks_flags("accelerator", CKF_TOKEN_INITIALIZED | CKF_USER_PIN_INITIALIZED);
        self.needs_no_login("accelerator", pin, CKR_USER_PIN_NOT_INITIALIZED);
    }

    /// Thales Luna 7 with a group of appliances, whose label is that of the token: the Crypto User may log in as well
    /// as the Crypto Officer, who is CKU_USER.
    pub(crate) fn is_luna(&self) {
        self.library("SafeNet", "Chrystoki", (10, 7));
        self.is_made_by(EVERY_TOKEN, "SafeNet", "LunaVirtual");
        self.accepts_user(CRYPTO_USER);
    }

    /// All appliances of Luna's group are lost. The next call hangs, for the 20 s of its `ReceiveTimeout`, that is
    /// until `release("any")`; all that concerns the group is answered with a code of Thales' own.
    pub(crate) fn loses_luna(&self, group: &str) {
        self.hangs_next(1, "any");
        self.goes(group, LUNA_UNABLE_TO_CONNECT);
    }

    /// They are there again, but a group whose recovery is `basic` is of no use before C_Finalize and C_Initialize.
    pub(crate) fn finds_luna(&self, group: &str) {
        self.release("any");
        self.comes_back_once_initialised_anew(group, CKR_DEVICE_ERROR);
    }

    /// AWS CloudHSM with Client SDK 5: a PIN is `user:password`, there are no read-only sessions and at most 1,024 of
    /// the others, handles of keys are good in their session only, and there is no Ed25519.
    pub(crate) fn is_cloudhsm(&self, user: &str) {
        self.library("Amazon Web Services, Inc.", "AWS CloudHSM PKCS#11", (5, 16));
        self.is_made_by(EVERY_TOKEN, "Marvell Semiconductors, Inc.", "NITROX-III CNN35");
        self.expects_user_in_pin(user, CKR_PIN_INCORRECT);
        self.refuses_read_only_sessions(CKR_FUNCTION_FAILED);
        self.tells_its_session_limit(EVERY_TOKEN, 1024);
        self.has_objects_of_sessions();
        self.always_authenticate(AlwaysAuthenticate::Unknown);
        self.hides_mechanism(CKM_EDDSA);
    }

    /// A device across a network: each signature takes so long, however many are under way.
    pub(crate) fn is_far_away(&self, latency: Duration) {
        self.latency("C_Sign", latency);
        self.latency("C_Decrypt", latency);
    }
}
