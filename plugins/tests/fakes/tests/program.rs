//! The program: what it leaves in its folder, and when it ends.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use openssl::pkey::{Id, PKey};

const PROGRAM: &str = env!("CARGO_BIN_EXE_keystead-fakes");

/// Starts a command, and waits for the first line that it prints.
fn start(command: &mut Command) -> (Child, String) {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    (child, line)
}

/// Whether a process runs: one that nobody has waited for yet doesn't.
fn runs(pid: &str) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

fn public_key(path: &Path) -> (Id, u32) {
    let key = PKey::public_key_from_pem(&fs::read(path).unwrap()).unwrap();
    (key.id(), key.bits())
}

#[test]
fn its_folder_has_what_a_store_needs_and_the_secret_in_a_file_of_its_own() {
    for (cloud, secret) in [("azure", "client-secret"), ("gcp", "service-account.json")] {
        let folder = tempfile::tempdir().unwrap();
        let (mut child, line) = start(Command::new(PROGRAM).arg(cloud).arg("--folder").arg(folder.path()));
        assert!(line.starts_with("a fake of ") && line.contains("http://127.0.0.1:"), "{line}");
        let path = |name: &str| folder.path().join(name);
        assert_eq!(public_key(&path("ecdsa.pem")), (Id::EC, 256));
        assert_eq!(public_key(&path("rsa.pem")), (Id::RSA, 2048));
        assert_eq!(fs::metadata(path(secret)).unwrap().permissions().mode() & 0o777, 0o600);
        let (store, secret) =
            (fs::read_to_string(path("store.yaml")).unwrap(), fs::read_to_string(path(secret)).unwrap());
        assert!(store.contains("grants:") && !store.contains(&secret), "{store}");
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

#[test]
fn it_ends_with_whoever_started_it() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let script = r#""$0" gcp --folder "$1" > "$2" & echo $!; wait"#;
    let (mut shell, pid) =
        start(Command::new("sh").args(["-c", script, PROGRAM]).arg(folder.path()).arg(&log));
    let end = Instant::now() + Duration::from_secs(60);
    let wait = || {
        assert!(Instant::now() < end);
        thread::sleep(Duration::from_millis(5));
    };
    while !fs::read_to_string(&log).is_ok_and(|said| said.ends_with('\n')) {
        wait();
    }
    assert!(runs(pid.trim()));
    shell.kill().unwrap();
    shell.wait().unwrap();
    while runs(pid.trim()) {
        wait();
    }
}

#[test]
fn a_command_line_that_it_does_not_know_is_refused() {
    for words in [
        &["aws", "--folder", "."][..],
        &["gcp"],
        &["gcp", "--folder"],
        &["gcp", "--folder", ".", "--delay", "x"],
    ] {
        let output = Command::new(PROGRAM).args(words).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{words:?}");
        assert!(String::from_utf8(output.stderr).unwrap().starts_with("usage: "), "{words:?}");
    }
}
