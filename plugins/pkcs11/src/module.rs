//! The PKCS#11 libraries in this process.
//!
//! A library is loaded once and stays to the end, since unloading a vendor's library crashes often enough. So every
//! [`Module`] is leaked, and found again by its canonical path.
//!
//! It is initialised by whichever store needs it first. Some libraries look for tokens only then (SoftHSM2), or lose
//! what they had for good when the device goes; what helps is C_Finalize and C_Initialize. But that would pull the
//! library from under other stores and from threads that still hang in it. So whoever has a slot or a session holds a
//! [`Lease`], and the library is finalised only while there is none.
//!
//! Every store's tokens are known to their module, so that one thread, while it is needed, can look for all that are
//! lost ([`Module::recover`]).

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    thread,
    time::{Duration, Instant},
};

use cryptoki::{
    context::{CInitializeArgs, CInitializeFlags, Info, Pkcs11},
    error::{Error as Failure, RvError},
    slot::{Slot, SlotInfo, TokenInfo},
};
use keystead_plugin_api::{Code, Error};

use crate::{calls::Calls, ckr, problem::Problem, profile::Profile, recovery, token::Token};

/// Where `module-name` is looked up, after the configured folders: the folders of p11-kit, and where Debian and Fedora
/// put the libraries.
const FOLDERS: [&str; 11] = [
    "/usr/lib/x86_64-linux-gnu/pkcs11",
    "/usr/lib/aarch64-linux-gnu/pkcs11",
    "/usr/lib64/pkcs11",
    "/usr/lib/pkcs11",
    "/usr/local/lib/pkcs11",
    "/usr/lib/softhsm",
    "/usr/lib64/softhsm",
    "/usr/local/lib/softhsm",
    "/usr/lib",
    "/usr/lib64",
    "/usr/local/lib",
];

/// How often is looked whether a module has settled.
const SETTLING: Duration = Duration::from_millis(5);

/// One PKCS#11 library.
pub(crate) struct Module {
    path: PathBuf,
    library: &'static Pkcs11,
    calls: Calls,
    login: Mutex<()>,
    recovery: Mutex<Recovery>,
    /// Held through C_Initialize and C_Finalize, for which any other call at the same time is undefined.
    life: Mutex<Life>,
}

/// The tokens of a module that stores have open, and whether a thread is looking for lost ones.
#[derive(Default)]
struct Recovery {
    tokens: Vec<Weak<Token>>,
    runs: bool,
    /// Whether that thread may be in a call of the module.
    looks: bool,
    pause: Duration,
    looked: Option<Instant>,
}

/// From one C_Initialize to its C_Finalize; slots and sessions of one life mean nothing in the next.
struct Life {
    number: u64,
    initialised: bool,
    /// Whether another part of the process initialised it: then it isn't ours to finalise.
    borrowed: bool,
    users: Arc<()>,
}

/// The right to use the slots and sessions of one life: the library isn't finalised before it is dropped.
#[derive(Clone)]
pub(crate) struct Lease {
    /// The number of the life.
    pub(crate) life: u64,
    _user: Arc<()>,
}

/// One slot with a token in it.
#[derive(Clone)]
pub(crate) struct Present {
    pub(crate) slot: Slot,
    pub(crate) token: TokenInfo,
    pub(crate) info: Option<SlotInfo>,
    pub(crate) lease: Lease,
}

impl Module {
    /// The canonical path of a library file. A bare file name is looked for in the usual folders.
    ///
    /// # Errors
    ///
    /// Where there is no such file.
    pub(crate) fn file(path: &Path) -> Result<PathBuf, Problem> {
        let bare = path.parent().is_some_and(|folder| folder.as_os_str().is_empty());
        let found = bare.then(|| find([path])).flatten();
        found.as_deref().unwrap_or(path).canonicalize().map_err(|error| {
            Problem::new(Error::invalid(format!("module `{}` can't be opened: {error}", path.display())))
                .hint("give the full path of the vendor's PKCS#11 library as module-path")
        })
    }

