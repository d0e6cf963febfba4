use keystead_plugin_api::CallClass;

use super::*;
use crate::{
    instance::{RawKey, SPKI_MAX},
    process::{
        gate::Gate,
        wire::{Message, pages},
    },
};

fn about() -> About {
    About::new("signing", "store")
}

fn begin(calls: &Calls, expects: Expects) -> (u64, Answer) {
    calls.begin(expects, None, about()).unwrap()
}

/// What a call has come to, where it has.
async fn given(answer: Answer) -> Result<Given, CallError> {
    tokio::time::timeout(Duration::from_secs(5), answer.given()).await.expect("it has come to something")
}

fn described() -> Described<'static> {
    let schema = r#"{"type": "object"}"#.into();
    Described { name: "file", version: "1", vendor: "we", process: true, lanes_max: Some(0), schema }
}

fn listing(keys: usize, spki: usize) -> RawListing {
    let key = |number: usize| RawKey {
        id: number.to_le_bytes().to_vec(),
        spki: vec![0x30; spki],
        label: String::new(),
        algorithms: vec![1],
        class: CallClass::Blocking,
    };
    RawListing { keys: (0..keys).map(key).collect(), findings: Vec::new() }
}

/// Sends a listing's pages, until one is refused.
fn send(calls: &Calls, call: u64, listing: &RawListing) -> Result<(), String> {
    pages(call, listing).try_for_each(|page| match page {
        Message::Page { call, keys, findings } => calls.page(call, &keys, &findings),
        other => panic!("no page: {other:?}"),
    })
}

#[tokio::test]
async fn each_call_gets_the_answer_to_it_whatever_the_order() {
    let calls = Calls::default();
    let (one, first) = begin(&calls, Expects::Health);
    let (two, second) = begin(&calls, Expects::Result(3));
    assert_eq!(calls.done(two, Ok(Reply::Result(b"abc"))), Ok(None));
    assert_eq!(calls.done(one, Ok(Reply::Health(7))), Ok(None));
    assert!(matches!(given(first).await, Ok(Given::Health(7))));
    assert!(matches!(given(second).await, Ok(Given::Result(result)) if result == b"abc"));
}

#[tokio::test]
async fn an_answer_that_comes_twice_or_to_a_call_that_nobody_made_is_a_violation() {
    let calls = Calls::default();
    let violation = Err("it answered a call that nobody made, or one twice".to_owned());
    assert_eq!(calls.done(0, Ok(Reply::Done)), violation);
    let (call, answer) = begin(&calls, Expects::Done);
    assert_eq!(calls.done(call + 1, Ok(Reply::Done)), violation);
    assert_eq!(calls.done(call, Ok(Reply::Done)), Ok(None));
    assert_eq!(calls.done(call, Ok(Reply::Done)), violation);
    assert!(matches!(given(answer).await, Ok(Given::Done)), "the first was believed");
    let (withdrawn, _answer) = begin(&calls, Expects::Done);
    calls.withdraw(withdrawn);
    assert_eq!(calls.done(withdrawn, Ok(Reply::Done)), violation);
}

/// Every kind of answer to every kind of call.
#[tokio::test]
async fn an_answer_of_another_kind_is_a_violation_and_the_call_is_let_go() {
    let expected: [fn() -> Expects; 8] = [
        || Expects::Done,
        || Expects::Opened(1),
        || Expects::Confined,
        || Expects::Loaded,
        || Expects::Group,
        || Expects::Health,
        || Expects::Listing(RawListing::default()),
        || Expects::Result(8),
    ];
    let replies: [fn() -> Reply<'static>; 7] = [
        || Reply::Done,
        || Reply::Opened { lanes: 1, stuck_after: None },
        || Reply::Confined(""),
        || Reply::Loaded(described()),
        || Reply::Group(None),
        || Reply::Health(0),
        || Reply::Result(b""),
    ];
    let fitting = [&[0, 6][..], &[1], &[2], &[3], &[4], &[5], &[7]];
    for (number, expects) in expected.iter().enumerate() {
        for (reply, fitting) in replies.iter().zip(fitting) {
            let calls = Calls::default();
            let (call, answer) = begin(&calls, expects());
            let done = calls.done(call, Ok(reply()));
            if fitting.contains(&number) {
                assert_eq!(done, Ok(None));
                assert!(given(answer).await.is_ok());
            } else {
                assert_eq!(done, Err("it answered a call with something else".to_owned()));
                assert!(matches!(given(answer).await, Err(CallError::Gone)));
            }
        }
    }
}

#[tokio::test]
async fn a_result_that_is_longer_than_asked_for_is_a_violation() {
    let calls = Calls::default();
    let (call, answer) = begin(&calls, Expects::Result(3));
    let done = calls.done(call, Ok(Reply::Result(b"abcd")));
    assert_eq!(done, Err("its result is longer than asked for".to_owned()));
    assert!(matches!(given(answer).await, Err(CallError::Gone)));
}

