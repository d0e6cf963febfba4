//! Stores that fail, hang or lie, beside one that doesn't.

use std::{
    fs,
    time::{Duration, Instant},
};

use keystead_protocol::{ErrorCode, Opcode};

use crate::world::{Client, Files, Server, hostile, ping, request, skis};

/// A server with a hostile store that holds the P-256 key, and a file store with the RSA key.
fn beside(files: &Files, plan: &str, more: &str) -> Server {
    let rsa = files.path("keys/rsa.key");
    Server::start(files, &format!("{}- {{file: {}}}\n{more}", hostile(files, plan), rsa.display()))
}

fn assert_the_other_store_serves(client: &mut Client) {
    assert!(client.ask(skis()["rsa"], Opcode::RSA_SIGN_SHA256, &[1; 32]).is_ok());
}

#[test]
fn a_plugin_that_panics_costs_the_request_and_nothing_else() {
    let files = Files::new();
    let server = beside(&files, "sign: panic", "");
    let mut client = Client::connect(&files, &server);
    for _ in 0..3 {
        assert_eq!(client.ask(skis()["p256"], Opcode::ECDSA_SIGN_SHA256, &[1; 32]), Err(ErrorCode::INTERNAL));
        assert_the_other_store_serves(&mut client);
    }
    server.wait_for("panic");
}

#[test]
fn a_blocking_plugin_that_hangs_is_answered_for_at_the_deadline() {
    let files = Files::new();
    let server = beside(&files, "sign: hang, class: blocking", "limits: {deadline: 3s}\n");
    let mut client = Client::connect(&files, &server);
    let started = Instant::now();
    client.send(&request(1, skis()["p256"], Opcode::ECDSA_SIGN_SHA256, &[1; 32]));
    client.send(&request(2, skis()["rsa"], Opcode::RSA_SIGN_SHA256, &[1; 32]));
    let (id, answer) = client.answer();
    assert_eq!(id, 2, "the other store doesn't wait");
    assert!(answer.is_ok());
    assert_eq!(client.answer(), (1, Err(ErrorCode::CRYPTOGRAPHY)));
    assert!(started.elapsed() >= Duration::from_secs(3));
    server.wait_for("deadline");
}

#[test]
fn a_store_whose_lanes_all_hang_sheds_what_its_queue_cannot_hold() {
    let files = Files::new();
    let rsa = files.path("keys/rsa.key");
    let stores = hostile(&files, "sign: hang, class: blocking")
        .replace("prove: never", "prove: never, limits: {lanes: 1, queue: 1}");
    let server =
        Server::start(&files, &format!("{stores}- {{file: {}}}\nlimits: {{deadline: 30s}}\n", rsa.display()));
    let mut client = Client::connect(&files, &server);
    client.send(
        &(0..8)
            .flat_map(|id| request(id, skis()["p256"], Opcode::ECDSA_SIGN_SHA256, &[1; 32]))
            .collect::<Vec<_>>(),
    );
    let shed = (0..6).map(|_| client.answer().1).filter(|answer| *answer == Err(ErrorCode::INTERNAL)).count();
    assert_eq!(shed, 6, "one runs, one waits, six are shed at once");
    server.wait_for_metric("keystead_shed_total{where=\"queue\"} 6");
    server.wait_for_metric("keystead_store_queue{store=\"hostile\"} 1");
    server.wait_for_metric("keystead_store_lanes{state=\"busy\",store=\"hostile\"} 1");
    assert_the_other_store_serves(&mut client);
}

#[test]
fn an_inline_plugin_that_hangs_loses_only_its_own_connection() {
    let files = Files::new();
    let server = beside(&files, "sign: hang, class: inline", "");
    let mut victims: Vec<Client> = (0..3).map(|_| Client::connect(&files, &server)).collect();
    for victim in &mut victims {
        victim.send(&request(1, skis()["p256"], Opcode::ECDSA_SIGN_SHA256, &[1; 32]));
    }
    for _ in 0..20 {
        let mut other = Client::connect(&files, &server);
        other.send(&ping(2, b"alive"));
        assert_eq!(other.answer(), (2, Ok(b"alive".to_vec())));
        assert_the_other_store_serves(&mut other);
    }
}

#[test]
fn a_key_that_is_not_what_it_says_is_never_used() {
    let files = Files::new();
    let lying = hostile(&files, "sign: by_another_key").replace("prove: never, ", "");
    let server = Server::start(&files, &lying);
    let mut client = Client::connect(&files, &server);
    for _ in 0..2 {
        assert_eq!(client.ask(skis()["p256"], Opcode::ECDSA_SIGN_SHA256, &[1; 32]), Err(ErrorCode::INTERNAL));
    }
    server.wait_for("could not prove itself");
}

