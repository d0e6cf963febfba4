//! A token that isn't there when the server starts, or goes while it runs: the rest serves, and the token's keys are
//! served within seconds after it is there, without a restart.

use std::{
    fs,
    io::{self, Write},
    thread,
    time::{Duration, Instant},
};

use keystead_protocol::{ErrorCode, Opcode, Ski};
use serde_json::{Value, json};

use crate::{
    token::Token,
    world::{Client, Files, PATIENCE, Server, skis},
};

/// The time that a token which comes back is given to serve.
const WITHIN: Duration = Duration::from_secs(5);

/// A machine with other things to do may take longer; that the server waits longer by itself still shows.
const LENIENCE: Duration = Duration::from_secs(5);

/// A token with a P-256 key.
struct Plugged<'a> {
    files: &'a Files,
    token: Token<'a>,
    ski: Ski,
}

impl<'a> Plugged<'a> {
    fn new(files: &'a Files) -> Self {
        let token = Token::new(files);
        let ski = Ski::from_spki(&token.generate("p256", "EC:prime256v1")).unwrap();
        Self { files, token, ski }
    }

    fn unplug(&self) {
        fs::rename(self.files.path("tokens"), self.files.path("unplugged")).unwrap();
    }

    fn plug_in(&self) {
        let _ = fs::remove_dir(self.files.path("tokens")); // where it was made without the token
        fs::rename(self.files.path("unplugged"), self.files.path("tokens")).unwrap();
    }

    /// A server with the token's store, and a store of files.
    fn serve(&self) -> Server {
        let (keys, stores) = (self.files.path("keys"), self.token.store(["p256"]));
        let server =
            self.token.serve(&format!("private_key_stores:\n{stores}- {{dir: {}}}\n", keys.display()));
        server.wait_until_ready();
        server
    }

    fn sign(&self, client: &mut Client) -> Result<Vec<u8>, ErrorCode> {
        client.ask(self.ski, Opcode::ECDSA_SIGN_SHA256, &[1; 32])
    }

    /// Brings the token back, and measures how long it takes until its key is served.
    fn come_back(&self, client: &mut Client, what: &str) {
        self.plug_in();
        let (back, end) = (Instant::now(), Instant::now() + PATIENCE);
        while self.sign(client).is_err() {
            assert!(Instant::now() < end, "{what}: never served");
            thread::sleep(Duration::from_millis(50));
        }
        let took = back.elapsed();
        let _ = writeln!(io::stdout(), "{what}: served {took:.2?} after the token came back");
        assert!(took < WITHIN + LENIENCE, "{what}: {took:?}");
    }
}

fn assert_the_files_serve(client: &mut Client) {
    assert!(client.ask(skis()["p256"], Opcode::ECDSA_SIGN_SHA256, &[1; 32]).is_ok());
}

fn store(server: &Server) -> Value {
    server.status()["stores"][0].clone()
}

/// Waits for a state of the token's store.
fn wait_for_state(server: &Server, state: &str) -> Value {
    let end = Instant::now() + PATIENCE;
    loop {
        let store = store(server);
        if store["state"] == state {
            return store;
        }
        assert!(Instant::now() < end, "never {state}: {store:#}");
        thread::sleep(Duration::from_millis(20));
    }
}

fn absent_at_the_start(what: &str, leave: impl FnOnce(&Files)) -> (Value, String) {
    let files = Files::new();
    let plugged = Plugged::new(&files);
    plugged.unplug();
    leave(&files);
    let server = plugged.serve();
    let mut client = Client::connect(&files, &server);
    assert_the_files_serve(&mut client);
    for _ in 0..3 {
        assert_eq!(
            plugged.sign(&mut client),
            Err(ErrorCode::INTERNAL),
            "{what}: it isn't known to be unknown"
        );
    }
    let down = store(&server);
    assert_eq!((&down["name"], &down["state"]), (&json!("token"), &json!("down")));
    assert_eq!(down["last_error"]["class"], "unavailable");
    plugged.come_back(&mut client, what);
    assert_the_files_serve(&mut client);
    assert_eq!(store(&server)["state"], "up");
    server.wait_for("the store is back after");
    (down["last_error"].clone(), server.log())
}

#[test]
fn a_token_whose_directory_is_missing_at_the_start_is_served_once_it_is_there() {
    let (error, log) = absent_at_the_start("no directory", |_| ());
    assert_eq!(error["vendor"], json!({"name": "CKR_GENERAL_ERROR", "code": 5}));
    let message = error["message"].as_str().unwrap();
    assert!(message.contains("C_Initialize failed") && message.contains("libsofthsm2.so"), "{message}");
    assert_eq!(log.matches("the store is down").count(), 1, "{log}");
}

#[test]
fn a_token_that_is_not_in_its_directory_at_the_start_is_served_once_it_is_there() {
    let (error, log) =
        absent_at_the_start("empty directory", |files| fs::create_dir(files.path("tokens")).unwrap());
    let message = error["message"].as_str().unwrap();
    assert!(message.contains("(pkcs11:token=keys;object=p256): no such token is there"), "{message}");
    assert!(message.contains("the module has no token"), "{message}");
    assert_eq!(log.matches("the store is down").count(), 1, "{log}");
}

#[test]
fn a_token_that_goes_while_the_server_runs_is_down_not_empty_and_served_once_it_is_back() {
    let files = Files::new();
    let plugged = Plugged::new(&files);
    let server = plugged.serve();
    let mut client = Client::connect(&files, &server);
    assert!(plugged.sign(&mut client).is_ok());
    plugged.unplug();
    assert_eq!(plugged.sign(&mut client), Err(ErrorCode::CRYPTOGRAPHY));
    let down = wait_for_state(&server, "down");
    assert_eq!(down["last_error"]["vendor"], json!({"name": "CKR_GENERAL_ERROR", "code": 5}));
    assert_eq!(down["keys"], 1, "its key stays listed");
    assert_eq!(plugged.sign(&mut client), Err(ErrorCode::CRYPTOGRAPHY));
    assert_the_files_serve(&mut client);
    plugged.come_back(&mut client, "gone for a while");
    wait_for_state(&server, "up");
    server.wait_for("the store is back after");
    let log = server.log();
    assert!(!log.contains("WARN keystead::plugin"), "each look at the token is a line:\n{log}");
}
