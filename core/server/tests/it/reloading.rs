//! Reloading: what is new is in force, what is wrong changes nothing, and nobody who is being served notices.

use std::{
    fs,
    io::{self, Write},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use keystead_client::{Client as Edge, Error};
use keystead_protocol::{ErrorCode, Opcode, Ski};
use rcgen::ExtendedKeyUsagePurpose;
use rustix::process::Signal;
use rustls::{
    ClientConfig,
    version::{TLS12, TLS13},
};
use serde_json::json;

use crate::world::{Client, Files, PATIENCE, SERVER, Server, authority, hostile, leaf, skis};

/// Connections of a load, and how many requests it makes in a second.
const CONNECTIONS: u32 = 20;
const RATE: u32 = 2_000;

/// A steady load of signatures by one key, in a thread of its own.
struct Load {
    stop: Arc<AtomicBool>,
    signed: Arc<AtomicU64>,
    running: thread::JoinHandle<Vec<String>>,
    started: Instant,
}

impl Load {
    fn start(server: &Server, ski: Ski, clients: &[Arc<ClientConfig>]) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let signed = Arc::new(AtomicU64::new(0));
        let (address, clients) = (server.address, clients.to_vec());
        let shared = (Arc::clone(&stop), Arc::clone(&signed));
        let running = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let edges = (0..CONNECTIONS).map(|number| {
                    let tls = &clients[number as usize % clients.len()];
                    let name = "localhost".try_into().unwrap();
                    let edge = Edge::builder([address.to_string()], name, Arc::clone(tls)).deadline(PATIENCE);
                    tokio::spawn(keep_signing(edge.build().unwrap(), ski, shared.clone()))
                });
                let mut failed = Vec::new();
                for edge in edges.collect::<Vec<_>>() {
                    failed.extend(edge.await.unwrap());
                }
                failed
            })
        });
        Self { stop, signed, running, started: Instant::now() }
    }

    /// Waits until there were some more signatures.
    fn goes_on(&self) {
        let (before, end) = (self.signed.load(Ordering::Relaxed), Instant::now() + PATIENCE);
        while self.signed.load(Ordering::Relaxed) < before + 500 {
            assert!(Instant::now() < end, "the load doesn't go on");
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Ends it; nothing may have failed.
    fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        let failed = self.running.join().unwrap();
        let (signed, seconds) = (self.signed.load(Ordering::Relaxed), self.started.elapsed().as_secs_f64());
        let _ = writeln!(
            io::stdout(),
            "{signed} signatures in {seconds:.1} s, {:.0} in a second",
            signed as f64 / seconds
        );
        assert_eq!(failed, [""; 0], "beside {signed} that did not");
    }
}

/// Requests at their times, whether or not those before were answered.
async fn keep_signing(
    edge: Edge,
    ski: Ski,
    (stop, signed): (Arc<AtomicBool>, Arc<AtomicU64>),
) -> Vec<String> {
    let mut times = tokio::time::interval(Duration::from_secs(1) * CONNECTIONS / RATE);
    let (mut requests, mut failed) = (tokio::task::JoinSet::new(), Vec::new());
    let mut note = |outcome: Result<Vec<u8>, Error>| match outcome {
        Ok(_) => _ = signed.fetch_add(1, Ordering::Relaxed),
        Err(error) => failed.push(format!("{error:?}")),
    };
    while !stop.load(Ordering::Relaxed) {
        times.tick().await;
        while let Some(done) = requests.try_join_next() {
            note(done.unwrap());
        }
        let edge = edge.clone();
        requests.spawn(async move { edge.sign(ski, Opcode::ECDSA_SIGN_SHA256, &[1; 32]).await });
    }
    while let Some(done) = requests.join_next().await {
        note(done.unwrap());
    }
    failed
}

fn sign(client: &mut Client, name: &str) -> Result<Vec<u8>, ErrorCode> {
    let opcode = match name {
        "rsa" => Opcode::RSA_SIGN_SHA256,
        "ed25519" => Opcode::ED25519_SIGN,
        _ => Opcode::ECDSA_SIGN_SHA256,
    };
    client.ask(skis()[name], opcode, &[1; 32])
}

/// Lines of a native store named `web` over the keys' directory.
fn web(files: &Files, more: &str) -> String {
    let keys = files.path("keys");
    format!("private_key_stores: [{{name: web, plugin: file, config: {{dir: {}}}{more}}}]\n", keys.display())
}

