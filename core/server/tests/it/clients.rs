//! Many requests, and clients that are slow, hostile or half gone.

use std::{
    collections::HashMap,
    io::{Read, Write},
    net::TcpStream,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use keystead_protocol::{ErrorCode, Opcode, Ski};
use rcgen::ExtendedKeyUsagePurpose;
use rustls::{
    ClientConfig, ProtocolVersion, RootCertStore,
    crypto::aws_lc_rs,
    version::{TLS12, TLS13},
};

use crate::world::{Client, Files, PATIENCE, Server, hostile, ping, request, skis};

#[test]
fn two_thousand_ecdsa_requests_in_flight_on_one_connection_are_all_answered() {
    answers_two_thousand(skis()["p256"], Opcode::ECDSA_SIGN_SHA256);
}

#[test]
fn two_thousand_rsa_requests_in_flight_on_one_connection_are_all_answered() {
    answers_two_thousand(skis()["rsa"], Opcode::RSA_SIGN_SHA256);
}

fn answers_two_thousand(ski: Ski, opcode: Opcode) {
    let files = Files::new();
    let server = Server::with_keys(&files, "");
    let mut client = Client::connect(&files, &server);
    let batch: Vec<u8> = (0..2048).flat_map(|id| request(id, ski, opcode, &[1; 32])).collect();
    client.send(&batch);
    let mut seen = vec![0; 2048];
    for _ in 0..2048 {
        let (id, answer) = client.answer();
        assert!(answer.is_ok(), "{id} was answered {answer:?}");
        seen[id as usize] += 1;
    }
    assert!(seen.iter().all(|times| *times == 1), "each exactly once");
}

#[test]
fn requests_of_one_id_are_each_answered() {
    let files = Files::new();
    let server = Server::with_keys(&files, "");
    let mut client = Client::connect(&files, &server);
    client.send(&(0..32_u8).flat_map(|number| ping(7, &[number])).collect::<Vec<u8>>());
    let mut payloads: Vec<u8> = (0..32)
        .map(|_| client.answer())
        .map(|(id, answer)| {
            assert_eq!(id, 7);
            answer.unwrap()[0]
        })
        .collect();
    payloads.sort_unstable();
    assert_eq!(payloads, (0..32).collect::<Vec<u8>>());
}

#[test]
fn a_fast_request_overtakes_a_slow_one() {
    let files = Files::new();
    let server = Server::start(&files, &hostile(&files, "sign: {slow: 1500}, class: blocking"));
    let slow = skis()["p256"];
    let mut client = Client::connect(&files, &server);
    client.send(&request(1, slow, Opcode::ECDSA_SIGN_SHA256, &[1; 32]));
    client.send(&ping(2, b"fast"));
    assert_eq!(client.answer(), (2, Ok(b"fast".to_vec())));
    let (id, answer) = client.answer();
    assert_eq!(id, 1);
    assert!(answer.is_ok());
}

#[test]
fn a_half_closed_client_still_gets_its_answers() {
    let files = Files::new();
    let server = Server::with_keys(&files, "");
    let mut client = Client::connect(&files, &server);
    let rsa = skis()["rsa"];
    client.send(
        &(0..64).flat_map(|id| request(id, rsa, Opcode::RSA_SIGN_SHA256, &[1; 32])).collect::<Vec<u8>>(),
    );
    client.finish();
    for _ in 0..64 {
        assert!(client.answer().1.is_ok());
    }
    assert_eq!(client.receive(), None);
}

#[test]
fn a_client_that_never_reads_is_closed_and_takes_bounded_memory() {
    let files = Files::new();
    let server = Server::with_keys(&files, "limits: {write_timeout: 1s}\n");
    let before = server.memory();
    let client = Client::connect(&files, &server);
    client.socket().set_write_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut client = client;
    let flood = ping(1, &vec![b'x'; 60_000]);
    let started = Instant::now();
    let mut sent = 0_usize;
    // Ends when the server closes the connection; until then it stops reading long before it has 1 GiB of this.
    while started.elapsed() < PATIENCE && client.try_send(&flood) {
        sent += flood.len();
        assert!(sent < 1 << 30, "the server reads on and on");
    }
    assert!(started.elapsed() < PATIENCE, "the client was not closed");
    let peak = server.figure("VmHWM") << 10;
    assert!(peak < before + (64 << 20), "a client that doesn't read takes the server's memory");
    server.wait_for_metric("keyless_failed_connection 1");
    server.wait_for_metric("keystead_connections_closed_total{reason=\"write_timeout\"} 1");
}

#[test]
fn a_malformed_frame_and_garbage_do_not_cost_a_client_its_answers() {
    let files = Files::new();
    let server = Server::with_keys(&files, "");
    let mut client = Client::connect(&files, &server);
    let pings: Vec<u8> = (0..10).flat_map(|id| ping(id, &[b'x'; 60_000])).collect();
    client.send(&pings);
    client.send(&[1, 0, 0, 3, 0, 0, 0, 10, 0x11, 0xff, 0xff]); // an item that is longer than its frame
    client.send(&[0xff; 80_000]);
    server.wait_for_metric("keyless_failed_connection 1"); // it is done with the connection, and nothing is read yet
    let mut refused = Vec::new();
    for _ in 0..11 {
        match client.answer() {
            (id, Err(code)) => refused.push((id, code)),
            (_, Ok(pong)) => assert_eq!(pong.len(), 60_000),
        }
    }
    assert_eq!(refused, [(10, ErrorCode::FORMAT)]);
    assert_eq!(client.receive(), None);
    server.wait_for_metric("keystead_connections_closed_total{reason=\"malformed\"} 1");
}

#[test]
fn a_client_that_sends_a_byte_a_second_is_closed() {
    let files = Files::new();
    let server = Server::with_keys(&files, "limits: {frame_timeout: 1s}\n");
    let mut client = Client::connect(&files, &server);
    let started = Instant::now();
    for byte in ping(1, &[b'x'; 100]) {
        if !client.try_send(&[byte]) || client.is_closed() {
            break;
        }
        thread::sleep(Duration::from_millis(300));
    }
    assert!(started.elapsed() < Duration::from_secs(20), "one frame kept it for {:?}", started.elapsed());
    server.wait_for_metric("keystead_connections_closed_total{reason=\"frame_timeout\"} 1");
}

#[test]
fn an_idle_client_is_closed_and_a_busy_one_is_not() {
    let files = Files::new();
    let server = Server::with_keys(&files, "limits: {idle_timeout: 3s}\n");
    let (mut idle, mut busy) = (Client::connect(&files, &server), Client::connect(&files, &server));
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(5) {
        busy.send(&ping(1, b"still here"));
        assert!(busy.answer().1.is_ok());
        thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(idle.receive(), None);
    drop(idle);
    server.wait_for_metric("keystead_connections_closed_total{reason=\"idle\"} 1");
}

#[test]
fn a_handshake_that_is_never_finished_is_closed() {
    let files = Files::new();
    let server = Server::with_keys(&files, "limits: {handshake_timeout: 1s}\n");
    let mut socket = half_open(&server);
    let mut rest = Vec::new();
    let _ = socket.read_to_end(&mut rest); // ends at a close or a reset; PATIENCE would make it an error too
    server.wait_for_metric("keyless_failed_connection 1");
    server.wait_for_metric("keystead_tls_handshake_failures_total{reason=\"timeout\"} 1");
}

/// A connection that says the head of a record, whose body never comes.
fn half_open(server: &Server) -> TcpStream {
    let mut socket = TcpStream::connect(server.address).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.write_all(&[0x16, 3, 1, 2, 0]).unwrap();
    socket
}

#[test]
fn of_too_many_handshakes_the_oldest_makes_room() {
    let files = Files::new();
    let server = Server::with_keys(&files, "limits: {handshakes: 2}\n");
    let mut silent = Vec::new();
    for going_on in 1..=2 {
        silent.push(half_open(&server));
        wait_for_handshakes(&server, going_on); // one after the other, so that the first is the oldest
    }
    assert!(is_served(&mut Client::connect(&files, &server)));
    server.wait_for_metric("keystead_shed_total{where=\"handshakes\"} 1");
    let _ = silent[0].read_to_end(&mut Vec::new()); // ends at a close or a reset
    wait_for_handshakes(&server, 1); // the second goes on
    server.wait_for("make room for a newer one");
}

fn wait_for_handshakes(server: &Server, count: u64) {
    let end = Instant::now() + PATIENCE;
    while server.status()["connections"]["handshakes"] != count {
        assert!(Instant::now() < end, "never {count} handshakes:\n{}", server.status());
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn more_connections_than_allowed_wait_for_a_place() {
    let files = Files::new();
    let server = Server::with_keys(&files, "limits: {connections: 1}\n");
    let first = Client::connect(&files, &server);
    let (tls, address) = (files.client_tls(&[&TLS13]), server.address);
    let second = thread::spawn(move || Client::connect_with(tls, address).unwrap());
    server.wait_for_metric("keystead_backpressure_total{where=\"connections\"} 1");
    assert!(!second.is_finished(), "the place is taken");
    drop(first);
    second.join().unwrap();
}

#[test]
fn a_certificate_has_no_more_connections_than_allowed_and_takes_none_from_another() {
    let files = Files::new();
    files.issue("other", 3, ExtendedKeyUsagePurpose::ClientAuth);
    let server = Server::with_keys(&files, "limits: {connections_per_peer: 1}\n");
    let mut first = Client::connect(&files, &server);
    assert!(is_served(&mut first));
    for _ in 0..3 {
        // In TLS 1.3 a client is done before the server has seen its certificate.
        let refused = Client::connect_with(files.client_tls(&[&TLS13]), server.address);
        assert!(refused.is_ok_and(|mut client| client.receive().is_none()));
    }
    let other = files.client_tls_as("other", &[&TLS13]);
    let mut other = Client::connect_with(other, server.address).unwrap();
    assert!(is_served(&mut other) && is_served(&mut first));
    server.wait_for_metric("keystead_shed_total{where=\"peer\"} 3");
    server.wait_for_metric("keystead_tls_handshake_failures_total{reason=\"peer\"} 3");
    server.wait_for("a client is refused");
    let log = server.log();
    let lines: Vec<_> = log.lines().filter(|line| line.contains("a client is refused")).collect();
    assert!(matches!(lines[..], [line] if line.contains("`limits.connections_per_peer`")), "{log}");
}

fn is_served(client: &mut Client) -> bool {
    client.ask(skis()["p256"], Opcode::ECDSA_SIGN_SHA256, &[1; 32]).is_ok()
}

#[test]
fn out_of_descriptors_it_says_so_once_serves_on_and_accepts_again_when_there_are_some() {
    let files = Files::new();
    let config = files.config(&format!("private_key_stores: [{{dir: {}}}]\n", files.path("keys").display()));
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -n 64; exec \"$0\" run -c \"$1\"", env!("CARGO_BIN_EXE_keystead")]);
    command.arg(config);
    let server = Server::spawn(command);
    server.wait_for("`limits.connections` is 4096, and the system allows 64 file descriptors");
    server.wait_until_ready();
    let mut first = Client::connect(&files, &server);
    let silent: Vec<TcpStream> = (0..100).map(|_| half_open(&server)).collect();
    server.wait_for("connections can't be accepted");
    for _ in 0..50 {
        assert!(is_served(&mut first)); // while accepting is tried again and again
        thread::sleep(Duration::from_millis(10));
    }
    drop(silent);
    server.wait_for("connections are accepted again");
    assert!(is_served(&mut Client::connect(&files, &server)) && is_served(&mut first));
    let (_, metrics) = server.get("/metrics"); // whose port had no descriptor meanwhile
    let failures = metrics.lines().find_map(|line| line.strip_prefix("keystead_accept_failures_total "));
    assert!(failures.unwrap().parse::<u32>().unwrap() > 1, "{metrics}");
    let cure = "file descriptors ran out: raise LimitNOFILE= of the unit, or lower `limits.connections`";
    let log = server.log();
    let lines: Vec<_> = log.lines().filter(|line| line.contains("accepted")).collect();
    assert!(matches!(lines[..], [failing, _again] if failing.contains(cure)), "{log}");
}

#[test]
fn requests_beyond_the_limit_of_a_connection_wait_for_an_answer_to_leave() {
    let files = Files::new();
    let server = Server::with_keys(&files, "limits: {in_flight: 1}\n");
    let mut client = Client::connect(&files, &server);
    client.send(&[ping(1, b"first"), ping(2, b"second")].concat());
    assert_eq!(client.answer(), (1, Ok(b"first".to_vec())));
    assert_eq!(client.answer(), (2, Ok(b"second".to_vec())));
    server.wait_for_metric("keystead_backpressure_total{where=\"requests\"} 1");
}

#[test]
fn clients_that_connect_and_say_nothing_keep_nobody_out() {
    let files = Files::new();
    let server = Server::with_keys(&files, "limits: {connections: 3}\n"); // and 1,024 handshakes
    let silent: Vec<_> = (0..3).map(|_| TcpStream::connect(server.address).unwrap()).collect();
    let mut clients: Vec<_> = (0..3).map(|_| Client::connect(&files, &server)).collect();
    for client in &mut clients {
        client.send(&ping(1, b"alive"));
        assert!(client.answer().1.is_ok());
    }
    server.wait_for_metric("keystead_shed_total{where=\"handshakes\"} 3");
    drop(silent);
}

#[test]
fn both_versions_of_tls_are_spoken_and_a_setting_narrows_them() {
    let files = Files::new();
    let server = Server::with_keys(&files, "");
    for (offered, spoken) in [(&TLS12, ProtocolVersion::TLSv1_2), (&TLS13, ProtocolVersion::TLSv1_3)] {
        let client = Client::connect_with(files.client_tls(&[offered]), server.address).unwrap();
        assert_eq!(client.version(), spoken);
    }
    let old = Server::with_keys(&files, "tls: {versions: [\"1.2\"]}\n");
    assert!(Client::connect_with(files.client_tls(&[&TLS13]), old.address).is_err());
    assert!(Client::connect_with(files.client_tls(&[&TLS12]), old.address).is_ok());
}

#[test]
fn a_client_without_a_certificate_of_the_ca_is_refused() {
    let (files, strangers) = (Files::new(), Files::new());
    let server = Server::with_keys(&files, "");
    let mut roots = RootCertStore::empty();
    use rustls::pki_types::pem::PemObject;
    roots.add(rustls::pki_types::CertificateDer::from_pem_file(files.path("ca.pem")).unwrap()).unwrap();
    let provider = std::sync::Arc::new(aws_lc_rs::default_provider());
    let nobody = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS12])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    assert!(Client::connect_with(std::sync::Arc::new(nobody), server.address).is_err());
    assert!(Client::connect_with(strangers.client_tls(&[&TLS12]), server.address).is_err());
    assert!(Client::connect_with(files.client_tls(&[&TLS12]), server.address).is_ok());
}

