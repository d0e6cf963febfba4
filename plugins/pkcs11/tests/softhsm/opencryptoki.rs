//! opencryptoki's soft token: by other hands, with RSA alone, and behind a daemon of which a machine has one.
//!
//! The daemon wants to be root, and to have fixed folders, shared memory and a group for itself. So each test runs in
//! namespaces: it sees what it needs of the machine, has the rest for itself, and leaves nothing behind.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use keystead_plugin_api::{Algorithm, Severity, algorithm::Family, conformance};
use openssl::{
    ec::{EcGroup, EcKey},
    nid::Nid,
};

use crate::{
    bench::{Succeed, Token, command, in_process, installed, key, lines, prove, run_by, store},
    until,
};

/// Defines a test that gets a [`Bench`](crate::bench::Bench), and has the machine's folders for itself.
macro_rules! on_opencryptoki {
    ($name:ident, $test:expr) => {
        #[test]
        fn $name() {
            run_by(apart, concat!(module_path!(), "::", stringify!($name)), $test);
        }
    };
}

/// This program, in namespaces of its own: as root, or as a user who is root in them. Whatever it starts ends with it.
fn apart() -> Command {
    let unshare = |user: &[&str]| {
        let mut unshare = command("unshare");
        unshare.args(["--mount", "--ipc", "--pid", "--fork", "--kill-child"]).args(user);
        unshare
    };
    let users: [&[&str]; 2] = [&[], &["--user", "--map-root-user"]];
    let works = |user: &&[&str]| unshare(user).arg("true").output().is_ok_and(|tried| tried.status.success());
    let user = users.into_iter().find(works).expect(
        "these tests need namespaces of their own: run them with CAP_SYS_ADMIN, or let users have such \
         (sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone, \
         kernel.apparmor_restrict_unprivileged_userns)",
    );
    let mut this_program = unshare(user);
    this_program.arg(env::current_exe().unwrap());
    this_program
}

fn module() -> PathBuf {
    let places = [
        "/usr/lib/x86_64-linux-gnu/opencryptoki/libopencryptoki.so.0",
        "/usr/lib/aarch64-linux-gnu/opencryptoki/libopencryptoki.so.0",
        "/usr/lib64/opencryptoki/libopencryptoki.so.0",
    ];
    installed("opencryptoki", &places)
}

/// Starts the daemon on empty folders, and makes its soft token.
fn soft_token() -> Token {
    let module = module();
    for folder in ["/var/lib/opencryptoki", "/var/log", "/run", "/dev/shm"] {
        mount(&["-t", "tmpfs", "tmpfs", folder]);
    }
    for folder in
        ["/var/lib/opencryptoki/swtok/TOK_OBJ", "/var/log/opencryptoki", "/run/lock/opencryptoki/swtok"]
    {
        fs::create_dir_all(folder).unwrap();
    }
    own_the_group();
    start_daemon();
    Token::make(module, "soft")
}

/// What is to be the group's becomes root's, since an ordinary user has but one group to give.
fn own_the_group() {
    let groups = fs::read_to_string("/etc/group").unwrap();
    let ours =
        |group: &str| if group.starts_with("pkcs11:") { "pkcs11:x:0:" } else { group }.to_owned() + "\n";
    fs::write("/run/group", groups.lines().map(ours).collect::<String>()).unwrap();
    mount(&["--bind", "/run/group", "/etc/group"]);
}

fn start_daemon() {
    let mut daemon = Command::new("/usr/sbin/pkcsslotd");
    let started = daemon.stdin(Stdio::null()).stdout(Stdio::null()).status().unwrap();
    assert!(started.success(), "{started}");
    until("the daemon listens", || Path::new("/run/pkcsslotd.socket").exists());
}

fn mount(arguments: &[&str]) {
    command("mount").args(arguments).succeed();
}

on_opencryptoki!(opencryptoki_passes_the_conformance_suite, |_bench| {
    let token = soft_token();
    token.generate("rsa:2048", "one", "01");
    token.generate("rsa:3072", "two", "02");
    let uris = ["one", "two"].map(|label| token.uri(&format!("object={label}")));
    let subject = store(&uris);
    conformance::run(&subject);
    conformance::run(&in_process(&uris));

    let listing = subject.open().unwrap().listing().unwrap();
    let notes = lines(&listing.findings, Severity::Note);
    assert_eq!(notes.lines().count(), listing.findings.len(), "{:?}", listing.findings);
    for label in ["one", "two"] {
        assert_eq!(key(&listing, label).algorithms, Algorithm::of(Family::Rsa).collect::<Vec<_>>());
    }
});

on_opencryptoki!(a_key_that_the_token_stores_but_cannot_sign_with_is_told_from_one_that_is_absent, |bench| {
    let token = soft_token();
    token.generate("rsa:2048", "rsa", "01");
    let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap();
    let pair = EcKey::generate(&group).unwrap();
    let halves =
        [("privkey", pair.private_key_to_der().unwrap()), ("pubkey", pair.public_key_to_der().unwrap())];
    for (half, der) in halves {
        let file = bench.file(half, &der);
        let write = ["--write-object", file.to_str().unwrap(), "--type", half];
        token.tool(&[&write[..], &["--label", "p256", "--id", "02"]].concat());
    }

    let uris = ["object=rsa", "object=p256", "object=absent"].map(|key| token.uri(key));
    let session = store(&uris).open().unwrap();
    let listing = session.listing().unwrap();
    assert_eq!(listing.keys.len(), 1);
    prove(&session, key(&listing, "rsa"));
    assert_eq!(
        lines(&listing.findings, Severity::Error),
        "unsupported: uri 2 (pkcs11:token=soft;object=p256): the token lacks what such a key is used with: \
         CKM_ECDSA; keep the key on another token, or use one of another type\n\
         not found: uri 3 (pkcs11:token=soft;object=absent): no such private key on the token; it has `p256` \
         (id 02), `rsa` (id 01)\n"
    );
    let notes = lines(&listing.findings, Severity::Note);
    let mechanisms = "mechanisms in use: CKM_RSA_PKCS, CKM_RSA_PKCS_PSS, CKM_RSA_X_509 (decrypt)";
    assert!(notes.contains(mechanisms), "{notes}");
});
