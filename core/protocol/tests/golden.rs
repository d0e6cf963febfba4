//! Recorded exchanges with the reference server and client, byte for byte.

#![expect(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a test that can't go on should fail there"
)]

use keystead_protocol::{
    ComplianceRegion, Digest, ErrorCode, Frame, Header, Malformed, Opcode, Request, Response, Ski, Tag,
};
use openssl::pkey::{PKey, Private};
use openssl::sha::sha256;
use serde_json::Value;

#[test]
fn recorded_requests_are_read_unless_the_reference_refused_them() {
    for case in server_cases() {
        let decoded = Request::decode(frame(&case.request).body);
        assert_eq!(decoded.is_ok(), case.reply.is_some(), "{}: {decoded:?}", case.name);
    }
}

#[test]
fn refused_requests_are_refused_for_the_right_reason() {
    let refusal = |name| Request::decode(frame(&server_case(name).request).body).unwrap_err();
    assert_eq!(refusal("duplicate opcode"), Malformed::Duplicate { tag: Tag::OPCODE, offset: 8 });
    assert_eq!(refusal("opcode of 2 bytes"), Malformed::Length { tag: Tag::OPCODE, offset: 0, found: 2 });
    let overrun = Malformed::Overrun { tag: Tag::PAYLOAD, offset: 4, claimed: 16, left: 3 };
    assert_eq!(refusal("item past the end"), overrun);
}

#[test]
fn recorded_replies_are_written_as_they_were() {
    for Case { name, request, reply } in server_cases() {
        let Some(reply) = reply else { continue };
        let Frame { header, body } = frame(&reply);
        assert_eq!(header.id, frame(&request).header.id, "{name}");
        assert_eq!(encoded(header, &Response::decode(body).unwrap()), reply, "{name}");
    }
}

#[test]
fn pings_are_answered_as_recorded() {
    for Case { name, request, reply } in server_cases() {
        let Frame { header, body } = frame(&request);
        let Ok(Request { opcode: Opcode::PING, payload, .. }) = Request::decode(body) else { continue };
        assert_eq!(Some(encoded(header, &Response::Pong(payload))), reply, "{name}");
    }
}

#[test]
fn failures_are_read_as_their_codes() {
    let code = |name| match Response::decode(frame(&server_case(name).reply.unwrap()).body) {
        Ok(Response::Failure(code)) => code,
        other => panic!("{name}: {other:?}"),
    };
    assert_eq!(code("rsa sha256, digest too short"), ErrorCode::CRYPTOGRAPHY);
    assert_eq!(code("unknown ski"), ErrorCode::KEY_NOT_FOUND);
    assert_eq!(code("no opcode"), ErrorCode::BAD_OPCODE);
    assert_eq!(code("pong as request"), ErrorCode::UNEXPECTED_OPCODE);
    assert_eq!(code("no ski"), ErrorCode::INTERNAL);
}

#[test]
fn every_item_is_understood() {
    let case = server_case("request with every item");
    let request = Request::decode(frame(&case.request).body).unwrap();
    let expected = Request {
        opcode: Opcode::RSA_SIGN_SHA256,
        payload: request.payload,
        ski: Some(ski("rsa")),
        digest: Some(Digest(std::array::from_fn(|i| u8::try_from(i).unwrap()))),
        client_ip: Some("192.0.2.1".parse().unwrap()),
        server_ip: Some("2001:db8::1".parse().unwrap()),
        sni: Some(b"www.example.com"),
        cert_id: Some(b"cert-1"),
        context: Some(br#"{"request_id":"r-1"}"#),
        compliance_region: Some(ComplianceRegion::FEDRAMP_HIGH),
        ..Request::default()
    };
    assert_eq!(request, expected);
    assert_eq!(request.payload.len(), 32);
}

#[test]
fn an_all_zero_ski_is_none() {
    let case = server_case("all-zero ski");
    assert_eq!(Request::decode(frame(&case.request).body).unwrap().ski, None);
}

#[test]
fn client_requests_survive_decoding_and_encoding() {
    let fixture = fixture("client.json");
    for case in fixture["requests"].as_array().unwrap() {
        let bytes = hex(&case["request"]);
        let Frame { header, body } = frame(&bytes);
        let mut again = Vec::new();
        Request::decode(body).unwrap().encode(header.id, &mut again).unwrap();
        assert_eq!(again, bytes, "opcode {}", case["opcode"]);
    }
}

#[test]
fn skis_are_those_the_reference_looks_up() {
    for name in ["rsa", "p256", "p384", "ed25519"] {
        let spki = key(name).public_key_to_der().unwrap();
        assert_eq!(Ski::from_spki(&spki).unwrap(), ski(name), "{name}");
    }
}

#[test]
fn digests_cover_the_hex_modulus_of_rsa_keys_only() {
    let rsa = key("rsa");
    let digits = rsa.rsa().unwrap().n().to_hex_str().unwrap().to_uppercase();
    let expected = Digest(sha256(digits.as_bytes()));
    assert_eq!(Digest::from_spki(&rsa.public_key_to_der().unwrap()).unwrap(), Some(expected));
    for other in ["p256", "ed25519"] {
        assert_eq!(Digest::from_spki(&key(other).public_key_to_der().unwrap()).unwrap(), None, "{other}");
    }
}

struct Case {
    name: String,
    request: Vec<u8>,
    reply: Option<Vec<u8>>,
}

fn server_cases() -> Vec<Case> {
    let fixture = fixture("server.json");
    let cases = fixture["cases"].as_array().unwrap().iter();
    let cases: Vec<_> = cases
        .map(|case| Case {
            name: case["case"].as_str().unwrap().to_owned(),
            request: hex(&case["request"]),
            reply: Some(&case["reply"]).filter(|reply| !reply.is_null()).map(hex),
        })
        .collect();
    assert_eq!(cases.len(), 35, "cases of server.json");
    cases
}

fn server_case(name: &str) -> Case {
    server_cases().into_iter().find(|case| case.name == name).unwrap()
}

fn ski(name: &str) -> Ski {
    fixture("server.json")["skis"][name].as_str().unwrap().parse().unwrap()
}

fn key(name: &str) -> PKey<Private> {
    PKey::private_key_from_der(&hex(&fixture("keys.json")["keys"][name])).unwrap()
}

fn frame(bytes: &[u8]) -> Frame<'_> {
    let (frame, rest) = Frame::split(bytes).unwrap();
    assert!(rest.is_empty());
    frame
}

fn encoded(header: Header, response: &Response<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    response.encode(header.id, &mut out).unwrap();
    out
}

fn fixture(name: &str) -> Value {
    let path = format!("{}/tests/fixtures/{name}", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn hex(text: &Value) -> Vec<u8> {
    let digits = text.as_str().unwrap().as_bytes();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.chunks_exact(2).map(byte).collect()
}
