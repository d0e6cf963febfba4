//! What a good client notices of a crowd: thousands of connections that are idle, that never finish their handshake, or
//! that send and never read.
//!
//! What it prints are the good client's latencies alone and beside the crowd, in the same run, and what the crowd takes
//! of the server; the third row, when the crowd has left, tells how far the machine itself wavers. Other than by
//! `cargo bench`, or with `--test`, the crowd is small and everything takes a moment only.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::cast_precision_loss,
    reason = "a benchmark prints, and fails by panicking"
)]

#[expect(dead_code, reason = "the others use more of it")]
mod closed_loop;
#[path = "../tests/it/world.rs"]
#[expect(dead_code, reason = "the tests use more of it")]
mod world;

use std::{
    fs,
    io::{self, Write},
    net::TcpStream,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use keystead_protocol::Opcode;
use rustix::{
    net::sockopt::set_socket_send_buffer_size,
    process::{Resource, Rlimit, getrlimit, setrlimit},
};
use rustls::{
    ClientConfig, ClientConnection,
    version::{TLS12, TLS13},
};

use closed_loop::{Load, is_measured, load};
use world::{Files, PATIENCE, Server, ping, skis};

/// Nobody is sent away for the time of the measurement: the crowd is to stay.
const LIMITS: &str = "limits: {connections: 16000, handshakes: 2000, handshake_timeout: 10m, idle_timeout: 10m, \
                      frame_timeout: 10m, write_timeout: 10m}\n";

/// Requests in flight on each connection of the good client.
const CONNECTIONS: usize = 4;
const IN_FLIGHT: usize = 4;

/// How often each load is measured; shown is the one whose p99 is in the middle, since others use the machine, too.
const ROUNDS: usize = 5;

/// Handshakes of the crowd at once.
const AT_ONCE: usize = 4;

/// Without a byte taken for so long, the server takes no more.
const QUIET: Duration = Duration::from_secs(1);

/// What the system keeps for a client that sends more than is taken. By itself that would be megabytes for each, of the
/// memory that the systems of clients and server share here.
const SEND_BUFFER: usize = 16 << 10;

/// How many there are of each kind, and how long each round of a measurement takes.
struct Crowd {
    idle: usize,
    half_open: usize,
    slow: usize,
    time: Duration,
}

const FULL: Crowd = Crowd { idle: 10_000, half_open: 1_000, slow: 1_000, time: Duration::from_secs(3) };
const SMALL: Crowd = Crowd { idle: 200, half_open: 50, slow: 50, time: Duration::from_millis(100) };

fn main() {
    let crowd = if is_measured() { FULL } else { SMALL };
    allow_descriptors(crowd.idle + crowd.half_open + crowd.slow);
    let files = Files::new();
    let server = Server::with_keys(&files, LIMITS);
    let tls = files.client_tls(&[&TLS12, &TLS13]);
    let p256 = (skis()["p256"], Opcode::ECDSA_SIGN_SHA256);
    let measure = |name| {
        let mut loads: Vec<Load> =
            (0..ROUNDS).map(|_| load(&files, &server, p256, (CONNECTIONS, IN_FLIGHT), crowd.time)).collect();
        loads.sort_by(|one, other| one.percentile(99).total_cmp(&other.percentile(99)));
        show(name, loads.swap_remove(ROUNDS / 2))
    };

    println!("{:28} {:>10} {:>10} {:>10} {:>14}", "good client", "ops/s", "p50 µs", "p99 µs", "server µs/op");
    let alone = measure("alone");
    let before = State::of(&server);
    let idle = connect(&server, &tls, crowd.idle, |client| client.socket);
    wait_until(&server, crowd.idle, 0);
    let with_idle = State::of(&server);
    let half_open: Vec<TcpStream> = (0..crowd.half_open).map(|_| half_open(&server)).collect();
    wait_until(&server, crowd.idle, crowd.half_open);
    let with_half_open = State::of(&server);
    let mut slow = connect(&server, &tls, crowd.slow, |client| client);
    let sent = flood(&mut slow);
    wait_until(&server, crowd.idle + crowd.slow, crowd.half_open);
    let with_slow = State::of(&server);
    let beside = measure("beside the crowd");
    wait_until(&server, crowd.idle + crowd.slow, crowd.half_open); // it was there all the time
    drop((idle, half_open, slow));
    wait_until(&server, 0, 0);
    let after = State::of(&server);
    measure("when it has left");
    let ratio = |percent| beside.percentile(percent) / alone.percentile(percent);
    println!("beside / alone: p50 {:.2}, p99 {:.2}\n", ratio(50), ratio(99));

    let peak = mebibytes(server.figure("VmHWM") << 10);
    println!("{:28} {:>10} {:>10} {:>12} {:>10}", "server", "MiB", "threads", "descriptors", "TCP pages");
    before.show("before the crowd");
    with_idle.show(&format!("{} idle", crowd.idle));
    with_half_open.show(&format!("and {} half open", crowd.half_open));
    with_slow.show(&format!("and {} that never read", crowd.slow));
    after.show("when it has left");
    println!("peak: {peak:.1} MiB; the system is short of TCP buffers from {} pages", pressure());
    println!("per idle connection: {:.1} KiB", with_idle.more_than(&before) / crowd.idle as f64);
    println!("per half-open one: {:.1} KiB", with_half_open.more_than(&with_idle) / crowd.half_open as f64);
    println!(
        "per one that never reads: {:.1} KiB, which has sent {:.1} KiB",
        with_slow.more_than(&with_half_open) / crowd.slow as f64,
        sent as f64 / 1024.0 / crowd.slow as f64
    );
}

/// What the server takes of the machine.
struct State {
    memory: usize,
    threads: usize,
    descriptors: Option<usize>,
    /// TCP buffers, of all connections of the system.
    pages: usize,
}

impl State {
    fn of(server: &Server) -> Self {
        Self {
            memory: server.memory(),
            threads: server.figure("Threads"),
            // The server keeps others from looking, but for root.
            descriptors: fs::read_dir(format!("/proc/{}/fd", server.pid())).ok().map(Iterator::count),
            pages: tcp_pages(),
        }
    }

    fn show(&self, name: &str) {
        let descriptors = self.descriptors.map_or_else(|| "?".to_owned(), |count| count.to_string());
        let Self { memory, threads, pages, .. } = self;
        println!("{name:28} {:>10.1} {threads:>10} {descriptors:>12} {pages:>10}", mebibytes(*memory));
    }

    /// KiB more than before.
    fn more_than(&self, before: &Self) -> f64 {
        (self.memory as f64 - before.memory as f64) / 1024.0
    }
}

fn tcp_pages() -> usize {
    let sockets = fs::read_to_string("/proc/net/sockstat").unwrap();
    let line = sockets.lines().find(|line| line.starts_with("TCP:")).unwrap();
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

/// The pages of TCP buffers from which on the system drops what it would otherwise keep (tcp(7), `tcp_mem`), also of a
/// good client. On the loopback interface, whose segments are large, a thousand clients that don't read come near it.
fn pressure() -> usize {
    let limits = fs::read_to_string("/proc/sys/net/ipv4/tcp_mem").unwrap();
    limits.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn mebibytes(bytes: usize) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn show(name: &str, load: Load) -> Load {
    let (p50, p99) = (load.percentile(50), load.percentile(99));
    println!("{name:28} {:>10.0} {p50:>10.0} {p99:>10.0} {:>14.1}", load.rate, load.server);
    load
}

/// Every client takes a descriptor here, and one of the server, which raises its own limit.
fn allow_descriptors(clients: usize) {
    let (limit, needed) = (getrlimit(Resource::Nofile), clients as u64 + 200);
    let enough = limit.maximum.is_none_or(|maximum| maximum >= needed);
    assert!(enough, "{needed} file descriptors are needed, {:?} is the hard limit", limit.maximum);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
}

fn wait_until(server: &Server, connections: usize, handshakes: usize) {
    let end = Instant::now() + PATIENCE;
    loop {
        let status = server.status();
        let count = &status["connections"];
        if count["open"] == connections && count["handshakes"] == handshakes {
            return;
        }
        assert!(Instant::now() < end, "expected {connections} and {handshakes}, got {count}");
        thread::sleep(Duration::from_millis(50));
    }
}

/// A connection whose handshake is done.
struct Connected {
    socket: TcpStream,
    tls: ClientConnection,
}

impl Connected {
    fn new(server: &Server, tls: &Arc<ClientConfig>) -> Self {
        let mut socket = TcpStream::connect(server.address).unwrap();
        let mut tls = ClientConnection::new(Arc::clone(tls), "localhost".try_into().unwrap()).unwrap();
        while tls.is_handshaking() {
            tls.complete_io(&mut socket).unwrap();
        }
        Self { socket, tls }
    }

    /// Sends a part of a request without waiting; answers how many bytes the system took.
    fn push(&mut self, request: &[u8]) -> usize {
        if !self.tls.wants_write() {
            self.tls.writer().write_all(request).unwrap();
        }
        match self.tls.write_tls(&mut self.socket) {
            Ok(sent) => sent,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(error) => panic!("the server took no more: {error}"),
        }
    }
}

/// Connects many, and keeps of each what is needed.
fn connect<T: Send>(
    server: &Server,
    tls: &Arc<ClientConfig>,
    count: usize,
    keep: impl Fn(Connected) -> T + Copy + Send,
) -> Vec<T> {
    let some = move |part: usize| -> Vec<T> {
        (part..count).step_by(AT_ONCE).map(|_| keep(Connected::new(server, tls))).collect()
    };
    thread::scope(|scope| {
        let parts: Vec<_> = (0..AT_ONCE).map(|part| scope.spawn(move || some(part))).collect();
        parts.into_iter().flat_map(|part| part.join().unwrap()).collect()
    })
}

/// A connection that says the head of a record, whose body never comes.
fn half_open(server: &Server) -> TcpStream {
    let mut socket = TcpStream::connect(server.address).unwrap();
    socket.write_all(&[0x16, 3, 1, 2, 0]).unwrap();
    socket
}

/// Sends pings on every connection for as long as the server takes any; answers how many bytes those were.
fn flood(clients: &mut [Connected]) -> usize {
    let request = ping(1, &[b'x'; 60_000]);
    for client in &*clients {
        client.socket.set_nonblocking(true).unwrap();
        set_socket_send_buffer_size(&client.socket, SEND_BUFFER).unwrap();
    }
    let (mut total, mut last) = (0, Instant::now());
    while last.elapsed() < QUIET {
        let sent: usize = clients.iter_mut().map(|client| client.push(&request)).sum();
        match sent {
            0 => thread::sleep(Duration::from_millis(10)),
            _ => last = Instant::now(),
        }
        total += sent;
    }
    total
}
