//! Plugins in processes of their own: one that dies or hangs takes nobody along, and gets nothing that isn't its own.

use std::{
    collections::BTreeSet,
    fs,
    io::ErrorKind,
    path::PathBuf,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use keystead_protocol::{Opcode, Ski};
use rustix::process::{Pid, Signal, geteuid, kill_process};
use serde_json::{Value, json};

use crate::{
    token::{MODULE, PIN, Token},
    world::{Client, Files, PATIENCE, Server, content, hostile, plugins, request, skis},
};

/// Configuration lines of a store `child` with the recorded key of a name, in a process of its own.
fn in_a_process(files: &Files, key: &str, options: &str) -> String {
    let file = files.path(&format!("keys/{key}.key")).display().to_string();
    format!("- {{name: child, plugin: file, config: {{file: {file}}}, isolation: process{options}}}\n")
}

/// The processes that the server tells of.
pub(crate) fn processes(server: &Server) -> Vec<Value> {
    server.status()["processes"].as_array().unwrap().clone()
}

/// Waits until the server has one process for plugins, and it is as it should be; answers its id.
fn process(server: &Server, is_so: impl Fn(&Value) -> bool) -> Pid {
    let end = Instant::now() + PATIENCE;
    loop {
        let all = processes(server);
        if let [one] = &all[..]
            && let Some(pid) = one["pid"].as_i64()
            && is_so(one)
        {
            return Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
        }
        assert!(Instant::now() < end, "no such process: {all:?}\n{}", server.log());
        thread::sleep(Duration::from_millis(20));
    }
}

fn started_anew(times: u64) -> impl Fn(&Value) -> bool {
    move |process| process["restarts"].as_u64() >= Some(times)
}

/// A file of a process in /proc; `None` where the system keeps it from this user, since it can't be traced.
fn proc(pid: Pid, name: &str) -> Option<String> {
    match fs::read_to_string(format!("/proc/{}/{name}", pid.as_raw_nonzero())) {
        Err(error) if error.kind() == ErrorKind::PermissionDenied && !geteuid().is_root() => None,
        content => Some(content.unwrap()),
    }
}

/// A line of such a file by what it begins with, and what comes then.
pub(crate) fn proc_line(pid: Pid, name: &str, field: &str) -> String {
    let content = proc(pid, name).unwrap();
    let line = content.lines().find_map(|line| line.strip_prefix(field));
    line.unwrap_or_else(|| panic!("no {field} in {content}")).split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The sockets that a process has, by a folder of its descriptors.
fn sockets(folder: String) -> BTreeSet<String> {
    let links = fs::read_dir(folder).unwrap().filter_map(|entry| fs::read_link(entry.unwrap().path()).ok());
    links.map(|link| link.display().to_string()).filter(|link| link.starts_with("socket:")).collect()
}

/// Whether a process is there and not only its name, until somebody asks how it ended.
pub(crate) fn is_alive(pid: Pid) -> bool {
    let status = fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero()));
    status.is_ok_and(|status| !status.contains("State:\tZ"))
}

fn sign(client: &mut Client, key: &str) {
    let (opcode, payload) = match key {
        "ed25519" => (Opcode::ED25519_SIGN, &b"message"[..]),
        _ => (Opcode::ECDSA_SIGN_SHA256, &[1; 32][..]),
    };
    assert!(client.ask(skis()[key], opcode, payload).is_ok(), "{key}");
}

#[test]
fn a_plugin_in_a_process_serves_and_is_shown_where_it_runs() {
    let files = Files::new();
    let config = files.config(&format!("private_key_stores:\n{}", in_a_process(&files, "p256", "")));
    let server = Server::run(&config);
    server.wait_until_ready();
    sign(&mut Client::connect(&files, &server), "p256");
    let pid = process(&server, |process| process["restarts"] == 0);
    assert_ne!(u32::try_from(pid.as_raw_nonzero().get()).unwrap(), server.pid());
    let status = server.status();
    assert_eq!(status["plugins"][0]["isolation"], "process");
    let process = &status["processes"][0];
    assert_eq!((&process["plugins"], &process["stores"]), (&json!(["file"]), &json!(["child"])));
    assert_eq!(process["last_death"], Value::Null);
    server.wait_for_metric("keystead_plugin_restarts_total{plugin=\"file\"} 0");
    let name = process["name"].as_str().unwrap();
    server.wait_for_metric(&format!("keystead_plugin_process_up{{process=\"{name}\"}} 1"));
    let check =
        Command::new(env!("CARGO_BIN_EXE_keystead")).args(["check", "-c"]).arg(config).output().unwrap();
    let text = String::from_utf8(check.stdout).unwrap();
    assert!(text.contains("store child (plugin file, process)") && text.contains("0 errors"), "{text}");
}

