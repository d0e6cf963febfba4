//! A store's calls to a plugin in this process: on the spot where that is quick, else on threads of the store's own.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use keystead_plugin_api::{
    Algorithm, CallClass,
    abi::{LANE_HOUSEKEEPING, LANE_INLINE},
};
use tokio::{
    sync::oneshot,
    time::{timeout, timeout_at},
};

use crate::{
    Class, Failure, Key, Limits, Load, Request,
    instance::{Call, Instance},
    lanes::Lanes,
    turns::{Turn, Turns},
};

/// How long opening, listing and health may take before the host stops waiting: a token behind a slow network, or a
/// directory with thousands of encrypted files, takes a while.
pub(crate) const HOUSEKEEPING_DEADLINE: Duration = Duration::from_secs(120);

/// How many such calls wait for the one before them. Few: more of them mean that it hangs.
pub(crate) const HOUSEKEEPING_QUEUE: usize = 4;

/// The threads of one store. They start when they are needed.
pub(crate) struct Threads {
    lanes: Lanes,
    housekeeping: Lanes,
    turns: Arc<Turns>,
    limits: Limits,
}

impl Threads {
    pub(crate) fn new(store: &str, limits: Limits, turns: &Arc<Turns>) -> Self {
        let housekeeping =
            Lanes::new(&format!("{store}/housekeeping"), LANE_HOUSEKEEPING, 1, HOUSEKEEPING_QUEUE);
        let lanes = Lanes::new(store, 0, limits.lanes(None, None), limits.queue);
        Self { lanes, housekeeping, turns: Arc::clone(turns), limits }
    }

    /// Uses as many lanes as are configured or else advised, and no more than the plugin can.
    pub(crate) fn settle(&self, advised: Option<u32>, most: Option<u32>) {
        self.lanes.limit(self.limits.lanes(advised, most));
    }

    pub(crate) fn limits(&self) -> Limits {
        Limits { lanes: Some(self.lanes.count()), ..self.limits }
    }

    /// What was configured.
    pub(crate) fn configured(&self) -> Limits {
        self.limits
    }

    pub(crate) fn load(&self) -> Load {
        let (busy, waiting) = self.lanes.load();
        Load { busy, lanes: self.lanes.count(), waiting, queue: self.limits.queue }
    }

    /// Signs or decrypts: an inline key's call right here, others on a lane.
    pub(crate) async fn perform(
        &self,
        instance: Arc<dyn Instance>,
        key: &Arc<Key>,
        algorithm: Algorithm,
        input: &[u8],
        request: Request<'_>,
    ) -> Result<Vec<u8>, Failure> {
        let turn = timeout_at(request.deadline.into(), self.turn(key)).await;
        match turn.map_err(|_| Failure::new(Class::Deadline, "too many calls were before it"))? {
            Some(_turn) => call(&*instance, key, algorithm, input, LANE_INLINE, None, request.id),
            None => self.on_lane(instance, key, algorithm, input, request).await,
        }
    }

    /// Closes an instance within `grace`; says whether it was done by then.
    pub(crate) async fn close(&self, instance: Arc<dyn Instance>, grace: Duration) -> bool {
        instance.stop();
        let (closed, done) = oneshot::channel();
        // Not by `housekeep`: however late its turn comes, the plugin is to hear of it.
        self.housekeeping.submit_regardless(Box::new(move |_| {
            instance.close(grace);
            let _ = closed.send(());
        }));
        timeout(grace, done).await.is_ok()
    }

    /// The right to run inline; `None` where the call belongs on a lane.
    async fn turn(&self, key: &Key) -> Option<Turn<'_>> {
        match key.call_class() {
            CallClass::Inline => self.turns.take().await,
            CallClass::Blocking => None,
        }
    }

    async fn on_lane(
        &self,
        instance: Arc<dyn Instance>,
        key: &Arc<Key>,
        algorithm: Algorithm,
        input: &[u8],
        request: Request<'_>,
    ) -> Result<Vec<u8>, Failure> {
        let (answer, result) = oneshot::channel();
        let (key, input, id, deadline) =
            (Arc::clone(key), input.to_vec(), request.id.to_owned(), request.deadline);
        let job = move |lane| {
            // Nobody waits any more: the device is spared the call.
            if !answer.is_closed() && Instant::now() < deadline {
                let _ = answer.send(call(&*instance, &key, algorithm, &input, lane, Some(deadline), &id));
            }
        };
        self.lanes.submit(Box::new(job)).map_err(|_| shed(self.limits()))?;
        match timeout_at(request.deadline.into(), result).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) if Instant::now() < request.deadline => {
                Err(Failure::internal("the lane gave no answer"))
            }
            _ => Err(late()),
        }
    }

    /// Runs something on the housekeeping lane.
    pub(crate) async fn housekeep<T: Send + 'static, E: Into<Failure> + Send + 'static>(
        &self,
        job: impl FnOnce(&Call<'_>) -> Result<T, E> + Send + 'static,
    ) -> Result<T, Failure> {
        let (answer, result) = oneshot::channel();
        let deadline = Instant::now() + HOUSEKEEPING_DEADLINE;
        let run = move |lane| {
            if !answer.is_closed() {
                let _ = answer.send(job(&Call { lane, deadline: Some(deadline), request_id: "" }));
            }
        };
        self.housekeeping.submit(Box::new(run)).map_err(|_| hangs())?;
        match timeout_at(deadline.into(), result).await {
            Ok(Ok(result)) => result.map_err(Into::into),
            Ok(Err(_)) => Err(Failure::internal("the lane gave no answer")),
            Err(_) => Err(silent()),
        }
    }
}

/// The one call to the plugin, with a buffer of its own.
fn call(
    instance: &dyn Instance,
    key: &Key,
    algorithm: Algorithm,
    input: &[u8],
    lane: u32,
    deadline: Option<Instant>,
    request_id: &str,
) -> Result<Vec<u8>, Failure> {
    let mut out = vec![0; key.result_max()];
    let call = Call { lane, deadline, request_id };
    let len =
        instance.perform(&call, algorithm.operation(), key.id(), algorithm.number(), input, &mut out)?;
    out.truncate(len);
    Ok(out)
}

/// A call to a key came back too late, or not at all.
pub(crate) fn late() -> Failure {
    Failure::new(Class::Deadline, "the plugin did not answer within the deadline")
}

/// Opening, listing or health didn't come back in its time.
pub(crate) fn silent() -> Failure {
    let seconds = HOUSEKEEPING_DEADLINE.as_secs();
    Failure::new(Class::Unavailable, format!("the plugin did not answer within {seconds} s"))
}

/// Too many such calls wait already.
pub(crate) fn hangs() -> Failure {
    Failure::new(Class::Unavailable, "the plugin still hangs in an earlier call")
}

/// The store's queue is full.
pub(crate) fn shed(limits: Limits) -> Failure {
    Failure::new(
        Class::Shed,
        format!("all {} lanes are busy and {} calls wait already", limits.lanes(None, None), limits.queue),
    )
}
