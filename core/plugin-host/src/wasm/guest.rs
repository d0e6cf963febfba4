//! One instance of a component, which is in one call at a time.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use keystead_plugin_api::Code;
use tokio::{runtime::Runtime, time::timeout_at};
use wasmtime::{Store, Trap, UpdateDeadline};
use wasmtime_wasi::{ResourceTable, WasiCtx, WasiCtxView, WasiView};

use super::{
    TICK,
    imports::{
        RANDOM_MAX,
        bindings::{Backend, BackendPre},
    },
    room::Room,
};
use crate::{failure::tame, instance::Refusal, quota::Quota, reach::Reach, services::HostSide};

/// How long a call may compute, what it waits for in the host not counted.
const COMPUTE_MAX: Duration = Duration::from_secs(1);

/// How much longer than its deadline a call may take to end by itself, before it is ended and its instance with it.
const GRACE: Duration = Duration::from_millis(100);

/// What an instance may have of WASI's resources at once: clocks it waits for, streams.
const RESOURCES_MAX: usize = 1024;

/// How many bytes a guest may hand to the host in one call of either.
const HANDED_MAX: usize = 32 << 20;

/// Where futures are waited for.
pub(super) trait Wait {
    fn wait<T>(&self, future: impl Future<Output = T>) -> T;
}

impl Wait for Runtime {
    fn wait<T>(&self, future: impl Future<Output = T>) -> T {
        self.block_on(future)
    }
}

impl Wait for tokio::runtime::Handle {
    fn wait<T>(&self, future: impl Future<Output = T>) -> T {
        self.block_on(future)
    }
}

/// The store that an instance serves.
#[derive(Clone)]
pub(super) struct Served {
    pub(super) side: &'static dyn HostSide,
    pub(super) reach: Arc<Reach>,
    quota: Arc<Mutex<Quota>>,
}

impl Served {
    pub(super) fn new(side: &'static dyn HostSide, reach: Arc<Reach>) -> Self {
        Self { side, reach, quota: Arc::default() }
    }

    /// Whether its instances may log one more event.
    pub(super) fn may_log(&self) -> bool {
        let mut quota = self.quota.lock().unwrap_or_else(PoisonError::into_inner);
        quota.allows(format_args!("the store `{}`", self.reach.store()))
    }
}

/// What the host keeps for an instance.
pub(super) struct State {
    wasi: WasiCtx,
    table: ResourceTable,
    room: Room,
    /// Ticks that the call has computed through.
    ticks: u32,
    /// `None` for one that only says what it is.
    pub(super) served: Option<Served>,
    /// When nobody waits for the call any more.
    pub(super) deadline: Instant,
    pub(super) request: String,
    /// The values that the call has the duty to get.
    pub(super) duties: Vec<String>,
}

impl WasiView for State {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

impl State {
    fn new(memory: usize, served: Option<Served>) -> Self {
        let mut table = ResourceTable::new();
        table.set_max_capacity(RESOURCES_MAX);
        Self {
            wasi: nothing(),
            table,
            room: Room::new(memory),
            ticks: 0,
            served,
            deadline: Instant::now(),
            request: String::new(),
            duties: Vec::new(),
        }
    }

    /// One more tick that the guest has computed through.
    fn tick(&mut self) -> wasmtime::Result<UpdateDeadline> {
        self.ticks += 1;
        match TICK * self.ticks > COMPUTE_MAX {
            true => Err(Trap::Interrupt.into()),
            false => Ok(UpdateDeadline::Yield(1)),
        }
    }

    /// Hands on what the call had the duty to get, and didn't.
    fn hand_on(&mut self) {
        for name in self.duties.drain(..) {
            if let Some(served) = &self.served {
                served.reach.expiring.give_up(&name);
            }
        }
    }
}

impl Drop for State {
    fn drop(&mut self) {
        self.hand_on();
    }
}

/// WASI with nothing in it: no files, environment, arguments or network, and streams that lead nowhere.
fn nothing() -> WasiCtx {
    let mut wasi = WasiCtx::builder();
    wasi.allow_tcp(false)
        .allow_udp(false)
        .allow_ip_name_lookup(false)
        .max_random_size(RANDOM_MAX.into())
        .build()
}

/// An instance that is ready for a call.
pub(super) struct Guest {
    store: Store<State>,
    backend: Backend,
}

impl Guest {
    pub(super) fn start(
        pre: &BackendPre<State>,
        memory: usize,
        served: Option<Served>,
        runtime: &impl Wait,
        deadline: Instant,
    ) -> Result<Self, Refusal> {
        let mut store = Store::new(pre.engine(), State::new(memory, served));
        store.limiter(|state| &mut state.room);
        store.set_hostcall_fuel(HANDED_MAX);
        store.set_epoch_deadline(1);
        store.epoch_deadline_callback(|mut store| store.data_mut().tick());
        let starting = async { timeout_at(deadline.into(), pre.instantiate_async(&mut store)).await };
        let started = runtime.wait(starting);
        match started {
            Ok(Ok(backend)) => Ok(Self { store, backend }),
            Ok(Err(error)) => Err(trapped("it doesn't start", &error, &store.data().room)),
            Err(_) => Err(late()),
        }
    }

    /// Makes a call. Who is ended by it, by a trap or by its deadline, doesn't come back.
    pub(super) fn call<T>(
        mut self,
        runtime: &impl Wait,
        deadline: Instant,
        request: &str,
        call: impl AsyncFnOnce(&Backend, &mut Store<State>) -> wasmtime::Result<T>,
    ) -> Result<(T, Self), Refusal> {
        let state = self.store.data_mut();
        (state.ticks, state.deadline) = (0, deadline);
        state.room.look_away();
        request.clone_into(&mut state.request);
        self.store.set_epoch_deadline(1);
        let calling = call(&self.backend, &mut self.store);
        let ended = runtime.wait(async { timeout_at((deadline + GRACE).into(), calling).await });
        self.store.data_mut().hand_on();
        match ended {
            Ok(Ok(answer)) => Ok((answer, self)),
            Ok(Err(error)) => Err(trapped("the plugin was ended", &error, &self.store.data().room)),
            Err(_) => Err(late()),
        }
    }
}

fn late() -> Refusal {
    Refusal::new(Code::Deadline, "the plugin did not answer in time, and was ended")
}

fn trapped(what: &str, error: &wasmtime::Error, room: &Room) -> Refusal {
    let why = match (error.downcast_ref::<Trap>(), room.exceeded()) {
        (Some(Trap::UnreachableCodeReached), Some(most)) => {
            format!("its {} MiB of memory are used up", most >> 20)
        }
        (trap, _) => trap.map_or_else(|| tame(error.root_cause().to_string().as_bytes(), 512), told),
    };
    Refusal::new(Code::Internal, format!("{what}: {why}"))
}

fn told(trap: &Trap) -> String {
    match trap {
        Trap::Interrupt => format!("it computed for more than {COMPUTE_MAX:?}"),
        Trap::UnreachableCodeReached => "it panicked".to_owned(),
        Trap::StackOverflow => "its stack is used up".to_owned(),
        trap => trap.to_string(),
    }
}