#[test]
fn a_process_that_dies_is_back_and_takes_nothing_along() {
    let files = Files::new();
    let other = files.path("keys/ed25519.key").display().to_string();
    let server = Server::start(
        &files,
        &format!("private_key_stores:\n{}- {{file: {other}}}\n", in_a_process(&files, "p256", "")),
    );
    let mut client = Client::connect(&files, &server);
    sign(&mut client, "p256");
    let before = process(&server, |_| true);
    kill_process(before, Signal::SEGV).unwrap();
    sign(&mut client, "ed25519");
    sign(&mut client, "p256");
    let after = process(&server, started_anew(1));
    assert_ne!(before, after);
    let death = processes(&server)[0]["last_death"].as_str().unwrap().to_owned();
    assert!(death.contains("SIGSEGV") || death.contains("11"), "{death}");
    server.wait_for_metric("keystead_plugin_restarts_total{plugin=\"file\"} 1");
    assert!(server.log().contains("WARN"), "{}", server.log());
}

#[test]
fn a_call_that_was_in_flight_is_made_once_more() {
    let files = Files::new();
    let plan = hostile(&files, "class: blocking, sign: {slow: 2000}");
    let server = Server::start(&files, &plan.replace("prove: never", "prove: never, isolation: process"));
    let mut client = Client::connect(&files, &server);
    client.send(&request(1, skis()["p256"], Opcode::ECDSA_SIGN_SHA256, &[1; 32]));
    server.wait_for_metric("keystead_store_lanes{state=\"busy\",store=\"hostile\"} 1");
    kill_process(process(&server, |_| true), Signal::KILL).unwrap();
    assert!(content(&client.receive().unwrap()).is_ok());
    process(&server, started_anew(1));
}

#[test]
fn a_process_whose_calls_all_hang_is_started_anew() {
    let files = Files::new();
    let limits = "isolation: process, limits: {lanes: 1, deadline: 200ms, stuck_after: 1s}";
    let stores = hostile(&files, "class: blocking, sign: hang")
        .replace("prove: never", &format!("prove: never, {limits}"));
    let server = Server::start(&files, &stores);
    let before = process(&server, |_| true);
    let mut client = Client::connect(&files, &server);
    assert!(client.ask(skis()["p256"], Opcode::ECDSA_SIGN_SHA256, &[1; 32]).is_err());
    assert_ne!(process(&server, started_anew(1)), before);
}

#[test]
fn a_process_gets_what_its_store_says_and_nothing_of_the_servers() {
    let files = Files::new();
    let workdir = files.path("keys");
    let options = format!(
        ", env: {{VENDOR_CONF: /etc/hsm.conf}}, workdir: {}, limits: {{memory: 256MiB}}",
        workdir.display()
    );
    let config = files.config(&format!("private_key_stores:\n{}", in_a_process(&files, "p256", &options)));
    let mut command = Command::new(env!("CARGO_BIN_EXE_keystead"));
    command.arg("run").arg("-c").arg(config).env("OF_THE_SERVER", "1").env("NOTIFY_SOCKET", "/nowhere");
    let server = Server::spawn(command);
    server.wait_until_ready();
    let _client = Client::connect(&files, &server);
    let pid = process(&server, |_| true);
    assert_eq!(proc_line(pid, "status", "NoNewPrivs:"), "1");
    assert_eq!(proc_line(pid, "status", "Seccomp:"), "2");
    assert_eq!(proc_line(pid, "limits", "Max data size"), "268435456 268435456 bytes");
    assert_eq!(proc_line(pid, "limits", "Max core file size").split(' ').next(), Some("0"));
    // The rest only root sees, of what can't be traced.
    let Some(environment) = proc(pid, "environ") else { return };
    assert_eq!(environment, "VENDOR_CONF=/etc/hsm.conf\0");
    let folder = PathBuf::from(format!("/proc/{}", pid.as_raw_nonzero()));
    assert_eq!(fs::read_link(folder.join("cwd")).unwrap(), workdir.canonicalize().unwrap());
    let of_the_server = sockets(format!("/proc/{}/fd", server.pid()));
    let of_the_child = sockets(format!("/proc/{}/fd", pid.as_raw_nonzero()));
    assert_eq!(of_the_child.intersection(&of_the_server).collect::<Vec<_>>(), [""; 0]);
    assert!(of_the_server.len() > 3, "{of_the_server:?}");
}

#[test]
fn processes_end_with_the_server_however_it_ends() {
    for signal in [Signal::TERM, Signal::KILL] {
        let files = Files::new();
        let lines = format!("private_key_stores:\n{}", in_a_process(&files, "p256", ""));
        let mut server = Server::start(&files, &lines);
        let pid = process(&server, |_| true);
        server.signal(signal);
        server.wait();
        let end = Instant::now() + PATIENCE;
        while is_alive(pid) {
            assert!(Instant::now() < end, "it outlives the server, which got {signal:?}");
            thread::sleep(Duration::from_millis(10));
        }
    }
}

