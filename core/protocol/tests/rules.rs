//! What a receiver accepts, ignores and refuses, and what a sender pads: one claim a test.

#![expect(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a test that can't go on should fail there"
)]

use keystead_protocol::{
    ComplianceRegion, Digest, ErrorCode, Frame, MAX_BODY, Malformed, Opcode, Request, Response, Ski, Tag,
    TooLong,
};

const SKI: [u8; 20] = [7; 20];

#[test]
fn an_empty_body_is_a_request_without_an_opcode() {
    assert_eq!(Request::decode(b"").unwrap(), Request::default());
    assert_eq!(Request::default().opcode, Opcode(0));
}

#[test]
fn one_or_two_trailing_bytes_are_ignored() {
    let body = item(Tag::OPCODE, &[0xf1]);
    for trailing in [&[0x12][..], &[0x12, 0x00]] {
        let body = [&body, trailing].concat();
        let request = Request::decode(&body).unwrap();
        assert_eq!(request, Request { opcode: Opcode::PING, ..Request::default() });
    }
}

#[test]
fn unknown_tags_are_skipped_even_repeated() {
    let unknown = [item(Tag(0x30), b"a"), item(Tag(0x30), b"b"), item(Tag(0xff), b"c"), item(Tag(0x44), b"")];
    assert_eq!(Request::decode(&unknown.concat()).unwrap(), Request::default());
}

#[test]
fn every_known_tag_may_occur_once_only() {
    let known = (0..=u8::MAX).map(Tag).filter(|tag| tag.name().is_some());
    let mut count = 0;
    for tag in known {
        let length = if matches!(tag, Tag::CLIENT_IP | Tag::SERVER_IP) { 4 } else { 1 };
        let once = item(tag, &vec![1; length]);
        let twice = [once.clone(), once.clone()].concat();
        assert!(Request::decode(&once).is_ok(), "{tag}");
        assert_eq!(Request::decode(&twice), Err(Malformed::Duplicate { tag, offset: 3 + length }), "{tag}");
        count += 1;
    }
    assert_eq!(count, 14);
}

#[test]
fn items_that_run_past_the_end_are_refused_wherever_they_stand() {
    for tag in [Tag::PAYLOAD, Tag::PADDING, Tag(0x99)] {
        let body = [item(Tag::OPCODE, &[1]), vec![tag.0, 0, 2, 0]].concat();
        let expected = Malformed::Overrun { tag, offset: 4, claimed: 2, left: 1 };
        assert_eq!(Request::decode(&body), Err(expected));
    }
}

#[test]
fn a_wrong_length_of_opcode_address_or_region_is_refused() {
    for (tag, lengths) in [
        (Tag::OPCODE, &[0, 2][..]),
        (Tag::CLIENT_IP, &[0, 3, 5, 15, 17]),
        (Tag::SERVER_IP, &[0, 3, 5, 15, 17]),
        (Tag::COMPLIANCE_REGION, &[0, 2]),
    ] {
        for &found in lengths {
            let expected = Malformed::Length { tag, offset: 0, found };
            assert_eq!(Request::decode(&item(tag, &vec![1; found])), Err(expected));
        }
    }
}

#[test]
fn a_ski_or_digest_of_a_wrong_length_or_of_zeros_is_none() {
    for ski in [&[1; 19][..], &[1; 21], &[], &[0; 20]] {
        assert_eq!(Request::decode(&item(Tag::SKI, ski)).unwrap().ski, None);
    }
    for digest in [&[1; 31][..], &[1; 33], &[], &[0; 32]] {
        assert_eq!(Request::decode(&item(Tag::DIGEST, digest)).unwrap().digest, None);
    }
    assert_eq!(Request::decode(&item(Tag::SKI, &SKI)).unwrap().ski, Some(Ski(SKI)));
    assert_eq!(Request::decode(&item(Tag::DIGEST, &[2; 32])).unwrap().digest, Some(Digest([2; 32])));
}