#[test]
fn under_load_keys_settings_certificates_and_authorities_change_and_nothing_fails() {
    let files = Files::new();
    let grace = Duration::from_secs(5);
    // Clients of two authorities; the server's own certificate is of the first.
    let (second, second_root) = authority("second");
    files.issue_by(&second, "other", leaf(7, ExtendedKeyUsagePurpose::ClientAuth));
    let first_root = files.read("ca.pem");
    files.write("clients.pem", format!("{first_root}{second_root}").as_bytes());
    let lines = |more: &str| {
        let text = format!("{}limits: {{grace: 5s, idle_timeout: 5m}}\n", web(&files, more));
        let path = files.change_config(&text);
        let both = fs::read_to_string(&path).unwrap();
        let [one, two] =
            ["ca.pem", "clients.pem"].map(|name| format!("client_ca: {}", files.path(name).display()));
        fs::write(&path, both.replace(&one, &two)).unwrap();
        path
    };
    fs::rename(files.path("keys/ed25519.key"), files.path("aside")).unwrap();
    files.config("");
    let server = Server::run(&lines(""));
    server.wait_until_ready();
    let [of_first, of_second] = ["client", "other"].map(|name| files.client_tls_as(name, &[&TLS12, &TLS13]));
    let first_load = Load::start(&server, skis()["p256"], &[Arc::clone(&of_first), Arc::clone(&of_second)]);
    let mut client = Client::connect_with(Arc::clone(&of_first), server.address).unwrap();
    assert_eq!(sign(&mut client, "ed25519"), Err(ErrorCode::KEY_NOT_FOUND));

    // A key is added and removed again and again.
    for round in 0..3 {
        first_load.goes_on();
        fs::rename(files.path("aside"), files.path("keys/ed25519.key")).unwrap();
        assert_eq!(server.reload()["generation"], 2 + 2 * round);
        assert!(sign(&mut client, "ed25519").is_ok(), "the reload was done when it said so");
        first_load.goes_on();
        fs::rename(files.path("keys/ed25519.key"), files.path("aside")).unwrap();
        server.reload();
        assert_eq!(sign(&mut client, "ed25519"), Err(ErrorCode::KEY_NOT_FOUND));
    }
    fs::rename(files.path("aside"), files.path("keys/ed25519.key")).unwrap();

    // The key of the load moves to another file, and the store's settings change.
    fs::rename(files.path("keys/p256.key"), files.path("keys/renamed.key")).unwrap();
    server.reload();
    for queue in [100, 200, 300] {
        first_load.goes_on();
        lines(&format!(", limits: {{queue: {queue}}}"));
        assert_eq!(server.reload()["changed"], json!(["web"]));
        assert_eq!(server.status()["stores"][0]["queue"]["limit"], queue);
    }

    first_load.goes_on();

    // The server's certificate is replaced: new connections see the new one, old ones stay.
    let before = client.server_certificate();
    files.issue("server", SERVER + 100, ExtendedKeyUsagePurpose::ServerAuth);
    assert_eq!(server.reload()["tls"], true);
    let mut other = Client::connect_with(Arc::clone(&of_first), server.address).unwrap();
    assert_ne!(other.server_certificate(), before);
    assert!(sign(&mut client, "ed25519").is_ok() && sign(&mut other, "ed25519").is_ok());

    first_load.goes_on();

    // Broken files change nothing.
    let path = lines("");
    let good = fs::read_to_string(&path).unwrap();
    fs::write(&path, good.replace("limits:", "limist:")).unwrap();
    let (code, _, said) = server.admin(&["reload"]);
    assert_eq!(code, 1);
    assert!(said.contains("unknown key `limist`") && said.contains("did you mean `limits`?"), "{said}");
    fs::write(&path, &good).unwrap();
    let certificate = files.read("server.pem");
    files.write("server.pem", b"nothing");
    let (code, _, said) = server.admin(&["reload"]);
    assert!(code == 1 && said.contains("server.pem"), "{said}");
    files.write("server.pem", certificate.as_bytes());
    assert!(sign(&mut client, "ed25519").is_ok());
    first_load.stop();

    // An authority goes. Who has its certificate is told to leave, and who has another stays.
    let second_load = Load::start(&server, skis()["p256"], &[Arc::clone(&of_second)]);
    second_load.goes_on();
    files.write("clients.pem", second_root.as_bytes());
    let removed = Instant::now();
    server.reload();
    assert_eq!(client.receive(), None, "the connection is closed");
    assert_eq!(other.receive(), None);
    assert!(removed.elapsed() < grace, "closed after {:?}", removed.elapsed());
    assert!(Client::connect_with(files.client_tls(&[&TLS12]), server.address).is_err());
    second_load.goes_on();
    second_load.stop();
}

