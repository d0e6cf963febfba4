//! The conformance cases pass a backend that keeps the rules, and catch one that breaks any of them.

#![expect(clippy::unwrap_used, reason = "a set-up that fails is a failed test")]

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, LazyLock, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use keystead_plugin_api::{
    Algorithm, Backend, Call, CallClass, Code, Description, Error, Finding, Health, Host, Isolation, Key,
    Listing, Output, Severity,
    abi::BackendTable,
    algorithm::Operation,
    conformance::{self, Described, Door, Failure, Opened, Record, Request, Session, Subject, TestHost},
    kit,
};
use openssl::{
    ec::{EcGroup, EcKey},
    ecdsa::EcdsaSig,
    nid::Nid,
    pkey::Private,
};
use serde::Deserialize;
use serde_json::json;

static TABLE: BackendTable = kit::table::<Memory>();

static KEY: LazyLock<EcKey<Private>> =
    LazyLock::new(|| EcKey::generate(&EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap()).unwrap());

/// A P-256 key in memory, and a rule that it breaks.
struct Memory {
    flaw: Flaw,
    blocking_keys: usize,
    host: Host,
    count: AtomicU64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    #[serde(default)]
    flaw: Flaw,
    #[serde(default)]
    blocking_keys: usize,
}

#[derive(Clone, Copy, Default, Deserialize, PartialEq, Eq)]
enum Flaw {
    #[default]
    None,
    AcceptsUnknownKeys,
    ClaimsTooMuch,
    Empty,
    ForgetsIds,
    HidesTheSmallBuffer,
    LogsTheSecret,
    Panics,
    SignsSomethingElse,
    SilentFinding,
    UnknownFamily,
    UnsteadyHealth,
}

impl Backend for Memory {
    const DESCRIPTION: Description = Description {
        name: "memory",
        version: "1",
        vendor: "test",
        isolation: Isolation::Inline,
        lanes_max: None,
        schema: "{}",
    };

    fn open(host: Host) -> Result<Self, Error> {
        let Config { flaw, blocking_keys } = host.config()?;
        Ok(Self { flaw, blocking_keys, host, count: AtomicU64::new(0) })
    }

    fn keys(&self, _call: &Call<'_>) -> Result<Listing, Error> {
        let findings = match self.flaw {
            Flaw::SilentFinding => vec![silent()],
            _ => vec![Finding::note("memory", "it is never full")],
        };
        let keys = match self.flaw {
            Flaw::Empty => Vec::new(),
            _ => (0..=self.blocking_keys).map(|index| self.key(index)).collect(),
        };
        Ok(Listing { keys, findings })
    }

    fn sign(
        &self,
        call: &Call<'_>,
        key: &[u8],
        algorithm: Algorithm,
        input: &[u8],
        out: &mut Output<'_>,
    ) -> Result<(), Error> {
        assert!(self.flaw != Flaw::Panics, "a flaw");
        if !key.starts_with(b"key ") && self.flaw != Flaw::AcceptsUnknownKeys || key.ends_with(b"?") {
            return Err(Error::unknown_key());
        }
        if algorithm != Algorithm::EcdsaSha256 {
            return Err(Error::unsupported(algorithm));
        }
        if self.flaw == Flaw::LogsTheSecret {
            let secret = self.host.secret("token")?;
            tracing::debug!("signing with {:?}", std::str::from_utf8(secret.expose()));
        }
        tracing::info!(lane = ?call.lane, "signing");
        let digest = if self.flaw == Flaw::SignsSomethingElse { &[0; 32] } else { input };
        let signature = EcdsaSig::sign(digest, &KEY).unwrap().to_der().unwrap();
        match out.write(&signature) {
            Err(error) if self.flaw == Flaw::HidesTheSmallBuffer => {
                Err(Error::new(Code::Internal, error.message))
            }
            result => result,
        }
    }

    fn decrypt(
        &self,
        _call: &Call<'_>,
        key: &[u8],
        algorithm: Algorithm,
        _input: &[u8],
        _out: &mut Output<'_>,
    ) -> Result<(), Error> {
        if key.starts_with(b"key ") { Err(Error::unsupported(algorithm)) } else { Err(Error::unknown_key()) }
    }

    fn health(&self, _call: &Call<'_>) -> Result<Health, Error> {
        let generation = match self.flaw {
            Flaw::UnsteadyHealth => self.count.fetch_add(1, Ordering::Relaxed),
            _ => 0,
        };
        Ok(Health { generation })
    }

    fn close(&self, _grace: Duration) {}
}

