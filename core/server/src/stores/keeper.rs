//! The life of one store: opened, listed, proven, asked how it is, and tried again while it is down.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use keystead_plugin_host::{Class, Failure, Finding, Listing, Severity};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{sleep, sleep_until, timeout, timeout_at},
};

use super::Stores;
use crate::{config::Prove, failures, keyring::Holder, store::ManagedStore};

/// The first and the longest pause before a store that is down is tried again. An HSM that comes back is to serve
/// within 5 s.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(3));

/// How long a backend is left alone at most that says when it wants to be asked again.
const LEFT_ALONE: Duration = Duration::from_secs(60);

/// Between two listings that a plugin asks for.
const LIST_EVERY: Duration = Duration::from_secs(1);

/// Between two proofs in the background: an HSM has better things to do.
const PROOF_EVERY: Duration = Duration::from_millis(100);

/// How long one proof may take.
const PROOF_DEADLINE: Duration = Duration::from_secs(30);

/// How long the keys of a store may prove themselves before a reload goes on without waiting for the rest.
const PROOFS_AT_RELOAD: Duration = Duration::from_secs(10);

/// How long a new store may take to open and to list its keys: less than what a service manager gives a reload.
const OPENING: Duration = Duration::from_secs(60);

/// The life of one store.
pub(super) struct Keeper {
    stores: Arc<Stores>,
    store: Arc<ManagedStore>,
    look: Arc<Look>,
    /// Where it is open, and its keys are listed: the generation of that.
    listed: Option<u64>,
    /// When it was last asked how it is.
    asked: Instant,
    /// Until when it wants to be left alone: asking sooner would use up what its quota grows by.
    left_alone: Instant,
    /// The findings of the last listing, which needn't be told again.
    found: HashSet<(String, String)>,
}

impl Keeper {
    /// A keeper that has done nothing yet; `listed` is the generation of a listing that there is already.
    pub(super) fn new(
        stores: &Arc<Stores>,
        store: &Arc<ManagedStore>,
        look: &Arc<Look>,
        listed: Option<u64>,
    ) -> Self {
        Self {
            stores: Arc::clone(stores),
            store: Arc::clone(store),
            look: Arc::clone(look),
            listed,
            asked: Instant::now(),
            left_alone: Instant::now(),
            found: HashSet::new(),
        }
    }

    /// Ends only with the failure of a critical store.
    pub(super) async fn run(mut self) {
        let mut pause = BACK_OFF.0;
        loop {
            match self.serve().await {
                Ok(never) => match never {},
                Err(failure) if self.store.is_critical() => {
                    self.stores.fatal.send_replace(Some((self.store.name().to_owned(), failure)));
                    return;
                }
                Err(failure) => self.down(failure).await,
            }
            let until = (Instant::now() + pause).max(self.left_alone);
            if let Ok(look) = timeout_at(until.into(), self.look.wanted()).await {
                self.look.is_done(look, None); // the next try is the look
            }
            pause = (pause * 2).min(BACK_OFF.1);
        }
    }

    /// Opens and serves; comes back only when opening or the first listing failed.
    async fn serve(&mut self) -> Result<std::convert::Infallible, Failure> {
        let started = Instant::now();
        self.store.open().await?;
        let mut generation = match self.listed.take() {
            Some(generation) => Some(generation),
            None => {
                let generation = self.store.ask(self.store.store().health()).await.ok(); // before the listing
                self.list().await?;
                generation
            }
        };
        tracing::info!(
            store = self.store.name(),
            plugin = self.store.store().plugin(),
            keys = self.holders().len(),
            "the store serves, after {:.1?}",
            started.elapsed()
        );
        let mut unlisted: Option<Failure> = None;
        loop {
            let mut proofs = JoinSet::new(); // ended by being dropped, at the next listing
            if self.store.prove() == Prove::Background {
                proofs.spawn(prove_all(self.holders()));
            }
            let look = self.changed(&mut generation).await;
            let failure = self.list().await.err();
            if let Some(failure) = &failure {
                generation = None; // the next look after its health lists again
                self.leave_alone(failure);
                if !unlisted.replace(failure.clone()).is_some_and(|before| failures::same(&before, failure)) {
                    tracing::warn!(store = self.store.name(), "the keys can't be listed again: {failure}");
                }
            } else {
                unlisted = None;
            }
            if let Some(look) = look {
                self.look.is_done(look, failure);
            }
        }
    }

