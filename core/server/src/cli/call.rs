//! `plugin call`: one call to a plugin, with everything that it says and reaches.

use std::{
    path::{self, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use clap::{Args, ValueEnum};
use keystead::{
    config::{self, Flags},
    metrics::Metrics,
    server,
    status::KeyStatus,
    store::ManagedStore,
    telemetry,
};
use keystead_plugin_host::{Algorithm, Failure, Key, Listing, Request, plugin_name};

use super::{
    Failed,
    inspect::finding_text,
    load, print,
    remote::{algorithm, random_input, usual},
    runtime,
};

/// How long the call may take.
const DEADLINE: Duration = Duration::from_secs(30);

/// How long closing the store may take.
const CLOSE: Duration = Duration::from_secs(2);

/// One call to one plugin.
#[derive(Args)]
pub(super) struct Call {
    /// The plugin: a library or a component
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// What is asked of it
    #[arg(value_enum)]
    what: What,
    #[command(flatten)]
    flags: Flags,
    /// The store of the configuration that it is called for; by default the first with this plugin
    #[arg(long, value_name = "NAME")]
    store: Option<String>,
    /// Label of the key that signs; by default the first of the listing
    #[arg(long, value_name = "LABEL")]
    key: Option<String>,
    /// Algorithm, such as `rsa-pss-sha256`; by default one that TLS 1.3 uses with this type of key
    #[arg(long, value_name = "NAME", value_parser = algorithm)]
    algorithm: Option<Algorithm>,
}

#[derive(Clone, Copy, ValueEnum)]
enum What {
    /// List its keys
    Keys,
    /// Sign a random digest, and verify the signature
    Sign,
    /// Ask how it is
    Health,
}

impl Call {
    pub(super) fn run(self) -> Result<ExitCode, Failed> {
        let mut config = load(&self.flags)?;
        config.plugins.path = vec![path::absolute(&self.file).map_err(Failed::new)?];
        let store = self.pick(&config)?;
        telemetry::start_for_plugins();
        let host = server::plugin_host(&config.plugins);
        let metrics = Metrics::new().map_err(Failed::new)?;
        let runtime = runtime()?;
        let outcome = runtime.block_on(async {
            let store = ManagedStore::new(&host, store, &metrics);
            let outcome = self.make(&store).await;
            store.store().close(CLOSE).await;
            outcome
        });
        runtime.shutdown_background();
        print(&outcome?)
    }

    fn pick<'c>(&self, config: &'c config::Config) -> Result<&'c config::Store, Failed> {
        let plugin = plugin_name(&self.file).ok_or_else(|| {
            Failed::new(format!("{} is not the name of a plugin's file", self.file.display()))
                .hint("a library is called libkeystead_plugin_NAME.so, a component NAME.wasm")
        })?;
        let mut stores = config.stores.iter().filter(|store| store.plugin == plugin);
        let named = |store: &&config::Store| self.store.as_ref().is_none_or(|name| *name == store.name);
        stores.find(named).ok_or_else(|| {
            let which = self.store.as_ref().map_or_else(String::new, |name| format!(" named `{name}`"));
            Failed::new(format!("the configuration has no store{which} with `plugin: {plugin}`"))
                .hint("add an entry to `private_key_stores`, or name another file with `--config`")
        })
    }

    async fn make(&self, store: &ManagedStore) -> Result<String, Failed> {
        store.store().open().await.map_err(|failure| failed(&failure))?;
        let started = Instant::now();
        let answer = match self.what {
            What::Health => {
                store.store().health().await.map(|generation| format!("well, generation {generation}\n"))
            }
            What::Keys => store.store().keys().await.map(|listing| listed(store, &listing)),
            What::Sign => return self.sign(store).await,
        };
        let answer = answer.map_err(|failure| failed(&failure))?;
        Ok(format!("{answer}{}\n", took(started)))
    }

    async fn sign(&self, store: &ManagedStore) -> Result<String, Failed> {
        let listing = store.store().keys().await.map_err(|failure| failed(&failure))?;
        let wanted = |key: &&Arc<Key>| self.key.as_ref().is_none_or(|label| label == key.label());
        let key = listing.keys.iter().find(wanted).ok_or_else(|| {
            Failed::new("the plugin lists no such key")
                .hint("`keystead plugin call FILE keys` shows those it lists")
        })?;
        let algorithm = self.algorithm.unwrap_or_else(|| usual(key.family(), key.bits()));
        let input = random_input(algorithm)?;
        let (started, request) =
            (Instant::now(), Request { id: "call", deadline: Instant::now() + DEADLINE });
        let signed = store.store().perform(key, algorithm, &input, request).await;
        let signature = signed.map_err(|failure| failed(&failure))?;
        let verifies = keystead_plugin_host::PublicKey::parse(key.spki())
            .is_some_and(|public| public.verifies(algorithm, &input, &signature));
        if !verifies {
            return Err(Failed::new(format!(
                "the signature of `{}` by {algorithm} does not verify",
                key.label()
            )));
        }
        let (label, bytes) = (key.label(), signature.len());
        Ok(format!("`{label}` signed by {algorithm}: {bytes} bytes, and they verify\n{}\n", took(started)))
    }
}

fn listed(store: &ManagedStore, listing: &Listing) -> String {
    let mut text = String::new();
    for key in &listing.keys {
        let KeyStatus { ski, kind, label, .. } = KeyStatus::new(store.name(), key, &[]);
        let algorithms: Vec<_> = key.algorithms().iter().map(|algorithm| algorithm.name()).collect();
        super::inspect::line(&mut text, "key", &format!("{ski}  {kind}  {label}  {}", algorithms.join(",")));
    }
    listing.findings.iter().for_each(|finding| finding_text(&mut text, finding));
    text
}

fn took(started: Instant) -> String {
    format!("in {:.1} ms", started.elapsed().as_secs_f64() * 1e3)
}

fn failed(failure: &Failure) -> Failed {
    Failed::new(format!("{}: {failure}", failure.class))
}
