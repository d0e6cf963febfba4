use std::{collections::BTreeSet, io::Read};

use keystead_plugin_api::http::{Request, Response, Value};

use super::*;
use crate::process::confine::Identity;

const REFUSED: &str = "the token says no";

/// Every kind of message, by a name for each.
pub(in crate::process) fn messages() -> Vec<(&'static str, Message<'static>)> {
    let done = |call, reply| Message::Done { call, outcome: Ok(reply) };
    vec![
        ("done", done(0, Reply::Done)),
        ("confined", done(2, Reply::Confined("no seccomp"))),
        ("loaded", done(3, Reply::Loaded(described()))),
        ("group", done(4, Reply::Group(Some("/usr/lib/module.so")))),
        ("no-group", done(4, Reply::Group(None))),
        ("health", done(5, Reply::Health(u64::MAX))),
        ("result", done(7, Reply::Result(&[0x30, 0x45, 0xff]))),
        ("empty-result", done(u64::MAX, Reply::Result(&[]))),
        ("fault", Message::Done { call: 7, outcome: Err(fault()) }),
        (
            "plain-fault",
            Message::Done { call: 1, outcome: Err(Fault { vendor: None, retry_after: None, ..fault() }) },
        ),
        ("page", Message::Page { call: 6, keys: vec![entry(), entry()], findings: vec![remark(), note()] }),
        ("empty-page", Message::Page { call: 6, keys: Vec::new(), findings: Vec::new() }),
        ("log", Message::Log { store: 0, event: event() }),
        ("keys-changed", Message::KeysChanged { store: 0 }),
        ("secret", Message::Secret { ask: 1, store: 0, name: "pin" }),
        ("refused", Message::Refused { ask: 2, store: 0, token: b"token", secret: b"1234" }),
        ("presented", Message::Presented { store: 0, token: b"token", secret: b"1234", accepted: true }),
        ("fetch", reach(Ask::Fetch(request()))),
        ("cached", reach(Ask::Cached { name: name(), at_least: Duration::from_secs(30) })),
        ("keep", reach(Ask::Keep { name: name(), value: value(), lives: Duration::from_millis(1500) })),
        ("give-up", reach(Ask::GiveUp { name: name() })),
        ("forget", reach(Ask::Forget { name: name(), value: value() })),
        ("sign", reach(Ask::Sign { secret: name(), algorithm: 4, message: vec![7; 40] })),
        ("hmac", reach(Ask::Hmac { secret: name(), prefix: b"AWS4".to_vec(), message: vec![7; 40] })),
    ]
}

fn reach(what: Ask) -> Message<'static> {
    Message::Reach { ask: 3, store: 0, nanos_left: u64::MAX, what }
}

fn name() -> String {
    "token".to_owned()
}

fn value() -> Zeroizing<Vec<u8>> {
    Zeroizing::new(b"eyJ0".to_vec())
}

fn request() -> Request {
    let form = [("grant_type", Value::text("client_credentials")), ("secret", Value::secret("token"))];
    Request::new("POST", "https://login.example/token").header("accept", "application/json").form(form)
}

fn response() -> Response {
    Response { status: 200, headers: vec![("a".to_owned(), "b".to_owned())], body: b"{}".to_vec() }
}

fn described() -> Described<'static> {
    let schema = r#"{"type": "object"}"#.into();
    Described { name: "file", version: "1.2.3", vendor: "we", process: true, lanes_max: Some(8), schema }
}

fn fault() -> Fault<'static> {
    Fault {
        code: Code::Credentials as u32,
        needed: 512,
        message: REFUSED.into(),
        vendor: Some(("CKR".into(), 0xa0)),
        retry_after: Some(Duration::new(3, 999_999_999)),
    }
}

fn entry() -> Entry<'static> {
    Entry {
        id: b"\x00\xff",
        spki: &[0x30; 300],
        label: "schlüssel",
        algorithms: vec![1, u32::MAX],
        inline: true,
    }
}

fn remark() -> Remark<'static> {
    Remark { severity: 0, code: 7, subject: "key", message: "no use", hint: "" }
}

fn note() -> Remark<'static> {
    Remark { severity: 2, code: 0, subject: "token", message: "empty", hint: "" }
}

fn event() -> Event<'static> {
    Event { level: 3, target: b"t", message: b"\xff\xfe", fields: b"", request: b"r-1" }
}

