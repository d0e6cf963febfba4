//! One token: how it is chosen, its one login, and its sessions.

use std::{
    collections::HashMap,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use cryptoki::{
    context::Info,
    error::{Error as Failure, RvError},
    session::{SessionInfo, SessionState, UserType},
    slot::{Limit, Slot, TokenInfo},
    types::RawAuthPin,
};
use keystead_plugin_api::{Call, Code, Credentials, Error, Lane};
use zeroize::Zeroizing;

use crate::{
    Problem, ckr,
    mechanism::Allowed,
    module::{Lease, Module, Present},
    sessions::{Pool, Session},
    uri::{Selector, Selectors},
};

/// A PIN.
pub(crate) type Pin = Zeroizing<Vec<u8>>;

/// A token that a store has opened. A login belongs to the whole process and lasts as long as a session does, so one
/// session, the anchor, stays open beside those of the lanes.
pub(crate) struct Token {
    module: &'static Module,
    seat: Mutex<Seat>,
    /// What the operator calls it.
    pub(crate) label: String,
    /// What the memory of refused PINs calls it.
    identity: String,
    pin: Option<Pin>,
    credentials: Option<Credentials>,
    /// What the token's mechanisms allow.
    pub(crate) allowed: Allowed,
    anchor: Mutex<Option<Session>>,
    /// Whether not even a new session brings the token back: then nothing but the next health check uses the module.
    gone: AtomicBool,
    pool: Pool,
}

/// The slot that the token had in a life of its module.
struct Seat {
    life: u64,
    slot: Slot,
}

/// How often is tried to initialise a module anew while calls are inside it, and how long after each try.
const RENEWALS: u32 = 5;
const RENEW_AFTER: Duration = Duration::from_millis(50);

/// What a store says of a token.
pub(crate) struct Settings {
    /// For its one login; without it there is none.
    pub(crate) pin: Option<Pin>,
    /// The most sessions, the anchor counted.
    pub(crate) max_sessions: Option<u32>,
    /// The host's memory of refused PINs.
    pub(crate) credentials: Option<Credentials>,
}

/// Chooses the one token that selectors mean.
///
/// # Errors
///
/// [`Code::Unavailable`] where there is none at the moment, [`Code::InvalidInput`] where several match.
pub(crate) fn choose<'a>(
    present: &'a [Present],
    library: Option<&Info>,
    selectors: &Selectors,
) -> Result<&'a Present, Problem> {
    let fits = |token: &&Present| {
        selectors.iter().all(|(selector, wanted)| token.value(*selector, library).as_ref() == Some(wanted))
    };
    let mut matching = present.iter().filter(fits);
    match (matching.next(), matching.next()) {
        (Some(token), None) => Ok(token),
        (None, _) => {
            let error = Error::new(Code::Unavailable, "no such token is there");
            Err(Problem::new(error).hint(format!("the module has {}", names(present.iter()))))
        }
        (Some(_), Some(_)) => {
            let names = names(present.iter().filter(fits));
            let error = Error::invalid(format!("more than one token matches: {names}"));
            Err(Problem::new(error).hint("tell them apart by serial="))
        }
    }
}

fn names<'a>(present: impl Iterator<Item = &'a Present>) -> String {
    let name =
        |token: &Present| format!("`{}` (serial {})", token.token.label(), token.token.serial_number());
    let mut names: Vec<String> = present.map(name).collect();
    names.sort();
    if names.is_empty() { "no token".to_owned() } else { names.join(", ") }
}

impl Present {
    fn value(&self, selector: Selector, library: Option<&Info>) -> Option<String> {
        let (token, slot) = (&self.token, self.info.as_ref());
        match selector {
            Selector::Token => Some(token.label().to_owned()),
            Selector::Manufacturer => Some(token.manufacturer_id().to_owned()),
            Selector::Serial => Some(token.serial_number().to_owned()),
            Selector::Model => Some(token.model().to_owned()),
            Selector::SlotId => Some(self.slot.id().to_string()),
            Selector::SlotManufacturer => slot.map(|slot| slot.manufacturer_id().to_owned()),
            Selector::SlotDescription => slot.map(|slot| slot.slot_description().to_owned()),
            Selector::LibraryManufacturer => library.map(|library| library.manufacturer_id().to_owned()),
            Selector::LibraryDescription => library.map(|library| library.library_description().to_owned()),
            Selector::LibraryVersion => library.map(|library| library.library_version().to_string()),
        }
    }

    /// The most sessions that this process may have on the token; `None` where it sets no limit.
    fn session_limit(&self) -> Option<u32> {
        let limit = |limit| match limit {
            Limit::Max(most) => Some(u32::try_from(most).unwrap_or(u32::MAX)),
            Limit::Unavailable | Limit::Infinite => None,
        };
        let (all, writing) =
            (limit(self.token.max_session_count()), limit(self.token.max_rw_session_count()));
        [all, writing].into_iter().flatten().min()
    }
}