#[test]
fn a_refused_reload_is_told_in_status_metrics_and_log_and_a_good_one_ends_that() {
    let files = Files::new();
    let server = Server::start(&files, &web(&files, ""));
    files.change_config("private_key_stores: [{name: web, plugin: no-such-plugin}]\n");
    let (code, _, said) = server.admin(&["reload"]);
    assert_eq!(code, 1);
    assert!(said.contains("store `web`: plugin `no-such-plugin` was not found"), "{said}");
    let status = server.status();
    assert_eq!(status["configuration"]["generation"], 1);
    let last = &status["configuration"]["last_reload"];
    assert_eq!(last["result"], "refused");
    assert!(last["error"].as_str().unwrap().contains("no-such-plugin"), "{last}");
    server.wait_for("the reload is refused, and everything stays as it was: store `web`");
    server.wait_for_metric("keystead_config_reload_total{result=\"refused\"} 1");
    server.wait_for_metric("keystead_config_last_reload_successful 0");
    server.wait_for_metric("keystead_config_generation 1");
    assert!(sign(&mut Client::connect(&files, &server), "p256").is_ok());
    files.change_config(&web(&files, ""));
    assert_eq!(server.reload()["generation"], 2);
    server.wait_for_metric("keystead_config_last_reload_successful 1");
    server.wait_for_metric("keystead_config_generation 2");
    assert_eq!(server.status()["configuration"]["last_reload"]["result"], "ok");
}

#[test]
fn what_can_be_read_and_would_be_regretted_is_refused() {
    let files = Files::new();
    let server = Server::start(&files, &web(&files, ""));
    let refused = |why: &str| {
        let (code, _, said) = server.admin(&["reload"]);
        assert!(code == 1 && said.contains(why), "{said}");
        assert!(sign(&mut Client::connect(&files, &server), "p256").is_ok());
    };
    files.change_config(""); // as a file is that was cut off before its stores
    refused("the configuration has no stores any more");
    let list = files.revoke(99, 2021);
    files.change_config(&format!("{}tls: {{crl: {}}}\n", web(&files, ""), list.display()));
    refused("the revocation list has expired, so that everybody would be refused");
    fs::create_dir(files.path("empty")).unwrap();
    files.change_config(&web(&files, "").replace("/keys}", "/empty}"));
    refused("store `web`: it would serve no key, and serves 4 now; look at what its entry chooses");
    fs::remove_file(files.change_config(&web(&files, ""))).unwrap();
    refused("no such configuration file");
    files.change_config(&web(&files, ""));
    server.reload();
}

#[test]
fn of_several_new_stores_one_that_fails_lets_none_serve() {
    let files = Files::new();
    let server = Server::start(&files, &web(&files, ""));
    let (rsa, aside) = (files.path("keys/rsa.key"), files.path("rsa.key"));
    fs::rename(rsa, &aside).unwrap();
    server.reload();
    let more = format!(
        "{}- {{name: more, plugin: file, config: {{file: {}}}}}\n- {{name: bad, plugin: file, config: {{dir: /nowhere}}}}\n",
        web(&files, "").replace("private_key_stores: [", "private_key_stores:\n- ").replace("}]", "}"),
        aside.display()
    );
    files.change_config(&more);
    let (code, _, said) = server.admin(&["reload"]);
    assert!(code == 1 && said.contains("store `bad`: "), "{said}");
    let mut client = Client::connect(&files, &server);
    assert_eq!(sign(&mut client, "rsa"), Err(ErrorCode::KEY_NOT_FOUND));
    files.change_config(&more.replace("- {name: bad, plugin: file, config: {dir: /nowhere}}\n", ""));
    assert_eq!(server.reload()["added"], json!(["more"]));
    assert!(sign(&mut client, "rsa").is_ok());
    files.change_config(&web(&files, ""));
    assert_eq!(server.reload()["removed"], json!(["more"]));
    assert_eq!(sign(&mut client, "rsa"), Err(ErrorCode::KEY_NOT_FOUND));
    let (_, metrics) = server.get("/metrics");
    assert!(!metrics.contains("store=\"more\""), "a store that is no more has no metrics:\n{metrics}");
}

