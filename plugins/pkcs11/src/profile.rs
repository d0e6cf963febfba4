//! What is known of each vendor's module: data, chosen by what the module says of itself, and as little code as
//! possible. Where it came from, and what its operator does with it, stands on the vendor's page beside this crate's
//! README.

use std::{path::Path, time::Duration};

use cryptoki::{context::Info, session::UserType};
use keystead_plugin_api::{Code, Error};

use crate::{
    ckr::{self, Remedy},
    problem::Problem,
};

/// How one vendor's module is best used.
#[derive(Debug)]
pub(crate) struct Profile {
    /// What the option `profile` calls it.
    pub(crate) name: &'static str,
    /// Beginnings of file names that are its alone.
    files: &'static [&'static str],
    /// What occurs in the manufacturer or the description of its library, in lower case.
    signs: &'static [&'static str],
    /// How many calls at once get the most out of it.
    pub(crate) parallel: Parallel,
    /// Whether the library itself signs in less than 100 µs, and waits for nothing.
    quick: bool,
    /// How long its calls may hang before they will not come back.
    pub(crate) stuck_after: Duration,
    /// Whether an object's handle is good in the session only that found it.
    pub(crate) handles_per_session: bool,
    /// Whether its PINs are `user:password`.
    pub(crate) user_in_pin: bool,
    /// The number of a user that may use keys and nothing else (a vendor-defined CKU), where it has one.
    crypto_user: Option<u32>,
    /// Codes of its own that mean something.
    codes: &'static [Meaning],
    /// Variables that its library wants, and where else it finds them.
    pub(crate) settings: Option<&'static Settings>,
}

/// How many calls at once get the most out of a device.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Parallel {
    /// So many: they wait for a device or the network.
    Calls(u32),
    /// As many as there are processors, and some more: the module computes by itself.
    Processors,
}

/// What a code of the vendor's own means.
#[derive(Debug)]
struct Meaning {
    number: u64,
    name: &'static str,
    code: Code,
    remedy: Remedy,
}

/// Variables that a library wants one of.
#[derive(Debug)]
pub(crate) struct Settings {
    /// A file of lines `NAME=value` that the library reads beside the environment.
    file: &'static str,
    /// One of these is to be set to something other than nothing, `0` or `n`.
    one_of: &'static [&'static str],
    /// What goes wrong without.
    without: &'static str,
}

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

const fn means(number: u64, name: &'static str, code: Code, remedy: Remedy) -> Meaning {
    Meaning { number, name, code, remedy }
}

/// A module that nobody has described. The default of the host is 60 s for a call that hangs, and most devices are on a
/// network.
pub(crate) static GENERIC: Profile = Profile {
    name: "generic",
    files: &[],
    signs: &[],
    parallel: Parallel::Calls(16),
    quick: false,
    stuck_after: seconds(60),
    handles_per_session: false,
    user_in_pin: false,
    crypto_user: None,
    codes: &[],
    settings: None,
};

