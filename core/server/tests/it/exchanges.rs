//! Every recorded exchange with the reference gets the recorded answer, byte for byte, save where this server differs
//! on purpose.

use keystead_protocol::{ErrorCode, HEADER_LEN, Header, MAX_FRAME, Opcode, Response};

use crate::world::{Client, Files, Server, ping, recorded, request, skis, unhex};

/// What the reference leaves unanswered when it closes the connection: a malformed packet. This server says why first.
const MALFORMED: [&str; 3] = ["duplicate opcode", "opcode of 2 bytes", "item past the end"];

#[test]
fn every_recorded_request_gets_the_recorded_answer() {
    let files = Files::new();
    let server = Server::with_keys(&files, "");
    let cases = recorded("server.json")["cases"].as_array().unwrap().clone();
    assert!(cases.len() >= 34, "the recordings are there");
    for case in cases {
        let name = case["case"].as_str().unwrap();
        let mut client = Client::connect(&files, &server);
        client.send(&unhex(case["request"].as_str().unwrap()));
        match case["reply"].as_str() {
            Some(reply) => assert_eq!(client.receive().unwrap(), unhex(reply), "{name}\n{}", server.log()),
            None => {
                assert!(MALFORMED.contains(&name), "{name}");
                assert_eq!(client.answer(), (7, Err(ErrorCode::FORMAT)), "{name}");
                assert_eq!(client.receive(), None, "{name}: the connection is closed");
            }
        }
    }
}

#[test]
fn every_request_of_the_reference_client_is_understood() {
    let files = Files::new();
    let server = Server::with_keys(&files, "");
    let mut client = Client::connect(&files, &server);
    for recorded in recorded("client.json")["requests"].as_array().unwrap() {
        client.send(&unhex(recorded["request"].as_str().unwrap()));
        let (_, answer) = client.answer();
        assert!(answer.is_ok(), "{} was answered {answer:?}", recorded["opcode"]);
    }
}

#[test]
fn another_major_version_is_told_so_and_the_connection_goes_on() {
    let files = Files::new();
    let server = Server::with_keys(&files, "");
    let mut client = Client::connect(&files, &server);
    let mut other = ping(5, b"x");
    other[0] = 2;
    client.send(&other);
    assert_eq!(client.answer(), (5, Err(ErrorCode::VERSION)));
    client.send(&ping(6, b"x"));
    assert_eq!(client.answer(), (6, Ok(b"x".to_vec())));
}

#[test]
fn what_was_asked_before_a_malformed_packet_is_still_answered() {
    let files = Files::new();
    let server = Server::with_keys(&files, "");
    let mut client = Client::connect(&files, &server);
    let broken = [1, 0, 0, 4, 0, 0, 0, 9, 0x12, 0xff, 0xff, 0];
    client.send(&[ping(1, b"a"), ping(2, b"b"), broken.to_vec(), ping(3, b"c")].concat());
    let mut answers = vec![client.answer(), client.answer(), client.answer()];
    answers.sort_by_key(|(id, _)| *id);
    assert_eq!(answers, [(1, Ok(b"a".to_vec())), (2, Ok(b"b".to_vec())), (9, Err(ErrorCode::FORMAT))]);
    assert_eq!(client.receive(), None);
}

#[test]
fn the_largest_ping_comes_back() {
    let files = Files::new();
    let server = Server::with_keys(&files, "");
    let mut client = Client::connect(&files, &server);
    let payload = vec![b'x'; MAX_FRAME - HEADER_LEN - 7];
    client.send(&ping(1, &payload));
    let frame = client.receive().unwrap();
    assert_eq!(frame.len(), MAX_FRAME);
    assert_eq!(Header::decode(frame[..HEADER_LEN].try_into().unwrap()).id, 1);
    assert_eq!(Response::decode(&frame[HEADER_LEN..]).unwrap(), Response::Pong(&payload));
}

#[test]
fn the_legacy_digest_names_a_key_where_there_is_no_ski() {
    let files = Files::new();
    let server = Server::with_keys(&files, "");
    let mut client = Client::connect(&files, &server);
    let key =
        openssl::pkey::PKey::private_key_from_pkcs8(&std::fs::read(files.path("keys/rsa.key")).unwrap())
            .unwrap();
    let digest = keystead_protocol::Digest::from_spki(&key.public_key_to_der().unwrap()).unwrap().unwrap();
    let by_digest = |digest| {
        let mut bytes = Vec::new();
        let (opcode, payload) = (Opcode::RSA_SIGN_SHA256, &[7; 32][..]);
        let request =
            keystead_protocol::Request { opcode, payload, digest: Some(digest), ..Default::default() };
        request.encode(1, &mut bytes).unwrap();
        bytes
    };
    client.send(&by_digest(digest));
    let signature = client.answer().1.unwrap();
    client.send(&request(1, skis()["rsa"], Opcode::RSA_SIGN_SHA256, &[7; 32]));
    assert_eq!(client.answer().1.unwrap(), signature, "the same key, by its SKI");
    client.send(&by_digest(keystead_protocol::Digest([9; 32])));
    assert_eq!(client.answer().1, Err(ErrorCode::KEY_NOT_FOUND));
}
