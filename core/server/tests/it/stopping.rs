//! SIGTERM: no new connections, what is in flight is finished, exit code 0.

use keystead_protocol::{ErrorCode, Opcode};
use rustix::process::Signal;

use crate::world::{Client, Files, Server, hostile, request, skis};

#[test]
fn sigterm_finishes_what_is_in_flight_and_exits_with_0() {
    let files = Files::new();
    let mut server = Server::with_keys(&files, "");
    let mut client = Client::connect(&files, &server);
    let rsa = skis()["rsa"];
    assert!(client.ask(rsa, Opcode::RSA_SIGN_SHA256, &[1; 32]).is_ok());
    client.send(
        &(0..256).flat_map(|id| request(id, rsa, Opcode::RSA_SIGN_SHA256, &[1; 32])).collect::<Vec<u8>>(),
    );
    assert!(client.answer().1.is_ok(), "the batch has been read");
    server.signal(Signal::TERM);
    let mut answered = 1;
    while let Some(frame) = client.receive() {
        assert_eq!(frame.len(), 1024);
        answered += 1;
    }
    assert!(answered > 1, "answers go on after the signal");
    assert_eq!(server.wait().code(), Some(0));
    assert!(server.log().contains("stopped"));
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