#[test]
fn a_request_is_sent_in_the_order_of_the_reference() {
    let request = Request {
        opcode: Opcode::CUSTOM,
        payload: b"p",
        extra: b"e",
        ski: Some(Ski(SKI)),
        digest: Some(Digest([2; 32])),
        client_ip: Some("192.0.2.1".parse().unwrap()),
        server_ip: Some("2001:db8::1".parse().unwrap()),
        sni: Some(b"s"),
        cert_id: Some(b"c"),
        custom_function: Some(b"f"),
        jaeger_span: Some(b"j"),
        context: Some(b"{}"),
        compliance_region: Some(ComplianceRegion::FEDRAMP_HIGH),
    };
    let order = [0x11, 0x12, 0x14, 0x04, 0x01, 0x03, 0x05, 0x02, 0x06, 0x13, 0x15, 0x16, 0x17, 0x20];
    assert_eq!(tags(&sent(&request)), order);
}

#[test]
fn absent_and_empty_items_are_not_sent() {
    let request = Request { ski: Some(Ski([0; 20])), digest: Some(Digest([0; 32])), ..Request::default() };
    assert_eq!(tags(&sent(&request)), [0x11, 0x20]);
}

#[test]
fn an_ipv4_mapped_address_is_sent_and_read_as_ipv4() {
    let mapped = Some("::ffff:192.0.2.1".parse().unwrap());
    let frame = sent(&Request { client_ip: mapped, server_ip: mapped, ..Request::default() });
    assert_eq!(frame[12..26], [3, 0, 4, 192, 0, 2, 1, 5, 0, 4, 192, 0, 2, 1]);
    let mapped = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 0, 2, 1];
    let body = item(Tag::CLIENT_IP, &mapped);
    let read = Request::decode(&body).unwrap();
    assert_eq!(read.client_ip, Some("192.0.2.1".parse().unwrap()));
}

#[test]
fn padding_has_the_edges_of_the_reference() {
    for (items, frame) in [(4, 1024), (1013, 1024), (1014, 1025), (1015, 1026), (1016, 1024), (1017, 1025)] {
        let payload = vec![1; usize::saturating_sub(items, 7)];
        let request = sent(&Request { payload: &payload, ..Request::default() });
        let mut response = Vec::new();
        Response::Success(&payload).encode(0, &mut response).unwrap();
        assert_eq!((request.len(), response.len()), (frame, frame), "{items} bytes of items");
        assert_eq!(tags(&request).contains(&0x20), items < 1016, "{items} bytes of items");
    }
}

#[test]
fn the_longest_payload_fills_the_body() {
    let mut out = Vec::new();
    Response::Pong(&vec![1; 65_528]).encode(9, &mut out).unwrap();
    let (frame, rest) = Frame::split(&out).unwrap();
    assert_eq!((frame.body.len(), rest.len()), (MAX_BODY, 0));
}

#[test]
fn what_does_not_fit_leaves_the_buffer_alone() {
    let mut out = b"before".to_vec();
    for length in [65_529, 65_535, 65_536, 200_000] {
        assert_eq!(Response::Success(&vec![1; length]).encode(9, &mut out), Err(TooLong));
        assert_eq!(out, b"before");
    }
    let half = vec![1; 40_000];
    let request = Request { payload: &half, extra: &half, ..Request::default() };
    assert_eq!(request.encode(9, &mut out), Err(TooLong));
    assert_eq!(out, b"before");
}

#[test]
fn frames_are_appended_behind_each_other() {
    let mut out = Vec::new();
    Response::Pong(b"a").encode(1, &mut out).unwrap();
    Response::Failure(ErrorCode::INTERNAL).encode(2, &mut out).unwrap();
    let (first, rest) = Frame::split(&out).unwrap();
    let (second, rest) = Frame::split(rest).unwrap();
    assert_eq!((first.header.id, Response::decode(first.body)), (1, Ok(Response::Pong(b"a"))));
    let failure = Response::Failure(ErrorCode::INTERNAL);
    assert_eq!((second.header.id, Response::decode(second.body)), (2, Ok(failure)));
    assert!(rest.is_empty());
}