impl Token {
    /// Opens the anchor session and logs in, once.
    ///
    /// # Errors
    ///
    /// [`Code::Credentials`] where the PIN is refused, now or before.
    pub(crate) fn open(
        module: &'static Module,
        present: &Present,
        settings: Settings,
    ) -> Result<Self, Problem> {
        // As with gokeyless, one of the sessions is the anchor, and less than two make no sense.
        let limit = [settings.max_sessions, present.session_limit()].into_iter().flatten().min();
        let info = &present.token;
        let token = Self {
            module,
            seat: Mutex::new(Seat { life: present.lease.life, slot: present.slot }),
            label: info.label().to_owned(),
            identity: identity(info),
            pin: settings.pin,
            credentials: settings.credentials,
            allowed: mechanisms(module, present.slot),
            anchor: Mutex::new(None),
            gone: AtomicBool::new(false),
            pool: Pool::new(limit.map(|limit| limit.max(2) - 1)),
        };
        let anchor = token.open_anchor(present.lease.clone())?;
        *token.anchor.lock().unwrap_or_else(PoisonError::into_inner) = Some(anchor);
        Ok(token)
    }

    /// Works with a session of the call's lane: the anchor for housekeeping, else one of the pool. A session that
    /// failed for reasons of its own is closed, and another opened next time.
    ///
    /// # Errors
    ///
    /// Where no session is to be had, and those of `work`.
    pub(crate) fn with<T>(
        &self,
        call: &Call<'_>,
        work: impl FnOnce(&mut Session) -> Result<T, Error>,
    ) -> Result<T, Error> {
        match call.lane {
            Lane::Housekeeping => self.with_anchor(work),
            Lane::Inline | Lane::Number(_) if self.gone.load(Ordering::Relaxed) => Err(self.is_gone()),
            Lane::Inline | Lane::Number(_) => {
                self.pool.with(call.deadline, || self.open_session(self.module.lease()?), work)
            }
        }
    }

    /// Whether the token still answers; logs in again where the login was lost.
    ///
    /// # Errors
    ///
    /// Where it doesn't.
    pub(crate) fn check(&self) -> Result<(), Error> {
        self.with_anchor(|anchor| {
            let info =
                anchor.raw.get_session_info().map_err(|failure| self.error("health check", &failure))?;
            self.answers(info)?;
            if is_public(info) { self.login(anchor).map_err(Error::from) } else { Ok(()) }
        })
    }

    /// Why private keys may be there though they can't be seen: the token went, or the login.
    pub(crate) fn lost(&self, session: &Session) -> Option<Problem> {
        let info = session.raw.get_session_info().ok()?;
        if let Err(gone) = self.answers(info) {
            return Some(Problem::new(gone).hint("the next health checks look for it"));
        }
        let message = format!("the login on token `{}` was lost", self.label);
        let lost = Problem::new(Error::new(Code::Unavailable, message));
        (self.pin.is_some() && is_public(info)).then(|| lost.hint("the next health check logs in again"))
    }

    /// Asks the token itself: a session may outlive it, and tell that all is well (SoftHSM2); and another may be in its
    /// slot, which must never see this one's PIN.
    fn answers(&self, info: SessionInfo) -> Result<(), Error> {
        let answer = self.module.library().get_token_info(info.slot_id());
        let answer =
            answer.map_err(|failure| ckr::error(&format!("asking token `{}`", self.label), &failure))?;
        if identity(&answer) == self.identity { Ok(()) } else { Err(self.is_gone()) }
    }

    fn is_gone(&self) -> Error {
        Error::new(Code::Unavailable, format!("token `{}` is not there", self.label))
    }

    /// How many lanes may work at once, where some had to wait for that reason.
    pub(crate) fn bottleneck(&self) -> Option<u32> {
        self.pool.bottleneck()
    }

    /// Closes the sessions that nobody works with. There is no C_Logout: it would log every store out.
    pub(crate) fn close(&self) {
        self.pool.close();
        if let Ok(mut anchor) = self.anchor.try_lock() {
            *anchor = None;
        }
    }

    fn with_anchor<T>(&self, work: impl FnOnce(&mut Session) -> Result<T, Error>) -> Result<T, Error> {
        let mut anchor = self.anchor.lock().unwrap_or_else(PoisonError::into_inner);
        if anchor.is_none() {
            *anchor = Some(self.open_anchor_again()?);
        }
        let Some(session) = anchor.as_mut() else {
            return Err(Error::new(Code::Internal, "no anchor session"));
        };
        let done = work(session);
        if !done.as_ref().err().is_none_or(ckr::spares_session) {
            *anchor = None;
        }
        done
    }

    /// Opens the anchor after it was lost. Where a new session doesn't help either, the module may have lost the token
    /// for good, as SoftHSM2 does: then it is initialised anew, if nobody else uses it.
    fn open_anchor_again(&self) -> Result<Session, Problem> {
        let lease = self.module.lease()?;
        let life = lease.life;
        let session = match self.open_own_session(lease) {
            Err(error) if error.code == Code::Unavailable => {
                self.gone.store(true, Ordering::Relaxed);
                self.pool.close();
                if !self.renew(life) {
                    return Err(error.into());
                }
                self.open_own_session(self.module.lease()?)?
            }
            opened => opened?,
        };
        self.login(&session)?;
        self.gone.store(false, Ordering::Relaxed);
        Ok(session)
    }

