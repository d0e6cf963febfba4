//! A crash that stays outside: the whole server with a plugin that dies in every way, while clients sign with what is
//! beside it; and what is within the reach of such a plugin.

use std::{
    collections::HashSet,
    fs::{self, File},
    io::ErrorKind,
    os::unix::fs::{FileExt, MetadataExt},
    path::PathBuf,
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use keystead_plugin_host::testing::{self, PluginDir};
use keystead_protocol::{ErrorCode, Opcode, Ski};
use openssl::{
    bn::{BigNum, BigNumContext},
    ec::{EcGroup, EcKey, EcPoint},
    nid::Nid,
    pkey::PKey,
    sha::sha256,
};
use rustix::process::{Pid, Signal, geteuid};
use serde_json::Value;

use crate::{
    isolation::{is_alive, proc_line, processes},
    token::{PIN, Token},
    world::{Client, Files, PATIENCE, Server, plugins, skis},
};

/// How long the others are measured before anything happens.
const BEFORE: Duration = Duration::from_millis(1500);

/// What the 99th percentile of the others' latency may be, however low it was before: machines are noisy.
const FLOOR: Duration = Duration::from_millis(50);

/// Within which a store serves again after its process has died for the first time.
const BACK_WITHIN: Duration = Duration::from_secs(1);

/// The PIN of the stores of `deadly`.
const ITS_PIN: &str = "a-pin-of-the-deadly-one";

/// Deeds that a call doesn't survive.
const FATAL: [&str; 10] =
    ["null", "abort", "exit", "corrupt", "sigpipe", "close_all", "garbage", "forge", "oversize", "gobble"];

/// Deeds that a call doesn't come back from.
const ENDLESS: [&str; 3] = ["hang", "spin", "murmur"];

/// A server with keys in a file, in a token, and in stores of `deadly`.
struct Scene {
    /// The SKI of the key in the token.
    token: Ski,
    server: Server,
    deadly: PluginDir,
}

impl Scene {
    fn new(files: &Files, deeds: &[&str]) -> Self {
        let deadly = PluginDir::with(&[]);
        testing::c_plugin(deadly.path(), "deadly", &[&testing::source("deadly.c")], &["-lcrypto"]);
        let token = Token::new(files);
        let ski = Ski::from_spki(&token.generate("p256", "EC:prime256v1")).unwrap();
        let key = files.path("keys/p256.key");
        let stores = deeds.iter().map(|deed| doer(files, deed)).collect::<String>();
        let config = files.config(&format!(
            "private_key_stores:\n- {{file: {}}}\n{}{stores}",
            key.display(),
            token.store(["p256"])
        ));
        let mut command = Command::new(env!("CARGO_BIN_EXE_keystead"));
        let path = format!("{}:{}", plugins().display(), deadly.path().display());
        command.arg("run").arg("-c").arg(config).env("KEYSTEAD_PLUGIN_PATH", path);
        let server = Server::spawn(command);
        server.wait_until_ready();
        Self { token: ski, server, deadly }
    }

    /// The process of a store.
    fn process(&self, store: &str) -> Value {
        let all = processes(&self.server);
        let of_store =
            |process: &&Value| process["stores"].as_array().unwrap().iter().any(|name| name == store);
        all.iter().find(of_store).unwrap_or_else(|| panic!("no process of {store}: {all:?}")).clone()
    }

    fn pid(&self, store: &str) -> Pid {
        let pid = self.process(store)["pid"].as_i64().unwrap();
        Pid::from_raw(i32::try_from(pid).unwrap()).unwrap()
    }
}

/// Configuration lines of a store, in a process of its own, that does a deed when it signs with two of its keys. One
/// does it once.
fn doer(files: &Files, deed: &str) -> String {
    let (once, pin) = (files.write(deed, b""), files.write("deadly-pin", ITS_PIN.as_bytes()));
    let deadline = if ENDLESS.contains(&deed) { "deadline: 200ms, " } else { "" };
    format!(
        "- {{name: does-{deed}, plugin: deadly, prove: never, isolation_group: {deed}, secrets: {{pin: {{file: {}}}}}, \
         limits: {{{deadline}lanes: 1, queue: 16, memory: 128MiB, stuck_after: 1s}}, \
         config: {{keys: [{{name: {deed}-well}}, {{name: {deed}-once, sign: \"{deed}\", once: {}}}, \
         {{name: {deed}-always, sign: \"{deed}\"}}]}}}}\n",
        pin.display(),
        once.display()
    )
}

/// The SKI of a key of `deadly`, whose scalar is the hash of its name.
fn ski(name: &str) -> Ski {
    let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap();
    let (scalar, mut context) =
        (BigNum::from_slice(&sha256(name.as_bytes())).unwrap(), BigNumContext::new().unwrap());
    let mut point = EcPoint::new(&group).unwrap();
    point.mul_generator2(&group, &scalar, &mut context).unwrap();
    Ski::from_spki(&EcKey::from_public_key(&group, &point).unwrap().public_key_to_der().unwrap()).unwrap()
}

fn sign(client: &mut Client, ski: Ski) -> Result<Vec<u8>, ErrorCode> {
    client.ask(ski, Opcode::ECDSA_SIGN_SHA256, &[1; 32])
}

/// Signs until that works; answers how long it took.
fn sign_again(client: &mut Client, ski: Ski) -> Duration {
    let began = Instant::now();
    while sign(client, ski).is_err() {
        assert!(began.elapsed() < PATIENCE, "it never signs again");
        thread::sleep(Duration::from_millis(10));
    }
    began.elapsed()
}

/// A client that signs, one request after the other, until it is enough. When each was sent, how long it took, and
/// whether it was answered.
fn sign_until(enough: &AtomicBool, mut client: Client, ski: Ski) -> Vec<(Instant, Duration, bool)> {
    let mut all = Vec::new();
    while !enough.load(Ordering::Relaxed) {
        let sent = Instant::now();
        let is_ok = sign(&mut client, ski).is_ok();
        all.push((sent, sent.elapsed(), is_ok));
        thread::sleep(Duration::from_millis(2));
    }
    all
}

/// A percentile of latencies.
fn percentile(latencies: &mut [Duration], of_100: usize) -> Duration {
    latencies.sort();
    latencies[(latencies.len() - 1) * of_100 / 100]
}

/// Has a plugin do all its deeds, one after the other; each time it must serve again.
fn do_all(scene: &Scene, client: &mut Client) -> String {
    let mut told = String::new();
    for deed in FATAL {
        let began = Instant::now();
        assert!(sign(client, ski(&format!("{deed}-once"))).is_ok(), "{deed}: the call is made once more");
        let back = began.elapsed();
        let death = scene.process(&format!("does-{deed}"))["last_death"].clone();
        told += &format!("{deed:10} {:5} ms to its signature; {death}\n", back.as_millis());
        assert!(back < BACK_WITHIN, "{told}");
        assert_eq!(sign(client, ski(&format!("{deed}-always"))), Err(ErrorCode::INTERNAL), "{deed}");
        sign_again(client, ski(&format!("{deed}-well")));
    }
    for deed in ENDLESS {
        let began = Instant::now();
        assert!(sign(client, ski(&format!("{deed}-always"))).is_err(), "{deed}");
        sign_again(client, ski(&format!("{deed}-well")));
        let (back, death) = (began.elapsed(), scene.process(&format!("does-{deed}"))["last_death"].clone());
        told += &format!("{deed:10} {:5} ms to the next signature; {death}\n", back.as_millis());
    }
    assert!(sign(client, ski("flood-once")).is_ok());
    assert_eq!(sign(client, ski("fork-always")), Err(ErrorCode::CRYPTOGRAPHY));
    for deed in ["flood", "fork"] {
        assert_eq!(scene.process(&format!("does-{deed}"))["restarts"], 0, "{deed}");
    }
    told
}

#[test]
fn other_stores_sign_on_while_a_plugin_dies_in_every_way() {
    let files = Files::new();
    let scene = Scene::new(&files, &[&FATAL[..], &ENDLESS, &["flood", "fork"]].concat());
    let others = [("file", skis()["p256"]), ("token", scene.token)];
    let before = scene.pid("token");
    let connect = || Client::connect(&files, &scene.server);
    let clients = others.map(|(name, ski)| (name, ski, [connect(), connect()]));
    let (mut client, enough) = (connect(), AtomicBool::new(false));
    thread::scope(|scope| {
        let signing = clients.map(|(name, ski, clients)| {
            let enough = &enough;
            (name, clients.map(|client| scope.spawn(move || sign_until(enough, client, ski))))
        });
        thread::sleep(BEFORE);
        let from = Instant::now();
        // However it goes, they end.
        let done = thread::Builder::new().spawn_scoped(scope, || do_all(&scene, &mut client)).unwrap().join();
        enough.store(true, Ordering::Relaxed);
        print!("{}", done.unwrap());
        for (name, threads) in signing {
            let all: Vec<_> = threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
            println!("{}", undisturbed(name, from, &all));
        }
    });
    assert_eq!(scene.pid("token"), before, "nothing happened to the process of the token");
}

/// All were answered, and about as fast as before; answers how fast.
fn undisturbed(name: &str, from: Instant, all: &[(Instant, Duration, bool)]) -> String {
    let (before, during): (Vec<_>, Vec<_>) = all.iter().partition(|(sent, ..)| *sent < from);
    let failed = all.iter().filter(|(.., is_ok)| !is_ok).count();
    let [before, during] = [before, during].map(|part| {
        let mut latencies: Vec<_> = part.into_iter().map(|(_, took, _)| took).collect();
        [50, 99, 100].map(|of_100| percentile(&mut latencies, of_100))
    });
    let told = format!(
        "{name}: {} signatures, {failed} failed; p50, p99 and longest before {before:?}, during {during:?}",
        all.len()
    );
    assert_eq!(failed, 0, "{told}");
    assert!(during[1] <= (before[1] * 3).max(FLOOR), "{told}");
    told
}

#[test]
fn no_process_outlives_a_server_that_is_killed() {
    let files = Files::new();
    let mut scene = Scene::new(&files, &["hang", "spin", "fork"]);
    let stores = ["token", "does-hang", "does-spin", "does-fork"];
    let pids = stores.map(|store| scene.pid(store));
    assert_eq!(pids.iter().collect::<HashSet<_>>().len(), stores.len());
    for deed in ["hang", "spin"] {
        let mut client = Client::connect(&files, &scene.server);
        assert!(sign(&mut client, ski(&format!("{deed}-always"))).is_err(), "it is in that call");
    }
    scene.server.signal(Signal::KILL);
    scene.server.wait();
    let end = Instant::now() + Duration::from_secs(1);
    while let Some(store) = pids.iter().position(|pid| is_alive(*pid)) {
        assert!(Instant::now() < end, "the process of {} outlives the server", stores[store]);
        thread::sleep(Duration::from_millis(5));
    }
}

/// A file or folder of a process in /proc.
fn of(pid: Pid, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{}/{name}", pid.as_raw_nonzero()))
}

/// Which of some byte strings are in the memory that a process can read.
fn found(pid: Pid, wanted: &[Vec<u8>]) -> Vec<bool> {
    let (maps, memory) = (fs::read_to_string(of(pid, "maps")).unwrap(), File::open(of(pid, "mem")).unwrap());
    let mut found = vec![false; wanted.len()];
    for line in maps.lines().filter(|line| line.contains(" r") && !line.contains("[v")) {
        let (start, end) = line.split(' ').next().unwrap().split_once('-').unwrap();
        let [start, end] = [start, end].map(|digits| u64::from_str_radix(digits, 16).unwrap());
        let mut bytes = vec![0; usize::try_from(end - start).unwrap()];
        if memory.read_exact_at(&mut bytes, start).is_ok() {
            for (found, wanted) in found.iter_mut().zip(wanted) {
                *found |= contains(&bytes, wanted);
            }
        }
    }
    found
}

fn contains(bytes: &[u8], wanted: &[u8]) -> bool {
    let firsts = bytes.iter().enumerate().filter(|(_, byte)| **byte == wanted[0]);
    firsts.into_iter().any(|(at, _)| bytes[at..].starts_with(wanted))
}

/// What the descriptors of a process lead to, without numbers.
fn descriptors(pid: Pid) -> Vec<String> {
    let mut descriptors: Vec<_> = fs::read_dir(of(pid, "fd")).unwrap().collect();
    descriptors
        .sort_by_key(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().parse::<u32>().unwrap());
    let links = descriptors.into_iter().map(|entry| fs::read_link(entry.unwrap().path()).unwrap());
    links.map(|link| link.display().to_string().split(":[").next().unwrap().to_owned()).collect()
}

#[test]
fn a_process_holds_no_secret_of_another_store() {
    let files = Files::new();
    let scene = Scene::new(&files, &["fork"]);
    let mut client = Client::connect(&files, &scene.server);
    for ski in [skis()["p256"], scene.token, ski("fork-well")] {
        sign(&mut client, ski).unwrap();
    }
    let (deadly, token) = (scene.pid("does-fork"), scene.pid("token"));
    for pid in [deadly, token] {
        let arguments = fs::read(of(pid, "cmdline")).unwrap();
        assert_eq!(arguments, b"keystead-plugins\0plugin-process\0", "of all that everybody sees");
    }
    if !geteuid().is_root() {
        for name in ["mem", "maps", "environ", "fd"] {
            let refused = match name {
                "fd" => fs::read_dir(of(deadly, name)).map(drop),
                _ => fs::read(of(deadly, name)).map(drop),
            };
            assert_eq!(refused.unwrap_err().kind(), ErrorKind::PermissionDenied, "{name}");
        }
        return;
    }
    assert_eq!(fs::read(of(deadly, "environ")).unwrap(), b"");
    let plugin = scene.deadly.path().join("libkeystead_plugin_deadly.so").display().to_string();
    assert_eq!(descriptors(deadly), ["/dev/null", "pipe", "pipe", "socket", &plugin]);
    let key = PKey::private_key_from_der(&fs::read(files.path("keys/p256.key")).unwrap()).unwrap();
    let scalar = key.ec_key().unwrap().private_key().to_vec_padded(32).unwrap();
    // A processor's numbers begin with their last byte.
    let reversed: Vec<u8> = scalar.iter().rev().copied().collect();
    let secrets = [ITS_PIN.into(), PIN.into(), scalar, reversed];
    assert_eq!(found(deadly, &secrets), [true, false, false, false], "its own, and no other");
    let [of_deadly, _, of_file @ ..] = &found(token, &secrets)[..] else { unreachable!() };
    assert!(!of_deadly && !of_file.contains(&true), "nor has the token's process one of another");
    let server = Pid::from_raw(i32::try_from(scene.server.pid()).unwrap()).unwrap();
    assert!(found(server, &secrets)[2..].contains(&true), "such a key is found where it is");
}

#[test]
fn core_dumps_are_for_whoever_asks_for_them() {
    for core_dumps in [true, false] {
        let files = Files::new();
        // Whose files in /proc are says whether a process may be looked into, unless it is root's.
        let user = if geteuid().is_root() { ", user: nobody" } else { "" };
        let config = files.config(&format!(
            "private_key_stores:\n- {{name: child, plugin: hostile, prove: never, \
             config: {{keys: [{{class: blocking}}]}}, core_dumps: {core_dumps}{user}}}\n"
        ));
        let server = Server::run(&config);
        server.wait_until_ready();
        let pid =
            Pid::from_raw(i32::try_from(processes(&server)[0]["pid"].as_i64().unwrap()).unwrap()).unwrap();
        let own = Pid::from_raw(i32::try_from(server.pid()).unwrap()).unwrap();
        let limit = |pid| proc_line(pid, "limits", "Max core file size");
        let uid: u32 = proc_line(pid, "status", "Uid:").split(' ').next().unwrap().parse().unwrap();
        let owner = fs::metadata(of(pid, "environ")).unwrap().uid();
        let expected = if core_dumps { (limit(own), uid) } else { ("0 0 bytes".to_owned(), 0) };
        assert_eq!((limit(pid), owner), expected, "core_dumps: {core_dumps}");
    }
}
