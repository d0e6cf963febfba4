//! Plugins that are WebAssembly components, in a sandbox: they reach what the host does for them within the store's
//! grants, and nothing else.
//!
//! ```text
//! bytes -> compiled (ahead, and kept) -> Component (described) -> Pool (one store: instances) -> Guest (one call at a time)
//! ```
//!
//! Cranelift is the only compiler, and of WebAssembly's proposals there is what compilers emit today: threads, garbage
//! collection, stack switching and asynchronous components aren't built in. Instances are allocated on demand, which shares
//! no memory between guests. Time is kept by epochs: cheaper than fuel, and a guest that computes gives way at each tick.

mod compiled;
mod guest;
mod imports;
mod pool;
mod room;

use std::{
    path::PathBuf,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use keystead_plugin_api::Error;
use wasmtime::{
    Config, Engine,
    component::{HasSelf, Linker},
};

use crate::{
    Description, Isolation, failure::tame, instance::Instance, native::SCHEMA_MAX, services::HostSide,
};
use guest::{Guest, State};
use imports::bindings::{Backend, BackendPre};
use pool::Pool;

/// How often a guest that computes gives way, and is looked at.
const TICK: Duration = Duration::from_millis(10);

/// How long a component may take to say what it is.
const DESCRIBE_MAX: Duration = Duration::from_secs(5);

/// The engine that all components share.
pub(crate) struct Sandbox {
    engine: Engine,
    linker: Linker<State>,
    /// Where compiled components are kept; nowhere without one.
    cache: Option<PathBuf>,
}

/// A component that is compiled and has said what it is.
pub(crate) struct Component {
    _sandbox: Arc<Sandbox>,
    pre: BackendPre<State>,
}

impl Sandbox {
    pub(crate) fn new(cache: Option<PathBuf>) -> Result<Arc<Self>, String> {
        let mut config = Config::new();
        config.epoch_interruption(true).concurrency_support(false);
        let engine = Engine::new(&config).map_err(|error| format!("there is no sandbox here: {error}"))?;
        let mut linker = Linker::new(&engine);
        let linked = wasmtime_wasi::p2::add_to_linker_async(&mut linker)
            .and_then(|()| Backend::add_to_linker::<_, HasSelf<_>>(&mut linker, |state| state));
        linked.map_err(|error| format!("there is no sandbox here: {error}"))?;
        keep_time(&engine);
        Ok(Arc::new(Self { engine, linker, cache }))
    }

    /// Compiles a component, or takes what was compiled before, and asks it what it is.
    pub(crate) fn load(self: &Arc<Self>, content: &[u8]) -> Result<(Component, Description), String> {
        let component = compiled::component(&self.engine, self.cache.as_deref(), content)?;
        let pre = self.linker.instantiate_pre(&component).and_then(BackendPre::new);
        let pre = pre.map_err(|error| {
            format!("it is no component of this server's draft of the contract: {}", one_line(&error))
        })?;
        let component = Component { _sandbox: Arc::clone(self), pre };
        let description = component.describe()?;
        Ok((component, description))
    }
}

impl Component {
    fn describe(&self) -> Result<Description, String> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| error.to_string())?;
        let deadline = Instant::now() + DESCRIBE_MAX;
        let guest = Guest::start(&self.pre, 64 << 20, None, &runtime, deadline);
        let said = guest.and_then(|guest| {
            guest.call(&runtime, deadline, "", async |backend, store| {
                backend.keystead_backend_plugin().call_describe(store).await
            })
        });
        let (said, _) = said.map_err(|refusal| format!("it doesn't say what it is: {}", refusal.error))?;
        let schema = said.schema.as_bytes().get(..SCHEMA_MAX).unwrap_or(said.schema.as_bytes());
        let mut description = Description::checked(
            said.name.as_bytes(),
            said.version.as_bytes(),
            said.vendor.as_bytes(),
            schema,
        )?;
        description.isolation = Isolation::Inline;
        description.lanes_max = said.lanes_max.filter(|lanes| *lanes > 0);
        Ok(description)
    }

    /// Opens a store with a first instance, each of which has at most `memory` bytes.
    pub(crate) fn open(
        self: &Arc<Self>,
        side: &'static dyn HostSide,
        memory: usize,
    ) -> Result<Arc<dyn Instance>, Error> {
        Pool::open(Arc::clone(self), side, memory)
    }
}

/// Counts the engine's epochs for as long as it lives.
fn keep_time(engine: &Engine) {
    let engine = engine.weak();
    let ticks = move || {
        while let Some(engine) = engine.upgrade() {
            engine.increment_epoch();
            drop(engine);
            thread::sleep(TICK);
        }
    };
    if let Err(error) = thread::Builder::new().name("wasm/ticks".to_owned()).spawn(ticks) {
        tracing::error!(%error, "nobody counts the time of components: those that compute without end do so");
    }
}

/// What is wrong, without the context that wasmtime puts around it over several lines.
fn one_line(error: &wasmtime::Error) -> String {
    let text = format!("{error:#}");
    tame(text.replace('\n', " ").as_bytes(), 512)
}