    /// Waits until the listing has changed; meanwhile asks for the store's health, more often while that is bad. When a
    /// call has failed it asks soon, since that is when a plugin sees to a device that was gone. Answers the look that
    /// was wanted, if it found the change.
    async fn changed(&mut self, generation: &mut Option<u64>) -> Option<u64> {
        let listed = Instant::now();
        loop {
            let interval = self.store.health_interval();
            let interval = if self.store.is_up() { interval } else { interval.min(BACK_OFF.1) };
            let ails = async {
                self.store.ails().await;
                sleep_until((self.asked + BACK_OFF.1).max(self.left_alone).into()).await;
            };
            let look = tokio::select! {
                biased; // a plugin that always tells of changes is asked for its health all the same
                () = sleep_until((self.asked + interval).max(self.left_alone).into()) => None,
                look = self.look.wanted() => Some(look),
                () = ails => None,
                () = self.store.store().keys_changed() => {
                    sleep(LIST_EVERY.saturating_sub(listed.elapsed())).await;
                    return None;
                }
            };
            if self.store.is_refused() {
                std::future::pending::<()>().await;
            }
            let health = self.store.ask(self.store.store().health()).await;
            self.asked = Instant::now(); // from its end on: one that takes long leaves time for what is wanted
            let failure = match health {
                Ok(now) => {
                    self.store.recovered();
                    if generation.replace(now) != Some(now) {
                        return look;
                    }
                    None
                }
                Err(failure) => {
                    self.leave_alone(&failure);
                    self.store.fell(failure.clone());
                    Some(failure)
                }
            };
            if let Some(look) = look {
                self.look.is_done(look, failure);
            }
        }
    }

    fn leave_alone(&mut self, failure: &Failure) {
        self.left_alone = Instant::now() + failure.retry_after.unwrap_or_default().min(LEFT_ALONE);
    }

    async fn list(&mut self) -> Result<(), Failure> {
        let (mut holders, findings) = listed(&self.store).await?;
        self.report(&findings);
        let before = self.holders();
        let before: HashMap<_, _> = before.iter().map(|holder| (holder.key().id(), holder)).collect();
        for holder in &mut holders {
            // What has proven itself needn't again.
            let known = before.get(holder.key().id()).filter(|known| known.key().is_same_as(holder.key()));
            if let Some(known) = known {
                *holder = Holder::clone(known);
            }
        }
        if self.store.prove() == Prove::Start {
            for holder in &holders {
                prove(holder).await;
            }
            holders.retain(|holder| !holder.is_disproven());
        }
        let mut entries = self.stores.lock();
        if let Some(entry) = entries.iter_mut().find(|entry| Arc::ptr_eq(&entry.store, &self.store)) {
            entry.list = Some(holders);
            self.stores.publish(&entries);
        }
        drop(entries);
        self.store.recovered();
        self.stores.changes.send_replace(());
        Ok(())
    }

    /// Tells the findings that the listing before didn't have.
    fn report(&mut self, findings: &[Finding]) {
        let known = |finding: &Finding| (finding.subject.clone(), finding.failure.message.clone());
        for finding in findings.iter().filter(|finding| !self.found.contains(&known(finding))) {
            report(self.store.name(), finding);
        }
        self.found = findings.iter().map(known).collect();
    }

    async fn down(&mut self, failure: Failure) {
        self.leave_alone(&failure);
        let hopeless = failure.class == Class::Credentials;
        self.store.fell(failure);
        self.stores.changes.send_replace(());
        if hopeless {
            // No second attempt with the same secret: it could lock the token. A new secret comes with a reload.
            std::future::pending::<()>().await;
        }
    }

    fn holders(&self) -> Vec<Holder> {
        let entries = self.stores.lock();
        let entry = entries.iter().find(|entry| Arc::ptr_eq(&entry.store, &self.store));
        entry.and_then(|entry| entry.list.clone()).unwrap_or_default()
    }
}

