//! A plugin that breaks every rule, for the tests of the host. Its configuration says when it does what; told nothing,
//! it is a well-behaved plugin with one P-256 key.
//!
//! ```json
//! {"keys": [{"name": "www"}, {"name": "stuck", "class": "blocking", "sign": "hang"}], "health": {"fail": 7}}
//! ```

mod deed;
mod errands;
mod key;

use std::{
    cell::Cell,
    collections::HashSet,
    ffi::c_void,
    fs::File,
    io::Write,
    path::PathBuf,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use keystead_plugin_api::{
    Advice, Algorithm, Backend, Call, Code, Description, Error, Finding, Health, Host, Isolation, Lane,
    Listing, Output, Severity,
    abi::{BackendTable, Context, KeyPage, Report},
    kit,
};
use serde::Deserialize;

use crate::{
    deed::{Deed, LONG_TEXT},
    key::{HeldKey, Plan},
};

keystead_plugin_api::export_table!(BackendTable { keys, ..BEHAVED });

/// The configuration.
#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Config {
    /// Stores of the same vault have the same keys for as long as the plugin is loaded; none has keys of its own.
    vault: Option<String>,
    /// The keys.
    keys: Vec<Plan>,
    /// What opening does beside.
    open: Deed,
    /// What listing does beside.
    list: Deed,
    /// How the listing is cut into pages.
    pages: Pages,
    /// A finding in the listing, as long as can be.
    finding: bool,
    /// Notes in the listing: subject and message each.
    notes: Vec<(String, String)>,
    /// What each look after its health does.
    health: Deed,
    /// Whether a look after its health has the host do all that it does for plugins, and logs what came of it.
    errands: bool,
    /// What closing does beside.
    close: Deed,
    /// A token to log in to when opening.
    login: Option<Login>,
    /// Lanes, and milliseconds that they may hang, to advise.
    advice: Option<(u32, u64)>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            vault: None,
            keys: vec![Plan::default()],
            open: Deed::Behave,
            list: Deed::Behave,
            pages: Pages::Honest,
            finding: false,
            notes: Vec::new(),
            health: Deed::Behave,
            errands: false,
            close: Deed::Behave,
            login: None,
            advice: None,
        }
    }
}

/// How a listing is cut into pages.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Pages {
    Honest,
    /// After each page comes another.
    Endless,
    /// A page claims to hold as many keys as there are addresses.
    Overlong,
}

/// A token that takes one PIN, and counts the attempts.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Login {
    token: String,
    /// The name of the secret that is presented.
    secret: String,
    /// The PIN that the token takes.
    pin: String,
    /// A file that gets a byte for each attempt.
    attempts: Option<PathBuf>,
    /// What an attempt does beside.
    #[serde(default)]
    deed: Deed,
}

struct Hostile {
    host: Host,
    config: Config,
    keys: Vec<HeldKey>,
    busy: Mutex<HashSet<u32>>,
    generation: AtomicU64,
}

impl Backend for Hostile {
    const DESCRIPTION: Description = Description {
        name: "hostile",
        version: env!("CARGO_PKG_VERSION"),
        vendor: "the tests",
        isolation: Isolation::Inline,
        lanes_max: Some(4),
        schema: r#"{"type": "object"}"#,
    };

    fn open(host: Host) -> Result<Self, Error> {
        let config: Config = host.config()?;
        config.open.run()?;
        if let Some(login) = &config.login {
            log_in(host, login)?;
        }
        let vault = config.vault.as_deref();
        let keys = config.keys.iter().map(|plan| HeldKey::new(plan, vault)).collect::<Result<_, _>>()?;
        Ok(Self { host, config, keys, busy: Mutex::default(), generation: AtomicU64::new(1) })
    }

    fn keys(&self, _call: &Call<'_>) -> Result<Listing, Error> {
        tracing::info!("listing");
        self.config.list.run()?;
        PAGES.set(self.config.pages);
        let finding = Finding {
            severity: Severity::Warning,
            subject: LONG_TEXT.repeat(1000),
            error: Error::new(Code::Denied, LONG_TEXT.repeat(1000)),
            hint: LONG_TEXT.repeat(1000),
        };
        let notes = self.config.notes.iter().map(|(subject, message)| Finding::note(subject, message));
        Ok(Listing {
            keys: self.keys.iter().map(HeldKey::listed).collect(),
            findings: self.config.finding.then_some(finding).into_iter().chain(notes).collect(),
        })
    }