#[test]
fn a_wrong_signature_is_held_back_where_signatures_are_verified() {
    let files = Files::new();
    for deed in ["by_another_key", "garbage", "empty", "too_long"] {
        let stores = hostile(&files, &format!("sign: {deed}"))
            .replace("prove: never", "prove: never, verify_signatures: on");
        let server = Server::start(&files, &stores);
        let mut client = Client::connect(&files, &server);
        assert_eq!(
            client.ask(skis()["p256"], Opcode::ECDSA_SIGN_SHA256, &[1; 32]),
            Err(ErrorCode::INTERNAL),
            "{deed}"
        );
    }
}

#[test]
fn ten_megabytes_of_text_become_short_lines() {
    let files = Files::new();
    let server = beside(&files, "sign: shout", "");
    let mut client = Client::connect(&files, &server);
    assert_eq!(client.ask(skis()["p256"], Opcode::ECDSA_SIGN_SHA256, &[1; 32]), Err(ErrorCode::CRYPTOGRAPHY));
    assert_the_other_store_serves(&mut client);
    server.wait_for("a request failed");
    let longest = server.log().lines().map(str::len).max().unwrap();
    assert!(longest < 8192, "a line of {longest} bytes");
    assert!(!server.log().contains('\x1b'), "no terminal is told to do anything");
}

#[test]
fn where_two_stores_hold_a_key_the_second_serves_while_the_first_is_unavailable() {
    let files = Files::new();
    let p256 = files.path("keys/p256.key");
    let server = Server::start(
        &files,
        &format!("{}- {{file: {}}}\n", hostile(&files, "sign: {fail: 7}"), p256.display()),
    );
    server.wait_for("store=\"file-1\"");
    let mut client = Client::connect(&files, &server);
    assert!(client.ask(skis()["p256"], Opcode::ECDSA_SIGN_SHA256, &[1; 32]).is_ok());
}

#[test]
fn a_store_that_cannot_open_is_one_clear_line_and_the_rest_serves() {
    let files = Files::new();
    let rsa = files.path("keys/rsa.key");
    let server = Server::start(
        &files,
        &format!(
            "private_key_stores:\n- {{name: absent, plugin: no-such-plugin}}\n- {{dir: {}/nowhere}}\n- {{file: {}}}\n",
            files.path("").display(),
            rsa.display()
        ),
    );
    let mut client = Client::connect(&files, &server);
    assert_the_other_store_serves(&mut client);
    let line = server.wait_for("store=\"absent\"");
    assert!(line.contains("plugin `no-such-plugin` was not found"), "{line}");
    server.wait_for("nowhere");
    let unknown = client.ask(skis()["p256"], Opcode::ECDSA_SIGN_SHA256, &[1; 32]);
    assert_eq!(unknown, Err(ErrorCode::INTERNAL), "a store that hasn't listed its keys may have it");
}

#[test]
fn a_store_that_was_down_serves_once_it_can() {
    let files = Files::new();
    let late = files.path("late");
    let rsa = files.path("keys/rsa.key");
    let server = Server::start(
        &files,
        &format!("private_key_stores:\n- {{dir: {}}}\n- {{file: {}}}\n", late.display(), rsa.display()),
    );
    server.wait_for("the store is down");
    fs::create_dir(&late).unwrap();
    fs::copy(files.path("keys/ed25519.key"), late.join("www.key")).unwrap();
    server.wait_for("the store is back");
    let mut client = Client::connect(&files, &server);
    assert!(client.ask(skis()["ed25519"], Opcode::ED25519_SIGN, b"message").is_ok());
}

#[test]
fn a_critical_store_that_cannot_open_ends_the_server() {
    let files = Files::new();
    let stores = "private_key_stores: [{name: hsm, plugin: no-such-plugin, critical: true}]\n";
    let mut server = Server::start_unready(&files, stores);
    assert_eq!(server.wait().code(), Some(1));
    assert!(server.log().contains("the critical store `hsm` can't serve"), "{}", server.log());
}

#[test]
fn decryption_needs_the_stores_permission() {
    let files = Files::new();
    let rsa = files.path("keys/rsa.key");
    let native = |more: &str| {
        format!(
            "private_key_stores: [{{name: web, plugin: file, config: {{file: {}}}{more}}}]\n",
            rsa.display()
        )
    };
    let block = [&[0, 2][..], &[1; 254]].concat();
    for (operations, allowed) in [("", false), (", operations: [sign, decrypt]", true)] {
        let server = Server::start(&files, &native(operations));
        let mut client = Client::connect(&files, &server);
        assert!(client.ask(skis()["rsa"], Opcode::RSA_SIGN_SHA256, &[1; 32]).is_ok());
        assert_eq!(client.ask(skis()["rsa"], Opcode::RSA_DECRYPT, &block).is_ok(), allowed);
    }
}

