//! A token behind a socket (p11-kit): another module by other hands, whose other end can be killed.

use std::{thread, time::Duration};

use keystead_plugin_api::{Algorithm, Code, conformance};

use crate::{
    bench::{Bench, PIN, REMOTE, in_process, key, on_softhsm, prove, softhsm, store, uri_at},
    p11_kit::{P11Kit, client},
    until,
};

fn serve(bench: &Bench) -> P11Kit {
    P11Kit::start(&softhsm(), &bench.path("softhsm2.conf"), &bench.path(REMOTE))
}

on_softhsm!(a_token_behind_a_socket_passes_the_conformance_suite, |bench| {
    bench.token("keys");
    bench.generate("keys", "EC:prime256v1", "p256", "01");
    bench.generate("keys", "rsa:2048", "rsa", "02");
    let _server = serve(bench);
    let uris = ["p256", "rsa"].map(|label| uri_at(&client(), "keys", &format!("object={label}"), PIN));
    conformance::run(&store(&uris));
    conformance::run(&in_process(&uris));
});

on_softhsm!(a_token_whose_other_end_is_killed_and_restarted_serves_again, |bench| {
    bench.token("keys");
    bench.generate("keys", "EC:prime256v1", "p256", "01");
    let server = serve(bench);
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
    let _server = serve(bench);
    until("another server serves", || sign().is_ok());
    prove(&session, p256);
});