impl Memory {
    fn key(&self, index: usize) -> Key {
        static OPENED: AtomicU64 = AtomicU64::new(0);
        let unique = match self.flaw {
            Flaw::ForgetsIds => OPENED.fetch_add(1, Ordering::Relaxed),
            _ => 0,
        };
        let algorithms = match self.flaw {
            Flaw::ClaimsTooMuch => vec![Algorithm::EcdsaSha256, Algorithm::EcdsaSha384],
            Flaw::UnknownFamily => vec![Algorithm::EcdsaSha256, Algorithm::Ed25519],
            _ => vec![Algorithm::EcdsaSha256],
        };
        Key {
            id: format!("key {index} {unique}").into_bytes(),
            spki: KEY.public_key_to_der().unwrap(),
            label: format!("memory {index}"),
            algorithms,
            call_class: if index == 0 { CallClass::Inline } else { CallClass::Blocking },
        }
    }
}

fn silent() -> Finding {
    Finding {
        severity: Severity::Warning,
        subject: String::new(),
        error: Error::new(Code::NotFound, ""),
        hint: String::new(),
    }
}

/// A way to the backend that isn't its table, and what is wrong with it.
#[derive(Clone, Debug)]
struct Detour {
    slip: Slip,
    only: Arc<OnceLock<Session>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Slip {
    None,
    CutsIds,
    IgnoresCapacity,
    LeaksInAFinding,
    LeaksInAnError,
    LosesCodes,
    LosesConfiguration,
    LosesTheLengthNeeded,
    LosesTheName,
    SharesOneStore,
}

/// A store at the end of a [`Detour`].
#[derive(Debug)]
struct Distant {
    session: Session,
    slip: Slip,
}

impl Door for Detour {
    fn describe(&self) -> Result<Described, String> {
        let name = if self.slip == Slip::LosesTheName { "" } else { Memory::DESCRIPTION.name };
        Ok(Described {
            name: name.to_owned(),
            version: Memory::DESCRIPTION.version.to_owned(),
            vendor: Memory::DESCRIPTION.vendor.to_owned(),
            lanes_max: Memory::DESCRIPTION.lanes_max,
            schema: Memory::DESCRIPTION.schema.to_owned(),
        })
    }

    fn open(&self, host: &'static TestHost) -> Result<Arc<dyn Opened>, Error> {
        let session = match self.slip {
            Slip::LosesConfiguration => TestHost::leak(json!({}), BTreeMap::new()).open(&TABLE)?,
            Slip::SharesOneStore => self.only.get_or_init(|| host.open(&TABLE).unwrap()).clone(),
            _ => host.open(&TABLE)?,
        };
        Ok(Arc::new(Distant { session, slip: self.slip }))
    }
}

impl Opened for Distant {
    fn listing(&self) -> Result<Listing, Error> {
        let mut listing = self.session.listing()?;
        if self.slip == Slip::LeaksInAFinding {
            let hint = self.secret();
            listing.findings.push(Finding {
                subject: "a key".into(),
                error: Error::unknown_key(),
                hint,
                ..silent()
            });
        }
        Ok(listing)
    }

    fn perform(&self, operation: Operation, request: &Request<'_>) -> Result<Vec<u8>, Failure> {
        let mut request = *request;
        match self.slip {
            Slip::CutsIds => request.key = request.key.get(..7).unwrap_or(request.key),
            Slip::IgnoresCapacity => request.capacity = 2048,
            _ => {}
        }
        self.session.perform(operation, &request).map_err(|mut failure| {
            match self.slip {
                Slip::LeaksInAnError => failure.error.message = self.secret(),
                Slip::LosesCodes => failure.error.code = Code::Internal,
                Slip::LosesTheLengthNeeded => failure.needed = 0,
                _ => {}
            }
            failure
        })
    }

    fn health(&self) -> Result<Health, Error> {
        self.session.health()
    }