#[test]
fn an_opcode_that_does_not_fit_the_key_is_refused() {
    let files = Files::new();
    let server = Server::with_keys(&files, "");
    let mut client = Client::connect(&files, &server);
    let families: HashMap<&str, &[u8]> = HashMap::from([
        ("rsa", &[0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07, 0x35, 0x36, 0x37][..]),
        ("p256", &[0x12, 0x13, 0x14, 0x15, 0x16, 0x17][..]),
        ("p384", &[0x12, 0x13, 0x14, 0x15, 0x16, 0x17][..]),
        ("ed25519", &[0x18][..]),
    ]);
    let lengths: HashMap<u8, usize> = HashMap::from([
        (0x01, 256),
        (0x02, 36),
        (0x03, 20),
        (0x04, 28),
        (0x05, 32),
        (0x06, 48),
        (0x07, 64),
        (0x35, 32),
        (0x36, 48),
        (0x37, 64),
        (0x12, 36),
        (0x13, 20),
        (0x14, 28),
        (0x15, 32),
        (0x16, 48),
        (0x17, 64),
        (0x18, 32),
    ]);
    for (key, ski) in skis() {
        for (opcode, length) in &lengths {
            let answer = client.ask(ski, Opcode(*opcode), &vec![1; *length]);
            let fits = families[key.as_str()].contains(opcode);
            assert_eq!(answer.is_ok(), fits, "opcode {opcode:#x} with the key {key}");
            assert!(fits || answer == Err(ErrorCode::CRYPTOGRAPHY));
            if fits && *opcode != 0x18 && *opcode != 0x01 {
                let short = client.ask(ski, Opcode(*opcode), &vec![1; length - 1]);
                assert_eq!(
                    short,
                    Err(ErrorCode::CRYPTOGRAPHY),
                    "a digest of the wrong length, {opcode:#x} {key}"
                );
            }
        }
    }
}
