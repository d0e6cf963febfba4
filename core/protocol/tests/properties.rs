//! Properties of the codec over generated requests, answers and bytes.

#![expect(clippy::unwrap_used, reason = "a test that can't go on should fail there")]

use std::net::IpAddr;

use keystead_protocol::{
    ComplianceRegion, Digest, ErrorCode, Frame, MAX_BODY, Opcode, Request, Response, Ski, TooLong,
};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

proptest! {
    #[test]
    fn what_is_sent_is_received(parts in parts(), id: u32) {
        let request = parts.request();
        let mut bytes = Vec::new();
        request.encode(id, &mut bytes).unwrap();
        let (frame, rest) = Frame::split(&bytes).unwrap();
        prop_assert_eq!(frame.header.id, id);
        prop_assert!(rest.is_empty() && bytes.len() >= 1024);
        prop_assert_eq!(Request::decode(frame.body).unwrap(), request);
    }

    #[test]
    fn answers_are_received_as_sent(kind in 0..3, code: u8, payload in vec(any::<u8>(), 0..2048), id: u32) {
        let response = match kind {
            0 => Response::Failure(ErrorCode(code)),
            1 => Response::Pong(&payload),
            _ => Response::Success(&payload),
        };
        let mut bytes = Vec::new();
        response.encode(id, &mut bytes).unwrap();
        let (frame, _) = Frame::split(&bytes).unwrap();
        prop_assert_eq!(frame.header.id, id);
        prop_assert_eq!(Response::decode(frame.body), Ok(response));
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in vec(any::<u8>(), 0..4096)) {
        let _ = Frame::split(&bytes);
        let _ = Response::decode(&bytes);
        let _ = (Ski::from_spki(&bytes), Digest::from_spki(&bytes));
        let _ = Request::decode(&bytes);
    }

    #[test]
    fn arbitrary_items_are_stable_once_read(items in vec((any::<u8>(), vec(any::<u8>(), 0..40)), 0..12)) {
        let body: Vec<u8> = items.iter().flat_map(|(tag, value)| item(*tag, value)).collect();
        let Ok(request) = Request::decode(&body) else { return Ok(()) };
        let mut bytes = Vec::new();
        request.encode(1, &mut bytes).unwrap();
        let (frame, _) = Frame::split(&bytes).unwrap();
        prop_assert_eq!(Request::decode(frame.body).unwrap(), request);
    }

    #[test]
    fn a_frame_is_found_whatever_follows(body in vec(any::<u8>(), 0..300), tail in vec(any::<u8>(), 0..300)) {
        let length = u16::try_from(body.len()).unwrap().to_be_bytes();
        let bytes = [&[1, 0][..], &length, &[0, 0, 0, 1], &body, &tail].concat();
        let (frame, rest) = Frame::split(&bytes).unwrap();
        prop_assert_eq!((frame.body, rest), (&body[..], &tail[..]));
    }

    #[test]
    fn too_long_is_an_error_exactly_when_the_items_do_not_fit(length in MAX_BODY - 20..MAX_BODY + 20) {
        let mut bytes = Vec::new();
        let encoded = Response::Success(&vec![0; length]).encode(1, &mut bytes);
        prop_assert_eq!(encoded, if length + 7 <= MAX_BODY { Ok(()) } else { Err(TooLong) });
    }

    #[test]
    fn key_names_survive_printing(ski: [u8; 20], digest: [u8; 32]) {
        prop_assert_eq!(Ski(ski).to_string().parse(), Ok(Ski(ski)));
        prop_assert_eq!(Digest(digest).to_string().parse(), Ok(Digest(digest)));
    }
}

/// What a request borrows from, for one that is as received: no zero names, no mapped addresses.
#[derive(Debug)]
struct Parts {
    opcode: u8,
    bytes: [Vec<u8>; 2],
    names: (Option<[u8; 20]>, Option<[u8; 32]>),
    addresses: [Option<IpAddr>; 2],
    optional: [Option<Vec<u8>>; 5],
    region: Option<u8>,
}

impl Parts {
    fn request(&self) -> Request<'_> {
        let [payload, extra] = &self.bytes;
        let [sni, cert_id, custom_function, jaeger_span, context] =
            self.optional.each_ref().map(Option::as_deref);
        Request {
            opcode: Opcode(self.opcode),
            payload,
            extra,
            ski: self.names.0.map(Ski).filter(|ski| !ski.is_zero()),
            digest: self.names.1.map(Digest).filter(|digest| !digest.is_zero()),
            client_ip: self.addresses[0].map(|address| address.to_canonical()),
            server_ip: self.addresses[1].map(|address| address.to_canonical()),
            sni,
            cert_id,
            custom_function,
            jaeger_span,
            context,
            compliance_region: self.region.map(ComplianceRegion),
        }
    }
}

fn parts() -> impl Strategy<Value = Parts> {
    let bytes = || vec(any::<u8>(), 0..600);
    let optional = || option::of(vec(any::<u8>(), 0..60));
    let address = || option::of(any::<IpAddr>());
    (
        any::<u8>(),
        [bytes(), bytes()],
        (option::of(any::<[u8; 20]>()), option::of(any::<[u8; 32]>())),
        [address(), address()],
        [optional(), optional(), optional(), optional(), optional()],
        option::of(any::<u8>()),
    )
        .prop_map(|(opcode, bytes, names, addresses, optional, region)| Parts {
            opcode,
            bytes,
            names,
            addresses,
            optional,
            region,
        })
}

fn item(tag: u8, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(value.len()).unwrap().to_be_bytes();
    [&[tag], &length[..], value].concat()
}
