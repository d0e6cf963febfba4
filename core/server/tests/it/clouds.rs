//! Keys in a cloud service, from a plugin to curl: the server with the plugin, as a component and as a library, the example
//! of an edge, and a fake of the service.

mod azure;
mod gcp;

use std::{
    fs,
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use keystead_fakes::{Answer, Disturbance};
use keystead_plugin_host::testing::PluginDir;
use keystead_protocol::{ErrorCode, Opcode, Ski};
use serde_json::{Value, json};

use crate::{
    misbehaving::Load,
    site::{Public, Site},
    world::{Client, Files, PATIENCE, Server, plugins, skis},
};

/// A service, as far as these tests see all of them alike.
trait Cloud {
    /// The package of the plugin.
    const PACKAGE: &str;
    /// A piece of each request for a signature.
    const SIGNING: &str;
    /// Handshakes that its keys can do: site, version of TLS, algorithm of the signature.
    const HANDSHAKES: &[(&str, &str, &str)];

    /// The service itself.
    fn server(&self) -> &keystead_fakes::Server;

    /// Makes the keys of the handshakes, among them `p256`.
    fn make_keys(&self) -> Vec<Public>;

    /// An entry of `private_key_stores`, whose credential needs no file that isn't there, without what may be added.
    fn store(&self, files: &Files) -> String;

    /// An entry in the form of the reference for a key, and the environment it then needs.
    fn legacy(&self, files: &Files, key: &str) -> (String, Vec<(&'static str, String)>);

    /// What the service answers where a quota is used up.
    fn exceeded(&self) -> Answer;

    /// Every credential and token so far.
    fn credentials(&self) -> Vec<String>;
}

/// The ways that a plugin is built.
#[derive(Clone, Copy, Debug)]
enum Build {
    Component,
    Library,
}

/// A directory with a plugin, built.
fn directory<C: Cloud>(build: Build) -> PluginDir {
    match build {
        Build::Component => PluginDir::with_components(&[C::PACKAGE]),
        Build::Library => PluginDir::with(&[C::PACKAGE]),
    }
}

/// `keystead run`, with plugins in place beside those of all tests. What it compiles is kept for the others.
fn keystead(config: &Path, directory: &PluginDir) -> Command {
    let mut keystead = Command::new(env!("CARGO_BIN_EXE_keystead"));
    let path = std::env::join_paths([directory.path(), plugins()]).unwrap();
    keystead.arg("run").arg("-c").arg(config).env("KEYSTEAD_PLUGIN_PATH", path);
    keystead.env("CACHE_DIRECTORY", concat!(env!("CARGO_TARGET_TMPDIR"), "/components"));
    keystead
}

fn ski_of(keys: &[Public], name: &str) -> Ski {
    Ski::from_spki(&keys.iter().find(|(found, _)| *found == name).unwrap().1).unwrap()
}

fn shakes_hands<C: Cloud>(cloud: &C, build: Build) {
    let (files, directory) = (Files::new(), directory::<C>(build));
    let keys = cloud.make_keys();
    let store = cloud.store(&files);
    let config = files.config(&format!("private_key_stores:\n{store}log: {{level: debug}}\n"));
    let site = Site::start(&files, keystead(&config, &directory), &keys);
    for (name, version, signature) in C::HANDSHAKES {
        site.must_serve(name, version, signature);
    }
    assert!(site.visit("p256", "1.3", "rsa_pss_rsae_sha256").is_err(), "no signature of another key passes");
    assert!(cloud.server().asked().iter().any(|asked| asked.line().contains(C::SIGNING)));
    tells_no_credential(cloud, &site.server);
}

/// Nothing that an operator can see has a credential, at the level `debug`.
fn tells_no_credential<C: Cloud>(cloud: &C, server: &Server) {
    let (_, metrics) = server.get("/metrics");
    let (_, page) = server.get("/");
    let told = [server.log(), server.status().to_string(), metrics, page].concat();
    let credentials = cloud.credentials();
    assert!(credentials.len() >= 2 && told.contains(C::SIGNING), "{told}");
    for credential in credentials {
        assert!(!told.contains(&credential), "{credential} is in\n{told}");
    }
    let limits = fs::read_to_string(format!("/proc/{}/limits", server.pid())).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().nth(4), Some("0"), "no core dump has them either: {core}");
}

fn serves_an_entry_of_the_reference<C: Cloud>(cloud: &C) {
    let (files, directory) = (Files::new(), directory::<C>(Build::Component));
    let keys = cloud.make_keys();
    let (entry, environment) = cloud.legacy(&files, "p256");
    let mut keystead = keystead(&files.config(&format!("private_key_stores:\n{entry}")), &directory);
    let server = Server::spawn({
        keystead.envs(environment);
        keystead
    });
    server.wait_until_ready();
    let mut client = Client::connect(&files, &server);
    let signature = client.ask(ski_of(&keys, "p256"), Opcode::ECDSA_SIGN_SHA256, &[1; 32]);
    assert!(signature.is_ok(), "{signature:?}\n{}", server.log());
    let other = client.ask(ski_of(&keys, "p384"), Opcode::ECDSA_SIGN_SHA384, &[1; 48]);
    assert_eq!(other, Err(ErrorCode::KEY_NOT_FOUND), "only the key that is named");
}

/// A server with the cloud's store and one of key files, and the SKI of the cloud's key on P-256.
fn beside_files<C: Cloud>(cloud: &C, files: &Files, directory: &PluginDir, options: &str) -> (Server, Ski) {
    let keys = cloud.make_keys();
    let store = cloud.store(files);
    let dir = files.path("keys");
    let lines = format!("private_key_stores:\n{store}{options}- {{dir: {}}}\n", dir.display());
    let server = Server::spawn(keystead(&files.config(&lines), directory));
    server.wait_until_ready();
    (server, ski_of(&keys, "p256"))
}

fn stalls_alone<C: Cloud>(cloud: &C) {
    let (files, directory) = (Files::new(), directory::<C>(Build::Component));
    let limits = "  limits: {lanes: 4, deadline: 2s}\n";
    let (server, ski) = beside_files(cloud, &files, &directory, limits);
    let load = Load::new(&files, &server, ski, (4, 4));
    load.wait_until_served(Instant::now());
    cloud.server().disturb(Disturbance::hang(C::SIGNING));
    let stalled = Instant::now();
    let mut client = Client::connect(&files, &server);
    let file = skis()["p256"];
    let mut during = 0;
    while load.failures(stalled, Instant::now()).len() < 2 * 16 {
        assert!(client.ask(file, Opcode::ECDSA_SIGN_SHA256, &[1; 32]).is_ok(), "{}", server.log());
        during += 1;
        assert!(stalled.elapsed() < PATIENCE, "nobody notices: {:?}", load.causes());
    }
    assert!(during > 100, "{during} signatures of files while the service stalled");
    cloud.server().calm();
    load.wait_until_served(Instant::now());
}

fn sheds_what_the_quota_does_not_let_through<C: Cloud>(cloud: &C) {
    let (files, directory) = (Files::new(), directory::<C>(Build::Component));
    let (server, ski) = beside_files(cloud, &files, &directory, "  limits: {lanes: 4, deadline: 2s}\n");
    let mut client = Client::connect(&files, &server);
    assert!(client.ask(ski, Opcode::ECDSA_SIGN_SHA256, &[1; 32]).is_ok(), "{}", server.log());
    cloud.server().disturb(Disturbance::answer(C::SIGNING, cloud.exceeded()));
    assert_eq!(client.ask(ski, Opcode::ECDSA_SIGN_SHA256, &[1; 32]), Err(ErrorCode::CRYPTOGRAPHY));
    let failure = server.status()["failures"][0].clone();
    let expected = json!(["throttled", {"name": "HTTP", "code": 429}]);
    assert_eq!(json!([failure["class"], failure["vendor"]]), expected, "{failure}");
    let store = server.status()["stores"][0].clone();
    assert_ne!(store["state"], "down", "a quota is no outage: {store}");
    cloud.server().calm();
    assert!(client.ask(ski, Opcode::ECDSA_SIGN_SHA256, &[1; 32]).is_ok(), "{}", server.log());

    // Twice, and then let through: the request is tried again, and its client doesn't notice.
    cloud.server().disturb(Disturbance::answer(C::SIGNING, cloud.exceeded()).times(2));
    assert!(client.ask(ski, Opcode::ECDSA_SIGN_SHA256, &[1; 32]).is_ok(), "{}", server.log());
}

fn comes_back_after_an_outage<C: Cloud>(cloud: &C) {
    let (files, directory) = (Files::new(), directory::<C>(Build::Component));
    let (server, ski) = beside_files(cloud, &files, &directory, "  limits: {health_interval: 1s}\n");
    let mut client = Client::connect(&files, &server);
    cloud.server().disturb(Disturbance::answer("", Answer::text(503, "")));
    server.wait_for("the store is down");
    assert!(client.ask(ski, Opcode::ECDSA_SIGN_SHA256, &[1; 32]).is_err());
    cloud.server().calm();
    let end = Instant::now() + PATIENCE;
    while client.ask(ski, Opcode::ECDSA_SIGN_SHA256, &[1; 32]).is_err() {
        assert!(Instant::now() < end, "never served again:\n{}", server.log());
        thread::sleep(Duration::from_millis(50));
    }
}

/// A file of JSON in a folder of the test's.
fn json_file(files: &Files, name: &str, content: &Value) -> String {
    files.write(name, content.to_string().as_bytes()).display().to_string()
}

fn is_left_alone_while_it_wants_to_be<C: Cloud>(cloud: &C) {
    let (files, directory) = (Files::new(), directory::<C>(Build::Component));
    let keys = cloud.make_keys();
    let later = cloud.exceeded().header("retry-after", "30");
    cloud.server().disturb(Disturbance::answer("", later));
    let config = files.config(&format!("private_key_stores:\n{}", cloud.store(&files)));
    let server = Server::spawn(keystead(&config, &directory));
    server.wait_for("the store is down");
    let asked = cloud.server().asked().len();
    thread::sleep(Duration::from_secs(4)); // a store that is down is tried again after 3 s at most
    assert_eq!(cloud.server().asked().len(), asked, "{}", server.log());
    cloud.server().calm();
    server.reload();
    server.wait_until_ready();
    let mut client = Client::connect(&files, &server);
    assert!(
        client.ask(ski_of(&keys, "p256"), Opcode::ECDSA_SIGN_SHA256, &[1; 32]).is_ok(),
        "{}",
        server.log()
    );
}
