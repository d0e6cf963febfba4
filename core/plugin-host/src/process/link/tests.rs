//! A link, and at its other end a test that says what no process of ours would.

use std::{
    io::{Read, Write, pipe},
    os::unix::net::UnixStream,
    process::{Command, Stdio},
    thread,
};

use tokio::task::JoinHandle;
use zeroize::Zeroizing;

use super::*;
use crate::{
    instance::RawListing,
    process::wire::{Reply, tests::messages},
    services::Services,
};

/// How long anything may take that happens at once.
const PATIENCE: Duration = Duration::from_secs(20);

/// A link to a process that does nothing, and its socket in the hands of the test.
struct Rig {
    link: Arc<Link>,
    watched: JoinHandle<End>,
    own: UnixStream,
}

impl Rig {
    fn new() -> Self {
        let (socket, own) = UnixStream::pair().unwrap();
        own.set_read_timeout(Some(PATIENCE)).unwrap();
        own.set_write_timeout(Some(PATIENCE)).unwrap();
        let (output, written) = pipe().unwrap();
        // It ends by itself when it is killed, and only then: nobody writes to its standard input.
        let child =
            Command::new("cat").stdin(Stdio::piped()).stdout(written).stderr(Stdio::null()).spawn().unwrap();
        let (link, watched) = Link::new(Launched { child, socket, output }).unwrap();
        Self { link, watched: tokio::spawn(watched), own }
    }

    fn call(&self, expects: Expects) -> (u64, Answer) {
        let mut number = 0;
        let about = About::new("signing", "store");
        let answer = self.link.call(expects, None, about, 64, |call| {
            number = call;
            Order::Keys { call, store: 0, nanos_left: 1 }
        });
        (number, answer.unwrap())
    }

    fn say(&self, message: &Message<'_>) {
        self.write(&wire::frame(message, 64).unwrap());
    }

    fn answer(&self, call: u64, reply: Reply<'_>) {
        self.say(&Message::Done { call, outcome: Ok(reply) });
    }

    fn write(&self, bytes: &[u8]) {
        (&self.own).write_all(bytes).unwrap();
    }

    /// How the process ended, in one line.
    async fn death(self) -> String {
        match timeout(PATIENCE, self.watched).await.expect("it ends").unwrap() {
            End::Died(death) => death,
            End::Wanted => panic!("nobody wanted its end"),
        }
    }

    /// Whether the process was ended for this, and the calls with it.
    async fn ended(self, why: &str, calls: Vec<Answer>) {
        let link = Arc::clone(&self.link);
        let death = self.death().await;
        assert!(death.starts_with(&format!("ended by the server: {why}")), "{death}");
        assert_eq!(death.contains(", while signing of store `store`"), !calls.is_empty(), "{death}");
        for call in calls {
            let given = timeout(PATIENCE, call.given()).await.expect("it is let go");
            assert!(matches!(given, Err(CallError::Gone)), "{given:?}");
        }
        assert!(link.is_closed());
        let about = About::new("signing", "store");
        let late =
            link.call(Expects::Health, None, about, 64, |call| Order::Keys { call, store: 0, nanos_left: 1 });
        assert!(matches!(late, Err(CallError::Gone)), "no call begins any more");
    }
}

struct NoSecrets;

impl crate::Secrets for NoSecrets {
    fn read(&self, _name: &str) -> Option<Result<Zeroizing<Vec<u8>>, String>> {
        None
    }
}

/// One of so many bytes, whatever its name.
struct OneSecret(usize);

impl crate::Secrets for OneSecret {
    fn read(&self, _name: &str) -> Option<Result<Zeroizing<Vec<u8>>, String>> {
        Some(Ok(Zeroizing::new(vec![7; self.0])))
    }
}

fn services() -> &'static Services {
    services_with(NoSecrets)
}

fn services_with(secrets: impl crate::Secrets + 'static) -> &'static Services {
    let latch = Arc::new(crate::latch::Latch::new());
    Services::new("store", "plugin", &serde_json::json!({}), (Box::new(secrets), Vec::new()), latch)
}

fn one_of(name: &str) -> Message<'static> {
    messages().into_iter().find(|(known, _)| *known == name).unwrap().1
}

fn read_frame(socket: &mut UnixStream) -> Vec<u8> {
    let mut size = [0; 4];
    socket.read_exact(&mut size).unwrap();
    let mut frame = vec![0; u32::from_le_bytes(size) as usize];
    socket.read_exact(&mut frame).unwrap();
    frame
}

fn length(bytes: usize) -> [u8; 4] {
    u32::try_from(bytes).unwrap().to_le_bytes()
}

