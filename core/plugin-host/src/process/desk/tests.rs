use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio::runtime::Handle;
use zeroize::Zeroizing;

use super::*;
use crate::{process::wire::tests::messages, reach::Reach, services::Event};

/// Counts what is asked of it, and has refused one secret.
#[derive(Default)]
struct Side(AtomicUsize);

impl HostSide for Side {
    fn wants(&self, _level: u32) -> bool {
        true
    }

    fn log(&self, _event: &Event<'_>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn config(&self) -> Option<Zeroizing<Vec<u8>>> {
        None
    }

    fn secret(&self, _name: &str) -> Option<Result<Zeroizing<Vec<u8>>, String>> {
        panic!("a secret is not read here");
    }

    fn keys_changed(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn was_refused(&self, _token: &[u8], secret: &[u8]) -> bool {
        secret == b"wrong"
    }

    fn presented(&self, _token: &[u8], _secret: &[u8], _accepted: bool) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn reaching(&self) -> Option<(Arc<Reach>, Handle)> {
        None
    }
}

fn desk() -> (Desk, &'static Side) {
    let (desk, side): (_, &'static Side) = (Desk::new(1), Box::leak(Box::default()));
    desk.attach(0, side);
    (desk, side)
}

fn take(desk: &Desk, message: Message<'_>) -> Result<Next, String> {
    desk.take(&Calls::default(), message)
}

#[test]
fn nothing_is_offered_to_a_store_that_there_is_not() {
    let desk = Desk::new(1);
    let mut asking = 0;
    for (name, message) in messages() {
        if matches!(message, Message::Done { .. } | Message::Page { .. }) {
            continue;
        }
        asking += 1;
        let error = take(&desk, message).err();
        assert_eq!(error.as_deref(), Some("it speaks of store number 0, which there isn't"), "{name}");
    }
    assert_eq!(asking, 12);
}

#[test]
fn what_is_said_for_a_store_reaches_its_side() {
    let (desk, side) = desk();
    for (name, message) in messages() {
        if matches!(message, Message::Log { .. } | Message::KeysChanged { .. } | Message::Presented { .. }) {
            assert!(matches!(take(&desk, message), Ok(Next::Nothing)), "{name}");
        }
    }
    assert_eq!(side.0.load(Ordering::Relaxed), 3);
}

#[test]
fn a_question_is_answered_with_its_number() {
    let (desk, _) = desk();
    for (secret, refused) in [(&b"wrong"[..], true), (b"right", false)] {
        let message = Message::Refused { ask: 7, store: 0, token: b"token", secret };
        let Ok(Next::Tell(7, Told::Refused(told))) = take(&desk, message) else { panic!("not told") };
        assert_eq!(told, refused);
    }
}

#[test]
fn a_secret_is_read_elsewhere_and_one_whose_name_is_too_long_there_is_not() {
    let (desk, _) = desk();
    let next = |name| take(&desk, Message::Secret { ask: 7, store: 0, name });
    assert!(matches!(next("pin"), Ok(Next::LookUp { ask: 7, name, .. }) if name == "pin"));
    assert!(matches!(next(&"n".repeat(NAME_MAX + 1)), Ok(Next::Tell(7, Told::NoSecret))));
}

#[test]
fn a_flood_of_events_is_cut_off() {
    let (desk, side) = desk();
    for _ in 0..5000 {
        let (_, message) = messages().into_iter().find(|(name, _)| *name == "log").unwrap();
        assert!(matches!(take(&desk, message), Ok(Next::Nothing)));
    }
    assert_eq!(side.0.load(Ordering::Relaxed), 1000);
}
