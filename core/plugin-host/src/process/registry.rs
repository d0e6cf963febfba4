//! Which processes there are, who shares one, and what follows when one dies.

use std::{
    collections::HashMap,
    io,
    sync::{Arc, Mutex, Weak},
    time::{Duration, Instant, SystemTime},
};

use keystead_plugin_api::{Isolation, abi::ISOLATION_EXTENSION};
use tokio::time::timeout;

use super::{
    Launcher, PluginFile, ProcessStatus, Remote, Surroundings,
    breaker::Breaker,
    calls::{About, CallError, Expects, Given},
    confine::{self, Confinement},
    launch::launch,
    link::{End, Link},
    lock,
    wire::Order,
};
use crate::{
    Class, Description, Failure,
    load::FileIdentity,
    services::{HostSide, Services},
};

/// How long a process may take until it has confined itself.
const START_DEADLINE: Duration = Duration::from_secs(20);

/// How long a plugin may take to be loaded and to say what it is.
const LOAD_DEADLINE: Duration = Duration::from_secs(60);

/// The processes of one host.
#[derive(Default)]
pub(crate) struct Processes {
    /// Several of one group only where their stores want different things of them.
    groups: Mutex<HashMap<Group, Vec<Weak<Process>>>>,
    /// By the identity of the plugin's file: one process at a time finds out what a plugin is.
    examinations: Mutex<HashMap<FileIdentity, Arc<tokio::sync::Mutex<Examination>>>>,
}

/// What is known of a plugin before a store of it has a process.
#[derive(Default)]
struct Examination {
    description: Option<Description>,
    /// The process that finds it out. It stays where that fails, and with it the count of its deaths.
    process: Option<Arc<Process>>,
}

/// Stores of one group share a process.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Group {
    /// As the configuration says.
    Named(String),
    /// Those of one plugin, by its identity, that the plugin puts together.
    Of(FileIdentity, Option<String>),
}

/// What a store wants.
pub(crate) struct Wish<'a> {
    pub(crate) launcher: &'a Launcher,
    pub(crate) file: &'a PluginFile,
    pub(crate) surroundings: &'a Surroundings,
    /// Whether it is to run in a process whatever it would rather.
    pub(crate) isolation: Option<Isolation>,
}

/// The process of a store, and what its plugin is.
pub(crate) struct Placed {
    pub(super) process: Arc<Process>,
    pub(super) file: PluginFile,
    pub(crate) description: Description,
}

impl Processes {
    /// Finds the process that a store belongs into, and loads its plugin there; `None` for a plugin that would rather
    /// run in this process.
    pub(crate) async fn place(
        &self,
        wish: Wish<'_>,
        side: &'static dyn HostSide,
    ) -> Result<Option<Placed>, Failure> {
        let examination = self.examination(wish.file);
        let mut examination = examination.lock().await;
        if wish.prefers_inline(examination.description.as_ref()) {
            return Ok(None);
        }
        let examiner = match self.of_plugin(wish.file) {
            Some(process) => process,
            None => Arc::clone(examination.process.get_or_insert_with(|| Process::new(&wish))),
        };
        let link = examiner.link().await?;
        let (number, description) = load(&link, wish.file).await?;
        examination.description = Some(description.clone());
        if wish.prefers_inline(Some(&description)) {
            examination.process = None;
            return Ok(None);
        }
        let group = match &wish.surroundings.group {
            Some(name) => Group::Named(name.clone()),
            None => Group::Of(wish.file.identity, group_of(&link, number, side).await?),
        };
        let process = self.join(group, &wish, &mut examination.process);
        Ok(Some(Placed { process, file: wish.file.clone(), description }))
    }

    /// How each process is.
    pub(crate) fn status(&self) -> Vec<ProcessStatus> {
        let groups = lock(&self.groups);
        let running = groups.values().flatten().filter_map(Weak::upgrade);
        let mut all: Vec<_> = running.map(|process| process.status()).collect();
        all.sort_by(|one, other| one.name.cmp(&other.name));
        all
    }

    fn examination(&self, file: &PluginFile) -> Arc<tokio::sync::Mutex<Examination>> {
        Arc::clone(lock(&self.examinations).entry(file.identity).or_default())
    }

