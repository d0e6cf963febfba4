//! The administrator's socket, and the commands that use it.

use std::{
    fs,
    io::{BufRead, BufReader},
    net::TcpStream,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::Path,
    process::{Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use keystead_protocol::Opcode;
use rustix::process::{Signal, geteuid};
use serde_json::{Value, json};

use crate::world::{Client, Files, Gate, PATIENCE, Server, hostile, request, skis};

const KEYSTEAD: &str = env!("CARGO_BIN_EXE_keystead");

fn run(config: &Path) -> Command {
    let mut command = Command::new(KEYSTEAD);
    command.arg("run").arg("-c").arg(config);
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn the_socket_is_its_owners_alone() {
    let files = Files::new();
    let server = Server::with_keys(&files, "");
    assert_eq!(mode(&server.admin), 0o600);
    if !geteuid().is_root() {
        return; // who isn't root can't be somebody else
    }
    let keystead = files.path("keystead");
    fs::copy(KEYSTEAD, &keystead).unwrap();
    set_mode(&files.path(""), 0o755);
    set_mode(&keystead, 0o755);
    let nobody = || -> Output {
        let mut command = Command::new(&keystead);
        command.args(["status", "--socket"]).arg(&server.admin).uid(65_534).gid(65_534);
        command.current_dir("/").output().unwrap()
    };
    let output = nobody();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("Permission denied"), "{}", text(&output.stderr));
    set_mode(&server.admin, 0o666);
    let output = nobody();
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(1), String::new()));
    let said = text(&output.stderr);
    assert!(said.contains("only root and the server's own user are answered"), "{said}");
    assert_eq!(server.admin(&["status"]).0, 0, "root is");
}

#[test]
fn a_second_server_does_not_take_the_socket_of_the_first() {
    let files = Files::new();
    let config = files.config("");
    let first = Server::spawn(run(&config));
    let second = run(&config).output().unwrap();
    assert_eq!(second.status.code(), Some(1));
    let said = text(&second.stderr);
    let expected = format!("no admin socket {}: another server listens there", first.admin.display());
    assert!(said.contains(&expected), "{said}");
    assert_eq!(first.status()["pid"], first.pid());
}

#[test]
fn a_socket_that_a_killed_server_left_behind_is_replaced_and_another_file_is_not() {
    let files = Files::new();
    let config = files.config("");
    let mut killed = Server::spawn(run(&config));
    killed.signal(Signal::KILL);
    killed.wait();
    assert!(killed.admin.exists());
    let mut server = Server::spawn(run(&config));
    assert_eq!(server.admin, killed.admin);
    assert_eq!(server.status()["pid"], server.pid());
    assert_eq!(mode(&server.admin), 0o600);
    server.signal(Signal::TERM);
    server.wait();
    assert!(!server.admin.exists(), "who ends as told removes it");

    fs::write(&server.admin, "somebody's text").unwrap();
    let refused = run(&config).output().unwrap();
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("there is a file that is no socket"), "{}", text(&refused.stderr));
    assert_eq!(fs::read_to_string(&server.admin).unwrap(), "somebody's text");
}

#[test]
fn without_a_server_the_commands_say_so_with_a_hint() {
    let files = Files::new();
    let nowhere = files.path("nowhere.sock").display().to_string();
    for command in [&["status"][..], &["keys"], &["reload"], &["drain"], &["log-level", "debug"]] {
        let output = Command::new(KEYSTEAD).args(command).args(["--socket", &nowhere]).output().unwrap();
        assert_eq!((output.status.code(), text(&output.stdout)), (Some(1), String::new()), "{command:?}");
        let said = text(&output.stderr);
        let expected = format!("keystead: error: no server answers on {nowhere}: ");
        assert!(said.starts_with(&expected) && said.contains("\nhint: is it running"), "{said}");
    }
}

