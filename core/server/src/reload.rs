//! Reloading: everything is read and validated again, new stores are opened beside the old, and then all of it changes
//! at once. Whatever is wrong leaves everything as it was.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::MetadataExt,
    panic::AssertUnwindSafe,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures_util::FutureExt;
use tokio::{task::spawn_blocking, time::sleep};

use crate::{
    config::{Config, SecretSource},
    daemon::{Daemon, Fixed},
    server::{expires_soon, plugin_settings},
    stores::Change,
    systemd,
    tls::Identity,
};

/// How many clients that have to go are named in the log.
const NAMED: usize = 10;

/// How often is looked whether files should be looked at, while they shouldn't.
const UNWATCHED: Duration = Duration::from_secs(5);

/// How long a reload waits for the stores that stay to list their keys again.
const LISTINGS: Duration = Duration::from_secs(10);

/// What a reload did.
#[derive(Clone, Debug, Default, serde::Deserialize, serde::Serialize)]
#[expect(clippy::exhaustive_structs, reason = "plain data; the names are those of the output")]
pub struct Reloaded {
    /// The generation that is in force now.
    pub generation: u64,
    /// What became of the stores.
    #[serde(flatten)]
    pub stores: Change,
    /// Whether certificates, authorities, revocation list or TLS settings are others.
    pub tls: bool,
    /// What the operator should know.
    pub warnings: Vec<String>,
}

impl Daemon {
    /// Reloads. It is carried out to its end, also where nobody waits for it any more.
    ///
    /// # Errors
    ///
    /// Why everything stays as it was: one sentence, and a hint where there is one.
    pub async fn reload(self: &Arc<Self>) -> Result<Reloaded, String> {
        let daemon = Arc::clone(self);
        let reload = tokio::spawn(async move {
            let _alone = daemon.life.reloading.lock().await;
            systemd::reloading();
            let outcome = AssertUnwindSafe(daemon.take_anew()).catch_unwind().await;
            let outcome =
                outcome.unwrap_or_else(|_| Err("it panicked; that is a defect, please report it".to_owned()));
            let outcome = daemon.conclude(outcome);
            systemd::ready(&daemon.summary());
            outcome
        });
        reload.await.unwrap_or_else(|error| Err(error.to_string()))
    }

    async fn take_anew(self: &Arc<Self>) -> Result<Reloaded, String> {
        let daemon = Arc::clone(self);
        let read = spawn_blocking(move || {
            let config = (daemon.load)().map_err(|error| error.to_string())?;
            let identity = Identity::load(&config).map_err(|error| error.to_string())?;
            Ok::<_, String>((config, identity))
        });
        let (config, identity) = read.await.map_err(|error| error.to_string())??;
        let before = self.config.load_full();
        plausible(&self.fixed, &before, &config, &identity)?;
        self.host.configure(plugin_settings(&config.plugins));
        let prepared = self.stores.prepare(&config.stores).await;
        let prepared = prepared.map_err(|(store, failure)| format!("store `{store}`: {failure}"))?;
        // From here on nothing can fail.
        let mut warnings: Vec<_> = config.warnings.iter().map(ToString::to_string).collect();
        warnings.extend(needs_restart(&self.fixed, &Fixed::of(&config)));
        if before.plugins != config.plugins {
            warnings.push("`plugins` holds for stores that are opened from now on".to_owned());
        }
        let tls = self.trust(identity).await;
        let stores = self.stores.swap(prepared, config.limits.grace);
        self.service.configure(&config);
        self.verbosity.set(config.log.level);
        self.config.store(Arc::new(config));
        warnings.extend(self.stores.look(LISTINGS).await);
        Ok(Reloaded { generation: 0, stores, tls, warnings })
    }

    /// Puts another identity in force, unless it is the same, with its sessions; answers whether it is another.
    async fn trust(&self, identity: Identity) -> bool {
        let is_another = !self.identity.load().is_same_as(&identity);
        if is_another {
            self.identity.store(Arc::new(identity));
            self.warn_of_expiry();
        }
        self.dismiss().await;
        is_another
    }

    /// Ends the connections of peers whose certificates aren't accepted any more.
    pub(crate) async fn dismiss(&self) {
        let (identity, peers) = (self.identity.load_full(), Arc::clone(&self.listener.peers));
        let dismissing = spawn_blocking(move || peers.dismiss(|chain| identity.verify(chain)));
        let dismissed = dismissing.await.unwrap_or_default();
        for (peer, why) in dismissed.iter().take(NAMED) {
            tracing::warn!(
                peer = peer.name(),
                "its connections end, because its certificate is not accepted: {why}"
            );
        }
        if let Some(more) = dismissed.len().checked_sub(NAMED).filter(|more| *more > 0) {
            tracing::warn!("the connections of {more} more clients end for such reasons");
        }
    }

