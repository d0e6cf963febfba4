//! A token behind a socket (p11-kit): another module by other hands, whose other end can be killed.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use keystead_plugin_api::{Algorithm, Code, conformance};

use crate::{
    bench::{Bench, PIN, REMOTE, in_process, installed, key, on_softhsm, prove, softhsm, store, uri_at},
    until,
};

/// p11-kit's module that hands each call to a server.
fn client() -> PathBuf {
    installed(
        "p11-kit-modules",
        &["/usr/lib/x86_64-linux-gnu/pkcs11/p11-kit-client.so", "/usr/lib64/pkcs11/p11-kit-client.so"],
    )
}

/// p11-kit's server over SoftHSM2; each caller gets a process of it.
struct Server(Child);

impl Server {
    fn start(bench: &Bench) -> Self {
        let socket = bench.path(REMOTE);
        let _ = std::fs::remove_file(&socket);
        let mut server = Command::new("p11-kit");
        server.args(["server", "--foreground", "--provider"]).arg(softhsm()).arg("--name").arg(&socket);
        let started = server.arg("pkcs11:").stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        let server =
            Self(started.unwrap_or_else(|error| panic!("these tests need the package p11-kit: {error}")));
        until("p11-kit's server listens", || Path::new(&socket).exists());
        server
    }

    /// Kills the processes that serve its callers.
    fn kill_remotes(&self) {
        let pid = self.0.id().to_string();
        let killed = Command::new("pkill").args(["-9", "-P", &pid]).status().unwrap();
        assert!(killed.success(), "there is one");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let pid = self.0.id().to_string();
        let _ = Command::new("pkill").args(["-9", "-P", &pid]).status();
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

on_softhsm!(a_token_behind_a_socket_passes_the_conformance_suite, |bench| {
    bench.token("keys");
    bench.generate("keys", "EC:prime256v1", "p256", "01");
    bench.generate("keys", "rsa:2048", "rsa", "02");
    let _server = Server::start(bench);
    let uris = ["p256", "rsa"].map(|label| uri_at(&client(), "keys", &format!("object={label}"), PIN));
    conformance::run(&store(&uris));
    conformance::run(&in_process(&uris));
});

on_softhsm!(a_token_whose_other_end_is_killed_and_restarted_serves_again, |bench| {
    bench.token("keys");
    bench.generate("keys", "EC:prime256v1", "p256", "01");
    let server = Server::start(bench);
    let session = store(&[uri_at(&client(), "keys", "object=p256", PIN)]).open().unwrap();
    let listing = session.listing().unwrap();
    let p256 = key(&listing, "p256");
    let sign = || session.sign(p256, Algorithm::EcdsaSha256, &[1; 32]);
    prove(&session, p256);

    server.kill_remotes();
    until("another process serves", || sign().is_ok());

    drop(server);
    until("it is noticed", || sign().is_err_and(|error| error.code == Code::Unavailable));
    thread::sleep(Duration::from_millis(200));
    let _server = Server::start(bench);
    until("another server serves", || sign().is_ok());
    prove(&session, p256);
});