    /// A process that runs this plugin.
    fn of_plugin(&self, file: &PluginFile) -> Option<Arc<Process>> {
        let groups = lock(&self.groups);
        let of_plugin =
            groups.iter().filter(|(group, _)| matches!(group, Group::Of(of, _) if *of == file.identity));
        of_plugin
            .flat_map(|(_, processes)| processes)
            .filter_map(Weak::upgrade)
            .find(|process| process.is_up())
    }

    /// The process of a group: one that has what the store wants, or else the one that examined the plugin, or else a
    /// new one.
    fn join(&self, group: Group, wish: &Wish<'_>, examiner: &mut Option<Arc<Process>>) -> Arc<Process> {
        let fits = |process: &Arc<Process>| process.surroundings == *wish.surroundings;
        let mut groups = lock(&self.groups);
        groups.retain(|_, processes| {
            processes.retain(|process| process.strong_count() > 0);
            !processes.is_empty()
        });
        let name = group.name(wish.file);
        let processes = groups.entry(group).or_default();
        if let Some(process) = processes.iter().filter_map(Weak::upgrade).find(fits) {
            return process;
        }
        let process = examiner.take().filter(fits).unwrap_or_else(|| Process::new(wish));
        *lock(&process.name) = name;
        processes.push(Arc::downgrade(&process));
        process
    }
}

impl Wish<'_> {
    fn prefers_inline(&self, description: Option<&Description>) -> bool {
        self.isolation.or(description.map(|description| description.isolation)) == Some(Isolation::Inline)
    }
}

impl Group {
    /// What the process is called: the plugin, and the files that its group is named after without their folders.
    fn name(&self, file: &PluginFile) -> String {
        match self {
            Self::Named(name) => name.clone(),
            Self::Of(_, None) => file.name.clone(),
            Self::Of(_, Some(group)) => {
                let short: Vec<_> = group.split(", ").filter_map(|part| part.rsplit('/').next()).collect();
                format!("{} ({})", file.name, short.join(", "))
            }
        }
    }
}

/// Finds out what a plugin is, in a process that ends with that.
pub(crate) async fn describe(launcher: &Launcher, file: &PluginFile) -> Result<Description, Failure> {
    let surroundings = Surroundings::default();
    let wish = Wish { launcher, file, surroundings: &surroundings, isolation: None };
    let process = Process::new(&wish); // ends with this function
    let link = process.link().await?;
    load(&link, file).await.map(|(_, description)| description)
}

async fn load(link: &Arc<Link>, file: &PluginFile) -> Result<(u32, Description), Failure> {
    match timeout(LOAD_DEADLINE, link.load(file)).await {
        Ok(loaded) => loaded.map_err(|error| match error {
            CallError::Gone | CallError::Waited => Failure::new(
                Class::Unavailable,
                format!("the process died while plugin `{}` was loaded", file.name),
            ),
            refused @ CallError::Refused(_) => refused.into(),
        }),
        Err(_) => {
            link.condemn(format!("plugin `{}` was not loaded within {LOAD_DEADLINE:?}", file.name));
            Err(Failure::new(
                Class::Unavailable,
                format!("plugin `{}` could not be loaded in time", file.name),
            ))
        }
    }
}

async fn group_of(
    link: &Arc<Link>,
    plugin: u32,
    side: &'static dyn HostSide,
) -> Result<Option<String>, Failure> {
    let config = side.config().unwrap_or_default();
    let about = About::new(ISOLATION_EXTENSION, "");
    let order = |call| Order::Group { call, plugin, config: &config };
    let asked = link.call(Expects::Group, None, about, 64 + config.len(), order)?;
    match timeout(LOAD_DEADLINE, asked.given()).await {
        Ok(Ok(Given::Text(group))) => Ok(group),
        Ok(Ok(_)) => Ok(None),
        Ok(Err(error)) => Err(error.into()),
        Err(_) => {
            Err(Failure::new(Class::Unavailable, "the plugin did not name the group of its store in time"))
        }
    }
}