#[test]
fn a_plugin_that_describes_itself_at_too_great_a_length_is_a_violation() {
    let violation = |described| {
        let calls = Calls::default();
        let (call, _answer) = begin(&calls, Expects::Loaded);
        calls.done(call, Ok(Reply::Loaded(described))).unwrap_err()
    };
    let name = "n".repeat(65);
    assert_eq!(violation(Described { name: &name, ..described() }), "its name is not 1 to 64 bytes of text");
    let schema = format!(r#"{{"title": "{}"}}"#, "t".repeat(SCHEMA_MAX)).into();
    let no_schema = "the schema of its configuration is not a JSON object";
    assert_eq!(violation(Described { schema, ..described() }), no_schema);
    assert_eq!(violation(Described { schema: "[]".into(), ..described() }), no_schema);
}

#[tokio::test]
async fn no_lanes_at_all_means_that_the_plugin_says_nothing_of_lanes() {
    let calls = Calls::default();
    let (call, answer) = begin(&calls, Expects::Loaded);
    calls.done(call, Ok(Reply::Loaded(described()))).unwrap();
    let Ok(Given::Loaded(description)) = given(answer).await else { panic!("not loaded") };
    assert_eq!((description.lanes_max, description.isolation), (None, Isolation::Process));
}

#[tokio::test]
async fn a_listing_is_made_of_its_pages() {
    let calls = Calls::default();
    let (call, answer) = begin(&calls, Expects::Listing(RawListing::default()));
    send(&calls, call, &listing(200, 91)).unwrap();
    calls.done(call, Ok(Reply::Done)).unwrap();
    let Ok(Given::Listing(given)) = given(answer).await else { panic!("no listing") };
    assert_eq!(format!("{given:?}"), format!("{:?}", listing(200, 91)));
}

#[test]
fn a_page_for_a_call_that_lists_nothing_or_that_nobody_made_is_a_violation() {
    let calls = Calls::default();
    let violation = Err("it sent a page of a listing that nobody asked for".to_owned());
    let (health, _answer) = begin(&calls, Expects::Health);
    assert_eq!(send(&calls, health, &listing(1, 91)), violation);
    let (call, _answer) = begin(&calls, Expects::Listing(RawListing::default()));
    assert_eq!(send(&calls, call + 1, &listing(1, 91)), violation);
    calls.done(call, Ok(Reply::Done)).unwrap();
    assert_eq!(send(&calls, call, &listing(1, 91)), violation, "after the listing's end");
}

#[test]
fn a_page_that_is_too_full_and_a_listing_that_is_too_long_are_violations() {
    let calls = Calls::default();
    let (call, _answer) = begin(&calls, Expects::Listing(RawListing::default()));
    let keys = listing(PAGE + 1, 91);
    let entries: Vec<_> = keys.keys.iter().map(Entry::from).collect();
    let error = calls.page(call, &entries, &[]).unwrap_err();
    assert_eq!(error, "a page of its listing holds more than 64 keys or findings");
    let most = listing(ENTRIES_MAX, 91);
    send(&calls, call, &most).unwrap();
    let error = send(&calls, call, &listing(1, 91)).unwrap_err();
    assert_eq!(error, "it lists more than 100000 keys or findings");
}

#[test]
fn a_listing_that_takes_too_much_memory_is_a_violation_before_it_is_at_its_end() {
    let calls = Calls::default();
    let (call, _answer) = begin(&calls, Expects::Listing(RawListing::default()));
    let page = listing(PAGE, SPKI_MAX + 1);
    let taken = (0..).take_while(|_| send(&calls, call, &page).is_ok()).count();
    assert!((200..260).contains(&taken), "{taken} pages of a MiB");
    let error = send(&calls, call, &page).unwrap_err();
    assert_eq!(error, "its listing is longer than 268435456 bytes");
}

#[test]
fn a_store_that_is_open_when_nobody_waits_for_it_any_more_is_to_be_closed() {
    let opened = |outcome| {
        let calls = Calls::default();
        let (call, answer) = begin(&calls, Expects::Opened(9));
        drop(answer);
        calls.done(call, outcome)
    };
    assert_eq!(opened(Ok(Reply::Opened { lanes: 1, stuck_after: None })), Ok(Some(9)));
    let refusal = Refusal::new(Code::Credentials, "no");
    assert_eq!(opened(Err(Fault::from(&refusal))), Ok(None), "it isn't open");
    let calls = Calls::default();
    let (call, answer) = begin(&calls, Expects::Done);
    drop(answer);
    assert_eq!(calls.done(call, Ok(Reply::Done)), Ok(None), "it was no opening");
}

#[tokio::test]
async fn when_none_comes_back_any_more_all_are_let_go_and_none_begins() {
    let calls = Calls::default();
    let (_, first) = begin(&calls, Expects::Health);
    let (_, second) = begin(&calls, Expects::Done);
    let last = calls.abandon();
    assert_eq!(last.as_deref(), Some("signing of store `store` (1 other calls in flight)"));
    for answer in [first, second] {
        assert!(matches!(given(answer).await, Err(CallError::Gone)));
    }
    assert!(matches!(calls.begin(Expects::Done, None, about()), Err(CallError::Gone)));
    assert_eq!(calls.abandon(), None);
}

/// A store of one lane: of its calls, only the first had begun.
#[tokio::test]
async fn a_call_that_waited_for_a_lane_is_not_blamed_for_a_death() {
    let (calls, gate) = (Calls::default(), Gate::new(1, 2));
    let begin = || calls.begin(Expects::Result(8), gate.enter(), about()).unwrap().1;
    let (first, second, third) = (begin(), begin(), begin());
    assert!(gate.enter().is_none());
    calls.abandon();
    assert!(matches!(given(first).await, Err(CallError::Gone)));
    for waited in [second, third] {
        assert!(matches!(given(waited).await, Err(CallError::Waited)));
    }
    assert_eq!(gate.load(), (0, 0), "their places are free");
}

#[test]
fn calls_that_use_no_key_take_no_lane_and_are_never_stuck() {
    let calls = Calls::default();
    let (_, _answer) = begin(&calls, Expects::Health);
    std::thread::sleep(Duration::from_millis(2));
    assert_eq!(calls.pending_for("store", 1), Duration::ZERO);
}
