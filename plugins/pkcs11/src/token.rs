//! One token: how it is chosen, its one login, its sessions, and how it is found again after it was lost.
//!
//! Nothing that a module hands out lasts: sessions, handles and logins go when a device restarts, a cable is pulled or
//! another part of the process logs out. So a token is its selectors, and everything else belongs to one *generation*
//! of it. What a call may do about a failure is a ladder ([`Remedy`]): another session; logging in and finding keys
//! again, which begins a new generation; and giving the token up for lost, which leaves it to [`recovery`](crate::recovery).

use std::{
    collections::HashMap,
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::Instant,
};

use cryptoki::{
    context::Info,
    error::{Error as Failure, RvError},
    mechanism::MechanismType,
    object::ObjectHandle,
    session::{SessionInfo, SessionState, UserType},
    slot::{Limit, Slot, TokenInfo},
    types::RawAuthPin,
};
use keystead_plugin_api::{Call, Code, Credentials, Error, Host, Lane};

use crate::{
    ckr::{self, Remedy},
    keys::KeyId,
    lock,
    mechanism::Allowed,
    module::{Lease, Module, Present},
    pin::{Pin, PinOrigin},
    problem::Problem,
    profile::Profile,
    sessions::{Pool, Session},
    uri::{Selector, Selectors},
};

/// A token that a store uses, there or lost. A login belongs to the whole process and lasts as long as a session does,
/// so one session, the anchor, stays open beside those of the lanes.
pub(crate) struct Token {
    module: &'static Module,
    /// What the operator calls it: its label or, as long as it was never there, how it is selected.
    name: Mutex<String>,
    selectors: Selectors,
    settings: Settings,
    seat: Mutex<Option<Seat>>,
    anchor: Mutex<Option<Session>>,
    pool: Pool,
    /// Handles of this generation, where they are good in every session.
    handles: Mutex<HashMap<KeyId, ObjectHandle>>,
    generation: AtomicU64,
    /// Why it is lost; `None` where it isn't.
    loss: Mutex<Option<Problem>>,
    lost: AtomicBool,
    closed: AtomicBool,
    /// Calls in a row that failed in a way that blames the token.
    troubles: AtomicU32,
    /// It was lost though it can be logged in to: nothing but initialising its module anew may help.
    suspect: AtomicBool,
}

/// Where the token sits in a life of its module, and what it can do there.
struct Seat {
    life: u64,
    slot: Slot,
    /// What tells it from every other; the memory of refused PINs knows it by that.
    identity: String,
    allowed: Allowed,
    wants_login: bool,
    /// The most sessions beside the anchor.
    sessions: u32,
}

/// So many calls in a row that fail although the token can be logged in to mean that it is lost all the same.
const TROUBLES_MAX: u32 = 8;

/// What a store says of a token.
pub(crate) struct Settings {
    pub(crate) profile: &'static Profile,
    /// For its one login.
    pub(crate) pin: PinOrigin,
    pub(crate) user: UserType,
    /// The most sessions, the anchor counted.
    pub(crate) max_sessions: Option<u32>,
    /// Whether RSA signatures may be padded here and made with CKM_RSA_X_509.
    pub(crate) raw_rsa: bool,
    /// The host's memory of refused PINs.
    pub(crate) credentials: Option<Credentials>,
    pub(crate) host: Host,
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
}

impl Token {
    /// A token that isn't there yet.
    pub(crate) fn new(module: &'static Module, selectors: Selectors, settings: Settings) -> Self {
        let name: Vec<_> =
            selectors.iter().map(|(selector, value)| format!("{}={value}", selector.name())).collect();
        let (seat, anchor, handles, loss, troubles) = Default::default();
        Self {
            module,
            name: Mutex::new(if name.is_empty() { "any".to_owned() } else { name.join(";") }),
            selectors,
            settings,
            seat,
            anchor,
            pool: Pool::new(),
            handles,
            generation: AtomicU64::new(0),
            loss,
            lost: AtomicBool::new(true),
            closed: AtomicBool::new(false),
            troubles,
            suspect: AtomicBool::new(false),
        }
    }

    /// What the operator calls it.
    pub(crate) fn name(&self) -> String {
        lock(&self.name).clone()
    }