/// Every profile but [`GENERIC`]. For several that fit, the first counts; a file's name counts before what a library
/// says, since two of them are by one maker (Marvell).
static KNOWN: [Profile; 13] = [
    Profile {
        name: "nshield",
        files: &["libcknfast"],
        signs: &["ncipher", "nshield", "entrust"],
        parallel: Parallel::Calls(24),
        settings: Some(&Settings {
            file: "/opt/nfast/cknfastrc",
            one_of: &["CKNFAST_LOADSHARING", "CKNFAST_HSM_POOL"],
            without: "a module that fails takes its keys along, and softcards can't be used",
        }),
        ..GENERIC
    },
    Profile {
        name: "luna",
        files: &["libcryptoki2", "libcklog2"],
        signs: &["safenet", "chrystoki", "thales"],
        // About 30 threads for each HSM is Thales' own advice.
        parallel: Parallel::Calls(30),
        // A dying appliance holds a call for its ReceiveTimeout of 20 s, and a group has at least two members.
        stuck_after: seconds(60),
        crypto_user: Some(0x8000_0001),
        codes: &[
            means(0x8000_0004, "RC_ERROR", Code::Unavailable, Remedy::Token),
            means(0x8000_0007, "CKR_USER_LOCKED_OUT", Code::Credentials, Remedy::None),
            means(0x8000_001a, "CKR_USER_NOT_AUTHORIZED", Code::Unavailable, Remedy::Login),
            means(0x8000_001f, "CKR_UNABLE_TO_CONNECT", Code::Unavailable, Remedy::Token),
            means(0x8000_0020, "CKR_PARTITION_DISABLED", Code::Unavailable, Remedy::Token),
            means(0x8000_0023, "CKR_SP_TIMEOUT", Code::Unavailable, Remedy::Token),
            means(0x8000_0024, "CKR_TIMEOUT", Code::Unavailable, Remedy::Token),
            means(0x8000_002b, "CKR_DEVICE_TIMEOUT", Code::Unavailable, Remedy::Token),
            means(0x8000_0030, "CKR_OPERATION_NOT_ALLOWED", Code::Denied, Remedy::None),
            means(0x8000_0031, "CKR_LICENSE_CAPACITY_EXCEEDED", Code::Throttled, Remedy::None),
            means(0x8000_0035, "CKR_LOG_FULL", Code::Unavailable, Remedy::None),
            means(0x8000_0136, "CKR_KEY_NOT_ACTIVE", Code::Denied, Remedy::None),
        ],
        ..GENERIC
    },
    Profile {
        name: "azure-cloudhsm",
        files: &["libazcloudhsm"],
        parallel: Parallel::Calls(24),
        user_in_pin: true,
        ..GENERIC
    },
    Profile {
        name: "cloudhsm",
        files: &["libcloudhsm_pkcs11"],
        signs: &["cloudhsm", "cavium", "marvell", "amazon web services"],
        parallel: Parallel::Calls(24),
        handles_per_session: true,
        user_in_pin: true,
        ..GENERIC
    },
    Profile {
        name: "softhsm",
        files: &["libsofthsm"],
        signs: &["softhsm"],
        parallel: Parallel::Processors,
        quick: true,
        ..GENERIC
    },
    Profile {
        name: "opencryptoki",
        files: &["libopencryptoki", "pkcs11_api"],
        signs: &["opencryptoki", "meta pkcs11"],
        parallel: Parallel::Processors,
        ..GENERIC
    },
    // One session with the device, shared by all of this side: calls are made one after the other.
    Profile {
        name: "yubihsm",
        files: &["yubihsm_pkcs11"],
        signs: &["yubi"],
        parallel: Parallel::Calls(2),
        ..GENERIC
    },
    Profile {
        name: "tpm2",
        files: &["libtpm2_pkcs11"],
        signs: &["tpm2"],
        parallel: Parallel::Calls(2),
        ..GENERIC
    },
    Profile {
        name: "kryoptic",
        files: &["libkryoptic"],
        signs: &["kryoptic"],
        parallel: Parallel::Processors,
        ..GENERIC
    },
    // It tries again by itself, five times, for up to 30 s each.
    Profile {
        name: "google-kms",
        files: &["libkmsp11"],
        signs: &["google", "cloud kms"],
        parallel: Parallel::Calls(30),
        stuck_after: seconds(180),
        ..GENERIC
    },
    Profile {
        name: "primus",
        files: &["libprimusp11"],
        signs: &["securosys", "primus"],
        parallel: Parallel::Calls(24),
        ..GENERIC
    },
    Profile {
        name: "fortanix",
        files: &["fortanix_pkcs11", "libfortanix"],
        signs: &["fortanix"],
        parallel: Parallel::Calls(24),
        ..GENERIC
    },
    Profile {
        name: "utimaco",
        files: &["libcs_pkcs11"],
        signs: &["utimaco"],
        parallel: Parallel::Calls(24),
        ..GENERIC
    },
];