#[test]
fn a_store_that_stays_is_left_alone_and_one_with_a_new_secret_is_opened_anew() {
    let files = Files::new();
    let token = |secret: &str| {
        format!(
            "{{name: {secret}, plugin: hostile, secrets: {{pin: {{file: {}}}}}, config: {{login: {{token: {secret}, \
             secret: pin, pin: right}}, keys: [{{file: {}}}]}}}}",
            files.path(secret).display(),
            files.path("keys/p256.key").display()
        )
    };
    files.write("one", b"right");
    files.write("two", b"right");
    let stores = format!("private_key_stores: [{}, {}]\n", token("one"), token("two"));
    let server = Server::start(&files, &stores);
    let openings = |store: &str| {
        let lines = server.log();
        let serving = lines.lines().filter(|line| line.contains("the store serves"));
        serving.filter(|line| line.contains(&format!("store=\"{store}\""))).count()
    };
    let unchanged = server.reload();
    assert_eq!((&unchanged["changed"], &unchanged["added"]), (&json!([]), &json!([])));
    files.write("two", b"right\n"); // one newline isn't part of a secret
    assert_eq!(server.reload()["changed"], json!([]));

    files.write("two", b"wrong");
    for _ in 0..4 {
        let (code, _, said) = server.admin(&["reload"]);
        assert_eq!(code, 1);
        assert!(
            said.contains("store `two`: the token refused the PIN in attempt 3 (CKR_PIN_INCORRECT 0xa0)"),
            "{said}"
        );
    }
    assert!(sign(&mut Client::connect(&files, &server), "p256").is_ok(), "the store before still serves");

    files.write("two", b"right");
    assert_eq!(server.reload()["changed"], json!([]), "it is the secret of the store that serves");
    let two_changed = token("two").replace("{name: two,", "{name: two, limits: {queue: 9},");
    files.change_config(&format!("private_key_stores: [{}, {two_changed}]\n", token("one")));
    assert_eq!(server.reload()["changed"], json!(["two"]));
    server.wait_for_metric("keystead_store_up{store=\"two\"} 1");
    assert_eq!(openings("one"), 1, "it was never opened again:\n{}", server.log());
}

#[test]
fn requests_in_flight_keep_a_store_that_went_until_they_are_answered() {
    let files = Files::new();
    let slow = hostile(&files, "sign: {slow: 1500}, class: blocking");
    let server = Server::start(&files, &slow);
    let mut client = Client::connect(&files, &server);
    let batch: Vec<u8> = (0..4)
        .flat_map(|id| crate::world::request(id, skis()["p256"], Opcode::ECDSA_SIGN_SHA256, &[1; 32]))
        .collect();
    client.send(&batch);
    server.wait_for_metric("keyless_requests{opcode=\"OpECDSASignSHA256\"} 4");
    files.change_config(&web(&files, ""));
    assert_eq!(server.reload()["removed"], json!(["hostile"]));
    assert!(!server.log().contains("closed store=\"hostile\""), "it is still used");
    for _ in 0..4 {
        assert!(client.answer().1.is_ok());
    }
    server.wait_for("closed store=\"hostile\"");
    assert!(!server.log().contains("closed with requests in flight"), "{}", server.log());
}

#[test]
fn sighup_reloads_and_a_watch_notices_by_itself() {
    let files = Files::new();
    let server = Server::start(&files, &web(&files, ""));
    let site = web(&files, "").replace("name: web", "name: site");
    files.change_config(&format!("{site}watch: 1s\npid_file: {}\n", files.path("pid").display()));
    server.signal(Signal::HUP);
    server.wait_for_metric("keystead_config_generation 2");
    server.wait_for_metric("keystead_store_up{store=\"site\"} 1");
    server.wait_for("`pid_file` takes effect when the server is started again");
    // From now on it looks by itself.
    thread::sleep(Duration::from_secs(6));
    files.change_config(&format!("{}watch: 1s\n", web(&files, "")));
    server.wait_for("a file of the configuration has changed");
    server.wait_for_metric("keystead_store_up{store=\"web\"} 1");
    let (_, metrics) = server.get("/metrics");
    assert!(!metrics.contains("store=\"site\""), "{metrics}");
}

#[test]
fn a_plugin_that_says_that_its_keys_have_changed_is_listed_anew() {
    let files = Files::new();
    let server = Server::start(&files, &hostile(&files, "sign: change_keys"));
    server.wait_for("keystead::plugin: listing");
    assert_eq!(server.log().matches("keystead::plugin: listing").count(), 1);
    assert!(sign(&mut Client::connect(&files, &server), "p256").is_ok());
    // Its generation stays the same, so that no look after its health brings this about.
    server.wait_for_times("keystead::plugin: listing", 2);
}

#[test]
fn key_files_are_looked_at_as_often_as_the_store_says() {
    let files = Files::new();
    let aside = files.path("aside");
    fs::rename(files.path("keys/rsa.key"), &aside).unwrap();
    let server = Server::start(&files, &web(&files, ", limits: {health_interval: 1s}"));
    fs::rename(&aside, files.path("keys/rsa.key")).unwrap();
    server.wait_for_metric("keystead_store_keys{store=\"web\"} 4");
    assert!(sign(&mut Client::connect(&files, &server), "rsa").is_ok());
}
