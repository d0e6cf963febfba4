//! The client against a key server that does what each test wants.

#![expect(clippy::unwrap_used, reason = "a test that can't go on should fail there")]

mod key_server;

use std::collections::HashSet;
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use key_server::{Exchange, KeyServer, Pki};
use keystead_client::{Client, Error, ProtocolError};
use keystead_protocol::{ErrorCode, Malformed, Opcode, Request, Response, Ski, Tag, TooLong};
use tokio::task::JoinSet;

/// Long enough that reaching it means that something hangs.
const LONG: Duration = Duration::from_secs(30);

/// Short, for requests that are never answered.
const SHORT: Duration = Duration::from_millis(50);

#[tokio::test]
async fn answers_find_their_requests_in_any_order() {
    let pki = Pki::new();
    let held = Mutex::new(Vec::<Exchange>::new());
    let server = KeyServer::start(&pki, move |exchange| {
        let mut held = held.lock().unwrap();
        held.push(exchange);
        if held.len() == 200 {
            let ids: HashSet<_> = held.iter().map(|exchange| exchange.id).collect();
            assert_eq!(ids.len(), 200, "ids in flight");
            held.drain(..).rev().for_each(|exchange| exchange.pong());
        }
    });
    let client = client(&pki, &[server.address()]);
    let mut pings = JoinSet::new();
    for number in 0..200_u32 {
        let client = client.clone();
        pings.spawn(async move { (client.ping(&number.to_be_bytes()).await, number) });
    }
    while let Some(answered) = pings.join_next().await {
        let (answer, number) = answered.unwrap();
        assert_eq!(answer.unwrap(), number.to_be_bytes());
    }
    assert_eq!(server.connections(), 1);
}

#[tokio::test]
async fn a_request_without_an_answer_ends_at_its_deadline_and_a_late_answer_is_ignored() {
    let pki = Pki::new();
    let held = Mutex::new(None::<Exchange>);
    let server = KeyServer::start(&pki, move |exchange| {
        let mut held = held.lock().unwrap();
        match (exchange.payload.as_slice(), held.take()) {
            (b"late", _) => *held = Some(exchange),
            (_, late) => late.iter().chain([&exchange]).for_each(Exchange::pong),
        }
    });
    let client = client(&pki, &[server.address()]);
    assert_eq!(client.ping(b"first").await.unwrap(), b"first");
    let outcome = client.request_within(&ping(b"late"), SHORT).await;
    assert!(matches!(outcome, Err(Error::Deadline(SHORT))), "{outcome:?}");
    assert_eq!(client.ping(b"second").await.unwrap(), b"second");
    assert_eq!(server.connections(), 1);
}

#[tokio::test]
async fn an_answer_to_nobody_is_ignored() {
    let pki = Pki::new();
    let server = KeyServer::start(&pki, |exchange| {
        exchange.answer_as(exchange.id + 1000, &Response::Pong(b"stray"));
        exchange.pong();
        exchange.answer(&Response::Pong(b"again"));
    });
    let client = client(&pki, &[server.address()]);
    assert_eq!(client.ping(b"one").await.unwrap(), b"one");
    assert_eq!(client.ping(b"two").await.unwrap(), b"two");
}

#[tokio::test]
async fn error_codes_are_passed_on() {
    let pki = Pki::new();
    let server =
        KeyServer::start(&pki, |exchange| exchange.answer(&Response::Failure(ErrorCode::KEY_NOT_FOUND)));
    let client = client(&pki, &[server.address()]);
    let outcome = client.sign(Ski([1; 20]), Opcode::ECDSA_SIGN_SHA256, &[0; 32]).await;
    assert!(matches!(outcome, Err(Error::Failure(ErrorCode::KEY_NOT_FOUND))), "{outcome:?}");
}

#[tokio::test]
async fn unusable_answers_are_errors_of_that_request_alone() {
    let pki = Pki::new();
    let server = KeyServer::start(&pki, |exchange| match exchange.payload.as_slice() {
        b"empty" => exchange.answer(&Response::Success(b"")),
        b"pong" => exchange.pong(),
        b"twice" => exchange
            .send([&[1, 0, 0, 8], &exchange.id.to_be_bytes()[..], &[0x11, 0, 1, 0xf0].repeat(2)].concat()),
        _ => exchange.answer(&Response::Success(b"fine")),
    });
    let client = client(&pki, &[server.address()]);
    let error = async |payload: &[u8]| match client.sign(Ski([1; 20]), Opcode::ED25519_SIGN, payload).await {
        Err(Error::Protocol(error)) => error,
        other => panic!("{other:?}"),
    };
    assert_eq!(error(b"empty").await, ProtocolError::Empty);
    assert_eq!(error(b"pong").await, ProtocolError::Mismatch);
    let duplicate = Malformed::Duplicate { tag: Tag::OPCODE, offset: 4 };
    assert_eq!(error(b"twice").await, ProtocolError::Malformed(duplicate));
    assert_eq!(client.sign(Ski([1; 20]), Opcode::ED25519_SIGN, b"good").await.unwrap(), b"fine");
    assert_eq!(server.connections(), 1);
}