impl Profile {
    /// The profile of a module: by its file's name, then by what its library says of itself.
    pub(crate) fn of(file: &Path, library: Option<&Info>) -> &'static Self {
        let said = library.map(|library| {
            [library.manufacturer_id(), library.library_description()].join(" ").to_lowercase()
        });
        let by_file = || KNOWN.iter().find(|profile| profile.names(file));
        let by_word = || {
            let said = said.as_deref()?;
            KNOWN.iter().find(|profile| profile.signs.iter().any(|sign| said.contains(sign)))
        };
        by_file().or_else(by_word).unwrap_or(&GENERIC)
    }

    /// Whether a file's name is one of its library's.
    fn names(&self, file: &Path) -> bool {
        let file = file.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
        self.files.iter().any(|name| file.starts_with(name))
    }

    /// Whether signatures with keys on short curves are a matter of microseconds in a module. What only passes the
    /// library's words on may have it at the other end of a network.
    pub(crate) fn is_quick(&self, file: &Path) -> bool {
        self.quick && self.names(file)
    }

    /// Every profile.
    pub(crate) fn all() -> impl Iterator<Item = &'static Self> {
        std::iter::once(&GENERIC).chain(&KNOWN)
    }

    /// The profile of a name.
    pub(crate) fn named(name: &str) -> Option<&'static Self> {
        Self::all().find(|profile| profile.name == name)
    }

    /// How many lanes a store on such a module gets, where nothing says otherwise.
    pub(crate) fn lanes(&self) -> u32 {
        match self.parallel {
            Parallel::Calls(calls) => calls,
            // One more than there are, so that none idles while an answer is on its way.
            Parallel::Processors => std::thread::available_parallelism()
                .map_or(2, |all| u32::try_from(all.get()).unwrap_or(64) + 1),
        }
    }

    /// Who logs in.
    ///
    /// # Errors
    ///
    /// Where the vendor has no such user.
    pub(crate) fn user(&self, crypto_user: bool) -> Result<UserType, Problem> {
        if !crypto_user {
            return Ok(UserType::User);
        }
        self.crypto_user.map(UserType::VendorExtension).ok_or_else(|| {
            let message =
                format!("`login_as: crypto-user`: modules of the profile `{}` have no such user", self.name);
            Problem::new(Error::invalid(message))
                .hint("leave `login_as` out, or say which `profile` the module has")
        })
    }

    /// What may cure a failed call.
    pub(crate) fn remedy(&self, error: &Error) -> Remedy {
        let Some(vendor) = &error.vendor else { return Remedy::None };
        let own = || self.meaning(vendor.number).map(|meaning| meaning.remedy);
        // A vendor's code that nobody knows: to look whether the token is there can do no harm.
        ckr::remedy(vendor.number).or_else(own).unwrap_or(Remedy::Token)
    }

    /// An error in the vendor's own terms.
    pub(crate) fn explain(&self, error: Error) -> Error {
        let meaning = error.vendor.as_ref().and_then(|vendor| self.meaning(vendor.number));
        match meaning {
            Some(meaning) => {
                Error::new(meaning.code, error.message).with_vendor(meaning.name, meaning.number)
            }
            None => error,
        }
    }

    fn meaning(&self, number: u64) -> Option<&'static Meaning> {
        self.codes.iter().find(|meaning| meaning.number == number)
    }
}