#[test]
fn an_answer_needs_the_opcode_of_one() {
    for opcode in [Opcode(0), Opcode::PING, Opcode::RSA_SIGN_SHA256, Opcode(0x42)] {
        let refused = Response::decode(&item(Tag::OPCODE, &[opcode.0])).unwrap_err();
        assert_eq!(refused, Malformed::NotAnAnswer { opcode });
    }
}

#[test]
fn a_failure_has_exactly_one_byte_of_payload() {
    let failure = item(Tag::OPCODE, &[0xff]);
    assert_eq!(refused_length(&failure), 0);
    assert_eq!(refused_length(&[failure.clone(), item(Tag::PAYLOAD, b"")].concat()), 0);
    assert_eq!(refused_length(&[item(Tag::PAYLOAD, b"ab"), failure.clone()].concat()), 2);
    let unlisted = [failure, item(Tag::PAYLOAD, &[0x7f])].concat();
    assert_eq!(Response::decode(&unlisted), Ok(Response::Failure(ErrorCode(0x7f))));
}

#[test]
fn debug_output_of_an_answer_hides_its_payload() {
    assert_eq!(format!("{:?}", Response::Success(b"premaster")), "Success(9 bytes)");
}

#[test]
fn malformed_says_what_and_where() {
    let error = Malformed::Overrun { tag: Tag::PAYLOAD, offset: 4, claimed: 16, left: 3 };
    assert_eq!(error.to_string(), "item `payload` at byte 4 of the body claims 16 bytes, 3 are left");
}

#[test]
fn key_names_are_forty_hex_digits() {
    let ski: Ski = "8996F9702448d4795a63479dfa5623c9ab1e19d3".parse().unwrap();
    assert_eq!(ski.to_string(), "8996f9702448d4795a63479dfa5623c9ab1e19d3");
    for text in
        ["", "8996", "8996f9702448d4795a63479dfa5623c9ab1e19d", "8996f9702448d4795a63479dfa5623c9ab1e19dg"]
    {
        assert_eq!(
            text.parse::<Ski>().unwrap_err().to_string(),
            "not the name of a key: expected 40 hex digits"
        );
    }
    assert!("8996f9702448d4795a63479dfa5623c9ab1e19d3a".parse::<Ski>().is_err());
    assert!("é996f9702448d4795a63479dfa5623c9ab1e19d3".parse::<Ski>().is_err());
}

#[test]
fn what_is_no_public_key_has_no_name() {
    for spki in [&b""[..], &[0x30, 0x00], &[0x30, 0x84, 0xff, 0xff, 0xff, 0xff]] {
        assert!(Ski::from_spki(spki).is_err());
        assert!(Digest::from_spki(spki).is_err());
    }
}

fn refused_length(body: &[u8]) -> usize {
    match Response::decode(body) {
        Err(Malformed::Length { tag: Tag::PAYLOAD, found, .. }) => found,
        other => panic!("{other:?}"),
    }
}

fn item(tag: Tag, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(value.len()).unwrap().to_be_bytes();
    [&[tag.0], &length[..], value].concat()
}

fn sent(request: &Request<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    request.encode(0, &mut out).unwrap();
    out
}

/// The tags of a frame, read without the code under test.
fn tags(frame: &[u8]) -> Vec<u8> {
    let mut rest = &frame[8..];
    let mut tags = Vec::new();
    while let [tag, high, low, tail @ ..] = rest {
        tags.push(*tag);
        rest = &tail[usize::from(u16::from_be_bytes([*high, *low]))..];
    }
    tags
}
