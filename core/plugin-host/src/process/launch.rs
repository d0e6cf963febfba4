//! Starting a process for plugins.

use std::{
    io::{self, PipeReader},
    os::{
        fd::OwnedFd,
        unix::{net::UnixStream, process::CommandExt},
    },
    path::Path,
    process::{Child, Command, Stdio},
    sync::{LazyLock, mpsc},
    thread,
};

use tokio::sync::oneshot;

use super::{Launcher, Surroundings};

/// A process that runs.
pub(super) struct Launched {
    pub(super) child: Child,
    /// The host's end of the socket that is the process' standard input.
    pub(super) socket: UnixStream,
    /// What it writes to its standard output and standard error.
    pub(super) output: PipeReader,
}

/// Starts a process with nothing of this one but two descriptors: no environment, no other open file.
pub(super) async fn launch(launcher: &Launcher, surroundings: &Surroundings) -> io::Result<Launched> {
    let (socket, own_end) = UnixStream::pair()?;
    let (output, written) = io::pipe()?;
    let mut command = Command::new(&launcher.program);
    command
        .arg0("keystead-plugins")
        .args(&launcher.arguments)
        .env_clear()
        .envs(&surroundings.env)
        .current_dir(surroundings.workdir.as_deref().unwrap_or(Path::new("/")))
        .process_group(0) // Ctrl-C is for the server, which then ends its processes in its own order
        .stdin(Stdio::from(OwnedFd::from(own_end)))
        .stdout(Stdio::from(written.try_clone()?))
        .stderr(Stdio::from(written));
    // With the command go this process' copies of the other ends: the output ends when the process does.
    let child = on_the_permanent_thread(move || command.spawn()).await?;
    Ok(Launched { child, socket, output })
}

/// Runs something on the one thread that starts processes. The kernel kills a process when the thread that started it
/// ends (prctl(2), `PR_SET_PDEATHSIG`), so that thread has to last as long as this process: a worker of a runtime may
/// not.
async fn on_the_permanent_thread<T: Send + 'static>(
    job: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    type Job = Box<dyn FnOnce() + Send>;
    static JOBS: LazyLock<io::Result<mpsc::Sender<Job>>> = LazyLock::new(|| {
        let (jobs, waiting) = mpsc::channel::<Job>();
        thread::Builder::new()
            .name("launcher".to_owned())
            .spawn(move || waiting.iter().for_each(|job| job()))?;
        Ok(jobs)
    });
    let gone = || io::Error::other("the thread that starts processes can't be had");
    let (answer, done) = oneshot::channel();
    let job = Box::new(move || drop(answer.send(job())));
    JOBS.as_ref().map_err(|_| gone())?.send(job).map_err(|_| gone())?;
    done.await.map_err(|_| gone())?
}
