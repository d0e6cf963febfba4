use std::{env, fs, path::PathBuf};

use keystead_plugin_api::CallClass;

use super::*;
use crate::{
    instance::RawKey,
    process::wire::{Entry, Reply, tests::messages},
};

/// Has the saved inputs written anew.
const WRITE: &str = "KEYSTEAD_WRITE_CORPUS";

/// A target, and an input of it by its file's name.
type Saved = (&'static str, &'static str, Vec<u8>);

fn framed(messages: &[Message<'_>]) -> Vec<u8> {
    messages.iter().flat_map(|message| wire::frame(message, 64).unwrap().to_vec()).collect()
}

/// A stream that arrives in reads of this size, so often.
fn arriving(size: u8, times: u8, stream: &[u8]) -> Vec<u8> {
    [&[size; 8][..], &[times - 1], stream].concat()
}

fn named(names: &[&str]) -> Vec<u8> {
    let known = |name: &&str| messages().into_iter().find(|(known, _)| known == name).unwrap().1;
    framed(&names.iter().map(known).collect::<Vec<_>>())
}

/// A listing of a key whose parts are all too long.
fn too_long_a_key() -> Vec<u8> {
    let key = RawKey {
        id: vec![1; KEY_ID_MAX + 45],
        spki: vec![2; SPKI_MAX + 100],
        label: "l".repeat(300),
        algorithms: vec![1; ALGORITHMS_MAX + 100],
        class: CallClass::Blocking,
    };
    let page = Message::Page { call: 6, keys: vec![Entry::from(&key)], findings: Vec::new() };
    framed(&[page, Message::Done { call: 6, outcome: Ok(Reply::Done) }])
}

fn announced(bytes: usize) -> [u8; LENGTH] {
    u32::try_from(bytes).unwrap().to_le_bytes()
}

fn all() -> Vec<Saved> {
    let done = |call, reply| Message::Done { call, outcome: Ok(reply) };
    let whole = |stream: &[u8]| arriving(0, 1, stream);
    let bytewise = |stream: &[u8]| arriving(1, 1, stream);
    let answers = ["result", "page", "health", "group", "loaded", "confined", "done", "log", "keys-changed"];
    let too_long = [0; RESULT_MAX + 1];
    let mut saved: Vec<Saved> = vec![
        ("inbox", "one-by-one", bytewise(&named(&["done", "log", "health"]))),
        ("inbox", "at-once", whole(&named(&["done", "log", "health"]))),
        ("inbox", "long", arriving(200, 64, &[&announced(100_000)[..], &[7; 3000]].concat())),
        ("inbox", "too-long", whole(&announced(FRAME_MAX + 1))),
        ("inbox", "incomplete", whole(&[&announced(100)[..], b"half"].concat())),
        ("inbox", "empty-frames", arriving(3, 4, &[0; 16])),
        ("child", "answers", whole(&named(&answers))),
        ("child", "answers-byte-by-byte", bytewise(&named(&answers))),
        ("child", "asks", whole(&named(&["secret", "refused", "presented", "log", "keys-changed"]))),
        (
            "child",
            "reaches",
            whole(&named(&["fetch", "cached", "keep", "give-up", "forget", "sign", "hmac"])),
        ),
        ("child", "fault", whole(&named(&["fault", "plain-fault"]))),
        ("child", "twice", whole(&framed(&[done(5, Reply::Health(1)), done(5, Reply::Health(2))]))),
        ("child", "unknown", whole(&framed(&[done(99, Reply::Done)]))),
        ("child", "another-kind", whole(&framed(&[done(0, Reply::Health(1))]))),
        ("child", "too-long-result", whole(&framed(&[done(7, Reply::Result(&too_long))]))),
        ("child", "nobody-waits", whole(&framed(&[done(9, Reply::Done), done(8, Reply::Done)]))),
        ("child", "many-pages", arriving(0, 64, &named(&["page", "empty-page"]))),
        ("child", "a-listing", whole(&[named(&["page"]), framed(&[done(6, Reply::Done)])].concat())),
        ("child", "too-long-a-key", whole(&too_long_a_key())),
        ("child", "no-listing", whole(&framed(&[done(6, Reply::Done)]).repeat(2))),
        ("child", "no-such-store", whole(&framed(&[Message::KeysChanged { store: 7 }]))),
        ("child", "a-flood-of-events", arriving(128, 64, &named(&["log"; 4]))),
        ("child", "no-message", whole(&[&announced(3)[..], &[0xff; 3]].concat())),
    ];
    saved.extend(messages().into_iter().map(|(name, message)| {
        let frame = wire::frame(&message, 64).unwrap();
        ("message", name, frame.get(LENGTH..).unwrap().to_vec())
    }));
    saved
}

#[test]
fn the_saved_inputs_are_of_this_wire() {
    let corpus = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    for (target, name, input) in all() {
        let file = corpus.join(target).join(name);
        if env::var_os(WRITE).is_some() {
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(&file, &input).unwrap();
        }
        assert!(
            fs::read(&file).is_ok_and(|saved| saved == input),
            "{} is stale; to make it anew: {WRITE}=1 cargo test -p keystead-plugin-host saved_inputs",
            file.display()
        );
    }
}

#[test]
fn every_saved_input_keeps_the_claims() {
    for (target, name, input) in all() {
        println!("{target} {name}");
        match target {
            "inbox" => inbox(&input),
            "child" => child(&input),
            _ => message(&input),
        }
    }
}

/// The claims are made of what really is believed: were all of it refused, they would hold for nothing.
#[test]
fn what_is_saved_for_answers_is_believed() {
    let (calls, desk) = (Calls::default(), Desk::new(0));
    desk.attach(0, &Anybody);
    let (_, waiting) = begin(&calls);
    let input = all().into_iter().find(|(_, name, _)| *name == "answers").unwrap().2;
    let (sizes, stream) = arrival(&input);
    let taken = read(&sizes, &stream, |frame| desk.take(&calls, wire::message(frame)?).map(drop));
    assert_eq!(taken, Ok(()));
    let answered = |(call, answer)| (call != 1 && call != 6).then(|| given(answer).unwrap());
    assert_eq!(waiting.into_iter().filter_map(answered).count(), 6);
}