fn orders() -> Vec<Order<'static>> {
    let identity = Some(Identity { uid: 1, gid: 2, groups: vec![3, u32::MAX] });
    let confinement = Confinement { identity, memory: 1 << 30, core_dumps: false, parent: 7 };
    let work = Work {
        decrypt: false,
        inline: true,
        nanos_left: u64::MAX,
        algorithm: 3,
        capacity: 512,
        key: b"key",
        input: &[7; 200],
        request_id: "r-1",
    };
    let file = PathBuf::from("/usr/lib/plugin.so");
    vec![
        Order::Confine { call: 0, confinement },
        Order::Load { call: 1, plugin: 2, file, sha256: Some([9; 32]) },
        Order::Group { call: 2, plugin: 2, config: b"{}" },
        Order::Open { call: 3, plugin: 2, store: 4, level: 5, lanes: Some(2), config: b"{}" },
        Order::Keys { call: 4, store: 4, nanos_left: 1 },
        Order::Health { call: 5, store: 4, nanos_left: 1, level: 0 },
        Order::Perform { call: 6, store: 4, work },
        Order::Close { call: 7, store: 4, grace: Duration::from_millis(1500) },
        Order::Told { ask: 1, told: Told::Secret(b"1234") },
        Order::Told { ask: 1, told: Told::NoSecret },
        Order::Told { ask: 1, told: Told::Unreadable },
        Order::Told { ask: 1, told: Told::Refused(true) },
        Order::Told { ask: 1, told: Told::Reached(Ok(Reached::Done)) },
        Order::Told { ask: 1, told: Told::Reached(Ok(Reached::Response(response()))) },
        Order::Told { ask: 1, told: Told::Reached(Ok(Reached::Bytes(Some(value())))) },
        Order::Told { ask: 1, told: Told::Reached(Ok(Reached::Bytes(None))) },
        Order::Told { ask: 1, told: Told::Reached(Err(fault())) },
    ]
}

/// A frame without its length.
fn body(frame: &[u8]) -> &[u8] {
    let (length, body) = frame.split_first_chunk::<LENGTH>().unwrap();
    assert_eq!(u32::from_le_bytes(*length) as usize, body.len());
    body
}

/// Has an inbox read these bytes, in reads of a size.
fn frames(bytes: &[u8], size: usize) -> Result<Vec<Vec<u8>>, String> {
    let (mut inbox, mut frames) = (Inbox::new(), Vec::new());
    let mut rest = bytes;
    while !rest.is_empty() {
        let read = (&mut rest).take(size as u64).read(inbox.room()).unwrap();
        assert!(read > 0, "there is always room");
        inbox.filled(read);
        while let Some(frame) = inbox.next()? {
            frames.push(frame.to_vec());
        }
    }
    Ok(frames)
}

