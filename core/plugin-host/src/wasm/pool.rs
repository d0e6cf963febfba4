//! One open store of a component: its instances, as many as there are calls at once. One that is ended by a call is gone,
//! and the next call starts another.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use keystead_plugin_api::{
    Advice, CallClass, Code, Error, Finding, Severity,
    abi::{KEY_ID_MAX, LANE_HOUSEKEEPING, LANE_INLINE},
    algorithm::Operation,
};
use tokio::runtime::Handle;
use wasmtime::Store;

use super::{
    Component,
    guest::{Guest, Served, State},
    imports::bindings::{Backend, keystead::backend::types},
};
use crate::{
    failure::tame,
    instance::{ALGORITHMS_MAX, Call, Instance, RawKey, RawListing, Refusal, SPKI_MAX, believed},
    native::ENTRIES_MAX,
    services::HostSide,
    threads::HOUSEKEEPING_DEADLINE,
};

/// The longest text of a listing.
const TEXT_MAX: usize = 1024;

/// The instances of one store.
pub(super) struct Pool {
    component: Arc<Component>,
    memory: usize,
    served: Served,
    runtime: Handle,
    idle: Mutex<Vec<Guest>>,
    advice: Advice,
    stopped: AtomicBool,
}

impl Pool {
    /// Opens a store, with a first instance.
    pub(super) fn open(
        component: Arc<Component>,
        side: &'static dyn HostSide,
        memory: usize,
    ) -> Result<Arc<dyn Instance>, Error> {
        let elsewhere = || Error::invalid("a component runs in the server's own process");
        let (reach, runtime) = side.reaching().ok_or_else(elsewhere)?;
        let mut pool = Self {
            component,
            memory,
            served: Served::new(side, reach),
            runtime,
            idle: Mutex::default(),
            advice: Advice::default(),
            stopped: AtomicBool::new(false),
        };
        let deadline = Instant::now() + HOUSEKEEPING_DEADLINE;
        let guest = pool.start(deadline).map_err(|refusal| refusal.error)?;
        let advised = guest.call(&pool.runtime, deadline, "", async |backend, store| {
            backend.keystead_backend_plugin().call_advise(store).await
        });
        let (advice, guest) = advised.map_err(|refusal| refusal.error)?;
        pool.advice = believed(Advice { lanes: advice.lanes, stuck_after: None });
        pool.idle().push(guest);
        Ok(Arc::new(pool))
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Guest>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn start(&self, deadline: Instant) -> Result<Guest, Refusal> {
        let (served, runtime) = (Some(self.served.clone()), &self.runtime);
        let guest = Guest::start(&self.component.pre, self.memory, served, runtime, deadline)?;
        let opening = async |backend: &Backend, store: &mut Store<State>| {
            backend.keystead_backend_plugin().call_open(store).await
        };
        let (opened, guest) = guest.call(runtime, deadline, "", opening)?;
        opened?;
        Ok(guest)
    }

    /// Makes a call with an instance that nobody uses.
    fn call<T>(
        &self,
        call: &Call<'_>,
        made: impl AsyncFnOnce(
            &Backend,
            &mut Store<State>,
            &types::Call,
        ) -> wasmtime::Result<Result<T, types::Error>>,
    ) -> Result<T, Refusal> {
        if self.stopped.load(Ordering::SeqCst) {
            return Err(Refusal::new(Code::Unavailable, "the store is closed"));
        }
        let deadline = call.deadline.unwrap_or_else(|| Instant::now() + HOUSEKEEPING_DEADLINE);
        if deadline <= Instant::now() {
            return Err(Refusal::new(Code::Deadline, "there was no time left for the call"));
        }
        let idle = self.idle().pop();
        let guest = idle.map_or_else(|| self.start(deadline), Ok)?;
        let told = told(call);
        let (answer, guest) =
            guest.call(&self.runtime, deadline, call.request_id, async |backend, store| {
                made(backend, store, &told).await
            })?;
        if !self.stopped.load(Ordering::SeqCst) {
            self.idle().push(guest);
        }
        Ok(answer?)
    }
}

fn told(call: &Call<'_>) -> types::Call {
    let left = call.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()).as_nanos());
    types::Call {
        lane: (![LANE_HOUSEKEEPING, LANE_INLINE].contains(&call.lane)).then_some(call.lane),
        nanos_left: left.map(|left| u64::try_from(left).unwrap_or(u64::MAX)),
        request_id: call.request_id.to_owned(),
    }
}

impl Instance for Pool {
    fn keys(&self, call: &Call<'_>) -> Result<RawListing, Refusal> {
        let listing = self.call(call, async |backend, store, call| {
            backend.keystead_backend_plugin().call_keys(store, call).await
        })?;
        listed(listing)
    }

    fn perform(
        &self,
        call: &Call<'_>,
        operation: Operation,
        key: &[u8],
        algorithm: u32,
        input: &[u8],
        out: &mut [u8],
    ) -> Result<usize, Refusal> {
        let result = self.call(call, async |backend, store, call| match operation {
            Operation::Decrypt => {
                backend.keystead_backend_plugin().call_decrypt(store, call, key, algorithm, input).await
            }
            _ => backend.keystead_backend_plugin().call_sign(store, call, key, algorithm, input).await,
        })?;
        let needed = result.len();
        let place = out.get_mut(..needed).ok_or_else(|| Refusal {
            needed,
            error: Error::new(Code::BufferTooSmall, format!("the result needs {needed} bytes")),
        })?;
        place.copy_from_slice(&result);
        Ok(needed)
    }

    fn health(&self, call: &Call<'_>) -> Result<u64, Refusal> {
        self.call(call, async |backend, store, call| {
            backend.keystead_backend_plugin().call_health(store, call).await
        })
    }

    fn advice(&self) -> Advice {
        self.advice
    }

    fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
        self.idle().clear();
    }

    fn close(&self, _grace: Duration) {
        self.stop();
    }
}

fn listed(listing: types::Listing) -> Result<RawListing, Refusal> {
    let types::Listing { keys, findings } = listing;
    if keys.len().max(findings.len()) > ENTRIES_MAX {
        let what = format!("the plugin lists more than {ENTRIES_MAX} keys or findings");
        return Err(Refusal::new(Code::Internal, what));
    }
    Ok(RawListing {
        keys: keys.into_iter().map(raw_key).collect(),
        findings: findings.into_iter().map(finding).collect(),
    })
}

/// What is too long is cut, and so is refused by the checks that follow.
fn raw_key(key: types::Key) -> RawKey {
    let types::Key { mut id, mut spki, label, mut algorithms } = key;
    id.truncate(KEY_ID_MAX + 1);
    spki.truncate(SPKI_MAX + 1);
    algorithms.truncate(ALGORITHMS_MAX);
    RawKey { id, spki, label: tame(label.as_bytes(), 256), algorithms, class: CallClass::Blocking }
}

fn finding(finding: types::Finding) -> Finding {
    let types::Finding { severity, subject, error, hint } = finding;
    Finding {
        severity: match severity {
            types::Severity::Warning => Severity::Warning,
            types::Severity::Error => Severity::Error,
            types::Severity::Note => Severity::Note,
        },
        subject: tame(subject.as_bytes(), TEXT_MAX),
        error: error.into(),
        hint: tame(hint.as_bytes(), TEXT_MAX),
    }
}