/// A process that is started when it is needed, and again when it has died.
pub(crate) struct Process {
    name: Mutex<String>,
    launcher: Launcher,
    surroundings: Surroundings,
    running: tokio::sync::Mutex<Option<Arc<Link>>>,
    record: Mutex<Record>,
    seats: Mutex<Vec<Seat>>,
}

/// A store's place in a process.
struct Seat {
    store: Weak<Remote>,
    services: &'static Services,
}

/// What has become of a process.
struct Record {
    breaker: Breaker,
    pid: Option<u32>,
    since: SystemTime,
    restarts: u64,
    last_death: Option<String>,
}

/// Nothing can be started at this moment.
#[derive(Clone, Debug)]
pub(super) struct NotNow {
    /// How long.
    pub(super) pause: Duration,
    /// Whether the process has died too often.
    pub(super) is_open: bool,
}

/// Why there is no running process.
#[derive(Debug)]
pub(super) enum StartError {
    /// The breaker says so.
    NotNow(NotNow),
    /// It went at once.
    Died,
    /// What was answered instead.
    Failed(Failure),
}

impl Process {
    pub(super) fn new(wish: &Wish<'_>) -> Arc<Self> {
        Arc::new(Self {
            name: Mutex::new(wish.file.name.clone()),
            launcher: wish.launcher.clone(),
            surroundings: wish.surroundings.clone(),
            running: tokio::sync::Mutex::default(),
            record: Mutex::new(Record {
                breaker: Breaker::default(),
                pid: None,
                since: SystemTime::now(),
                restarts: 0,
                last_death: None,
            }),
            seats: Mutex::default(),
        })
    }

    /// What it is called.
    pub(super) fn name(&self) -> String {
        lock(&self.name).clone()
    }

    /// How long calls may hang, where that is configured.
    pub(super) fn stuck_after(&self) -> Option<Duration> {
        self.surroundings.stuck_after
    }

    /// Counts a store in: it hears of a death, and is named in the status.
    pub(super) fn admit(&self, store: &Arc<Remote>) {
        let mut seats = lock(&self.seats);
        // One that was given up while it presented a PIN stays until it is known what came of that.
        seats.retain(|seat| seat.store.strong_count() > 0 || seat.services.is_presenting());
        seats.push(Seat { store: Arc::downgrade(store), services: store.services() });
    }

    fn stores(&self) -> Vec<Arc<Remote>> {
        let seats = lock(&self.seats);
        seats.iter().filter_map(|seat| seat.store.upgrade()).filter(|store| !store.is_closed()).collect()
    }

    fn is_up(&self) -> bool {
        lock(&self.record).pid.is_some()
    }

    /// The running process; started where there is none.
    pub(super) async fn link(self: &Arc<Self>) -> Result<Arc<Link>, StartError> {
        let mut running = self.running.lock().await;
        if let Some(link) = &*running {
            if !link.is_closed() {
                return Ok(Arc::clone(link));
            }
            link.gone().await; // so that its death is counted
        }
        *running = None;
        self.may_start()?;
        let link = self.start().await.map_err(|error| {
            StartError::Failed(Failure::new(
                Class::Unavailable,
                format!("a process for plugins can't be started: {error}"),
            ))
        })?;
        *running = Some(Arc::clone(&link));
        match timeout(START_DEADLINE, self.confine(&link)).await {
            Ok(confined) => confined?,
            Err(_) => link.condemn(format!("it was not ready within {START_DEADLINE:?}")),
        }
        Ok(link)
    }

    fn may_start(&self) -> Result<(), NotNow> {
        let record = lock(&self.record);
        let pause = record.breaker.pause(Instant::now());
        if pause.is_zero() { Ok(()) } else { Err(NotNow { pause, is_open: record.breaker.is_open() }) }
    }

    async fn start(self: &Arc<Self>) -> io::Result<Arc<Link>> {
        let (link, watched) = Link::new(launch(&self.launcher, &self.surroundings).await?)?;
        let mut record = lock(&self.record);
        record.restarts += u64::from(record.last_death.is_some());
        (record.pid, record.since) = (Some(link.pid), SystemTime::now());
        drop(record);
        let (process, of) = (Arc::downgrade(self), Arc::clone(&link));
        tokio::spawn(async move {
            let end = watched.await;
            if let Some(process) = process.upgrade() {
                process.ended(&of, end);
            }
            of.is_gone();
        });
        Ok(link)
    }