#[tokio::test]
async fn an_unknown_version_ends_the_connection() {
    let pki = Pki::new();
    let server = KeyServer::start(&pki, |exchange| exchange.send(vec![2, 0, 0, 0, 0, 0, 0, 0]));
    let error = client(&pki, &[server.address()]).ping(b"x").await.unwrap_err();
    assert!(error.to_string().ends_with("key server speaks version 2, expected 1"), "{error}");
}

#[tokio::test]
async fn a_request_is_sent_once_more_when_the_connection_breaks() {
    let pki = Pki::new();
    let server = KeyServer::start(&pki, |exchange| match exchange.connection {
        0 => exchange.hang_up(),
        _ => exchange.pong(),
    });
    let client = client(&pki, &[server.address()]);
    assert_eq!(client.ping(b"x").await.unwrap(), b"x");
    assert_eq!(server.connections(), 2);
}

#[tokio::test]
async fn a_request_is_not_sent_a_third_time() {
    let pki = Pki::new();
    let server = KeyServer::start(&pki, |exchange| exchange.hang_up());
    let outcome = client(&pki, &[server.address()]).ping(b"x").await;
    assert!(matches!(outcome, Err(Error::Transport { .. })), "{outcome:?}");
    assert_eq!(server.connections(), 2);
}

#[tokio::test]
async fn an_idle_connection_that_was_closed_is_replaced() {
    let pki = Pki::new();
    let server = KeyServer::start(&pki, |exchange| {
        exchange.pong();
        exchange.hang_up();
    });
    let client = client(&pki, &[server.address()]);
    for count in 1..=3 {
        assert_eq!(client.ping(b"x").await.unwrap(), b"x");
        server.next_ending().unwrap();
        assert_eq!(server.connections(), count);
    }
}

#[tokio::test]
async fn the_next_address_is_tried_when_one_is_closed() {
    let pki = Pki::new();
    let server = KeyServer::start(&pki, |exchange| exchange.pong());
    let client = client(&pki, &[&closed_port(), server.address()]);
    assert_eq!(client.ping(b"x").await.unwrap(), b"x");
}

#[tokio::test]
async fn the_next_address_is_tried_when_a_connection_breaks() {
    let pki = Pki::new();
    let broken = KeyServer::start(&pki, |exchange| exchange.hang_up());
    let server = KeyServer::start(&pki, |exchange| exchange.pong());
    let client = client(&pki, &[broken.address(), server.address()]);
    assert_eq!(client.ping(b"x").await.unwrap(), b"x");
    assert_eq!((broken.connections(), server.connections()), (1, 1));
}

#[tokio::test]
async fn an_address_that_never_shakes_hands_is_passed_over() {
    let pki = Pki::new();
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let server = KeyServer::start(&pki, |exchange| exchange.pong());
    let silent = silent.local_addr().unwrap().to_string();
    let patience = Duration::from_secs(1); // the address that answers has to do so within it too
    let client =
        pki.client(&[&silent, server.address()]).connect_timeout(patience).deadline(LONG).build().unwrap();
    assert_eq!(client.ping(b"x").await.unwrap(), b"x");
}

#[tokio::test]
async fn a_connection_that_went_silent_is_replaced() {
    let pki = Pki::new();
    let server =
        KeyServer::start(&pki, |exchange| match (exchange.connection, exchange.payload.as_slice()) {
            (0, b"lost") => {}
            _ => exchange.pong(),
        });
    let client = pki.client(&[server.address()]).deadline(LONG).dead_after(SHORT).build().unwrap();
    assert_eq!(client.ping(b"x").await.unwrap(), b"x");
    assert!(matches!(client.request_within(&ping(b"lost"), 2 * SHORT).await, Err(Error::Deadline(_))));
    assert_eq!(client.ping(b"lost").await.unwrap(), b"lost");
    assert_eq!(server.connections(), 2);
}

#[tokio::test]
async fn unreachable_key_servers_are_not_hammered() {
    let pki = Pki::new();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let dials = Arc::new(Mutex::new(0));
    let counter = Arc::clone(&dials);
    tokio::spawn(async move {
        loop {
            drop(listener.accept().await.unwrap());
            *counter.lock().unwrap() += 1;
        }
    });
    let client = client(&pki, &[&address]);
    for _ in 0..50 {
        assert!(matches!(client.ping(b"x").await, Err(Error::Transport { .. })));
    }
    assert!(*dials.lock().unwrap() < 50);
}

#[tokio::test]
async fn a_key_server_of_another_authority_is_refused() {
    let pki = Pki::new();
    let server = KeyServer::start(&Pki::new(), |exchange| exchange.pong());
    let error = client(&pki, &[server.address()]).ping(b"x").await.unwrap_err();
    assert!(matches!(&error, Error::Transport { .. }), "{error:?}");
    assert!(error.to_string().contains("invalid peer certificate"), "{error}");
}