    pub(crate) fn profile(&self) -> &'static Profile {
        self.settings.profile
    }

    pub(crate) fn module(&self) -> &'static Module {
        self.module
    }

    /// What its mechanisms allow.
    pub(crate) fn allowed(&self) -> Allowed {
        lock(&self.seat).as_ref().map(|seat| seat.allowed).unwrap_or_default()
    }

    /// How many lanes get the most out of it: more than it has sessions for would only wait.
    pub(crate) fn lanes(&self) -> u32 {
        let sessions = lock(&self.seat).as_ref().map_or(u32::MAX, |seat| seat.sessions);
        self.profile().lanes().min(sessions)
    }

    /// How it is and what it can do, a line each.
    pub(crate) fn describe(&self) -> Vec<String> {
        if self.is_lost() {
            return vec![self.is_gone().to_string()];
        }
        let state = self.anchor().as_ref().and_then(|session| self.info(session).ok());
        let login = match state.map(is_public) {
            Some(false) => "logged in",
            Some(true) if self.settings.pin.is_given() => "not logged in: it needs no login",
            Some(true) => "not logged in: no PIN is given",
            None => "its state can't be had",
        };
        let sessions = lock(&self.seat).as_ref().map_or(u32::MAX, |seat| seat.sessions);
        let sessions = if sessions == u32::MAX { "no limit".to_owned() } else { sessions.to_string() };
        vec![
            login.to_owned(),
            format!("sessions for lanes: {sessions}; lanes advised: {}", self.lanes()),
            format!("mechanisms in use: {}", self.allowed()),
        ]
    }

    /// Takes the token that is there now: opens the anchor session and logs in, once.
    ///
    /// # Errors
    ///
    /// [`Code::Credentials`] where the PIN is refused, now or before.
    pub(crate) fn take(&self, present: &Present) -> Result<(), Problem> {
        let mut anchor = self.anchor();
        self.sit_down(present)?;
        let (session, _) = self.open_own_session(present.lease.clone())?;
        self.login(&session)?;
        *anchor = Some(session);
        *lock(&self.loss) = None;
        self.troubles.store(0, Ordering::Relaxed);
        self.suspect.store(false, Ordering::Relaxed);
        self.begin_generation();
        self.lost.store(false, Ordering::Release);
        Ok(())
    }

    /// Notes why it isn't there.
    pub(crate) fn miss(&self, cause: Problem) {
        *lock(&self.loss) = Some(cause);
    }

    /// What may bring it back, beside patience; empty where it isn't lost.
    pub(crate) fn hint(&self) -> String {
        lock(&self.loss).as_ref().map(|cause| cause.hint.clone()).unwrap_or_default()
    }

    /// Looks for the lost token, and takes it where it is there.
    pub(crate) fn come_back(&self) -> bool {
        let refused = lock(&self.loss).as_ref().is_some_and(|cause| cause.error.code == Code::Credentials);
        // Without the host's memory, a refused PIN would be presented again and again.
        if self.closed.load(Ordering::Relaxed) || (refused && self.settings.credentials.is_none()) {
            return false;
        }
        let found = self.module.lease().and_then(|lease| {
            let present = self.module.tokens(&lease)?;
            self.take(choose(&present, self.module.info().as_ref(), &self.selectors)?)
        });
        match found {
            Ok(()) => {
                tracing::info!(token = self.name(), "the token is back");
                self.settings.host.keys_changed(); // while it was away, they may have
                true
            }
            Err(problem) => {
                self.miss(problem);
                false
            }
        }
    }

    /// Whether it is lost, and looked for.
    pub(crate) fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Acquire) && !self.closed.load(Ordering::Relaxed)
    }

    /// Whether it was lost though it can be logged in to.
    pub(crate) fn is_suspect(&self) -> bool {
        self.suspect.load(Ordering::Relaxed)
    }

    /// Whether it is there all the same; one that isn't is lost from now on. A token that is being used is.
    pub(crate) fn is_well(&self) -> bool {
        let Ok(mut anchor) = self.anchor.try_lock() else { return true };
        self.revive_or_lose(&mut anchor).is_ok()
    }

    /// Gives it up until the module's recovery has found it.
    fn lose(&self, anchor: &mut Option<Session>, cause: Problem) {
        let first = !self.lost.swap(true, Ordering::AcqRel);
        if first {
            let token = self.name();
            tracing::info!(token, "the token is lost, and looked for until it is back: {}", cause.error);
        }
        self.miss(cause);
        self.begin_generation();
        *anchor = None;
        self.module.recover();
    }

    /// Works with a session of the call's lane: the anchor for housekeeping, else one of the pool. What fails for
    /// reasons that the ladder has a step for is done again; `work` finds every handle anew.
    ///
    /// # Errors
    ///
    /// Where no session is to be had, and those of `work`.
    pub(crate) fn with<T>(
        &self,
        call: &Call<'_>,
        mut work: impl FnMut(&mut Session) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let mut step = Remedy::None;
        loop {
            let generation = self.current()?;
            let error = match self.attempt(call, generation, &mut work) {
                Ok(done) => {
                    self.went_well();
                    return Ok(done);
                }
                Err(error) => self.profile().explain(error),
            };
            step = match (self.profile().remedy(&error), step) {
                (Remedy::None, _) => return Err(error),
                _ if call.time_left().is_some_and(|left| left.is_zero()) => return Err(error),
                (Remedy::Session, Remedy::None) => {
                    self.pool.close(); // where one is gone, the others are as well
                    Remedy::Session
                }
                (_, Remedy::None | Remedy::Session) => {
                    self.log_in_again(generation)?;
                    Remedy::Login
                }
                _ => {
                    self.blame(generation, &error);
                    return Err(error);
                }
            };
        }
    }

    fn attempt<T>(
        &self,
        call: &Call<'_>,
        generation: u64,
        work: &mut impl FnMut(&mut Session) -> Result<T, Error>,
    ) -> Result<T, Error> {
        match call.lane {
            Lane::Housekeeping => self.with_anchor(work),
            Lane::Inline | Lane::Number(_) => {
                let open = || self.open_session(self.module.lease()?, generation);
                self.pool.with(call.deadline, generation, open, work)
            }
        }
    }

    /// The generation that serves.
    fn current(&self) -> Result<u64, Error> {
        let generation = self.generation.load(Ordering::Acquire);
        if self.lost.load(Ordering::Acquire) { Err(self.is_gone()) } else { Ok(generation) }
    }

    fn went_well(&self) {
        if self.troubles.load(Ordering::Relaxed) > 0 {
            self.troubles.store(0, Ordering::Relaxed);
        }
    }

    /// Notes a failure that neither another session nor another login has cured.
    fn blame(&self, generation: u64, error: &Error) {
        if self.troubles.fetch_add(1, Ordering::Relaxed) + 1 < TROUBLES_MAX {
            return;
        }
        let mut anchor = self.anchor();
        if self.current() == Ok(generation) {
            self.suspect.store(true, Ordering::Relaxed);
            self.lose(&mut anchor, error.clone().into());
        }
    }

    /// Sees to it that the token is logged in to, and begins a new generation, in which every key is found again. Only
    /// the first of many that come for the same reason does so. Where it fails, the token is lost.
    fn log_in_again(&self, generation: u64) -> Result<(), Error> {
        let mut anchor = self.anchor();
        if self.current()? != generation {
            return Ok(());
        }
        self.revive_or_lose(&mut anchor)?;
        self.begin_generation();
        Ok(())
    }

    fn revive_or_lose(&self, anchor: &mut Option<Session>) -> Result<bool, Error> {
        self.revive(anchor).map_err(|problem| {
            // A token that has no session left is there all the same.
            if problem.error.code != Code::Throttled {
                self.lose(anchor, problem.clone());
            }
            problem.error
        })
    }

    /// Makes the anchor a session that is logged in to this very token; says whether it wasn't.
    fn revive(&self, anchor: &mut Option<Session>) -> Result<bool, Problem> {
        let before = anchor.take().and_then(|session| self.info(&session).ok().map(|info| (session, info)));
        let was_there = before.is_some();
        let (session, info) = match before {
            Some(before) => before,
            None => self.open_own_session(self.module.lease()?).or_else(|error| {
                if error.code != Code::Throttled {
                    return Err(error);
                }
                self.pool.close(); // the login comes before what lanes have put aside
                self.open_own_session(self.module.lease()?)
            })?,
        };
        let is_out = is_public(info);
        if is_out {
            self.login(&session)?;
        }
        *anchor = Some(session);
        Ok(is_out || !was_there)
    }

    fn begin_generation(&self) {
        lock(&self.handles).clear();
        let generation = self.generation.fetch_add(1, Ordering::AcqRel) + 1;
        self.pool.begin(generation);
    }

    /// A handle that another session has found, where that is good in all of them.
    pub(crate) fn shared_handle(&self, session: &Session, key: &KeyId) -> Option<ObjectHandle> {
        self.is_current(session).then(|| lock(&self.handles).get(key).copied()).flatten()
    }

    /// Notes a handle that this session has found.
    pub(crate) fn share_handle(&self, session: &Session, key: KeyId, handle: ObjectHandle) {
        if !self.profile().handles_per_session && self.is_current(session) {
            lock(&self.handles).insert(key, handle);
        }
    }

    fn is_current(&self, session: &Session) -> bool {
        session.generation == self.generation.load(Ordering::Acquire)
    }

    /// Whether the token still answers; where it doesn't, it is lost from now on. Keeps its sessions alive, and tries
    /// whether it has more of them again.
    ///
    /// # Errors
    ///
    /// Where it doesn't.
    pub(crate) fn check(&self) -> Result<(), Error> {
        self.current()?;
        let mut anchor = self.anchor();
        if self.revive_or_lose(&mut anchor)? && self.logs_in() {
            self.begin_generation(); // handles of the login before are worth nothing
        }
        drop(anchor);
        self.pool.limit(lock(&self.seat).as_ref().map_or(u32::MAX, |seat| seat.sessions));
        self.pool.touch(self.current()?, |session| session.raw.get_session_info().is_ok());
        Ok(())
    }

    /// Why private keys may be there though they can't be seen: the token went, or the login.
    pub(crate) fn lost(&self, session: &Session) -> Option<Error> {
        match self.info(session) {
            Err(gone) => Some(gone),
            Ok(info) if is_public(info) && self.logs_in() => {
                let message = format!("the login on token `{}` was lost", self.name());
                Some(Error::new(Code::Unavailable, message).with_vendor("CKR_USER_NOT_LOGGED_IN", 0x101))
            }
            Ok(_) => None,
        }
    }

    /// Asks the session, and the token itself: a session may outlive it, and tell that all is well (SoftHSM2); and
    /// another may be in its slot, which must never see this one's PIN.
    fn info(&self, session: &Session) -> Result<SessionInfo, Error> {
        let doing = "asking for the state";
        let info = session.raw.get_session_info().map_err(|failure| self.error(doing, &failure))?;
        let token = self.module.token_info(info.slot_id());
        let token = token.map_err(|failure| self.error(doing, &failure))?;
        let own = lock(&self.seat).as_ref().is_some_and(|seat| seat.identity == identity(&token));
        if own { Ok(info) } else { Err(self.is_gone()) }
    }

    /// Why it can't be used.
    fn is_gone(&self) -> Error {
        let (name, was_there) = (self.name(), lock(&self.seat).is_some());
        let how = if was_there { "is lost" } else { "is not there" };
        match &*lock(&self.loss) {
            Some(Problem { error: cause, .. }) => {
                let mut error = Error::new(cause.code, format!("token `{name}` {how}: {}", cause.message));
                error.vendor.clone_from(&cause.vendor);
                error
            }
            None => Error::new(Code::Unavailable, format!("token `{name}` {how}")),
        }
    }

    /// How many lanes may work at once, where some had to wait for that reason.
    pub(crate) fn bottleneck(&self) -> Option<u32> {
        self.pool.bottleneck()
    }

    /// Waits until nothing looks for it any more, after [`close`](Self::close), or the time is up.
    pub(crate) fn settle(&self, until: Instant) {
        self.module.settle(until);
    }

    /// Closes the sessions that nobody works with. There is no C_Logout: it would log every store out.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
        self.pool.begin(u64::MAX);
        if let Ok(mut anchor) = self.anchor.try_lock() {
            *anchor = None;
        }
    }

    fn anchor(&self) -> MutexGuard<'_, Option<Session>> {
        lock(&self.anchor)
    }

    fn with_anchor<T>(&self, work: &mut impl FnMut(&mut Session) -> Result<T, Error>) -> Result<T, Error> {
        let mut anchor = self.anchor();
        self.current()?; // it may have been lost while others held the anchor
        if anchor.is_none() {
            self.revive_or_lose(&mut anchor)?;
        }
        let Some(session) = anchor.as_mut() else { return Err(self.is_gone()) };
        let done = work(session);
        if !done.as_ref().err().is_none_or(ckr::spares_session) {
            *anchor = None;
        }
        done
    }

    /// Notes where the token sits.
    fn sit_down(&self, present: &Present) -> Result<(), Problem> {
        let info = &present.token;
        let limit = [self.settings.max_sessions, session_limit(info)].into_iter().flatten().min();
        let seat = Seat {
            life: present.lease.life,
            slot: present.slot,
            identity: identity(info),
            allowed: mechanisms(self.module, present.slot, self.settings.raw_rsa),
            wants_login: info.login_required(),
            // As with gokeyless, one of the sessions is the anchor, and less than two make no sense.
            sessions: limit.map_or(u32::MAX, |limit| limit.max(2) - 1),
        };
        if lock(&self.seat).as_ref().is_some_and(|before| !self.is_heir(before, &seat, info)) {
            let message = "another token is in the place of the one that was lost";
            let hint = "reload the configuration to use it, or select by serial= to tell them apart";
            return Err(Problem::new(Error::new(Code::Unavailable, message)).hint(hint));
        }
        *lock(&self.name) = info.label().to_owned();
        self.pool.limit(seat.sessions);
        *lock(&self.seat) = Some(seat);
        Ok(())
    }

    /// Whether a token is the one that sat here before. The serial number of a group of HSMs changes with its members
    /// (Luna), so for one that is selected by label, label, maker and model do.
    fn is_heir(&self, before: &Seat, now: &Seat, info: &TokenInfo) -> bool {
        let family = |identity: &str| identity.splitn(4, '\0').take(3).map(str::to_owned).collect::<Vec<_>>();
        before.identity == now.identity
            || (self.selectors.get(&Selector::Token).is_some_and(|label| label == info.label())
                && !self.selectors.contains_key(&Selector::Serial)
                && family(&before.identity) == family(&now.identity))
    }

    /// A session with this very token, and its state.
    fn open_own_session(&self, lease: Lease) -> Result<(Session, SessionInfo), Error> {
        let session = self.open_session(lease, self.generation.load(Ordering::Acquire))?;
        let info = self.info(&session)?;
        Ok((session, info))
    }

    /// A read-write session, since some modules (AWS CloudHSM) have no other; a read-only one where that is refused.
    fn open_session(&self, lease: Lease, generation: u64) -> Result<Session, Error> {
        let library = self.module.library();
        let slot = {
            let seat = lock(&self.seat);
            seat.as_ref().filter(|seat| seat.life == lease.life).map(|seat| seat.slot)
        };
        let slot = slot.ok_or_else(|| self.is_gone())?;
        let raw = match library.open_rw_session(slot) {
            Err(failure @ Failure::Pkcs11(RvError::TokenWriteProtected | RvError::FunctionFailed, _)) => {
                library.open_ro_session(slot).map_err(|_| failure)
            }
            opened => opened,
        };
        let raw = raw.map_err(|failure| self.error("opening a session", &failure))?;
        Ok(Session { raw, handles: HashMap::new(), generation, _lease: lease })
    }

    /// Whether there is anybody to log in: some tokens need no login, and refuse it (the accelerator slot of nShield).
    fn logs_in(&self) -> bool {
        self.settings.pin.is_given() && lock(&self.seat).as_ref().is_some_and(|seat| seat.wants_login)
    }

    /// A PIN that isn't needed, for the operator to know.
    pub(crate) fn needs_no_pin(&self) -> bool {
        self.settings.pin.is_given() && !self.logs_in()
    }

    fn login(&self, session: &Session) -> Result<(), Problem> {
        if !self.logs_in() {
            return Ok(());
        }
        self.present(session, self.settings.user)
    }

    /// Logs in for one operation of a key that wants that (CKA_ALWAYS_AUTHENTICATE), between its beginning and its end.
    ///
    /// # Errors
    ///
    /// [`Code::Credentials`] where the PIN is refused, now or before.
    pub(crate) fn authenticate(&self, session: &Session) -> Result<(), Error> {
        Ok(self.present(session, UserType::ContextSpecific)?)
    }

    /// Presents the PIN.
    fn present(&self, session: &Session, user: UserType) -> Result<(), Problem> {
        let Some(pin) = self.settings.pin.read()? else { return Ok(()) };
        self.check_form(&pin)?;
        let identity = lock(&self.seat).as_ref().map(|seat| seat.identity.clone()).unwrap_or_default();
        let _turn = self.module.login_turn();
        if self.settings.credentials.is_some_and(|memory| memory.refused(&identity, &pin)) {
            let message =
                format!("token `{}` has refused this PIN before; it was not tried again", self.name());
            return Err(Problem::new(Error::new(Code::Credentials, message)).hint(CORRECT_THE_PIN));
        }
        self.check_tries(session)?;
        match session.raw.login_with_raw(user, &RawAuthPin::new(Box::new(pin.to_vec()))) {
            Ok(()) | Err(Failure::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => {
                if let Some(memory) = self.settings.credentials {
                    memory.accepted(&identity, &pin);
                }
                Ok(())
            }
            Err(failure) => Err(self.refused(&failure, &identity, &pin, session)),
        }
    }

    /// A PIN of the wrong form would count as a wrong one.
    fn check_form(&self, pin: &Pin) -> Result<(), Problem> {
        if !self.profile().user_in_pin || pin.contains(&b':') {
            return Ok(());
        }
        let message = format!("the PIN of token `{}` has no colon; it was not presented", self.name());
        Err(Problem::new(Error::invalid(message)).hint("give it as `user:password`"))
    }

    /// The last try belongs to a person: one more wrong PIN, and the token is locked.
    fn check_tries(&self, session: &Session) -> Result<(), Problem> {
        let what = match self.token_info(session) {
            Ok(info) if info.user_pin_locked() => "is locked",
            Ok(info) if info.user_pin_final_try() => "has one try left before it is locked",
            _ => return Ok(()),
        };
        let message = format!("the PIN of token `{}` {what}; it was not presented", self.name());
        Err(Problem::new(Error::new(Code::Credentials, message))
            .hint("log in by hand with the right PIN, or have it reset, with the vendor's tool"))
    }

    /// A module may have a code of its own for a wrong PIN: the token's count of attempts tells.
    fn refused(&self, failure: &Failure, identity: &str, pin: &Pin, session: &Session) -> Problem {
        let mut error = self.error("login", failure);
        if error.code != Code::Credentials && !self.counts_attempts(session) {
            return Problem::new(error);
        }
        error.code = Code::Credentials;
        if let Some(memory) = self.settings.credentials {
            memory.report(identity, pin);
        }
        Problem::new(error).hint(CORRECT_THE_PIN)
    }

    /// Whether the token has counted a wrong PIN since the last right one, or is locked (PKCS#11 v3.1 section 3.5.2).
    fn counts_attempts(&self, session: &Session) -> bool {
        self.token_info(session).is_ok_and(|info| {
            info.user_pin_count_low() || info.user_pin_final_try() || info.user_pin_locked()
        })
    }

    fn token_info(&self, session: &Session) -> cryptoki::error::Result<TokenInfo> {
        self.module.token_info(session.raw.get_session_info()?.slot_id())
    }

    fn error(&self, doing: &str, failure: &Failure) -> Error {
        self.profile().explain(ckr::error(&format!("{doing} on token `{}`", self.name()), failure))
    }
}