#[test]
fn keys_are_listed_with_what_they_are_and_may() {
    let files = Files::new();
    let [rsa, ed25519] =
        ["rsa", "ed25519"].map(|name| files.path(&format!("keys/{name}.key")).display().to_string());
    let server = Server::start(
        &files,
        &format!(
            "{}- {{name: web, plugin: file, config: {{file: {rsa}}}, operations: [sign, decrypt]}}\n\
             - {{name: api, plugin: file, config: {{file: {ed25519}}}}}\n",
            hostile(&files, "name: www")
        ),
    );
    let (code, listed, errors) = server.admin(&["keys", "--json"]);
    assert_eq!(code, 0, "{errors}");
    let keys: Vec<Value> = serde_json::from_str(&listed).unwrap();
    let expected = [
        ("p256", "P-256", "hostile", "www", json!(["sign"])),
        ("rsa", "RSA-2048", "web", "rsa", json!(["sign", "decrypt"])),
        ("ed25519", "Ed25519", "api", "ed25519", json!(["sign"])),
    ];
    assert_eq!(keys.len(), expected.len(), "{listed}");
    let (code, table, _) = server.admin(&["keys"]);
    assert_eq!(code, 0);
    let mut rows = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    assert_eq!(rows.next().unwrap(), ["SKI", "TYPE", "STORE", "LABEL", "OPERATIONS"]);
    for ((name, kind, store, label, operations), (key, row)) in expected.iter().zip(keys.iter().zip(rows)) {
        let ski = skis()[*name].to_string();
        assert_eq!((&key["ski"], &key["type"], &key["store"]), (&json!(ski), &json!(kind), &json!(store)));
        assert_eq!(&key["operations"], operations);
        assert!(key["label"].as_str().unwrap().contains(label), "{key}");
        let label = key["label"].as_str().unwrap();
        let operations: Vec<&str> = operations.as_array().unwrap().iter().filter_map(Value::as_str).collect();
        assert_eq!(row, [&*ski, kind, store, label, &operations.join(",")]);
    }
}

#[test]
fn the_status_tells_people_each_stores_name_state_and_lanes() {
    let files = Files::new();
    let stores = hostile(&files, "class: blocking");
    let absent = "- {name: absent, plugin: no-such-plugin}\n";
    let server = Server::start(&files, &format!("{stores}{absent}"));
    let _client = Client::connect(&files, &server);
    let (code, status, errors) = server.admin(&["status"]);
    assert_eq!(code, 0, "{errors}");
    let first = status.lines().next().unwrap();
    assert!(first.contains(&format!("pid {}", server.pid())) && first.ends_with("serving, ready"), "{first}");
    let row = |name: &str| -> Vec<&str> {
        let line = status.lines().find(|line| line.starts_with(name));
        line.unwrap_or_else(|| panic!("no {name} in\n{status}")).split_whitespace().collect()
    };
    let hostile = row("hostile ");
    assert_eq!((hostile[1], hostile.contains(&"0/4")), ("up", true), "{status}");
    assert_eq!(row("absent ")[1], "down");
    assert!(status.contains("plugin `no-such-plugin` was not found"), "{status}");
    assert!(status.contains(&server.address.to_string()), "{status}");
    assert_eq!(row("localhost ")[1], "1", "the client is connected once:\n{status}");
}

#[test]
fn a_watched_status_is_a_line_of_json_each_second() {
    let files = Files::new();
    let server = Server::with_keys(&files, "");
    let mut watch = Command::new(KEYSTEAD)
        .args(["status", "--watch", "--json", "--socket"])
        .arg(&server.admin)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let begun = Instant::now();
    let lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    let shown: Vec<Value> = lines.take(2).map(|line| serde_json::from_str(&line.unwrap()).unwrap()).collect();
    assert!(begun.elapsed() >= Duration::from_millis(900), "the second comes a second later");
    watch.kill().unwrap();
    watch.wait().unwrap();
    for status in &shown {
        assert_eq!((&status["pid"], &status["state"]), (&json!(server.pid()), &json!("serving")));
        assert_eq!(status["plugins"][0]["isolation"], "inline");
        assert_eq!(status["processes"], json!([]), "the plugin of files runs in the server");
    }
    assert!(shown[1]["uptime_seconds"].as_u64() >= shown[0]["uptime_seconds"].as_u64());
}