#[tokio::test]
async fn answers_get_to_their_calls() {
    let rig = Rig::new();
    let ((one, first), (two, second)) = (rig.call(Expects::Health), rig.call(Expects::Result(3)));
    rig.answer(two, Reply::Result(b"abc"));
    rig.answer(one, Reply::Health(7));
    assert!(matches!(first.given().await, Ok(Given::Health(7))));
    assert!(matches!(second.given().await, Ok(Given::Result(result)) if result == b"abc"));
    rig.link.dismiss();
    let end = timeout(PATIENCE, rig.watched).await.expect("it ends").unwrap();
    assert!(matches!(end, End::Wanted));
}

#[tokio::test]
async fn a_second_answer_ends_the_process() {
    let rig = Rig::new();
    let ((call, answer), (_, pending)) = (rig.call(Expects::Health), rig.call(Expects::Health));
    rig.answer(call, Reply::Health(1));
    rig.answer(call, Reply::Health(2));
    assert!(matches!(answer.given().await, Ok(Given::Health(1))), "the first was believed");
    rig.ended("it answered a call that nobody made, or one twice", vec![pending]).await;
}

#[tokio::test]
async fn an_answer_to_a_call_that_nobody_made_ends_the_process() {
    let rig = Rig::new();
    let pending = [(); 3].map(|()| rig.call(Expects::Done).1);
    rig.answer(99, Reply::Done);
    rig.ended("it answered a call that nobody made, or one twice", pending.into()).await;
}

#[tokio::test]
async fn an_answer_of_another_kind_ends_the_process() {
    let rig = Rig::new();
    let (call, answer) = rig.call(Expects::Health);
    let pending = rig.call(Expects::Result(64)).1;
    rig.answer(call, Reply::Result(b"abc"));
    rig.ended("it answered a call with something else", vec![answer, pending]).await;
}

#[tokio::test]
async fn a_result_that_is_longer_than_asked_for_ends_the_process() {
    let rig = Rig::new();
    let (call, answer) = rig.call(Expects::Result(3));
    let pending = rig.call(Expects::Result(3)).1;
    rig.answer(call, Reply::Result(b"abcd"));
    rig.ended("its result is longer than asked for", vec![answer, pending]).await;
}

#[tokio::test]
async fn a_page_that_nobody_asked_for_ends_the_process() {
    let rig = Rig::new();
    let (call, answer) = rig.call(Expects::Done);
    rig.say(&Message::Page { call, keys: Vec::new(), findings: Vec::new() });
    rig.ended("it sent a page of a listing that nobody asked for", vec![answer]).await;
}

#[tokio::test]
async fn a_word_for_a_store_that_there_is_not_ends_the_process() {
    for (_, message) in messages() {
        if matches!(message, Message::Done { .. } | Message::Page { .. }) {
            continue;
        }
        let rig = Rig::new();
        let pending = rig.call(Expects::Done).1;
        rig.say(&message);
        rig.ended("it speaks of store number 0, which there isn't", vec![pending]).await;
    }
}

#[tokio::test]
async fn what_is_no_message_ends_the_process() {
    for (bytes, why) in [
        (&[0xff; 9][..], "a message can't be read"),
        (&[][..], "a message can't be read"),
        (&[3, 0, 0], "1 bytes are left over behind a message"),
    ] {
        let rig = Rig::new();
        let pending = rig.call(Expects::Done).1;
        rig.write(&[&length(bytes.len())[..], bytes].concat());
        rig.ended(why, vec![pending]).await;
    }
}

#[tokio::test]
async fn a_frame_that_is_announced_too_long_ends_the_process() {
    let rig = Rig::new();
    let pending = rig.call(Expects::Done).1;
    rig.write(&length(wire::FRAME_MAX + 1));
    rig.ended("a message of 4194305 bytes is longer than 4194304", vec![pending]).await;
}

#[tokio::test]
async fn half_a_frame_and_then_nothing_ends_the_process() {
    let rig = Rig::new();
    let pending = rig.call(Expects::Done).1;
    rig.write(&[&length(100)[..], b"half"].concat());
    rig.own.shutdown(std::net::Shutdown::Both).unwrap();
    rig.ended("it closed its connection to the server", vec![pending]).await;
}

#[tokio::test]
async fn a_listing_without_end_ends_the_process_and_takes_no_memory_without_end() {
    let rig = Rig::new();
    let pending: Vec<_> = (0..7).map(|_| rig.call(Expects::Listing(RawListing::default())).1).collect();
    let pages = wire::frame(&one_of("page"), 512).unwrap().repeat(64); // of call 6
    let mut own = rig.own.try_clone().unwrap();
    let listing = thread::spawn(move || while own.write_all(&pages).is_ok() {});
    rig.ended("it lists more than 100000 keys or findings", pending).await;
    listing.join().unwrap();
}

