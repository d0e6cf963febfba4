//! Faults of a PKCS#11 module and its token, under load, over the wire: how soon they are over, and who notices.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use keystead_protocol::Ski;

use crate::{
    misbehaving::{BACK, FAULTS, Load, Misbehaving},
    token::Token,
    world::{Files, PATIENCE, Server},
};

/// Calls that a store makes at once; four times as many requests are in flight.
const LANES: usize = 8;

/// How long is looked whether a fault that seems to be over is.
const AFTERWARDS: Duration = Duration::from_millis(200);

fn survives(isolation: &str) {
    let files = Files::new();
    let token = Misbehaving::new(&files);
    let server = token.serve(isolation, LANES);
    let load = Load::new(&files, &server, token.ski, (4, LANES));
    for fault in FAULTS.iter().filter(|fault| isolation == "process" || !fault.kills) {
        load.wait_until_served(Instant::now());
        let bout = fault.befall(&token.control, &load);
        thread::sleep(AFTERWARDS);
        let now = Instant::now();
        let over = bout.over_after(&load, now);
        assert!(over < BACK, "{}: {over:?}, {:?}", fault.name, load.causes());
        let failed = load.failures(bout.began, now).len();
        assert!(fault.fails || failed == 0, "{}: {failed} failed: {:?}", fault.name, load.causes());
    }
    assert_eq!(token.control.violations(), [""; 0]);
}

#[test]
fn faults_of_a_module_in_the_server_are_over_soon_after_their_cure() {
    survives("inline");
}

#[test]
fn faults_of_a_module_in_a_process_are_over_soon_after_their_cure() {
    survives("process");
}

/// A token that loses its directory while a key of a kind signs. The server has 32 lanes for it.
fn comes_back(isolation: &str, (label, kind): (&str, &str)) {
    let files = Files::new();
    let token = Token::new(&files);
    let ski = Ski::from_spki(&token.generate(label, kind)).unwrap();
    let server = many_lanes(&files, &token, label, isolation);
    let load = Load::new(&files, &server, ski, (4, 32));
    for _ in 0..2 {
        load.wait_until_served(Instant::now());
        fs::rename(files.path("tokens"), files.path("unplugged")).unwrap();
        let gone = Instant::now();
        while load.failures(gone, Instant::now()).is_empty() {
            assert!(gone.elapsed() < PATIENCE, "nobody notices");
            thread::sleep(Duration::from_millis(5));
        }
        thread::sleep(AFTERWARDS);
        fs::rename(files.path("unplugged"), files.path("tokens")).unwrap();
        let back = Instant::now();
        load.wait_until_served(back);
        thread::sleep(AFTERWARDS);
        let last = load.failures(back, Instant::now()).pop().unwrap_or(back);
        assert!(last - back < BACK, "{:?}: {:?}", last - back, load.causes());
    }
}

fn many_lanes(files: &Files, token: &Token<'_>, label: &str, isolation: &str) -> Server {
    let env = format!("env: {{SOFTHSM2_CONF: {}}}", files.path("softhsm2.conf").display());
    let place = if isolation == "inline" { "isolation: inline" } else { &env };
    let store = token.store([label]).replace(&env, &format!("{place}, limits: {{lanes: 32, deadline: 1s}}"));
    let server = token.serve(&format!("private_key_stores:\n{store}"));
    server.wait_until_ready();
    server
}

/// A key whose signatures take lanes, and one whose signatures are made on the spot.
const ON_LANES: (&str, &str) = ("p384", "EC:secp384r1");
const ON_THE_SPOT: (&str, &str) = ("p256", "EC:prime256v1");

#[test]
fn a_token_that_goes_and_comes_back_under_load_on_many_lanes_is_served() {
    comes_back("inline", ON_LANES);
}

#[test]
fn a_token_that_goes_and_comes_back_under_load_on_many_lanes_in_a_process_is_served() {
    comes_back("process", ON_LANES);
}

#[test]
fn a_token_that_goes_and_comes_back_while_it_signs_on_the_spot_is_served() {
    comes_back("inline", ON_THE_SPOT);
}

#[test]
fn a_token_that_goes_and_comes_back_while_it_signs_on_the_spot_in_a_process_is_served() {
    comes_back("process", ON_THE_SPOT);
}