    fn close(&self) -> Result<(), Error> {
        self.session.close()
    }
}

impl Distant {
    fn secret(&self) -> String {
        String::from_utf8(self.session.host().secret("token").unwrap()).unwrap()
    }
}

fn behind(slip: Slip) -> Subject {
    Subject::behind(Detour { slip, only: Arc::default() })
        .config(json!({ "blocking_keys": 2 }))
        .secret("token", b"a secret value")
}

fn flawed(flaw: &str) -> Subject {
    Subject::new(&TABLE).config(json!({ "flaw": flaw })).secret("token", b"a secret value")
}

/// What [`conformance::run`] says of a subject; `None` where it finds nothing wrong.
fn verdict(subject: Subject) -> Option<String> {
    let run = AssertUnwindSafe(|| conformance::run(&subject));
    catch_unwind(run).err().map(|panic| *panic.downcast::<String>().unwrap())
}

#[test]
fn passes_a_backend_that_keeps_the_rules() {
    conformance::run(&flawed("None"));
    conformance::run(&Subject::new(&TABLE).config(json!({ "blocking_keys": 2 })));
}

#[test]
fn walks_listings_of_many_pages() {
    let subject = Subject::new(&TABLE).config(json!({ "blocking_keys": 600 }));
    let listing = subject.open().unwrap().listing().unwrap();
    assert_eq!(listing.keys.len(), 601);
    assert_eq!(listing.keys.last().unwrap().label, "memory 600");
    conformance::lists_well_formed_keys(&subject).unwrap();
}

#[test]
fn a_note_crosses_the_table_as_a_note_without_a_class() {
    let listing = Subject::new(&TABLE).open().unwrap().listing().unwrap();
    let [note] = &listing.findings[..] else { panic!("one note: {:?}", listing.findings) };
    assert_eq!((note.severity, note.error.code), (Severity::Note, Code::from_number(0)));
    let text = [note.subject.as_str(), &note.error.message, &note.hint];
    assert_eq!(text, ["memory", "it is never full", ""]);
}

#[test]
fn catches_a_backend_that_breaks_a_rule() {
    for (flaw, case) in [
        ("AcceptsUnknownKeys", "refuses_unknown_keys"),
        ("ClaimsTooMuch", "does_what_its_keys_claim"),
        ("Empty", "closes: the store has no keys"),
        ("ForgetsIds", "lists_the_same_keys_after_reopening"),
        ("LogsTheSecret", "keeps_secrets"),
        ("HidesTheSmallBuffer", "respects_the_output_buffer"),
        ("Panics", "does_what_its_keys_claim: key `memory 0`: ecdsa-sha256: the plugin panicked: a flaw"),
        ("SignsSomethingElse", "does_what_its_keys_claim"),
        ("SilentFinding", "lists_well_formed_keys"),
        ("UnknownFamily", "lists_well_formed_keys"),
        ("UnsteadyHealth", "answers_health"),
    ] {
        let verdict = verdict(flawed(flaw)).unwrap_or_else(|| panic!("{flaw} is not caught"));
        assert!(verdict.contains(&format!("  {case}")), "{flaw}: {verdict}");
    }
}

#[test]
fn passes_a_door_that_keeps_the_rules() {
    conformance::run(&behind(Slip::None));
}

#[test]
fn catches_a_door_that_breaks_a_rule() {
    for (slip, case) in [
        (Slip::CutsIds, "refuses_unknown_keys"),
        (
            Slip::IgnoresCapacity,
            "respects_the_output_buffer: key `memory 0`: ecdsa-sha256: a result in 0 bytes",
        ),
        (Slip::LeaksInAFinding, "keeps_secrets: a secret is in: a key: "),
        (Slip::LeaksInAnError, "keeps_secrets: a secret is in: a secret value"),
        (Slip::LosesCodes, "refuses_unknown_algorithms"),
        (Slip::LosesConfiguration, "refuses_unknown_configuration"),
        (Slip::LosesTheLengthNeeded, "respects_the_output_buffer"),
        (Slip::LosesTheName, "describes_itself: the name \"\" is not a plain one"),
        (Slip::SharesOneStore, "keeps_two_stores_apart"),
    ] {
        let verdict = verdict(behind(slip)).unwrap_or_else(|| panic!("{slip:?} is not caught"));
        assert!(verdict.contains(&format!("  {case}")), "{slip:?}: {verdict}");
    }
}

#[test]
fn a_host_serves_a_door_as_it_serves_a_table() {
    let host = behind(Slip::None).host();
    assert_eq!(host.config(), &json!({ "blocking_keys": 2 }));
    assert_eq!((host.secret("token"), host.secret("other")), (Some(b"a secret value".to_vec()), None));
    assert_eq!(host.secret_reads(), 2);
    assert!(!host.was_refused("token 1", b"1234"));
    host.note_refusal("token 1", b"1234");
    assert!(host.was_refused("token 1", b"1234") && !host.was_refused("token 2", b"1234"));
    assert_eq!(host.refusals(), [("token 1".to_owned(), b"1234".to_vec())]);
    host.note_keys_changed();
    assert_eq!(host.keys_changed(), 1);
    let record = |message: &str| Record {
        level: 3,
        target: "test".to_owned(),
        message: message.to_owned(),
        fields: String::new(),
        request_id: String::new(),
    };
    host.log(record("a harmless message"));
    assert_eq!(host.leaks(), [""; 0]);
    host.log(record("a secret value"));
    assert_eq!(host.records().len(), 2);
    assert_eq!(host.leaks().len(), 1);
}

#[test]
fn forwards_events_with_the_request_they_belong_to() {
    let session = flawed("None").open().unwrap();
    let key = session.listing().unwrap().keys.remove(0);
    let mut request = Request::new(&key, Algorithm::EcdsaSha256, &[1; 32]);
    request.request_id = "request 7";
    session.perform(Algorithm::EcdsaSha256.operation(), &request).unwrap();
    let records = session.host().records();
    let record = records.iter().find(|record| record.message == "signing").unwrap();
    assert_eq!((record.level, record.request_id.as_str()), (3, "request 7"));
    assert_eq!(record.fields, r#"{"lane":"Inline"}"#);
}

#[test]
fn answers_unavailable_after_closing() {
    let session = flawed("None").open().unwrap();
    let key = session.listing().unwrap().keys.remove(0);
    session.close().unwrap();
    let error = session.sign(&key, Algorithm::EcdsaSha256, &[1; 32]).unwrap_err();
    assert_eq!(error.code, Code::Unavailable);
}