    fn sign(
        &self,
        call: &Call<'_>,
        id: &[u8],
        _algorithm: Algorithm,
        input: &[u8],
        out: &mut Output<'_>,
    ) -> Result<(), Error> {
        let key = self.keys.iter().find(|key| key.listed().id == id).ok_or_else(Error::unknown_key)?;
        tracing::info!(key = key.name(), lane = ?call.lane, "signing");
        let _lane = Occupied::enter(&self.busy, call.lane);
        key.sign(input, out)?;
        if key.changes_keys() {
            self.host.keys_changed();
        }
        tracing::info!(key = key.name(), "done");
        Ok(())
    }

    fn decrypt(
        &self,
        _call: &Call<'_>,
        _id: &[u8],
        algorithm: Algorithm,
        _input: &[u8],
        _out: &mut Output<'_>,
    ) -> Result<(), Error> {
        Err(Error::unsupported(algorithm))
    }

    fn advice(&self) -> Advice {
        match self.config.advice {
            Some((lanes, stuck_after)) => {
                Advice { lanes: Some(lanes), stuck_after: Some(Duration::from_millis(stuck_after)) }
            }
            None => Advice::default(),
        }
    }

    fn health(&self, call: &Call<'_>) -> Result<Health, Error> {
        self.config.health.run()?;
        if self.config.errands {
            errands::run(self.host, call)?;
        }
        if matches!(self.config.health, Deed::ChangeKeys) {
            self.generation.fetch_add(1, Ordering::Relaxed);
            self.host.keys_changed();
        }
        Ok(Health { generation: self.generation.load(Ordering::Relaxed) })
    }

    fn close(&self, _grace: Duration) {
        tracing::info!("closing");
        // Whatever it fails with, there is nobody to tell.
        let _ = self.config.close.run();
    }
}

/// A lane in use. Panics where a call finds its lane in use already: the host promises that this never happens.
struct Occupied<'a> {
    busy: &'a Mutex<HashSet<u32>>,
    lane: Option<u32>,
}

impl<'a> Occupied<'a> {
    fn enter(busy: &'a Mutex<HashSet<u32>>, lane: Lane) -> Self {
        let lane = match lane {
            Lane::Number(number) => Some(number),
            Lane::Inline | Lane::Housekeeping => None,
        };
        let free = lane.is_none_or(|lane| busy.lock().unwrap_or_else(PoisonError::into_inner).insert(lane));
        assert!(free, "two calls on {lane:?} overlap");
        Self { busy, lane }
    }
}

impl Drop for Occupied<'_> {
    fn drop(&mut self) {
        if let Some(lane) = self.lane {
            self.busy.lock().unwrap_or_else(PoisonError::into_inner).remove(&lane);
        }
    }
}

/// Presents a secret to the token, unless the host remembers that it was refused.
fn log_in(host: Host, login: &Login) -> Result<(), Error> {
    static ATTEMPTS: AtomicU32 = AtomicU32::new(0);
    let secret = host.secret(&login.secret)?;
    let memory = host.credentials().ok_or_else(|| Error::new(Code::Internal, "the host has no memory"))?;
    if memory.refused(&login.token, secret.expose()) {
        let attempts = ATTEMPTS.load(Ordering::Relaxed);
        return Err(Error::new(Code::Credentials, format!("not tried again after {attempts} attempts")));
    }
    let attempt = ATTEMPTS.fetch_add(1, Ordering::Relaxed) + 1;
    if let Some(file) = &login.attempts {
        let counted =
            File::options().append(true).create(true).open(file).and_then(|mut file| file.write_all(b"1"));
        counted.map_err(|error| Error::invalid(error.to_string()))?;
    }
    login.deed.run()?;
    if secret.expose() == login.pin.as_bytes() {
        memory.accepted(&login.token, secret.expose());
        return Ok(());
    }
    memory.report(&login.token, secret.expose());
    Err(Error::new(Code::Credentials, format!("the token refused the PIN in attempt {attempt}"))
        .with_vendor("CKR_PIN_INCORRECT", 0xa0))
}

const BEHAVED: BackendTable = kit::table::<Hostile>();

thread_local! {
    /// What `keys` of the table does with its page. The host walks a listing on one thread.
    static PAGES: Cell<Pages> = const { Cell::new(Pages::Honest) };
}

/// The kit's `keys`, and then a page that is none.
unsafe extern "C" fn keys(
    store: *mut c_void,
    context: *const Context,
    cursor: u64,
    page: *mut KeyPage,
    report: *mut Report,
) -> u32 {
    // SAFETY: the arguments are the host's own.
    let code = unsafe { (BEHAVED.keys)(store, context, cursor, page, report) };
    // SAFETY: the page lives through the call; the host doesn't read what it claims here.
    let page = unsafe { &mut *page };
    match PAGES.get() {
        Pages::Endless => page.next = cursor + 1,
        Pages::Overlong => page.keys_len = usize::MAX,
        Pages::Honest => (),
    }
    code
}
