//! p11-kit's server over SoftHSM2: a token behind a socket, whose other end can be killed.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

/// Where distributions put p11-kit's module that hands each call to a server.
const CLIENT: [&str; 3] = [
    "/usr/lib/x86_64-linux-gnu/pkcs11/p11-kit-client.so",
    "/usr/lib/aarch64-linux-gnu/pkcs11/p11-kit-client.so",
    "/usr/lib64/pkcs11/p11-kit-client.so",
];

/// p11-kit's module that hands each call to the server that P11_KIT_SERVER_ADDRESS names.
pub(crate) fn client() -> PathBuf {
    let found = CLIENT.iter().map(Path::new).find(|path| path.exists());
    found
        .unwrap_or_else(|| {
            panic!("these tests need the package p11-kit-modules: none of {CLIENT:?} is there")
        })
        .into()
}

/// A server that runs; killed when dropped, with the processes it has for its callers, one for each.
pub(crate) struct P11Kit(Child);

impl P11Kit {
    /// Has it serve the tokens of SoftHSM2, by its module and configuration, at a socket.
    pub(crate) fn start(module: &Path, configuration: &Path, socket: &Path) -> Self {
        let _ = fs::remove_file(socket);
        let mut server = Command::new("p11-kit");
        server.args(["server", "--foreground", "--provider"]).arg(module).arg("--name").arg(socket);
        server.arg("pkcs11:").env("SOFTHSM2_CONF", configuration);
        let started = server.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let server =
            Self(started.unwrap_or_else(|error| panic!("these tests need the package p11-kit: {error}")));
        let end = Instant::now() + Duration::from_secs(60);
        while !socket.exists() {
            assert!(Instant::now() < end, "p11-kit's server never listens");
            thread::sleep(Duration::from_millis(5));
        }
        server
    }

    /// Kills the processes that it has for its callers.
    pub(crate) fn kill_remotes(&self) {
        assert!(self.try_to_kill_remotes(), "there is one");
    }

    fn try_to_kill_remotes(&self) -> bool {
        let pid = self.0.id().to_string();
        Command::new("pkill").args(["-9", "-P", &pid]).status().is_ok_and(|status| status.success())
    }
}

impl Drop for P11Kit {
    fn drop(&mut self) {
        self.try_to_kill_remotes(); // there may be none
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