/// What tells a token from every other; the serial number last.
fn identity(info: &TokenInfo) -> String {
    [info.manufacturer_id(), info.model(), info.label(), info.serial_number()].join("\0")
}

/// The most sessions that this process may have on a token; `None` where it sets no limit.
fn session_limit(token: &TokenInfo) -> Option<u32> {
    let limit = |limit| match limit {
        Limit::Max(most) => Some(u32::try_from(most).unwrap_or(u32::MAX)),
        Limit::Unavailable | Limit::Infinite => None,
    };
    let (all, writing) = (limit(token.max_session_count()), limit(token.max_rw_session_count()));
    [all, writing].into_iter().flatten().min()
}

/// Whether nobody is logged in.
fn is_public(info: SessionInfo) -> bool {
    matches!(info.session_state(), SessionState::RoPublic | SessionState::RwPublic)
}

const CORRECT_THE_PIN: &str =
    "correct the PIN before anything tries again: tokens lock after a few wrong ones";

/// What a token's mechanisms allow; one that won't say more than that it has a mechanism is believed.
fn mechanisms(module: &Module, slot: Slot, raw_rsa: bool) -> Allowed {
    let library = module.library();
    let list = library.get_mechanism_list(slot).unwrap_or_default();
    let allowed = Allowed::ask(|mechanism: MechanismType, decrypts| {
        list.contains(&mechanism)
            && library
                .get_mechanism_info(slot, mechanism)
                .map_or(true, |info| if decrypts { info.decrypt() } else { info.sign() })
    });
    Allowed { rsa_padded: allowed.rsa_padded && raw_rsa, ..allowed }
}