#[tokio::test]
async fn requests_beyond_the_bound_wait() {
    let pki = Pki::new();
    let (seen, arrivals) = mpsc::channel();
    let server = KeyServer::start(&pki, move |exchange| seen.send(exchange).unwrap());
    let client = pki.client(&[server.address()]).deadline(LONG).max_in_flight(2).build().unwrap();
    let mut pings = JoinSet::new();
    for _ in 0..2 {
        let client = client.clone();
        pings.spawn(async move { client.ping(b"held").await });
    }
    let (held, arrivals) = tokio::task::spawn_blocking(move || {
        let held = [arrivals.recv().unwrap(), arrivals.recv().unwrap()];
        (held, arrivals)
    })
    .await
    .unwrap();
    for _ in 0..3 {
        let outcome = client.request_within(&ping(b"waits"), SHORT).await;
        assert!(matches!(outcome, Err(Error::Deadline(_))), "{outcome:?}");
    }
    assert!(arrivals.try_recv().is_err(), "a third request was sent");
    held.iter().for_each(Exchange::pong);
    while let Some(answered) = pings.join_next().await {
        assert_eq!(answered.unwrap().unwrap(), b"held");
    }
}

#[tokio::test]
async fn closing_waits_for_what_is_in_flight_and_says_goodbye() {
    let pki = Pki::new();
    let (seen, arrivals) = mpsc::channel();
    let server = KeyServer::start(&pki, move |exchange| seen.send(exchange).unwrap());
    let client = client(&pki, &[server.address()]);
    let (asking, other) = (client.clone(), client.clone());
    let asked = tokio::spawn(async move { asking.ping(b"x").await });
    let exchange = tokio::task::spawn_blocking(move || arrivals.recv().unwrap()).await.unwrap();
    let mut closing = tokio::spawn(client.close());
    assert!(tokio::time::timeout(SHORT, &mut closing).await.is_err(), "closed too early");
    exchange.pong();
    closing.await.unwrap();
    assert_eq!(asked.await.unwrap().unwrap(), b"x");
    server.next_ending().unwrap();
    assert!(matches!(other.ping(b"x").await, Err(Error::Closed)));
}

#[tokio::test]
async fn dropping_the_last_clone_closes_the_connection() {
    let pki = Pki::new();
    let server = KeyServer::start(&pki, |exchange| exchange.pong());
    let client = client(&pki, &[server.address()]);
    assert_eq!(client.ping(b"x").await.unwrap(), b"x");
    drop(client);
    server.next_ending().unwrap();
}

#[test]
fn works_without_a_runtime() {
    let pki = Pki::new();
    let server = KeyServer::start(&pki, |exchange| exchange.pong());
    let client = client(&pki, &[server.address()]);
    assert_eq!(client.request_blocking(&ping(b"x")).unwrap(), b"x");
}

#[tokio::test(flavor = "current_thread")]
async fn blocking_the_only_thread_of_a_runtime_does_not_deadlock() {
    let pki = Pki::new();
    let server = KeyServer::start(&pki, |exchange| exchange.pong());
    let client = client(&pki, &[server.address()]);
    assert_eq!(client.ping(b"x").await.unwrap(), b"x");
    assert_eq!(client.request_blocking(&ping(b"y")).unwrap(), b"y");
}

#[tokio::test]
async fn what_does_not_fit_is_not_sent() {
    let pki = Pki::new();
    let server = KeyServer::start(&pki, |exchange| exchange.pong());
    let client = client(&pki, &[server.address()]);
    let outcome = client.ping(&vec![0; 70_000]).await;
    assert!(matches!(outcome, Err(Error::TooLong(TooLong))), "{outcome:?}");
    let largest = vec![7; 65_528];
    assert_eq!(client.ping(&largest).await.unwrap(), largest);
}

#[test]
fn a_client_needs_an_address() {
    assert!(matches!(Pki::new().client(&[]).build(), Err(Error::NoAddress)));
}

#[test]
fn unusable_files_are_named() {
    let pki = Pki::new();
    std::fs::write(pki.path("empty.pem"), "").unwrap();
    let [ca, chain, key, empty] =
        ["ca.pem", "client.pem", "client-key.pem", "empty.pem"].map(|name| pki.path(name));
    assert!(keystead_client::client_config(&ca, &chain, &key).is_ok());
    let missing = pki.path("missing.pem");
    for (files, culprit) in [
        ([&empty, &chain, &key], &empty),
        ([&ca, &empty, &key], &empty),
        ([&ca, &chain, &empty], &empty),
        ([&missing, &chain, &key], &missing),
        ([&ca, &ca, &key], &key), // not the key of that certificate
    ] {
        let [ca, chain, key] = files;
        let error = keystead_client::client_config(ca, chain, key).unwrap_err();
        assert_eq!(error.path(), culprit, "{error}");
    }
}

fn client(pki: &Pki, addresses: &[&str]) -> Client {
    pki.client(addresses).deadline(LONG).build().unwrap()
}

fn ping(payload: &[u8]) -> Request<'_> {
    Request { opcode: Opcode::PING, payload, ..Request::default() }
}

/// An address where nobody listens; its port was free a moment ago.
fn closed_port() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().to_string()
}
