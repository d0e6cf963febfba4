//! SIGTERM: no new connections, what is in flight is finished, exit code 0.

use std::{
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

use keystead_protocol::{ErrorCode, Opcode};
use rustix::process::Signal;

use crate::world::{Client, Files, Server, hostile, request, skis};

#[test]
fn sigterm_finishes_what_is_in_flight_takes_no_more_and_exits_with_0() {
    const IN_FLIGHT: u32 = 8;
    let files = Files::new();
    let mut server = Server::start(&files, &hostile(&files, "sign: {slow: 700}, class: blocking"));
    let mut client = Client::connect(&files, &server);
    let slow = skis()["p256"];
    let batch: Vec<u8> =
        (0..IN_FLIGHT).flat_map(|id| request(id, slow, Opcode::ECDSA_SIGN_SHA256, &[1; 32])).collect();
    client.send(&batch);
    server.wait_for_metric(&format!("keyless_requests{{opcode=\"OpECDSASignSHA256\"}} {IN_FLIGHT}"));
    server.signal(Signal::TERM);
    server.wait_for("stopping");
    assert!(refuses_connections(&server), "the socket stays open");
    let mut answered: Vec<u32> = Vec::new();
    for _ in 0..IN_FLIGHT {
        let (id, answer) = client.answer();
        assert!(answer.is_ok(), "{id} was answered {answer:?}");
        answered.push(id);
    }
    answered.sort_unstable();
    assert_eq!(answered, (0..IN_FLIGHT).collect::<Vec<_>>());
    assert_eq!(client.receive(), None);
    drop(client);
    assert_eq!(server.wait().code(), Some(0));
    server.wait_for("stopped");
}

/// Whether new connections are refused before the first slow answer can have ended the process.
fn refuses_connections(server: &Server) -> bool {
    let end = Instant::now() + Duration::from_millis(500);
    while Instant::now() < end {
        if TcpStream::connect(server.address).is_err() {
            return true;
        }
        thread::sleep(Duration::from_millis(5));
    }
    false
}

#[test]
fn a_connection_that_never_speaks_does_not_delay_the_stop() {
    let files = Files::new();
    let mut server = Server::with_keys(&files, "limits: {handshake_timeout: 60s, grace: 50s}\n");
    let _silent = TcpStream::connect(server.address).unwrap();
    drop(Client::connect(&files, &server)); // connected later, so that the silent one has been accepted
    server.signal(Signal::TERM);
    assert_eq!(server.wait().code(), Some(0));
    assert!(!server.log().contains("not finished"), "{}", server.log());
}

#[test]
fn a_plugin_that_hangs_does_not_keep_the_process_beyond_the_grace_period() {
    let files = Files::new();
    let stores = hostile(&files, "sign: hang, class: blocking");
    let mut server = Server::start(&files, &format!("{stores}limits: {{grace: 500ms, deadline: 300ms}}\n"));
    let mut client = Client::connect(&files, &server);
    assert_eq!(client.ask(skis()["p256"], Opcode::ECDSA_SIGN_SHA256, &[1; 32]), Err(ErrorCode::CRYPTOGRAPHY));
    server.signal(Signal::TERM);
    assert_eq!(server.wait().code(), Some(0));
}