#[test]
fn the_logs_level_is_set_while_the_server_runs() {
    let files = Files::new();
    let server = Server::with_keys(&files, "");
    let sign = || {
        let mut client = Client::connect(&files, &server);
        assert!(client.ask(skis()["p256"], Opcode::ECDSA_SIGN_SHA256, &[1; 32]).is_ok());
    };
    let set = |level: &str| {
        let (code, said, errors) = server.admin(&["log-level", level]);
        assert_eq!(
            (code, &*said),
            (0, &*format!("the log's level is {level}, until the next reload\n")),
            "{errors}"
        );
    };
    let debug_lines = || server.log().matches(" DEBUG ").count();
    sign();
    assert_eq!(debug_lines(), 0);
    set("debug");
    sign();
    server.wait_for(" DEBUG keystead::listener: connected");
    server.wait_for(" DEBUG keystead::listener: disconnected");
    set("info");
    server.wait_for("the log's level is now info");
    let before = debug_lines();
    sign();
    set("info");
    server.wait_for_times("the log's level is now info", 2); // what came before it is there, too
    assert_eq!(debug_lines(), before, "{}", server.log());
    set("debug");
    server.reload();
    server.wait_for(" reloaded ");
    let before = debug_lines();
    sign();
    set("info");
    server.wait_for_times("the log's level is now info", 3);
    assert_eq!(debug_lines(), before, "a reload brings the configured level back:\n{}", server.log());
    assert_eq!(server.admin(&["log-level", "loud"]).0, 2);
}

#[test]
fn draining_ends_connections_and_leaves_the_process() {
    let files = Files::new();
    let mut gate = Gate::new(&files);
    let deed = format!("sign: {{wait_for: {}}}, class: blocking", gate.path.display());
    let mut server = Server::start(&files, &format!("{}limits: {{deadline: 60s}}\n", hostile(&files, &deed)));
    let mut client = Client::connect(&files, &server);
    client.send(&request(7, skis()["p256"], Opcode::ECDSA_SIGN_SHA256, &[1; 32]));
    gate.reached();
    thread::scope(|scope| {
        let drain = scope.spawn(|| server.admin(&["drain"]));
        server.wait_for("draining");
        let (code, stores) = server.get("/readyz");
        assert_eq!((code, stores.lines().next()), (503, Some("draining")));
        let end = Instant::now() + PATIENCE;
        while TcpStream::connect(server.address).is_ok() {
            assert!(Instant::now() < end, "new connections are taken");
            thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(server.status()["state"], "draining");
        assert!(!drain.is_finished(), "a request is in flight");
        gate.open();
        let (id, answer) = client.answer();
        assert!(id == 7 && answer.is_ok(), "{answer:?}");
        assert_eq!(client.receive(), None);
        drop(client);
        let (code, said, errors) = drain.join().unwrap();
        assert_eq!(code, 0, "{errors}");
        assert_eq!(said, "drained: 0 connections are left; start the server again to serve\n");
    });
    let status = server.status();
    assert_eq!((&status["state"], &status["ready"]), (&json!("draining"), &json!(false)));
    assert_eq!(status["stores"][0]["requests"], json!({"ok": 1, "failed": 0}));
    assert_eq!(server.get("/healthz").0, 200);
    server.signal(Signal::TERM);
    assert_eq!(server.wait().code(), Some(0));
}

#[test]
fn draining_that_takes_longer_than_the_grace_period_says_what_is_left() {
    let files = Files::new();
    let mut gate = Gate::new(&files);
    let deed = format!("sign: {{wait_for: {}}}, class: blocking", gate.path.display());
    let limits = "limits: {deadline: 60s, grace: 200ms}\n";
    let server = Server::start(&files, &format!("{}{limits}", hostile(&files, &deed)));
    let mut client = Client::connect(&files, &server);
    client.send(&request(7, skis()["p256"], Opcode::ECDSA_SIGN_SHA256, &[1; 32]));
    gate.reached();
    let (code, said, _) = server.admin(&["drain", "--json"]);
    assert_eq!((code, serde_json::from_str::<Value>(&said).unwrap()), (1, json!({"connections": 1})));
    gate.open();
    assert!(client.answer().1.is_ok(), "nothing was cut off");
}