impl Settings {
    /// What is wrong with the library's settings; the environment counts before the file.
    pub(crate) fn complaint(&self, variable: impl Fn(&str) -> Option<String>) -> Option<Problem> {
        let file = std::fs::read_to_string(self.file).unwrap_or_default();
        let in_file = |name: &str| {
            let mut lines = file.lines().filter_map(|line| line.split_once('='));
            lines.find(|(key, _)| key.trim() == name).map(|(_, value)| value.trim().to_owned())
        };
        let is_on = |name: &&&str| {
            let value = variable(name).or_else(|| in_file(name)).unwrap_or_default();
            !matches!(value.to_lowercase().as_str(), "" | "0" | "n" | "no")
        };
        if self.one_of.iter().find(is_on).is_some() {
            return None;
        }
        let names = self.one_of.join(" nor ");
        let problem = Problem::new(Error::invalid(format!("neither {names} is set: {}", self.without)));
        Some(
            problem.hint(format!(
                "set one of them to 1 in the store's `env`, or in {} for the machine",
                self.file
            )),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_file(name: &str) -> &'static str {
        Profile::of(&Path::new("/opt").join(name), None).name
    }

    #[test]
    fn every_vendor_is_known_by_its_library() {
        for (file, name) in [
            ("libcknfast.so", "nshield"),
            ("libCryptoki2_64.so", "luna"),
            ("libcloudhsm_pkcs11.so", "cloudhsm"),
            ("libcloudhsm_pkcs11_standard.so", "cloudhsm"),
            ("libazcloudhsm_pkcs11.so", "azure-cloudhsm"),
            ("libsofthsm2.so", "softhsm"),
            ("libopencryptoki.so.0", "opencryptoki"),
            ("yubihsm_pkcs11.so", "yubihsm"),
            ("libtpm2_pkcs11.so.1", "tpm2"),
            ("libkryoptic_pkcs11.so", "kryoptic"),
            ("libkmsp11.so", "google-kms"),
            ("libprimusP11.so", "primus"),
            ("fortanix_pkcs11.so", "fortanix"),
            ("libcs_pkcs11_R3.so", "utimaco"),
            ("vendor.so", "generic"),
        ] {
            assert_eq!(of_file(file), name, "{file}");
            assert_eq!(Profile::named(name).unwrap().name, name);
        }
        assert!(Profile::named("nobody").is_none());
    }

    #[test]
    fn only_a_library_that_computes_here_is_quick_not_what_speaks_for_it() {
        let softhsm = Profile::named("softhsm").unwrap();
        assert!(softhsm.is_quick(Path::new("/usr/lib/softhsm/libsofthsm2.so")));
        assert!(!softhsm.is_quick(Path::new("/usr/lib/pkcs11/p11-kit-client.so")));
        assert!(!Profile::named("luna").unwrap().is_quick(Path::new("/opt/libCryptoki2_64.so")));
    }

    #[test]
    fn a_vendors_code_gets_its_name_class_and_remedy() {
        let error = |number| {
            Error::new(Code::Unavailable, "signing failed").with_vendor("CKR_VENDOR_DEFINED", number)
        };
        let luna = Profile::named("luna").unwrap();
        let locked = luna.explain(error(0x8000_0007));
        assert_eq!(
            (locked.code, locked.vendor.unwrap().name.as_str()),
            (Code::Credentials, "CKR_USER_LOCKED_OUT")
        );
        assert_eq!(luna.remedy(&error(0x8000_001a)), Remedy::Login);
        assert_eq!(luna.remedy(&error(0x8000_abcd)), Remedy::Token);
        assert_eq!(GENERIC.explain(error(0x8000_0007)).code, Code::Unavailable);
    }

    #[test]
    fn only_a_vendor_that_has_a_crypto_user_logs_in_as_one() {
        assert!(matches!(GENERIC.user(false), Ok(UserType::User)));
        let luna = Profile::named("luna").unwrap().user(true);
        assert!(matches!(luna, Ok(UserType::VendorExtension(0x8000_0001))), "{luna:?}");
        assert!(GENERIC.user(true).unwrap_err().error.message.contains("`generic` have no such user"));
    }

    #[test]
    fn a_library_without_one_of_its_settings_is_complained_of() {
        let settings = Settings { file: "/no/such/file", one_of: &["A", "B"], without: "it breaks" };
        let told = settings.complaint(|_| None).unwrap();
        assert!(told.error.message.contains("neither A nor B is set: it breaks"), "{told:?}");
        assert!(settings.complaint(|name| (name == "B").then(|| "1".to_owned())).is_none());
        assert!(settings.complaint(|_| Some("0".to_owned())).is_some());
    }
}