    /// The module of a library file; loads it where nobody has yet. A bare file name is looked for in the usual
    /// folders.
    ///
    /// # Errors
    ///
    /// Where the file is missing or isn't a PKCS#11 library.
    pub(crate) fn at(path: &Path) -> Result<&'static Self, Problem> {
        let path = Self::file(path)?;
        let place = Place::of(&path);
        let mut module = place.module.lock().unwrap_or_else(PoisonError::into_inner);
        match *module {
            Some(module) => Ok(module),
            None => Ok(module.insert(Self::load(path)?)),
        }
    }

    /// Finds a library by a name that has neither folder nor suffix (RFC 7512 section 2.4): in these folders, then in
    /// the usual ones.
    ///
    /// # Errors
    ///
    /// Where none of them has it.
    pub(crate) fn path_of(name: &str, folders: &[PathBuf]) -> Result<PathBuf, Problem> {
        let files = [format!("lib{name}.so"), format!("{name}.so")];
        let folders: Vec<&Path> =
            folders.iter().map(PathBuf::as_path).chain(FOLDERS.iter().map(Path::new)).collect();
        let mut paths = folders.iter().flat_map(|folder| files.iter().map(|file| folder.join(file)));
        paths.find(|path| path.is_file()).ok_or_else(|| {
            let names: Vec<_> = folders.iter().map(|folder| folder.display().to_string()).collect();
            Problem::new(Error::invalid(format!("no module named `{name}` in {}", names.join(", "))))
                .hint("give the full path of the library as module-path, or its folder as `module_folders`")
        })
    }

    fn load(path: PathBuf) -> Result<&'static Self, Problem> {
        let loaded = Pkcs11::new(&path).and_then(|library| {
            let library: &'static Pkcs11 = Box::leak(Box::new(library));
            Ok((library, Calls::of(&path)?))
        });
        let (library, calls) = loaded.map_err(|failure| Problem::new(not_loaded(&path, &failure)))?;
        let life = Life { number: 0, initialised: false, borrowed: false, users: Arc::default() };
        let (login, recovery) = Default::default();
        Ok(Box::leak(Box::new(Self { path, library, calls, login, recovery, life: Mutex::new(life) })))
    }

    /// Notes a token that a store has open.
    pub(crate) fn enlist(&self, token: &Arc<Token>) {
        let mut recovery = self.recovery();
        recovery.tokens.retain(|token| token.strong_count() > 0);
        recovery.tokens.push(Arc::downgrade(token));
    }

    /// Its tokens that stores have open.
    pub(crate) fn enlisted(&self) -> Vec<Arc<Token>> {
        self.recovery().tokens.iter().filter_map(Weak::upgrade).collect()
    }

    /// Has a thread look for lost tokens, if none does: until there are none, or nobody wants them any more.
    pub(crate) fn recover(&'static self) {
        let mut recovery = self.recovery();
        recovery.runs = recovery.runs || recovery::start(self);
    }

    /// How long to wait before the next look for lost tokens: at most `longest`, twice as long as the last time and, where
    /// that was a while ago, `first`.
    pub(crate) fn pause(&self, first: Duration, longest: Duration) -> Duration {
        let mut recovery = self.recovery();
        let recent = recovery.looked.is_some_and(|looked| looked.elapsed() < 10 * longest);
        recovery.pause = if recent { (2 * recovery.pause).min(longest) } else { first };
        recovery.looked = Some(Instant::now());
        recovery.pause
    }

    /// Whether the thread that looks for lost tokens may end. Whoever loses one after that starts another.
    pub(crate) fn rests(&self, is_lost: impl Fn(&Token) -> bool) -> bool {
        let mut recovery = self.recovery();
        let work = recovery.tokens.iter().filter_map(Weak::upgrade).any(|token| is_lost(&token));
        recovery.runs = work;
        !work
    }

    /// Has that thread do what may call the module.
    pub(crate) fn look(&self, look: impl FnOnce()) {
        self.recovery().looks = true;
        look();
        self.recovery().looks = false;
    }

    /// Waits until that thread is in no call of the module, or the time is up. What ends the process would pull the
    /// module from under it.
    pub(crate) fn settle(&self, until: Instant) {
        while self.recovery().looks && Instant::now() < until {
            thread::sleep(SETTLING);
        }
    }

    fn recovery(&self) -> MutexGuard<'_, Recovery> {
        self.recovery.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The right to use it; initialises it where it isn't.
    ///
    /// # Errors
    ///
    /// Where C_Initialize fails.
    pub(crate) fn lease(&self) -> Result<Lease, Problem> {
        let mut life = self.life();
        if !life.initialised {
            self.initialise(&mut life)?;
        }
        Ok(Lease { life: life.number, _user: Arc::clone(&life.users) })
    }

    /// Finalises it where it still is in a life in which nothing else helped, so that the next lease initialises it
    /// anew. Answers whether that is done, here or by somebody else; it isn't while anybody has a lease.
    pub(crate) fn renew(&self, failed: u64) -> bool {
        let mut life = self.life();
        if life.number != failed || !life.initialised {
            return true;
        }
        // No lease can come up meanwhile: each is made with the lock held, or is the copy of one that there is.
        if life.borrowed || Arc::get_mut(&mut life.users).is_none() {
            return false;
        }
        match self.library.clone().finalize() {
            Ok(()) | Err(Failure::Pkcs11(RvError::CryptokiNotInitialized, _)) => life.initialised = false,
            Err(failure) => {
                tracing::warn!(module = %self.path.display(), "the module can't be finalised: {failure}");
            }
        }
        !life.initialised
    }

    /// The number of the life that it is in; `None` where it isn't initialised.
    pub(crate) fn life_number(&self) -> Option<u64> {
        let life = self.life();
        life.initialised.then_some(life.number)
    }

    fn initialise(&self, life: &mut Life) -> Result<(), Problem> {
        let module = self.path.display();
        match self.library.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)) {
            Ok(()) if life.number == 0 => tracing::info!(%module, "module initialised"),
            Ok(()) => tracing::debug!(%module, "module initialised anew"),
            Err(Failure::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => {
                tracing::info!(%module, "module was initialised already");
                life.borrowed = true;
            }
            Err(failure) => {
                let error = ckr::error(&format!("module `{module}`"), &failure);
                return Err(Problem::new(error).hint(
                    "check the vendor's configuration file and environment variables, that its daemon \
                     runs, and that the server's user may use both",
                ));
            }
        }
        life.initialised = true;
        life.number += 1;
        Ok(())
    }

    /// The library.
    pub(crate) fn library(&self) -> &'static Pkcs11 {
        self.library
    }

    /// Its functions for signing and decrypting.
    pub(crate) fn calls(&self) -> Calls {
        self.calls
    }

    /// What the token in a slot says of itself.
    ///
    /// # Errors
    ///
    /// Those of the module.
    pub(crate) fn token_info(&self, slot: Slot) -> Result<TokenInfo, Failure> {
        self.calls.token_info(self.library, slot)
    }

    /// What is known of its vendor.
    pub(crate) fn profile(&self) -> &'static Profile {
        Profile::of(&self.path, self.info().as_ref())
    }

    /// The library's file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// What the library says about itself; `None` where that can't be had.
    pub(crate) fn info(&self) -> Option<Info> {
        self.library.get_library_info().ok()
    }

    /// What it says of itself, and what is in its slots, a line each.
    pub(crate) fn describe(&self) -> Vec<String> {
        let library = self.info().map(|library| {
            let (version, standard) = (library.library_version(), library.cryptoki_version());
            let (description, maker) = (library.library_description(), library.manufacturer_id());
            format!("`{description}` {version} by `{maker}`, PKCS#11 {standard}")
        });
        let Ok(lease) = self.lease() else { return library.into_iter().collect() };
        let slots =
            self.tokens(&lease).unwrap_or_default().into_iter().map(|Present { slot, token, .. }| {
                let (label, serial, model) = (token.label(), token.serial_number(), token.model());
                format!("slot {}: token `{label}` (serial {serial}, model `{model}`)", slot.id())
            });
        library.into_iter().chain(slots).collect()
    }

    /// Serialises logins, so that a PIN which is just being refused isn't presented by another store meanwhile.
    pub(crate) fn login_turn(&self) -> MutexGuard<'_, ()> {
        self.login.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every token that is there and answers.
    ///
    /// # Errors
    ///
    /// Where the slots can't be listed.
    pub(crate) fn tokens(&self, lease: &Lease) -> Result<Vec<Present>, Error> {
        let doing = format!("listing the slots of module `{}`", self.path.display());
        let slots = self.library.get_slots_with_token().map_err(|failure| ckr::error(&doing, &failure))?;
        Ok(slots.into_iter().filter_map(|slot| self.present(slot, lease)).collect())
    }

    /// Slots whose token doesn't answer, or was never initialised, hold nothing to be found.
    fn present(&self, slot: Slot, lease: &Lease) -> Option<Present> {
        let token = self.token_info(slot).ok()?;
        let info = self.library.get_slot_info(slot).ok();
        let named = token.token_initialized() || !token.label().is_empty();
        named.then(|| Present { slot, token, info, lease: lease.clone() })
    }

    fn life(&self) -> MutexGuard<'_, Life> {
        self.life.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where the module of one path is, or will be. The lock is held while the library is loaded; other modules don't wait.