#[test]
fn stores_of_one_group_share_a_process() {
    let files = Files::new();
    let stores =
        hostile(&files, "class: blocking").replace("prove: never", "prove: never, isolation_group: both");
    let file = in_a_process(&files, "ed25519", ", isolation_group: both");
    let server = Server::start(&files, &format!("{stores}{file}"));
    process(&server, |process| process["stores"].as_array().is_some_and(|stores| stores.len() == 2));
    let mut plugins = processes(&server)[0]["plugins"].as_array().unwrap().clone();
    plugins.sort_by_key(ToString::to_string);
    assert_eq!(plugins, ["file", "hostile"]);
    let mut client = Client::connect(&files, &server);
    sign(&mut client, "p256");
    sign(&mut client, "ed25519");
}

#[test]
fn entries_of_gokeyless_hand_the_servers_environment_on() {
    let files = Files::new();
    let token = Token::new(&files);
    let spki = token.generate("p256", "EC:prime256v1");
    let server = token.serve(&format!(
        "private_key_stores:\n- uri: pkcs11:token=keys;object=p256?module-path={MODULE}&pin-value={PIN}\n"
    ));
    server.wait_until_ready();
    assert_eq!(server.status()["plugins"][0]["isolation"], "process");
    let ski = Ski::from_spki(&spki).unwrap();
    let mut client = Client::connect(&files, &server);
    assert!(client.ask(ski, Opcode::ECDSA_SIGN_SHA256, &[1; 32]).is_ok());
}

#[test]
fn a_plugin_in_a_process_finds_the_credentials_of_the_service() {
    let files = Files::new();
    let spki = Token::new(&files).generate("p256", "EC:prime256v1");
    let pin = files.write("hsm-pin", PIN.as_bytes());
    let uri = format!("pkcs11:token=keys;object=p256?module-path={MODULE}&pin-source=credential:hsm-pin");
    let softhsm = files.path("softhsm2.conf").display().to_string();
    let config = files.config(&format!(
        "private_key_stores: [{{plugin: pkcs11, config: {{uris: [\"{uri}\"]}}, env: {{SOFTHSM2_CONF: {softhsm}}}}}]\n"
    ));
    let mut command = Command::new(env!("CARGO_BIN_EXE_keystead"));
    command.arg("run").arg("-c").arg(config).env("CREDENTIALS_DIRECTORY", pin.parent().unwrap());
    let server = Server::spawn(command);
    server.wait_until_ready();
    assert_eq!(server.status()["plugins"][0]["isolation"], "process");
    let ski = Ski::from_spki(&spki).unwrap();
    let mut client = Client::connect(&files, &server);
    assert!(client.ask(ski, Opcode::ECDSA_SIGN_SHA256, &[1; 32]).is_ok());
}

#[test]
fn a_user_of_its_own_needs_root() {
    let files = Files::new();
    let store = "{name: child, plugin: hostile, config: {keys: [{class: blocking}]}, user: nobody}";
    let config = files
        .config(&format!("private_key_stores:\n- {store}\n- {{dir: {}}}\n", files.path("keys").display()));
    let mut command = Command::new(env!("CARGO_BIN_EXE_keystead"));
    command.arg("run").arg("-c").arg(config).env("KEYSTEAD_PLUGIN_PATH", plugins());
    let server = Server::spawn(command);
    server.wait_until_ready();
    if geteuid().is_root() {
        let pid = process(&server, |_| true);
        assert_eq!(proc_line(pid, "status", "Uid:"), "65534 65534 65534 65534");
        assert_eq!(server.status()["stores"][0]["state"], "up");
    } else {
        let store = &server.status()["stores"][0];
        assert_eq!(store["state"], "down");
        let why = store["last_error"]["message"].as_str().unwrap();
        assert!(why.contains("nobody") && why.contains("root"), "{why}");
    }
    sign(&mut Client::connect(&files, &server), "p256");
}

#[test]
fn a_reload_that_changes_what_a_process_gets_opens_its_stores_anew() {
    let files = Files::new();
    let lines = |value: &str| {
        format!("private_key_stores:\n{}", in_a_process(&files, "p256", &format!(", env: {{A: {value}}}")))
    };
    let server = Server::run(&files.config(&lines("b")));
    server.wait_until_ready();
    let before = process(&server, |_| true);
    files.change_config(&lines("b"));
    assert_eq!(server.reload()["changed"], json!([]));
    assert_eq!(process(&server, |_| true), before);
    files.change_config(&lines("c"));
    assert_eq!(server.reload()["changed"], json!(["child"]));
    process(&server, |process| process["pid"] != json!(before.as_raw_nonzero().get()));
    sign(&mut Client::connect(&files, &server), "p256");
}
