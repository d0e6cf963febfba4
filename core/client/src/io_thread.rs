//! The thread that does a client's I/O.

use std::sync::mpsc;
use std::{io, thread};

use tokio::runtime::{self, Handle};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::Error;

/// A thread with a runtime of its own. It ends when this is dropped, after a last task.
pub(crate) struct IoThread {
    runtime: Handle,
    _alive: oneshot::Sender<()>,
}

impl IoThread {
    /// Starts the thread; `last` runs on it when the handle is dropped.
    pub(crate) fn start(last: impl Future<Output = ()> + Send + 'static) -> io::Result<Self> {
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (alive, dropped) = oneshot::channel();
        thread::Builder::new().name("keystead-client".to_owned()).spawn(move || {
            runtime.block_on(async {
                let _: Result<(), _> = dropped.await; // always the error: nothing is ever sent
                last.await;
            });
        })?;
        Ok(Self { runtime: handle, _alive: alive })
    }

    /// Runs `task` on the thread; it's aborted if the returned future is dropped.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        task: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> Result<T, Error> {
        let mut task = AbortOnDrop(self.runtime.spawn(task));
        (&mut task.0).await.unwrap_or(Err(Error::Closed))
    }

    /// As [`Self::run`], but blocks the calling thread, which may be one of any runtime's or none's.
    pub(crate) fn run_blocking<T: Send + 'static>(
        &self,
        task: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> Result<T, Error> {
        let (done, outcome) = mpsc::sync_channel(1);
        self.runtime.spawn(async move {
            let _ = done.send(task.await); // the receiver waits below
        });
        outcome.recv().unwrap_or(Err(Error::Closed))
    }
}

struct AbortOnDrop<T>(JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}
