//! A server whose key is behind the PKCS#11 module that misbehaves as it is told; what may befall the module; and a load
//! that sees how the server bears it.

#[path = "../../../../plugins/pkcs11/tests/module/control.rs"]
#[expect(dead_code, reason = "it serves other tests as well")]
pub(crate) mod control;

use std::{
    iter,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use keystead_client::Client;
use keystead_protocol::{Opcode, Ski};
use rustls::version::{TLS12, TLS13};
use tokio::runtime::{self, Runtime};

use crate::{
    token::{PIN, Token},
    world::{Files, PATIENCE, Server},
};
use control::{Control, VARIABLE};

/// Within so long after its cure, a fault must be over.
pub(crate) const BACK: Duration = Duration::from_secs(2);

/// How long a store may take for an answer here. Less than [`BACK`], so that a request that a fault has caught doesn't
/// outlast it.
const DEADLINE: Duration = Duration::from_secs(1);

/// How long calls may hang here until their process is ended: the shortest that there is.
const STUCK_AFTER: Duration = Duration::from_secs(1);

/// A token `keys` with the key `p256`, by the module that misbehaves.
pub(crate) struct Misbehaving<'a> {
    files: &'a Files,
    token: Token<'a>,
    pub(crate) control: Control,
    pub(crate) ski: Ski,
}

impl<'a> Misbehaving<'a> {
    pub(crate) fn new(files: &'a Files) -> Self {
        let token = Token::new(files);
        let ski = Ski::from_spki(&token.generate("p256", "EC:prime256v1")).unwrap();
        let control = Control::listen_at(&files.path("control"));
        Self { files, token, control, ski }
    }

    /// Starts a server that has the token, `inline` or in a `process`, with so many lanes.
    pub(crate) fn serve(&self, isolation: &str, lanes: usize) -> Server {
        let [pin, conf, control] = ["pin", "softhsm2.conf", "control"].map(|name| self.files.path(name));
        self.files.write("pin", PIN.as_bytes());
        let place = match isolation {
            "process" => format!(
                "env: {{SOFTHSM2_CONF: {}, {VARIABLE}: {}}}, limits: {{stuck_after: {STUCK_AFTER:?}, ",
                conf.display(),
                control.display()
            ),
            _ => format!("isolation: {isolation}, limits: {{"),
        };
        let mut command = self.token.command(&format!(
            "private_key_stores:\n- {{name: token, plugin: pkcs11, config: {{module: {}, \
             uris: [\"pkcs11:token=keys;object=p256\"]}}, secrets: {{pin: {{file: {}}}}}, \
             {place}lanes: {lanes}, deadline: {DEADLINE:?}}}}}\n",
            control::module().display(),
            pin.display()
        ));
        command.env(VARIABLE, control);
        let server = Server::spawn(command);
        server.wait_until_ready();
        server
    }
}

const CKR_FUNCTION_FAILED: u64 = 0x06;
const CKR_DEVICE_ERROR: u64 = 0x30;
const CKR_DEVICE_REMOVED: u64 = 0x32;
const CKR_KEY_HANDLE_INVALID: u64 = 0x60;
/// Thales' code for an appliance that can't be reached.
const LUNA_UNABLE_TO_CONNECT: u64 = 0x8000_001f;

/// What may befall the module: how it begins, how long it lasts, and how it is cured.
pub(crate) struct Fault {
    pub(crate) name: &'static str,
    begins: fn(&Control),
    lasts: Duration,
    ends: fn(&Control),
    /// Whether requests may fail of it.
    pub(crate) fails: bool,
    /// Whether it is the end of the process.
    pub(crate) kills: bool,
}

/// Each of them, gentle ones first.
pub(crate) const FAULTS: [Fault; 12] = [
    Fault::momentary("sessions lost", |control| control.forgets_sessions("keys")),
    Fault::momentary("login lost", |control| control.forgets_login("keys")),
    Fault::momentary("handles invalid", |control| control.forgets_objects("keys", CKR_KEY_HANDLE_INVALID)),
    Fault {
        fails: false,
        ..Fault::lasting(
            "signatures take long",
            |control| control.latency("C_Sign", Duration::from_millis(50)),
            works,
        )
    },
    Fault::lasting(
        "fewer sessions than lanes",
        |control| {
            control.limits_sessions("keys", 3);
            control.forgets_sessions("keys");
        },
        |control| control.limits_sessions("keys", 0),
    ),
    Fault::lasting("signatures fail", |control| control.fails("C_Sign", CKR_FUNCTION_FAILED), works),
    Fault::lasting("a vendor's own code", |control| control.fails("C_Sign", LUNA_UNABLE_TO_CONNECT), works),
    Fault::lasting(
        "token away and back",
        |control| control.goes("keys", CKR_DEVICE_REMOVED),
        |control| {
            control.comes_back("keys");
        },
    ),
    Fault::lasting(
        "token back once initialised anew",
        |control| control.goes("keys", CKR_DEVICE_ERROR),
        |control| {
            control.comes_back_once_initialised_anew("keys", CKR_DEVICE_ERROR);
        },
    ),
    Fault::lasting("signatures hang for a while", |control| control.hangs("C_Sign"), works),
    Fault {
        // Not twice as long, or the process that follows would hang for too long as well.
        lasts: Duration::from_millis(1_700),
        kills: true,
        ..Fault::lasting("signatures hang for too long", |control| control.hangs("C_Sign"), works)
    },
    Fault {
        kills: true,
        ..Fault::momentary("the library crashes", |control| control.crashes_next("C_Sign"))
    },
];