/// A look at a store that is asked for: by number, so that who asks knows when it is done.
#[derive(Default)]
pub(super) struct Look {
    wanted: watch::Sender<u64>,
    done: watch::Sender<(u64, Option<Failure>)>,
}

impl Look {
    /// Asks for a look; answers its number.
    pub(super) fn want(&self) -> u64 {
        let mut number = 0;
        self.wanted.send_modify(|wanted| {
            *wanted += 1;
            number = *wanted;
        });
        number
    }

    /// Waits until a look is wanted that isn't done yet; answers the latest.
    async fn wanted(&self) -> u64 {
        let done = self.done.borrow().0;
        let mut wanted = self.wanted.subscribe();
        let wanted = wanted.wait_for(|wanted| *wanted > done).await.map(|wanted| *wanted);
        match wanted {
            Ok(wanted) => wanted,
            Err(_) => std::future::pending().await, // the sender lives as long as this does
        }
    }

    /// Notes that a look was had, and what came of it.
    fn is_done(&self, number: u64, outcome: Option<Failure>) {
        self.done.send_replace((number, outcome));
    }

    /// Waits for a look; answers why it failed, if it did.
    pub(super) async fn wait(&self, number: u64) -> Option<Failure> {
        let mut done = self.done.subscribe();
        done.wait_for(|(done, _)| *done >= number).await.ok().and_then(|done| done.1.clone())
    }
}

/// What a store lists, and the generation of that.
pub(super) struct Listed {
    pub(super) holders: Vec<Holder>,
    pub(super) generation: u64,
}

/// Opens a store, lists its keys and has them prove themselves.
pub(super) async fn opened(store: Arc<ManagedStore>) -> Result<Listed, Failure> {
    let opening = async {
        store.open().await?;
        let generation = store.ask(store.store().health()).await?; // before the listing, so that no change is missed
        let (holders, findings) = listed(&store).await?;
        findings.iter().for_each(|finding| report(store.name(), finding));
        Ok::<_, Failure>((holders, generation))
    };
    let late = |_| Failure::new(Class::Unavailable, format!("it was not open and listed within {OPENING:?}"));
    let (holders, generation) = timeout(OPENING, opening).await.map_err(late)??;
    let until = Instant::now() + PROOFS_AT_RELOAD;
    for holder in holders.iter().filter(|holder| store.wants_proof(holder.key())) {
        if store.prove() == Prove::Background && Instant::now() >= until {
            break; // the rest prove themselves later
        }
        holder.prove(Instant::now() + PROOF_DEADLINE).await?;
    }
    Ok(Listed { holders, generation })
}

async fn listed(store: &Arc<ManagedStore>) -> Result<(Vec<Holder>, Vec<Finding>), Failure> {
    let listing = store.ask(store.store().keys()).await?;
    let Listing { keys, findings, .. } = store.reviewed(listing);
    Ok((keys.into_iter().map(|key| Holder::new(Arc::clone(store), key)).collect(), findings))
}

async fn prove_all(holders: Vec<Holder>) {
    for holder in holders.into_iter().filter(|holder| !holder.key().is_proven() && !holder.is_disproven()) {
        prove(&holder).await;
        sleep(PROOF_EVERY).await;
    }
}

/// Has a key prove itself, unless it has; that it can't is for the log.
async fn prove(holder: &Holder) {
    if let Err(failure) = holder.prove(Instant::now() + PROOF_DEADLINE).await {
        let (store, key) = (holder.store().name(), holder.key().label());
        tracing::warn!(store, key, "the key could not prove itself: {failure}");
    }
}

/// Logs a finding, one line.
fn report(store: &str, finding: &Finding) {
    let Finding { subject, failure, hint, .. } = finding;
    match finding.severity {
        Severity::Warning => tracing::warn!(store, subject, hint, "{failure}"),
        Severity::Error => tracing::warn!(store, subject, hint, "not served: {failure}"),
        Severity::Note => tracing::debug!(store, subject, hint, "{failure}"),
    }
}
