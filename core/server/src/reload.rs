//! Reloading: everything is read and validated again, new stores are opened beside the old, and then all of it changes
//! at once. Whatever is wrong leaves everything as it was.

use std::{
    fs,
    hash::{DefaultHasher, Hash, Hasher},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::{task::spawn_blocking, time::sleep};

use crate::{
    config::{Config, SecretSource},
    daemon::Daemon,
    server::{expires_soon, plugin_settings},
    stores::Change,
    systemd,
    tls::Identity,
};

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
    /// Stores that are new.
    pub added: Vec<String>,
    /// Stores that were opened anew.
    pub changed: Vec<String>,
    /// Stores that are no more.
    pub removed: Vec<String>,
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
            let _alone = daemon.reloading.lock().await;
            systemd::reloading();
            let outcome = daemon.take_anew().await;
            let outcome = daemon.conclude(outcome);
            systemd::ready(&daemon.summary());
            outcome
        });
        reload.await.unwrap_or_else(|_| Err("the reload panicked; see the log".to_owned()))
    }

    async fn take_anew(self: &Arc<Self>) -> Result<Reloaded, String> {
        let daemon = Arc::clone(self);
        let read = spawn_blocking(move || {
            let config = (daemon.load)().map_err(|error| error.to_string())?;
            let identity = Identity::load(&config).map_err(|error| error.to_string())?;
            Ok::<_, String>((config, identity))
        });
        let (config, identity) = read.await.map_err(|error| error.to_string())??;
        self.host.configure(plugin_settings(&config.plugins));
        let prepared = self.stores.prepare(&config.stores).await.map_err(|(store, failure)| {
            self.host.configure(plugin_settings(&self.config.load().plugins));
            format!("store `{store}`: {failure}")
        })?;
        // From here on nothing can fail.
        let mut warnings: Vec<_> = config.warnings.iter().map(ToString::to_string).collect();
        warnings.extend(needs_restart(&self.first, &config));
        let tls = self.trust(identity);
        let Change { added, changed, removed } = self.stores.swap(prepared, config.limits.grace);
        self.service.configure(&config);
        self.verbosity.set(config.log.level);
        self.config.store(Arc::new(config));
        for store in self.stores.look(LISTINGS).await {
            warnings.push(format!(
                "store `{store}` has not listed its keys again within {LISTINGS:?}; it still tries"
            ));
        }
        Ok(Reloaded { generation: 0, added, changed, removed, tls, warnings })
    }

    /// Puts another identity in force, unless it is the same, with its sessions; answers whether it is another.
    fn trust(&self, identity: Identity) -> bool {
        let is_another = !self.identity.load().is_same_as(&identity);
        if is_another {
            self.identity.store(Arc::new(identity));
            self.warn_of_expiry();
        }
        self.dismiss();
        is_another
    }

    /// Ends the connections of peers whose certificates aren't accepted any more.
    pub(crate) fn dismiss(&self) {
        let identity = self.identity.load();
        for (peer, why) in self.listener.peers.dismiss(|chain| identity.verify(chain)) {
            tracing::warn!(
                peer = peer.name(),
                "its connections end, because its certificate is not accepted: {why}"
            );
        }
    }

    /// Warns of the server's certificates that have expired, or soon will.
    pub(crate) fn warn_of_expiry(&self) {
        let warnings = self.identity.load();
        warnings.expiries().iter().filter_map(expires_soon).for_each(|warning| tracing::warn!("{warning}"));
    }

    fn conclude(&self, outcome: Result<Reloaded, String>) -> Result<Reloaded, String> {
        match outcome {
            Ok(reloaded) => {
                let generation = self.reloaded(None);
                for warning in &reloaded.warnings {
                    tracing::warn!("{}", warning.replace('\n', "; "));
                }
                let Reloaded { added, changed, removed, tls, .. } = &reloaded;
                tracing::info!(generation, ?added, ?changed, ?removed, tls, "reloaded");
                Ok(Reloaded { generation, ..reloaded })
            }
            Err(why) => {
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

    /// Reloads whenever one of the configuration's files has changed, for as long as `watch` says so.
    pub(crate) async fn watch(self: Arc<Self>) {
        let mut seen = None;
        loop {
            let config = self.config.load_full();
            let Some(interval) = config.watch else {
                seen = None;
                sleep(UNWATCHED).await;
                continue;
            };
            let now = spawn_blocking(move || fingerprint(&config)).await.ok();
            let before = std::mem::replace(&mut seen, now);
            if before.is_some() && before != now {
                tracing::info!("a file of the configuration has changed");
                let _ = self.reload().await; // which says how it went
            }
            sleep(interval).await;
        }
    }
}

/// Differs when a file that the configuration is made of has changed.
fn fingerprint(config: &Config) -> u64 {
    let mut hasher = DefaultHasher::new();
    let own = [&config.auth_cert, &config.auth_key, &config.client_ca];
    let named = config.file.iter().chain(own).chain(&config.tls.crl).cloned();
    let secrets = config.stores.iter().flat_map(|store| store.secrets.values()).filter_map(file_of);
    for path in named.chain(secrets) {
        look(&path).hash(&mut hasher);
    }
    hasher.finish()
}

fn file_of(secret: &SecretSource) -> Option<PathBuf> {
    match secret {
        SecretSource::File(path) => Some(path.clone()),
        SecretSource::Credential(name) => {
            Some(Path::new(&std::env::var_os("CREDENTIALS_DIRECTORY")?).join(name))
        }
        _ => None,
    }
}

/// What tells one state of a file from another; `None` where it isn't there.
fn look(path: &Path) -> Option<(u64, u64, u64, i64, i64, i64)> {
    let file = fs::metadata(path).ok()?;
    Some((file.dev(), file.ino(), file.len(), file.mtime(), file.mtime_nsec(), file.ctime_nsec()))
}

/// What can't change while the server runs.
fn needs_restart(first: &Config, now: &Config) -> Option<String> {
    let settings = [
        ("listen", first.listen != now.listen),
        ("metrics_listen", first.metrics != now.metrics),
        ("admin_socket", first.admin_socket != now.admin_socket),
        ("pid_file", first.pid_file != now.pid_file),
        ("log.format", first.log.format != now.log.format),
    ];
    let changed: Vec<_> =
        settings.into_iter().filter(|(_, differs)| *differs).map(|(name, _)| format!("`{name}`")).collect();
    let verb = if changed.len() == 1 { "takes" } else { "take" };
    (!changed.is_empty())
        .then(|| format!("{} {verb} effect when the server is started again", changed.join(", ")))
}