    /// Initialises the module anew once the calls that are inside it have returned, which nobody adds to by now.
    fn renew(&self, life: u64) -> bool {
        (0..RENEWALS).any(|attempt| {
            if attempt > 0 {
                thread::sleep(RENEW_AFTER);
            }
            self.module.renew(life)
        })
    }

    fn open_anchor(&self, lease: Lease) -> Result<Session, Problem> {
        let session = self.open_own_session(lease)?;
        self.login(&session)?;
        Ok(session)
    }

    /// A session with this very token.
    fn open_own_session(&self, lease: Lease) -> Result<Session, Error> {
        let session = self.open_session(lease)?;
        let info = session.raw.get_session_info().map_err(|failure| self.error("a new session", &failure))?;
        self.answers(info)?;
        Ok(session)
    }

    /// A read-write session, since some modules (AWS CloudHSM) have no other; a read-only one where that is refused.
    fn open_session(&self, lease: Lease) -> Result<Session, Error> {
        let (library, slot) = (self.module.library(), self.slot(&lease)?);
        let raw = match library.open_rw_session(slot) {
            Err(failure) if !matches!(failure, Failure::Pkcs11(RvError::SessionCount, _)) => {
                library.open_ro_session(slot).map_err(|_| failure)
            }
            opened => opened,
        };
        let raw = raw.map_err(|failure| self.error("opening a session", &failure))?;
        Ok(Session { raw, handles: HashMap::new(), _lease: lease })
    }

    /// The token's slot; looked for where the module has been initialised anew, since slots may be numbered otherwise.
    fn slot(&self, lease: &Lease) -> Result<Slot, Error> {
        let mut seat = self.seat();
        if seat.life != lease.life {
            let present = self.module.tokens(lease)?;
            let own = present.iter().find(|present| identity(&present.token) == self.identity);
            *seat = Seat { life: lease.life, slot: own.ok_or_else(|| self.is_gone())?.slot };
        }
        Ok(seat.slot)
    }

    fn seat(&self) -> MutexGuard<'_, Seat> {
        self.seat.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn login(&self, session: &Session) -> Result<(), Problem> {
        let Some(pin) = &self.pin else { return Ok(()) };
        let _turn = self.module.login_turn();
        if self.credentials.is_some_and(|memory| memory.refused(&self.identity, pin)) {
            let message =
                format!("token `{}` has refused this PIN before; it was not tried again", self.label);
            return Err(Problem::new(Error::new(Code::Credentials, message)).hint(CORRECT_THE_PIN));
        }
        match session.raw.login_with_raw(UserType::User, &RawAuthPin::new(Box::new(pin.to_vec()))) {
            Ok(()) | Err(Failure::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => {
                if let Some(memory) = self.credentials {
                    memory.accepted(&self.identity, pin);
                }
                Ok(())
            }
            Err(failure) => Err(self.refused(&failure, pin, session)),
        }
    }

    /// A module may have a code of its own for a wrong PIN: the token's count of attempts tells.
    fn refused(&self, failure: &Failure, pin: &Pin, session: &Session) -> Problem {
        let mut error = self.error("login", failure);
        if error.code != Code::Credentials && !self.counts_attempts(session) {
            return Problem::new(error);
        }
        error.code = Code::Credentials;
        if let Some(memory) = self.credentials {
            memory.report(&self.identity, pin);
        }
        Problem::new(error).hint(CORRECT_THE_PIN)
    }

    /// Whether the token has counted a wrong PIN since the last right one, or is locked (PKCS#11 v3.1 section 3.5.2).
    fn counts_attempts(&self, session: &Session) -> bool {
        let slot = session.raw.get_session_info().map(|info| info.slot_id());
        let info = slot.and_then(|slot| self.module.library().get_token_info(slot));
        info.is_ok_and(|info| {
            info.user_pin_count_low() || info.user_pin_final_try() || info.user_pin_locked()
        })
    }

    fn error(&self, doing: &str, failure: &Failure) -> Error {
        ckr::error(&format!("{doing} on token `{}`", self.label), failure)
    }
}

/// What tells a token from every other.
fn identity(info: &TokenInfo) -> String {
    [info.manufacturer_id(), info.model(), info.serial_number(), info.label()].join("/")
}

/// Whether nobody is logged in.
fn is_public(info: SessionInfo) -> bool {
    matches!(info.session_state(), SessionState::RoPublic | SessionState::RwPublic)
}

const CORRECT_THE_PIN: &str =
    "correct the PIN before anything tries again: tokens lock after a few wrong ones";

/// What a token's mechanisms allow; one that won't say more than that it has a mechanism is believed.
fn mechanisms(module: &Module, slot: Slot) -> Allowed {
    let library = module.library();
    let list = library.get_mechanism_list(slot).unwrap_or_default();
    Allowed::ask(|mechanism, decrypts| {
        list.contains(&mechanism)
            && library
                .get_mechanism_info(slot, mechanism)
                .map_or(true, |info| if decrypts { info.decrypt() } else { info.sign() })
    })
}