fn works(control: &Control) {
    control.works("C_Sign");
}

impl Fault {
    /// One that needs no cure, and that no request should fail of.
    const fn momentary(name: &'static str, begins: fn(&Control)) -> Self {
        Self { name, begins, lasts: Duration::ZERO, ends: |_| (), fails: false, kills: false }
    }

    const fn lasting(name: &'static str, begins: fn(&Control), ends: fn(&Control)) -> Self {
        Self { name, begins, lasts: Duration::from_millis(500), ends, fails: true, kills: false }
    }

    /// Has it happen, and returns when the server serves again.
    pub(crate) fn befall(&self, control: &Control, load: &Load) -> Bout {
        let began = Instant::now();
        (self.begins)(control);
        thread::sleep(self.lasts);
        (self.ends)(control);
        let cured = Instant::now();
        let served = load.wait_until_served(cured);
        Bout { began, cured, served }
    }
}

/// One time that a fault happened.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bout {
    pub(crate) began: Instant,
    pub(crate) cured: Instant,
    /// When the first request was answered that was sent after the cure.
    served: Instant,
}

impl Bout {
    /// How long after the cure the last request failed before another time, or was the first served.
    pub(crate) fn over_after(&self, load: &Load, before: Instant) -> Duration {
        let failed = load.failures(self.cured, before).pop();
        failed.map_or(self.served, |failed| failed.max(self.served)) - self.cured
    }
}

/// Requests for signatures, so many all the time: each is sent when one was answered.
pub(crate) struct Load {
    tally: Arc<Tally>,
    _runtime: Runtime,
}

/// What became of the requests.
struct Tally {
    start: Instant,
    served: AtomicU64,
    /// When the latest of the requests that were served was sent, ns since `start`.
    sent: AtomicU64,
    /// When requests failed, in order, and of what.
    failed: Mutex<Vec<(Instant, String)>>,
}

impl Load {
    /// On so many connections, with so many requests in flight on each.
    pub(crate) fn new(
        files: &Files,
        server: &Server,
        ski: Ski,
        (connections, in_flight): (usize, usize),
    ) -> Self {
        let runtime = runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let tls = files.client_tls(&[&TLS12, &TLS13]);
        let tally = Arc::new(Tally {
            start: Instant::now(),
            served: AtomicU64::default(),
            sent: AtomicU64::default(),
            failed: Mutex::default(),
        });
        for _ in 0..connections {
            let name = "localhost".try_into().unwrap();
            let client =
                Client::builder([server.address.to_string()], name, Arc::clone(&tls)).build().unwrap();
            for client in iter::repeat_n(client, in_flight) {
                runtime.spawn(Arc::clone(&tally).ask(client, ski));
            }
        }
        Self { tally, _runtime: runtime }
    }

    /// How many requests were served.
    pub(crate) fn served(&self) -> u64 {
        self.tally.served.load(Ordering::Relaxed)
    }

    /// Waits until a request is served that was sent after some time; answers when that was.
    pub(crate) fn wait_until_served(&self, after: Instant) -> Instant {
        let after = self.tally.since_start(after);
        loop {
            let now = Instant::now();
            if self.tally.sent.load(Ordering::Relaxed) > after {
                return now;
            }
            assert!(
                self.tally.since_start(now) < after + nanoseconds(PATIENCE),
                "it never serves again: {:?}",
                self.causes()
            );
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// When requests failed between two times, in order.
    pub(crate) fn failures(&self, from: Instant, until: Instant) -> Vec<Instant> {
        let failed = self.tally.failed.lock().unwrap();
        failed.iter().map(|(when, _)| *when).filter(|when| (from..until).contains(when)).collect()
    }

    /// What the last requests failed of.
    pub(crate) fn causes(&self) -> Vec<String> {
        self.tally.failed.lock().unwrap().iter().rev().take(3).map(|(_, cause)| cause.clone()).collect()
    }
}

impl Tally {
    async fn ask(self: Arc<Self>, client: Client, ski: Ski) {
        loop {
            let sent = Instant::now();
            match client.sign(ski, Opcode::ECDSA_SIGN_SHA256, &[7; 32]).await {
                Ok(_) => {
                    self.served.fetch_add(1, Ordering::Relaxed);
                    self.sent.fetch_max(self.since_start(sent), Ordering::Relaxed);
                }
                Err(error) => {
                    self.failed.lock().unwrap().push((Instant::now(), format!("{error:?}")));
                    tokio::time::sleep(Duration::from_millis(5)).await; // it fails at once while the token is away
                }
            }
        }
    }

    fn since_start(&self, when: Instant) -> u64 {
        nanoseconds(when.saturating_duration_since(self.start))
    }
}

fn nanoseconds(time: Duration) -> u64 {
    time.as_nanos().try_into().unwrap()
}