#[tokio::test]
async fn a_process_that_asks_and_takes_no_answers_is_ended() {
    let rig = Rig::new();
    rig.link.desk.attach(0, services());
    let pending = rig.call(Expects::Done).1;
    let (link, mut own) = (Arc::clone(&rig.link), rig.own.try_clone().unwrap());
    let frames = wire::frame(&one_of("refused"), 64).unwrap().repeat(64);
    let asking = thread::spawn(move || while own.write_all(&frames).is_ok() {});
    rig.ended("it goes on asking, and doesn't listen", vec![pending]).await;
    assert!(lock(&link.outgoing).answers.len() <= ANSWERS_MAX);
    asking.join().unwrap();
}

#[tokio::test]
async fn a_process_that_asks_for_long_secrets_and_takes_none_is_ended() {
    let rig = Rig::new();
    rig.link.desk.attach(0, services_with(OneSecret(64 << 10)));
    let pending = rig.call(Expects::Done).1;
    let (link, mut own) = (Arc::clone(&rig.link), rig.own.try_clone().unwrap());
    let question = |ask| wire::frame(&Message::Secret { ask, store: 0, name: "pin" }, 64).unwrap();
    let questions: Vec<_> = (0..1000).flat_map(|ask| question(ask).to_vec()).collect();
    let asking = thread::spawn(move || drop(own.write_all(&questions)));
    rig.ended("it goes on asking, and doesn't listen", vec![pending]).await;
    let waiting = lock(&link.outgoing).answers.iter().map(|frame| frame.len()).sum::<usize>();
    assert!(waiting > ANSWERS_SIZE_MAX / 2 && waiting <= ANSWERS_SIZE_MAX, "{waiting}");
    asking.join().unwrap();
}

#[tokio::test]
async fn what_the_server_asks_of_a_process_does_not_count_as_its_answers() {
    let rig = Rig::new();
    rig.link.desk.attach(0, services_with(OneSecret(64 << 10)));
    let config = vec![0; 3 << 20];
    let about = || About::new("opening", "store");
    let order = |call| Order::Open { call, plugin: 0, store: 0, level: 0, lanes: None, config: &config };
    for _ in 0..8 {
        rig.link.call(Expects::Done, None, about(), config.len(), order).unwrap();
    }
    rig.say(&Message::Secret { ask: 1, store: 0, name: "pin" });
    let mut own = rig.own.try_clone().unwrap();
    let told = spawn_blocking(move || {
        loop {
            if let Order::Told { ask, told } = wire::message(&read_frame(&mut own)).unwrap() {
                return (ask, matches!(told, Told::Secret(secret) if secret.len() == 64 << 10));
            }
        }
    });
    assert_eq!(timeout(PATIENCE, told).await.expect("it is told").unwrap(), (1, true));
    rig.link.dismiss();
}

#[tokio::test]
async fn a_process_that_never_ceases_to_speak_keeps_no_worker_to_itself() {
    let rig = Rig::new(); // on a runtime with one worker
    rig.link.desk.attach(0, services());
    let frames = wire::frame(&one_of("keys-changed"), 64).unwrap().repeat(2000);
    let speaking: Vec<_> = (0..2)
        .map(|_| {
            let (mut own, frames) = (rig.own.try_clone().unwrap(), frames.clone());
            thread::spawn(move || while own.write_all(&frames).is_ok() {})
        })
        .collect();
    for _ in 0..100 {
        yield_now().await;
    }
    rig.link.dismiss();
    assert!(timeout(PATIENCE, rig.watched).await.is_ok());
    drop(rig.own);
    speaking.into_iter().for_each(|thread| thread.join().unwrap());
}

#[tokio::test]
async fn a_question_for_a_secret_is_answered_whatever_its_name() {
    let rig = Rig::new();
    rig.link.desk.attach(0, services());
    let long = "n".repeat(1000);
    for (ask, name) in [(1, "pin"), (2, long.as_str())] {
        rig.say(&Message::Secret { ask, store: 0, name });
    }
    let mut own = rig.own.try_clone().unwrap();
    let told = spawn_blocking(move || {
        let mut told = Vec::new();
        while told.len() < 2 {
            match wire::message(&read_frame(&mut own)).unwrap() {
                Order::Told { ask, told: Told::NoSecret } => told.push(ask),
                other => panic!("{other:?}"),
            }
        }
        told.sort_unstable();
        told
    });
    assert_eq!(timeout(PATIENCE, told).await.expect("both are told").unwrap(), [1, 2]);
    rig.link.dismiss();
}

/// The test holds the other end of the socket, as somebody might whom a process has handed it to.
#[tokio::test]
async fn a_process_that_is_killed_is_gone_even_where_its_socket_is_in_other_hands() {
    let rig = Rig::new();
    let answer = rig.call(Expects::Done).1;
    assert!(matches!(lock(&rig.link.child).try_wait(), Ok(None)), "it lives until then");
    rig.link.condemn("it was stuck".to_owned());
    rig.ended("it was stuck", vec![answer]).await;
}
