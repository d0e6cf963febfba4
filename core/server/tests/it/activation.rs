//! What systemd does for the server, without systemd: a listening socket that outlives it, and words on a socket.

use std::{
    collections::{BTreeSet, HashMap},
    fs,
    io::ErrorKind,
    net::{SocketAddr, TcpListener},
    os::{
        fd::OwnedFd,
        unix::net::{UnixDatagram, UnixListener},
    },
    path::PathBuf,
    process::Command,
    sync::{
        Arc, Mutex, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use keystead_protocol::{Opcode, Ski};
use rustix::{
    process::Signal,
    time::{ClockId, clock_gettime},
};
use rustls::{
    ClientConfig,
    version::{TLS12, TLS13},
};

use crate::world::{Client, Files, Gate, PATIENCE, Server, content, hostile, id, request, skis};

/// A listening socket that is kept while servers come and go.
struct Port {
    socket: TcpListener,
    config: PathBuf,
}

impl Port {
    fn new(config: PathBuf) -> Self {
        Self { socket: TcpListener::bind("127.0.0.1:0").unwrap(), config }
    }

    fn address(&self) -> SocketAddr {
        self.socket.local_addr().unwrap()
    }

    /// Starts a server on it.
    fn serve(&self) -> Server {
        let mut command = Command::new(env!("CARGO_BIN_EXE_keystead"));
        command.arg("run").arg("-c").arg(&self.config);
        command.env("LISTEN_FDS", "1").env("LISTEN_FDS_FIRST_FD", "0");
        let server = Server::spawn_with(command, OwnedFd::from(self.socket.try_clone().unwrap()));
        assert_eq!(server.address, self.address());
        server
    }
}

/// What clients have seen so far.
struct Load {
    address: SocketAddr,
    tls: [Arc<ClientConfig>; 2],
    over: AtomicBool,
    /// Whatever should not have happened.
    wrong: Mutex<Vec<String>>,
    /// Answers on connections of their own.
    fresh: [AtomicU64; FRESH],
    /// For each client that stays connected, the number of the server that answered it last.
    served_by: [AtomicU64; STAYING],
    /// The number of the server that has not been told to stop. Whoever sends holds the lock, so that it is known what
    /// was sent before.
    server: RwLock<u64>,
    /// Requests that were sent after that, and not answered.
    late: AtomicU64,
    longest: Mutex<Duration>,
}

/// Clients that connect for one request each, and clients that stay.
const FRESH: usize = 4;
const STAYING: usize = 3;

/// Requests that a client which stays keeps in flight.
const IN_FLIGHT: usize = 8;

impl Load {
    fn new(files: &Files, port: &Port) -> Self {
        Self {
            address: port.address(),
            tls: [files.client_tls(&[&TLS12]), files.client_tls(&[&TLS13])],
            over: AtomicBool::new(false),
            wrong: Mutex::default(),
            fresh: Default::default(),
            served_by: Default::default(),
            server: RwLock::new(1),
            late: AtomicU64::new(0),
            longest: Mutex::default(),
        }
    }

    fn goes_on(&self) -> bool {
        !self.over.load(Ordering::Relaxed)
    }

    fn note(&self, what: Result<(), String>) {
        self.wrong.lock().unwrap().extend(what.err());
    }

    fn connect(&self, which: usize) -> Result<Client, String> {
        Client::connect_with(Arc::clone(&self.tls[which % 2]), self.address)
            .map_err(|error| format!("connecting: {error}"))
    }

    /// Connects, signs and leaves, again and again.
    fn come_and_go(&self, number: usize) {
        while self.goes_on() {
            let started = Instant::now();
            let served = self.connect(number).and_then(sign_once);
            self.note(served.map_err(|what| format!("fresh connection of client {number}: {what}")));
            self.fresh[number].fetch_add(1, Ordering::Relaxed);
            let mut longest = self.longest.lock().unwrap();
            *longest = started.elapsed().max(*longest);
        }
    }

    /// Keeps requests in flight for as long as the server lets it, and then with the next one.
    fn stay(&self, number: usize, ski: Ski) {
        while self.goes_on() {
            let stayed = self.connect(number).and_then(|client| self.converse(client, number, ski));
            self.note(stayed.map_err(|what| format!("connection of client {number}: {what}")));
        }
    }

    fn converse(&self, mut client: Client, number: usize, ski: Ski) -> Result<(), String> {
        let mut in_flight: HashMap<u32, u64> = HashMap::new();
        let mut ids = 0..;
        while self.goes_on() {
            while in_flight.len() < IN_FLIGHT {
                let server = self.server.read().unwrap();
                let id = ids.next().unwrap_or_default();
                if !client.try_send(&request(id, ski, Opcode::ECDSA_SIGN_SHA256, &[1; 32])) {
                    break; // which reading explains
                }
                in_flight.insert(id, *server);
            }
            match client.try_receive() {
                Ok(Some(frame)) => {
                    content(&frame).map_err(|code| format!("an answer is {code}"))?;
                    let server = in_flight.remove(&id(&frame)).ok_or("an answer to nothing")?;
                    self.served_by[number].fetch_max(server, Ordering::Relaxed);
                }
                Ok(None) => return self.left(&in_flight),
                Err(error) => return Err(format!("with {} requests in flight: {error}", in_flight.len())),
            }
        }
        Ok(())
    }

    /// What is to be said of requests that were in flight when the server closed the connection.
    fn left(&self, in_flight: &HashMap<u32, u64>) -> Result<(), String> {
        let now = *self.server.read().unwrap();
        let before = in_flight.values().filter(|server| **server < now).count();
        self.late.fetch_add((in_flight.len() - before) as u64, Ordering::Relaxed);
        match before {
            0 => Ok(()),
            _ => Err(format!("closed without {before} answers to what was sent before the stop")),
        }
    }

    /// Waits until every client has been served anew since `before`.
    fn everybody_is_served(&self, server: &Server) {
        let before: Vec<u64> = self.fresh.iter().map(|count| count.load(Ordering::Relaxed)).collect();
        let now = *self.server.read().unwrap();
        let end = Instant::now() + PATIENCE;
        let served = || {
            let mut fresh = self.fresh.iter().zip(&before);
            fresh.all(|(count, before)| count.load(Ordering::Relaxed) >= before + 2)
                && self.served_by.iter().all(|by| by.load(Ordering::Relaxed) == now)
        };
        while !served() {
            assert!(Instant::now() < end, "not everybody is served:\n{}", server.log());
            thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Signs once on a connection.
fn sign_once(mut client: Client) -> Result<(), String> {
    client.send(&request(1, skis()["ed25519"], Opcode::ED25519_SIGN, b"message"));
    match client.try_receive() {
        Ok(Some(frame)) => content(&frame).map(drop).map_err(|code| format!("the answer is {code}")),
        Ok(None) => Err("closed before the answer".to_owned()),
        Err(error) => Err(format!("broken before the answer: {error}")),
    }
}

/// Ends the load, also where the test fails.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The numbers of a process' descriptors that a program it starts would inherit, but for its output; `None` where the
/// system keeps them from this user.
fn inheritable(pid: u32) -> Option<BTreeSet<String>> {
    const CLOEXEC: u32 = 0o2_000_000; // in `flags:` of proc_pid_fdinfo(5)
    let folder = match fs::read_dir(format!("/proc/{pid}/fdinfo")) {
        Err(error) if error.kind() == ErrorKind::PermissionDenied => return None,
        entries => entries.unwrap(),
    };
    let is_kept = |info: &str| {
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap().trim();
        u32::from_str_radix(flags, 8).unwrap() & CLOEXEC != 0
    };
    let found = folder.filter_map(|entry| {
        let path = entry.unwrap().path();
        let number = path.file_name().unwrap().to_str().unwrap().to_owned();
        let info = fs::read_to_string(&path).ok()?; // closed meanwhile
        (!["1", "2"].contains(&number.as_str()) && !is_kept(&info)).then_some(number)
    });
    Some(found.collect())
}

#[test]
fn a_program_that_the_server_starts_gets_none_of_its_descriptors() {
    // From whoever started these tests, and so the server's as well.
    let mut inherited = inheritable(std::process::id()).unwrap();
    inherited.remove("0");
    let files = Files::new();
    let stores =
        format!("{}- {{dir: {}}}\n", hostile(&files, "class: blocking"), files.path("keys").display());
    let port = Port::new(files.config(&format!("watch: 1s\n{stores}")));
    let by_port = port.serve();
    let admin = UnixListener::bind(files.path("inherited.sock")).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_keystead"));
    command.arg("run").arg("-c").arg(files.config(&stores)).env("LISTEN_FDS", "1");
    command.env("LISTEN_FDS_FIRST_FD", "0").env("LISTEN_FDNAMES", "admin");
    let by_admin = Server::spawn_with(command, OwnedFd::from(admin));
    assert!(!by_admin.admin.exists(), "it serves on the socket that it was given");
    for server in [by_port, by_admin] {
        server.wait_until_ready();
        let _client = Client::connect(&files, &server);
        match inheritable(server.pid()) {
            Some(found) => assert_eq!(found.difference(&inherited).collect::<Vec<_>>(), [""; 0]),
            // Nobody but root sees what a process has open that can't be traced.
            None => assert!(!rustix::process::geteuid().is_root()),
        }
    }
}

#[test]
fn a_restart_behind_a_socket_that_stays_costs_no_request() {
    const RESTARTS: u64 = 3;
    let files = Files::new();
    let ed25519 = files.path("keys/ed25519.key");
    let stores = hostile(&files, "sign: {slow: 20}, class: blocking");
    let port = Port::new(files.config(&format!("{stores}- {{file: {}}}\n", ed25519.display())));
    let load = Load::new(&files, &port);
    let mut server = port.serve();
    thread::scope(|scope| {
        let (load, end) = (&load, End(&load.over));
        for number in 0..FRESH {
            scope.spawn(move || load.come_and_go(number));
        }
        for number in 0..STAYING {
            scope.spawn(move || load.stay(number, skis()["p256"]));
        }
        for _ in 0..RESTARTS {
            load.everybody_is_served(&server);
            let mut number = load.server.write().unwrap();
            server.signal(Signal::TERM);
            *number += 1;
            drop(number);
            assert_eq!(server.wait().code(), Some(0));
            server = port.serve();
        }
        load.everybody_is_served(&server);
        drop(end);
    });
    let served: u64 = load.fresh.iter().map(|count| count.load(Ordering::Relaxed)).sum();
    println!(
        "{RESTARTS} restarts, {served} connections for one request, the longest of {:.2?}; {} requests came after the stop",
        load.longest.lock().unwrap(),
        load.late.load(Ordering::Relaxed)
    );
    let wrong = load.wrong.lock().unwrap();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_client_that_waits_for_a_place_when_the_server_stops_is_served() {
    let files = Files::new();
    let server = Server::with_keys(&files, "limits: {connections: 1, connections_per_peer: 2}\n");
    let first = Client::connect(&files, &server);
    let (tls, address) = (files.client_tls(&[&TLS13]), server.address);
    let second = thread::spawn(move || sign_once(Client::connect_with(tls, address).unwrap()));
    server.wait_for("new clients wait for one");
    server.signal(Signal::TERM);
    assert_eq!(second.join().unwrap(), Ok(()));
    drop(first);
}

#[test]
fn a_client_that_has_only_connected_when_the_server_stops_is_served() {
    let files = Files::new();
    for tls in [&TLS12, &TLS13] {
        let server = Server::with_keys(&files, "");
        let client = Client::connect_with(files.client_tls(&[tls]), server.address).unwrap();
        server.wait_for_metric("keystead_connections 1");
        server.signal(Signal::TERM);
        server.wait_for("stopping");
        assert_eq!(sign_once(client), Ok(()));
    }
}

/// What systemd hears.
struct Manager(UnixDatagram);

impl Manager {
    /// Has a command tell it, and be watched.
    fn of(files: &Files, command: &mut Command) -> Self {
        let path = files.path("notify.sock");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        command.env("NOTIFY_SOCKET", path).env("WATCHDOG_USEC", "600000");
        Self(socket)
    }

    /// The next message with an assignment; others are passed over.
    fn hears(&self, assignment: &str) -> String {
        loop {
            let mut message = [0; 4096];
            let len = self.0.recv(&mut message).unwrap_or_else(|error| panic!("no {assignment}: {error}"));
            let message = String::from_utf8(message[..len].to_vec()).unwrap();
            if message.lines().any(|line| line == assignment) {
                return message;
            }
        }
    }
}

/// The value of a variable in a message.
fn value<'a>(message: &'a str, variable: &str) -> &'a str {
    let value = message.lines().find_map(|line| line.strip_prefix(variable)?.strip_prefix('='));
    value.unwrap_or_else(|| panic!("no {variable} in {message}"))
}

fn monotonic_microseconds() -> i64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec * 1_000_000 + now.tv_nsec / 1_000
}

#[test]
fn systemd_is_told_when_the_server_is_ready_alive_reloads_and_stops() {
    let files = Files::new();
    let mut gate = Gate::new(&files);
    let config = files.config(&format!(
        "private_key_stores:\n- {{dir: {}}}\n- {{name: late, plugin: hostile, config: {{open: {{wait_for: {}}}}}}}\n",
        files.path("keys").display(),
        gate.path.display()
    ));
    let mut command = Command::new(env!("CARGO_BIN_EXE_keystead"));
    command.arg("run").arg("-c").arg(config);
    let manager = Manager::of(&files, &mut command);
    let begun = Instant::now();
    let mut server = Server::spawn(command);
    server.wait_for("the store serves"); // the one of files
    gate.reached(); // by the other one, which opens
    gate.open();
    let ready = manager.hears("READY=1");
    let status = value(&ready, "STATUS");
    assert!(status.starts_with("serving: ") && status.contains("of 2 stores"), "{status}");
    let waited = !status.contains("opening") && !status.contains("down");
    assert!(
        waited || begun.elapsed() > Duration::from_secs(5),
        "it didn't wait for the other store: {status}"
    );

    for _ in 0..3 {
        manager.hears("WATCHDOG=1");
    }

    let before = monotonic_microseconds();
    server.signal(Signal::HUP);
    let reloading = manager.hears("RELOADING=1");
    let at = value(&reloading, "MONOTONIC_USEC").parse().unwrap();
    assert!((before..=monotonic_microseconds()).contains(&at), "{reloading}");
    let ready = manager.hears("READY=1");
    assert!(value(&ready, "STATUS").starts_with("serving: "), "{ready}");

    server.signal(Signal::TERM);
    let stopping = manager.hears("STOPPING=1");
    assert!(value(&stopping, "STATUS").starts_with("stopping"), "{stopping}");
    assert_eq!(server.wait().code(), Some(0));
}