#[test]
fn every_message_and_order_is_read_as_it_was_written() {
    for (name, message) in messages() {
        let frame = frame(&message, 0).unwrap();
        assert_eq!(super::message::<Message<'_>>(body(&frame)).unwrap(), message, "{name}");
    }
    for order in orders() {
        let frame = frame(&order, 0).unwrap();
        assert_eq!(message::<Order<'_>>(body(&frame)).unwrap(), order);
    }
}

#[test]
fn there_is_no_message_that_is_not_among_these() {
    let kinds = |messages: &[Message<'_>]| -> BTreeSet<u8> {
        messages.iter().map(|message| body(&frame(message, 0).unwrap()).first().copied().unwrap()).collect()
    };
    let messages: Vec<_> = messages().into_iter().map(|(_, message)| message).collect();
    let known = kinds(&messages);
    for kind in 0..0x80 {
        let frame = [&[kind][..], &[0; 16]].concat();
        let told = message::<Message<'_>>(&frame);
        let known_by_the_host = told.is_ok() || told.is_err_and(|error| error.contains("left over"));
        assert_eq!(known_by_the_host, known.contains(&kind), "kind {kind}");
    }
}

#[test]
fn a_message_that_is_cut_short_or_has_bytes_behind_it_is_refused() {
    for (name, message) in messages() {
        let frame = frame(&message, 0).unwrap();
        let body = body(&frame);
        for end in 0..body.len() {
            assert!(
                super::message::<Message<'_>>(body.get(..end).unwrap()).is_err(),
                "{name} of {end} bytes"
            );
        }
        let longer = [body, &[0]].concat();
        let error = super::message::<Message<'_>>(&longer).unwrap_err();
        assert!(error.starts_with("1 bytes are left over"), "{name}: {error}");
    }
}

#[test]
fn a_message_that_is_too_long_is_not_written_and_one_that_just_fits_is() {
    let result = |len| {
        let result = vec![0; len];
        frame(&Message::Done { call: 0, outcome: Ok(Reply::Result(&result)) }, len).map(|frame| frame.len())
    };
    let overhead = result(FRAME_MAX / 2).unwrap() - FRAME_MAX / 2 - LENGTH;
    assert_eq!(result(FRAME_MAX - overhead), Ok(LENGTH + FRAME_MAX));
    assert!(result(FRAME_MAX - overhead + 1).unwrap_err().ends_with("longer than 4194304"));
}

#[test]
fn frames_are_found_however_they_are_cut_into_reads() {
    let bodies: Vec<Vec<u8>> = [0, 1, 70_000, 5, 200_000, 3].iter().map(|len| vec![7; *len]).collect();
    let stream: Vec<u8> = bodies
        .iter()
        .flat_map(|body| [&u32::try_from(body.len()).unwrap().to_le_bytes()[..], body].concat())
        .collect();
    for size in [1, 3, 4096, 65_536, 1 << 20] {
        assert_eq!(frames(&stream, size).as_ref(), Ok(&bodies), "in reads of {size} bytes");
    }
}

#[test]
fn the_longest_frame_is_taken_and_a_longer_one_is_refused_when_it_is_announced() {
    let longest = [&u32::try_from(FRAME_MAX).unwrap().to_le_bytes()[..], &vec![1; FRAME_MAX]].concat();
    assert_eq!(frames(&longest, 1 << 20).unwrap(), [vec![1; FRAME_MAX]]);
    let announced = u32::try_from(FRAME_MAX + 1).unwrap().to_le_bytes();
    assert_eq!(frames(&announced, 1), Err("a message of 4194305 bytes is longer than 4194304".to_owned()));
}

#[test]
fn an_inbox_grows_with_what_is_read_and_not_with_what_is_announced() {
    let mut inbox = Inbox::new();
    let announced = u32::try_from(FRAME_MAX).unwrap().to_le_bytes();
    inbox.room().first_chunk_mut().map(|room| *room = announced).unwrap();
    inbox.filled(LENGTH);
    assert_eq!(inbox.next(), Ok(None));
    assert_eq!(inbox.buffer.len(), ROOM);
    let mut sizes = BTreeSet::from([ROOM]);
    while inbox.next().unwrap().is_none() {
        let room = inbox.room().len();
        inbox.filled(room);
        sizes.insert(inbox.buffer.len());
    }
    assert_eq!(sizes.len(), 8, "doubled: {sizes:?}");
    assert_eq!(sizes.last(), Some(&(LENGTH + FRAME_MAX)));
}

#[test]
fn what_was_used_is_zeroed() {
    let mut inbox = Inbox::new();
    let stream = [&3_u32.to_le_bytes()[..], b"PIN", &9_u32.to_le_bytes(), b"half"].concat();
    inbox.room().iter_mut().zip(&stream).for_each(|(room, byte)| *room = *byte);
    inbox.filled(stream.len());
    assert_eq!(inbox.next(), Ok(Some(&b"PIN"[..])));
    assert_eq!(inbox.next(), Ok(None));
    assert_eq!(inbox.room().len(), ROOM - LENGTH - 4, "the used bytes are room again");
    let (half, used) = inbox.buffer.split_at(LENGTH + 4);
    assert!(half.ends_with(b"half"));
    assert!(used.iter().all(|byte| *byte == 0));
}

#[test]
fn a_refusal_arrives_with_its_text_cut_and_its_pause_bounded() {
    let refusal = fault().into_refusal();
    assert_eq!(refusal.needed, 512);
    assert_eq!(refusal.error.message, REFUSED);
    assert_eq!(Fault::from(&refusal), fault());
    let long = Fault {
        message: "x\n".repeat(5000).into(),
        vendor: Some(("v".repeat(5000).into(), 1)),
        retry_after: Some(Duration::MAX),
        ..fault()
    };
    let error = long.into_refusal().error;
    assert!(error.message.len() < 1030 && error.vendor.unwrap().name.len() < 70);
    assert_eq!(error.retry_after, Some(crate::native::RETRY_AFTER_MAX));
}

#[test]
fn a_listing_arrives_page_by_page_as_it_is() {
    let mut listing = RawListing::default();
    let findings = [remark(), Remark { severity: 1, ..remark() }, note()];
    for _ in 0..150 {
        collect(&mut listing, &[entry()], &[]);
    }
    collect(&mut listing, &[], &findings);
    let mut arrived = RawListing::default();
    let mut pages_seen = 0;
    for page in pages(6, &listing) {
        let Message::Page { call: 6, keys, findings } = page else { panic!("no page: {page:?}") };
        assert!(keys.len() <= PAGE && findings.len() <= PAGE);
        collect(&mut arrived, &keys, &findings);
        pages_seen += 1;
    }
    assert_eq!(pages_seen, 3);
    assert_eq!(format!("{arrived:?}"), format!("{listing:?}"));
}

#[test]
fn a_severity_that_is_unknown_counts_as_an_error() {
    let severities =
        [0, 1, 2, 3, u32::MAX].map(|severity| Remark { severity, ..note() }.to_finding().severity);
    let known = [Severity::Warning, Severity::Error, Severity::Note];
    assert_eq!(severities, [&known[..], &[Severity::Error; 2]].concat()[..]);
}

#[test]
fn a_key_that_is_too_long_is_kept_just_long_enough_to_be_refused() {
    let (id, spki) = (vec![1; 1 << 20], vec![2; 1 << 20]);
    let algorithms = vec![7; 1 << 20];
    let entry = Entry { id: &id, spki: &spki, label: &"l".repeat(1 << 20), algorithms, inline: false };
    let mut listing = RawListing::default();
    let size = collect(&mut listing, &[entry], &[]);
    let key = listing.keys.first().unwrap();
    assert_eq!((key.id.len(), key.spki.len()), (KEY_ID_MAX + 1, SPKI_MAX + 1));
    assert_eq!(key.algorithms.len(), ALGORITHMS_MAX);
    assert!((20 << 10..30 << 10).contains(&size), "{size}");
}
