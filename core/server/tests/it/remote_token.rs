//! A token behind a socket (p11-kit) whose other end is killed under load. Calls that are on their way then may hang in
//! p11-kit's client for ever (0.24.1), and only the end of the process that it is in helps.

#[path = "../../../../plugins/pkcs11/tests/softhsm/p11_kit.rs"]
mod p11_kit;

use std::{
    io::{self, Read, Write},
    net::Shutdown,
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use keystead_protocol::Ski;

use crate::{
    misbehaving::Load,
    token::{MODULE, PIN, Token},
    world::{Files, PATIENCE, Server},
};
use p11_kit::{P11Kit, client};

/// Calls that the store makes at once; there are as many connections, with four times as many requests in flight on each.
const LANES: usize = 4;

/// How long the store may take for an answer, and how long calls may hang until their process is ended.
const DEADLINE: Duration = Duration::from_secs(1);

/// How often each end is killed.
const TIMES: usize = 3;

/// A server whose key `p256` is behind a socket, and a load on it.
struct Scene<'a> {
    files: &'a Files,
    server: Server,
    load: Load,
}

impl<'a> Scene<'a> {
    /// With a token, and a socket that leads to it.
    fn new(files: &'a Files, token: &Token<'_>, socket: &str) -> Self {
        let ski = Ski::from_spki(&token.generate("p256", "EC:prime256v1")).unwrap();
        let pin = files.write("pin", PIN.as_bytes());
        let server = token.serve(&format!(
            "private_key_stores:\n- {{name: token, plugin: pkcs11, config: {{module: {}, \
             uris: [\"pkcs11:token=keys;object=p256\"]}}, secrets: {{pin: {{file: {}}}}}, \
             env: {{P11_KIT_SERVER_ADDRESS: \"unix:path={}\"}}, limits: {{lanes: {LANES}, deadline: {DEADLINE:?}, \
             stuck_after: {DEADLINE:?}}}}}\n",
            client().display(),
            pin.display(),
            files.path(socket).display(),
        ));
        server.wait_until_ready();
        let load = Load::new(files, &server, ski, (LANES, 4 * LANES));
        load.wait_until_served(Instant::now());
        Self { files, server, load }
    }

    fn remote(files: &Files) -> P11Kit {
        P11Kit::start(Path::new(MODULE), &files.path("softhsm2.conf"), &files.path("p11-kit"))
    }

    /// Waits until a request is served that is sent from now on; and when those that were caught are over, none may fail.
    fn is_served_again(&self) {
        self.load.wait_until_served(Instant::now());
        thread::sleep(DEADLINE);
        let calm = Instant::now();
        let served = self.load.served();
        while self.load.served() < served + 200 {
            assert!(calm.elapsed() < PATIENCE, "it serves no more: {:?}", self.load.causes());
            thread::sleep(Duration::from_millis(5));
        }
        let failed = self.load.failures(calm, Instant::now()).len();
        assert_eq!(failed, 0, "{:?}", self.load.causes());
    }
}

#[test]
fn a_token_whose_other_end_is_killed_under_load_is_served_again() {
    let files = Files::new();
    let token = Token::new(&files);
    let mut remote = Scene::remote(&files);
    let scene = Scene::new(&files, &token, "p11-kit");
    for _ in 0..TIMES {
        remote.kill_remotes();
        scene.is_served_again();
        drop(remote);
        thread::sleep(Duration::from_millis(200)); // the store notices
        remote = Scene::remote(scene.files);
        scene.is_served_again();
    }
}

#[test]
fn calls_that_hang_for_ever_when_the_other_end_dies_in_an_answer_are_over_with_their_process() {
    let files = Files::new();
    let token = Token::new(&files);
    let _remote = Scene::remote(&files);
    let between = Between::start(&files.path("between"), files.path("p11-kit"));
    let scene = Scene::new(&files, &token, "between");
    for time in 1..=TIMES {
        between.cut_an_answer();
        scene.server.wait_for_times("a call in it hung for 1s", time);
        scene.is_served_again();
    }
}

/// What stands between p11-kit's client and its server, and can die in the middle of an answer: its head has come, its
/// rest never does. Whom it is for then fails, and all others wait in the client until that one has read the rest.
struct Between(Arc<Wires>);

#[derive(Default)]
struct Wires {
    cut: AtomicBool,
    /// Calls that are on their way.
    calls: AtomicUsize,
}

impl Between {
    fn start(socket: &Path, server: PathBuf) -> Self {
        let wires = Arc::new(Wires::default());
        let (listener, shared) = (UnixListener::bind(socket).unwrap(), Arc::clone(&wires));
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let Ok(server) = UnixStream::connect(&server) else { continue };
                let wires = Arc::clone(&shared);
                thread::spawn(move || wires.connect(&client, &server));
            }
        });
        Self(wires)
    }

    /// Returns when it has.
    fn cut_an_answer(&self) {
        self.0.cut.store(true, Ordering::SeqCst);
        let end = Instant::now() + PATIENCE;
        while self.0.cut.load(Ordering::SeqCst) {
            assert!(Instant::now() < end, "no answer was cut");
            thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Wires {
    /// Hands on what both ends say until one ends, or an answer is cut.
    fn connect(&self, client: &UnixStream, server: &UnixStream) {
        self.calls.store(0, Ordering::SeqCst);
        thread::scope(|scope| {
            scope.spawn(|| {
                let _ = self.questions(client, server);
                hang_up(client, server);
            });
            let _ = self.answers(server, client);
            hang_up(client, server);
        });
    }

    fn questions(&self, client: &UnixStream, server: &UnixStream) -> io::Result<()> {
        version(client, server)?;
        loop {
            let head = head(client)?;
            self.calls.fetch_add(1, Ordering::SeqCst);
            (&mut &*server).write_all(&head)?;
            body(&head, client, server)?;
        }
    }

    fn answers(&self, server: &UnixStream, client: &UnixStream) -> io::Result<()> {
        version(server, client)?;
        loop {
            let head = head(server)?;
            if self.cut.load(Ordering::SeqCst) {
                while self.calls.load(Ordering::SeqCst) < LANES {
                    thread::sleep(Duration::from_millis(1));
                }
                (&mut &*client).write_all(&head)?;
                self.cut.store(false, Ordering::SeqCst);
                return Ok(());
            }
            self.calls.fetch_sub(1, Ordering::SeqCst);
            (&mut &*client).write_all(&head)?;
            body(&head, server, client)?;
        }
    }
}

fn hang_up(client: &UnixStream, server: &UnixStream) {
    for end in [client, server] {
        let _ = end.shutdown(Shutdown::Both); // the other direction may have
    }
}

/// What each end says first: a byte.
fn version(mut from: &UnixStream, mut to: &UnixStream) -> io::Result<()> {
    let mut version = [0];
    from.read_exact(&mut version)?;
    to.write_all(&version)
}

/// The head of a message: a code, and two lengths.
fn head(mut from: &UnixStream) -> io::Result<[u8; 12]> {
    let mut head = [0; 12];
    from.read_exact(&mut head)?;
    Ok(head)
}

/// Hands on what a head announces.
fn body(head: &[u8; 12], from: &UnixStream, mut to: &UnixStream) -> io::Result<()> {
    let length = |at: usize| u64::from(u32::from_be_bytes(head[at..at + 4].try_into().unwrap()));
    io::copy(&mut from.take(length(4) + length(8)), &mut to).map(drop)
}