#[test]
fn where_two_stores_hold_a_key_the_one_that_may_does() {
    let files = Files::new();
    let rsa = files.path("keys/rsa.key").display().to_string();
    let stores = format!(
        "private_key_stores:\n- {{name: signs, plugin: file, config: {{file: {rsa}}}}}\n\
         - {{name: decrypts, plugin: file, config: {{file: {rsa}}}, operations: [decrypt]}}\n"
    );
    let server = Server::start(&files, &stores);
    let mut client = Client::connect(&files, &server);
    assert!(client.ask(skis()["rsa"], Opcode::RSA_SIGN_SHA256, &[1; 32]).is_ok());
    assert!(client.ask(skis()["rsa"], Opcode::RSA_DECRYPT, &[&[0, 2][..], &[1; 254]].concat()).is_ok());
}

#[test]
fn where_two_keys_are_of_one_pair_the_one_that_can_is_asked_alone() {
    let files = Files::new();
    let p256 = files.path("keys/p256.key");
    let stores = format!(
        "{}- {{name: other, plugin: file, config: {{file: {}}}}}\n",
        hostile(&files, ""),
        p256.display()
    );
    let server = Server::start(&files, &stores);
    let mut client = Client::connect(&files, &server);
    assert!(
        client.ask(skis()["p256"], Opcode::ECDSA_SIGN_SHA384, &[1; 48]).is_ok(),
        "the first one knows SHA-256 alone"
    );
    let metrics = server.get("/metrics").1;
    let requests = metrics.lines().filter(|line| line.starts_with("keystead_store_requests_total{"));
    let used: Vec<_> = requests.filter(|line| !line.ends_with(" 0")).collect();
    assert_eq!(used, ["keystead_store_requests_total{op=\"sign\",result=\"ok\",store=\"other\"} 1"]);
}

#[test]
fn a_key_that_hangs_while_it_proves_itself_is_answered_for_at_the_deadline() {
    let files = Files::new();
    let stores = hostile(&files, "sign: hang, class: blocking").replace("prove: never, ", "");
    let server = Server::start(&files, &format!("{stores}limits: {{deadline: 1s}}\n"));
    let mut client = Client::connect(&files, &server);
    let started = Instant::now();
    assert_eq!(client.ask(skis()["p256"], Opcode::ECDSA_SIGN_SHA256, &[1; 32]), Err(ErrorCode::CRYPTOGRAPHY));
    assert!(started.elapsed() < Duration::from_secs(20), "the deadline holds for proofs, too");
    assert!(server.get("/readyz").1.contains("hostile: failing"));
}

#[test]
fn refused_credentials_are_presented_no_more() {
    let files = Files::new();
    let server = beside(&files, "sign: {fail: 5}", "");
    let mut client = Client::connect(&files, &server);
    for _ in 0..5 {
        assert_eq!(
            client.ask(skis()["p256"], Opcode::ECDSA_SIGN_SHA256, &[1; 32]),
            Err(ErrorCode::CRYPTOGRAPHY)
        );
    }
    assert_the_other_store_serves(&mut client);
    assert_eq!(server.log().matches("signing").count(), 1, "one call, one attempt:\n{}", server.log());
}

#[test]
fn a_key_whose_backend_fails_once_during_its_proof_may_try_again() {
    let files = Files::new();
    let panics = hostile(&files, "sign: panic").replace("prove: never, ", "");
    let server = Server::start(&files, &panics);
    let mut client = Client::connect(&files, &server);
    for _ in 0..3 {
        assert_eq!(client.ask(skis()["p256"], Opcode::ECDSA_SIGN_SHA256, &[1; 32]), Err(ErrorCode::INTERNAL));
    }
    server.wait_for_times("signing", 3); // it is asked each time
}

#[test]
fn a_store_that_let_a_request_wait_in_vain_comes_after_the_other_that_holds_the_key() {
    let files = Files::new();
    let p256 = files.path("keys/p256.key");
    let stores = hostile(&files, "sign: hang, class: blocking");
    let server =
        Server::start(&files, &format!("{stores}- {{file: {}}}\nlimits: {{deadline: 3s}}\n", p256.display()));
    let mut client = Client::connect(&files, &server);
    let ask = |client: &mut Client| client.ask(skis()["p256"], Opcode::ECDSA_SIGN_SHA256, &[1; 32]);
    for _ in 0..3 {
        assert!(ask(&mut client).is_ok());
    }
    assert_eq!(server.log().matches("signing").count(), 1, "the first was asked once:\n{}", server.log());
}