struct Place {
    module: Mutex<Option<&'static Module>>,
}

impl Place {
    fn of(path: &Path) -> &'static Self {
        static PLACES: Mutex<Option<HashMap<PathBuf, &'static Place>>> = Mutex::new(None);
        let mut places = PLACES.lock().unwrap_or_else(PoisonError::into_inner);
        places
            .get_or_insert_default()
            .entry(path.to_owned())
            .or_insert_with(|| Box::leak(Box::new(Self { module: Mutex::new(None) })))
    }
}

/// The first of the usual folders' files that has one of these names.
fn find<const N: usize>(names: [&Path; N]) -> Option<PathBuf> {
    let mut paths = FOLDERS.iter().flat_map(|folder| names.map(|name| Path::new(folder).join(name)));
    paths.find(|path| path.is_file())
}

fn not_loaded(path: &Path, failure: &Failure) -> Error {
    let path = path.display();
    match failure {
        Failure::MissingSymbol(_) | Failure::NullFunctionPointer => {
            Error::invalid(format!("`{path}` is not a PKCS#11 module: it has no C_GetFunctionList"))
        }
        Failure::LibraryLoading(cause) => {
            Error::new(Code::InvalidInput, format!("module `{path}` can't be loaded: {cause}"))
        }
        _ => ckr::error(&format!("module `{path}`"), failure),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(path: &Path) -> Problem {
        Module::at(path).err().expect("is refused")
    }

    #[test]
    fn says_what_is_wrong_with_a_file_that_is_no_module() {
        let folder = tempfile::tempdir().unwrap();
        let missing = refused(&folder.path().join("missing.so"));
        assert_eq!(missing.error.code, Code::InvalidInput);
        assert!(missing.error.message.contains("missing.so` can't be opened: No such file"), "{missing:?}");
        assert!(!missing.hint.is_empty());

        let text = folder.path().join("text.so");
        std::fs::write(&text, "not a library").unwrap();
        assert!(refused(&text).error.message.contains("can't be loaded"), "{:?}", refused(&text));
    }

    #[test]
    fn tells_a_library_without_pkcs11_from_a_module() {
        let libm =
            ["/lib/x86_64-linux-gnu/libm.so.6", "/lib/aarch64-linux-gnu/libm.so.6", "/lib64/libm.so.6"]
                .into_iter()
                .find(|path| Path::new(path).exists())
                .expect("a libm");
        let problem = refused(Path::new(libm));
        assert!(
            problem.error.message.ends_with("is not a PKCS#11 module: it has no C_GetFunctionList"),
            "{problem:?}"
        );
    }

    #[test]
    fn a_name_that_no_folder_has_is_refused_with_a_cure() {
        let problem = Module::path_of("no-such-module", &[]).unwrap_err();
        assert!(problem.error.message.contains("no module named `no-such-module`"));
        assert!(!problem.hint.is_empty());
    }
}