    /// Warns of the server's certificates and revocation lists that have expired, or soon will.
    pub(crate) fn warn_of_expiry(&self) {
        let identity = self.identity.load();
        identity
            .certificates()
            .iter()
            .filter_map(expires_soon)
            .for_each(|warning| tracing::warn!("{warning}"));
    }

    fn conclude(&self, outcome: Result<Reloaded, String>) -> Result<Reloaded, String> {
        match outcome {
            Ok(reloaded) => {
                let generation = self.reloaded(None);
                for warning in &reloaded.warnings {
                    tracing::warn!("{}", warning.replace('\n', "; "));
                }
                let Reloaded { stores: Change { added, changed, removed }, tls, .. } = &reloaded;
                tracing::info!(generation, ?added, ?changed, ?removed, tls, "reloaded");
                Ok(Reloaded { generation, ..reloaded })
            }
            Err(why) => {
                self.host.configure(plugin_settings(&self.config.load().plugins));
                let generation = self.reloaded(Some(&why));
                tracing::warn!(
                    generation,
                    "the reload is refused, and everything stays as it was: {}",
                    why.replace('\n', "; ")
                );
                Err(why)
            }
        }
    }

    /// Reloads whenever one of the configuration's files has changed, for as long as `watch` says so. A file that is
    /// being written is left alone: it has to look the same twice.
    pub(crate) async fn watch(self: Arc<Self>) {
        let mut loaded: Option<Seen> = None;
        let mut last = Seen::new();
        loop {
            let config = self.config.load_full();
            let Some(interval) = config.watch else {
                loaded = None;
                sleep(UNWATCHED).await;
                continue;
            };
            let now = spawn_blocking(move || look(&config)).await.unwrap_or_default();
            let before = loaded.get_or_insert_with(|| now.clone());
            if differs(before, &now) && !differs(&last, &now) {
                tracing::info!("a file of the configuration has changed");
                loaded = Some(now.clone());
                let _ = self.reload().await; // which says how it went
            }
            last = now;
            sleep(interval).await;
        }
    }
}

/// The files that a configuration is made of, and what tells one state of each from another; `None` where it isn't there.
type Seen = BTreeMap<PathBuf, Option<(u64, u64, u64, i64, i64, i64)>>;

fn look(config: &Config) -> Seen {
    let own = [&config.auth_cert, &config.auth_key, &config.client_ca];
    let named = config.file.iter().chain(own).chain(&config.tls.crl).cloned();
    let secrets = config.stores.iter().flat_map(|store| store.secrets.values()).filter_map(file_of);
    named.chain(secrets).map(|path| (path.clone(), state_of(&path))).collect()
}

/// Whether a file that stands in both has changed.
fn differs(before: &Seen, now: &Seen) -> bool {
    before.iter().any(|(path, state)| now.get(path).is_some_and(|now| now != state))
}

fn file_of(secret: &SecretSource) -> Option<PathBuf> {
    match secret.whole() {
        SecretSource::File(path) => Some(path.clone()),
        SecretSource::Credential(name) => {
            Some(Path::new(&std::env::var_os("CREDENTIALS_DIRECTORY")?).join(name))
        }
        _ => None,
    }
}

fn state_of(path: &Path) -> Option<(u64, u64, u64, i64, i64, i64)> {
    let file = fs::metadata(path).ok()?;
    Some((file.dev(), file.ino(), file.len(), file.mtime(), file.mtime_nsec(), file.ctime_nsec()))
}

/// Refuses what can be read, and would be regretted: another file than the one in force, one that was cut off before its
/// stores, a list of revocations that refuses everybody.
fn plausible(fixed: &Fixed, before: &Config, now: &Config, identity: &Identity) -> Result<(), String> {
    if let Some(file) = fixed.file.as_ref().filter(|file| now.file.as_ref() != Some(*file)) {
        return Err(format!(
            "{} is gone\nhint: put it back; another file is taken in only by a start",
            file.display()
        ));
    }
    if now.stores.is_empty() && !before.stores.is_empty() {
        return Err(
            "the configuration has no stores any more\nhint: to serve no keys, stop the server".to_owned()
        );
    }
    identity.expired_list().map_or(Ok(()), |list| {
        Err(format!("{}: the revocation list has expired, so that everybody would be refused", list.file))
    })
}

/// What can't change while the server runs.
fn needs_restart(first: &Fixed, now: &Fixed) -> Option<String> {
    let settings = [
        ("listen", first.listen != now.listen),
        ("metrics_listen", first.metrics != now.metrics),
        ("admin_socket", first.admin_socket != now.admin_socket),
        ("pid_file", first.pid_file != now.pid_file),
        ("log.format", first.log_format != now.log_format),
    ];
    let changed: Vec<_> =
        settings.into_iter().filter(|(_, differs)| *differs).map(|(name, _)| format!("`{name}`")).collect();
    let verb = if changed.len() == 1 { "takes" } else { "take" };
    (!changed.is_empty())
        .then(|| format!("{} {verb} effect when the server is started again", changed.join(", ")))
}