    async fn confine(&self, link: &Arc<Link>) -> Result<(), StartError> {
        let refuse = |problem: String| {
            link.dismiss();
            Failure::invalid(format!("a process for plugins {problem}"))
        };
        let Surroundings { user, groups, memory, core_dumps, .. } = &self.surroundings;
        let identity = confine::resolve(user.as_deref(), groups).map_err(refuse)?;
        let confinement = Confinement {
            identity,
            memory: memory.unwrap_or(Surroundings::MEMORY),
            core_dumps: *core_dumps,
            parent: std::process::id(),
        };
        let about = About::new("confining itself", "");
        let order = |call| Order::Confine { call, confinement };
        let asked = link.call(Expects::Confined, None, about, 256, order)?;
        match asked.given().await? {
            Given::Text(Some(missing)) if !missing.is_empty() => {
                tracing::warn!(process = self.name(), pid = link.pid, "not confined in full: {missing}");
            }
            _ => tracing::debug!(process = self.name(), pid = link.pid, "a process for plugins runs"),
        }
        Ok(())
    }

    /// Takes note of a process' end, and says so in one line.
    fn ended(&self, link: &Link, end: End) {
        let mut record = lock(&self.record);
        (record.pid, record.since) = (None, SystemTime::now());
        let End::Died(death) = end else { return };
        let verdict = record.breaker.died(Instant::now(), link.started.elapsed());
        record.last_death = Some(death.clone());
        drop(record);
        let (stores, refused) = self.bereaved();
        tracing::warn!(
            process = self.name(),
            pid = link.pid,
            stores,
            "a plugin process died: {death}; {verdict}{refused}"
        );
    }

    /// The stores in it, by name; and what becomes of PINs that were being presented.
    fn bereaved(&self) -> (String, &'static str) {
        let stores = self.stores();
        let presenting = lock(&self.seats).iter().filter(|seat| seat.services.died()).count();
        let names: Vec<_> = stores.iter().map(|store| store.name()).collect();
        let refused = match presenting {
            0 => "",
            _ => "; the PIN that it was presenting counts as refused, since the token may have counted it",
        };
        (names.join(", "), refused)
    }

    fn status(&self) -> ProcessStatus {
        let stores = self.stores();
        let mut plugins: Vec<_> = stores.iter().map(|store| store.plugin().to_owned()).collect();
        plugins.sort();
        plugins.dedup();
        let record = lock(&self.record);
        ProcessStatus {
            name: self.name(),
            plugins,
            stores: stores.iter().map(|store| store.name().to_owned()).collect(),
            pid: record.pid,
            since: record.since,
            restarts: record.restarts,
            last_death: record.last_death.clone(),
        }
    }
}

impl Drop for Process {
    /// Nobody needs it any more.
    fn drop(&mut self) {
        if let Some(link) = self.running.get_mut() {
            link.dismiss();
        }
    }
}

impl From<NotNow> for StartError {
    fn from(not_now: NotNow) -> Self {
        Self::NotNow(not_now)
    }
}

impl From<Failure> for StartError {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl From<CallError> for StartError {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Gone | CallError::Waited => Self::Died,
            CallError::Refused(refusal) => Self::Failed(refusal.into()),
        }
    }
}

impl From<NotNow> for Failure {
    fn from(NotNow { pause, is_open }: NotNow) -> Self {
        let often = if is_open { "has died too often" } else { "has died" };
        let pause = Duration::from_millis(u64::try_from(pause.as_millis()).unwrap_or(u64::MAX));
        let message = format!("the plugin's process {often}; it is started again in {pause:.1?}");
        Self { retry_after: Some(pause), ..Self::new(Class::Unavailable, message) }
    }
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        match error {
            StartError::NotNow(not_now) => not_now.into(),
            StartError::Died => CallError::Gone.into(),
            StartError::Failed(failure) => failure,
        }
    }
}
