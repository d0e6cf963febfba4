//! `cargo xtask test page`: the status page of a running server in a browser. What it shows is compared, value by
//! value, with what the server says; it breaks no rule of its content security policy, and fits on a phone.

use std::collections::BTreeMap;
use std::env;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::failure::{Failure, Result};
use crate::process;

/// Names a folder with programs to test, in place of those that Cargo builds now.
const BUILT: &str = "KEYSTEAD_BUILT";
/// Name of the key server in its certificate.
const KEY_SERVER: &str = "keys.page.test";
/// Name of the client in its certificate: what it must not become on the page.
const CLIENT: &str = "<img src=x onerror=nope()>";
/// The keys of the store that works: the names of their files, and what openssl makes them of.
const KEYS: [(&str, &[&str]); 3] = [
    ("ec", &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"]),
    ("rsa", &["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"]),
    ("<img src=x>", &["-algorithm", "ED25519"]),
];
/// How often each of them signs.
const SIGNATURES: usize = 2;

/// How long something on this machine may take, however busy it is; and how often is looked whether it is done.
const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(50);
/// How often the page is compared with the server, since the server changes meanwhile.
const ATTEMPTS: usize = 5;

/// The screens that the page is looked at on: name, width and height.
const SCREENS: [(&str, u32, u32); 2] = [("desktop", 1280, 1600), ("phone", 360, 3000)];
/// What a picture of the page has at least, in bytes: one of an empty page has less.
const PICTURE: u64 = 10_000;
/// The most that the page may have, in bytes.
const PAGE: usize = 30_000;
/// The most keys that the page shows.
const KEYS_SHOWN: usize = 200;

/// What the page shows, by where it is in the server's answers: the attribute that marks an element as an object or an
/// entry, the object's or the list's place, what identifies an entry, and what must be shown of each.
const PARTS: [Part; 9] = [
    Part::object("", "", &["ready", "state", "version", "pid", "uptime_seconds", "listeners.0"]),
    Part::object(
        "configuration",
        "/configuration",
        &["generation", "loaded", "file", "last_reload.at", "last_reload.result", "last_reload.error"],
    ),
    Part::object("connections", "/connections", &["open", "limit", "handshakes", "more_peers"]),
    Part::list(
        "data-store",
        "/stores",
        Some("name"),
        &[
            "name",
            "plugin",
            "critical",
            "state",
            "since",
            "lanes.busy",
            "lanes.total",
            "queue.waiting",
            "queue.limit",
            "keys",
            "requests.ok",
            "requests.failed",
            "latency_ms.p50",
            "latency_ms.p99",
            "last_error.at",
            "last_error.class",
            "last_error.message",
            "last_error.vendor.name",
            "last_error.vendor.code",
        ],
    ),
    Part::list(
        "data-failure",
        "/failures",
        None,
        &["store", "at", "class", "message", "vendor.name", "vendor.code", "ski", "peer", "request", "count"],
    ),
    Part::list(
        "data-peer",
        "/connections/peers",
        Some("fingerprint"),
        &["name", "subject", "fingerprint", "connections", "expires"],
    ),
    Part::list("data-certificate", "/certificates", Some("file"), &["file", "name", "role", "expires"]),
    Part::list(
        "data-plugin",
        "/plugins",
        Some("name"),
        &["name", "version", "vendor", "isolation", "stores"],
    ),
    Part::list(
        "data-key",
        "/keys",
        Some("ski"),
        &["ski", "type", "store", "label", "operations", "algorithms", "proven"],
    ),
];

/// Checks the page: switched off, as a file, and in a browser.
pub(crate) fn check() -> Result<()> {
    let binaries = binaries()?;
    let folder = tempfile::Builder::new()
        .prefix("keystead-page-")
        .tempdir()
        .map_err(|error| Failure::new(format!("cannot make a temporary folder: {error}")))?;
    let scene = Scene::set(folder.path(), binaries)?;

    switched_off(&scene.serve("status_page: false\n")?)?;
    println!("switched off, the page and its data aren't found");

    let mut server = scene.serve("")?;
    as_a_file(&server)?;
    println!("the page is one file without references, and its policy is strict");
    let _client = scene.keep_busy(&mut server)?;
    tells_why(&server)?;
    println!("the store that is down tells why");
    for (name, width, height) in SCREENS {
        let browser = Browser { scene: &scene, width, height };
        let values = compare(&server, &browser, &scene.path(&format!("{name}.png")))?;
        println!("on a {name}, {width} px wide, {values} values are what the server says");
    }
    Ok(())
}

fn binaries() -> Result<PathBuf> {
    if let Some(folder) = env::var_os(BUILT) {
        return Ok(folder.into());
    }
    let packages = ["--package", "keystead", "--package", "keystead-plugin-file"];
    process::run(process::cargo().args(["build", "--locked"]).args(packages))?;
    process::built()
}

fn switched_off(server: &Server) -> Result<()> {
    for path in ["/", "/status.json", "/keys.json"] {
        let status = server.get(path)?.status;
        if status != 404 {
            return Err(Failure::new(format!(
                "{path} without a status page: expected status 404, got {status}"
            )));
        }
    }
    Ok(())
}

/// The page loads nothing from elsewhere, and could be held to a policy that names what is in it.
fn as_a_file(server: &Server) -> Result<()> {
    let answer = server.get("/")?;
    let policy = answer.header("content-security-policy").unwrap_or_default();
    let page = &answer.body;
    let once = |tag: &str| page.matches(tag).count() == 1;
    let handlers = elements(page).iter().any(|element| {
        element.attributes.keys().any(|name| name == "style" || name.starts_with("on") || name == "src")
    });
    let demands = [
        ("status 200", answer.status == 200),
        ("HTML", answer.header("content-type").is_some_and(|value| value.starts_with("text/html"))),
        ("no sources by default", policy.contains("default-src 'none'")),
        ("no other base", policy.contains("base-uri 'none'")),
        ("no forms", policy.contains("form-action 'none'")),
        ("no frames", policy.contains("frame-ancestors 'none'")),
        ("a length below 30 kB", page.len() < PAGE),
        ("no address", !page.contains("http://") && !page.contains("https://")),
        ("one script", once("<script>") && once("<script")),
        ("one style", once("<style>") && once("<style")),
        ("no handlers, styles or sources in attributes", !handlers),
    ];
    match demands.iter().find(|(_, met)| !met) {
        Some((demand, _)) => Err(Failure::new(format!("the status page: expected {demand}"))),
        None => Ok(()),
    }
}

/// An operator who sees that a store is down sees why.
fn tells_why(server: &Server) -> Result<()> {
    let says = server.says()?;
    let [state, class, message] = ["state", "last_error/class", "last_error/message"]
        .map(|at| text(says.pointer(&format!("/stores/1/{at}"))));
    match (state.as_deref(), class, message) {
        (Some("down"), Some(_), Some(message)) if !message.is_empty() => Ok(()),
        got => Err(Failure::new(format!(
            "a store without its plugin: expected it to be down and why, got {got:?}"
        ))),
    }
}

/// Looks at the page until what it shows is what the server said just before or just after; answers how many values.
fn compare(server: &Server, browser: &Browser<'_>, picture: &Path) -> Result<usize> {
    let mut wrong = Vec::new();
    for _ in 0..ATTEMPTS {
        let before = server.says()?;
        let page = browser.look(&format!("http://{}/", server.http), picture)?;
        let after = server.says()?;
        fits(&page, browser.width)?;
        let values = values(&page);
        wrong = differences(&page, &values, &before, &after);
        if wrong.is_empty() {
            return Ok(values.len());
        }
    }
    wrong.truncate(20);
    Err(Failure::new(format!("the status page shows something else:\n    {}", wrong.join("\n    "))))
}

/// The page is whole, as wide as the screen, and holds nothing that a name has brought in.
fn fits(page: &[Element], width: u32) -> Result<()> {
    let html = page.iter().find(|element| element.tag == "html");
    let attribute = |name: &str| html.and_then(|html| html.attributes.get(name)).map_or("", String::as_str);
    let has_plot = |kind: &str| {
        page.iter().any(|element| element.attributes.get("data-plot").is_some_and(|plot| plot == kind))
    };
    let demands = [
        ("fresh data", attribute("data-fresh") == "true"),
        ("the width of the screen", attribute("data-width") == width.to_string()),
        ("no sideways scrolling", attribute("data-overflow") == "0"),
        ("a plot of latencies", has_plot("latency")),
        ("a plot of the rate", has_plot("rate")),
        ("no image", page.iter().all(|element| element.tag != "img")),
    ];
    match demands.iter().find(|(_, met)| !met) {
        Some((demand, _)) => {
            let html = html.map(|html| &html.attributes);
            Err(Failure::new(format!("the status page in a browser: expected {demand}; <html> has {html:?}")))
        }
        None => Ok(()),
    }
}

/// Everything that the check needs, in one folder.
struct Scene {
    folder: PathBuf,
    binaries: PathBuf,
}

impl Scene {
    /// Makes certificates, keys, and a directory for the plugin.
    fn set(folder: &Path, binaries: PathBuf) -> Result<Self> {
        let scene = Self { folder: folder.to_owned(), binaries };
        scene.certify("ca", "Page test CA", "basicConstraints = critical, CA:TRUE")?;
        let name = format!("subjectAltName = DNS:{KEY_SERVER}\nextendedKeyUsage = serverAuth");
        scene.certify("server", KEY_SERVER, &name)?;
        scene.certify("client", CLIENT, "extendedKeyUsage = clientAuth")?;
        scene.make_folder("keys")?;
        for (name, kind) in KEYS {
            scene.make_key(&format!("keys/{name}.key"), kind)?;
        }
        scene.make_key("stranger.key", &["-algorithm", "ED25519"])?;
        let library = "libkeystead_plugin_file.so";
        let (from, to) = (scene.binaries.join(library), scene.make_folder("plugins")?.join(library));
        // The key server loads no code that others could have written.
        let copied = fs::copy(&from, &to).and_then(|_| set_mode(&to, 0o644));
        copied.map_err(|error| Failure::file("copy", &from, &error)).map(|()| scene)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn make_folder(&self, name: &str) -> Result<PathBuf> {
        let path = self.path(name);
        let made = fs::create_dir(&path).and_then(|()| set_mode(&path, 0o700));
        made.map_err(|error| Failure::file("make", &path, &error)).map(|()| path)
    }

    fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.path(name);
        fs::write(&path, text).map_err(|error| Failure::file("write", &path, &error)).map(|()| path)
    }

    /// Issues a certificate by the authority `ca`, which issues its own.
    fn certify(&self, file: &str, subject: &str, extensions: &str) -> Result<()> {
        let head = "[req]\nprompt = no\ndistinguished_name = subject\nx509_extensions = extensions\n";
        let request =
            format!("{head}[subject]\nCN = {subject}\n[extensions]\nkeyUsage = critical, digitalSignature");
        let usage = if file == "ca" { ", keyCertSign" } else { "" };
        let request = self.write(&format!("{file}.cnf"), &format!("{request}{usage}\n{extensions}\n"))?;
        let mut command = Command::new("openssl");
        command.args(["req", "-x509", "-days", "2", "-noenc", "-newkey", "ec"]);
        command.args(["-pkeyopt", "ec_paramgen_curve:P-256", "-config"]).arg(request);
        command.arg("-keyout").arg(self.path(&format!("{file}-key.pem")));
        command.arg("-out").arg(self.path(&format!("{file}.pem")));
        if file != "ca" {
            command.arg("-CA").arg(self.path("ca.pem")).arg("-CAkey").arg(self.path("ca-key.pem"));
        }
        process::output(&mut command).map(drop)
    }

    /// Makes a private key, which only this user may read, and writes its public half beside it.
    fn make_key(&self, file: &str, kind: &[&str]) -> Result<()> {
        let path = self.path(file);
        process::output(Command::new("openssl").arg("genpkey").args(kind).arg("-out").arg(&path))?;
        set_mode(&path, 0o600).map_err(|error| Failure::file("set the mode of", &path, &error))?;
        let mut command = Command::new("openssl");
        command.args(["pkey", "-pubout", "-in"]).arg(&path).arg("-out").arg(path.with_extension("pem"));
        process::output(&mut command).map(drop)
    }

    /// Starts a server with a store that works and one that doesn't, and waits until it is ready.
    fn serve(&self, options: &str) -> Result<Server> {
        let [keys, http] = free_addresses()?;
        let folder = self.folder.display();
        let configuration = self.write(
            "keystead.yaml",
            &format!(
                "listen: \"{keys}\"\nmetrics_listen: \"{http}\"\nadmin_socket: off\n{options}\
                 auth_cert: {folder}/server.pem\nauth_key: {folder}/server-key.pem\nclient_ca: {folder}/ca.pem\n\
                 plugins: {{path: [{folder}/plugins]}}\nlimits: {{idle_timeout: 10m}}\n\
                 private_key_stores:\n\
                 - {{plugin: file, name: web, config: {{dir: {folder}/keys}}}}\n\
                 - {{plugin: no-such-plugin, name: absent}}\n"
            ),
        )?;
        let log = self.path("keystead.log");
        let output = || File::create(&log).map_err(|error| Failure::file("write", &log, &error));
        let mut command = Command::new(self.binaries.join("keystead"));
        command.arg("run").arg("-c").arg(configuration).stdin(Stdio::null());
        let process = Running::start(command.stdout(output()?).stderr(output()?))?;
        let mut server = Server { process, log, keys, http };
        server.wait_for("it was ready", |server| {
            Ok(server.get("/readyz").is_ok_and(|answer| answer.status == 200))
        })?;
        Ok(server)
    }

    /// Has every key sign, and one that the server doesn't have; leaves a client connected, and waits for its figures.
    fn keep_busy(&self, server: &mut Server) -> Result<Running> {
        for (key, _) in KEYS.iter().cycle().take(KEYS.len() * SIGNATURES) {
            process::output(&mut self.sign(server, &format!("keys/{key}.pem")))?;
        }
        let _ = process::output(&mut self.sign(server, "stranger.pem"));
        let mut command = Command::new("openssl");
        command.args(["s_client", "-quiet", "-verify_quiet", "-connect", &server.keys.to_string()]);
        command.args(["-servername", KEY_SERVER, "-CAfile"]).arg(self.path("ca.pem"));
        command.arg("-cert").arg(self.path("client.pem")).arg("-key").arg(self.path("client-key.pem"));
        // It stays for as long as its standard input does.
        let client =
            Running::start(command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()))?;
        server.wait_for("it told of a peer and of latencies", |server| {
            let says = server.says()?;
            let samples = says.pointer("/stores/0/history").and_then(Value::as_array);
            let measured =
                samples.is_some_and(|all| all.iter().any(|one| one.get("p50_ms").is_some_and(Value::is_f64)));
            Ok(measured && says.pointer("/connections/peers/0").is_some())
        })?;
        Ok(client)
    }

    fn sign(&self, server: &Server, key: &str) -> Command {
        let mut command = Command::new(self.binaries.join("keystead"));
        command.args(["sign", "--server", &server.keys.to_string(), "--server-name", KEY_SERVER]);
        command.arg("--ca").arg(self.path("ca.pem")).arg("--cert").arg(self.path("client.pem"));
        command.arg("--key").arg(self.path("client-key.pem")).arg("--for").arg(self.path(key));
        command
    }
}

/// A program that runs until this is dropped.
struct Running(Child);

impl Running {
    fn start(command: &mut Command) -> Result<Self> {
        let line = process::line(command);
        command.spawn().map(Self).map_err(|error| Failure::new(format!("cannot run `{line}`: {error}")))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Nothing is left to be done about a failure: either it has ended, or it can't be ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A key server.
struct Server {
    process: Running,
    log: PathBuf,
    /// Where it serves keys.
    keys: SocketAddr,
    /// Where it tells how it is.
    http: SocketAddr,
}

/// An answer over HTTP.
struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Server {
    /// What the server says of itself: its status, and in it the keys as `keys`.
    fn says(&self) -> Result<Value> {
        let mut status = self.json("/status.json")?;
        let keys = self.json("/keys.json")?;
        match status.as_object_mut() {
            Some(object) => drop(object.insert("keys".to_owned(), keys)),
            None => return Err(Failure::new("/status.json: expected an object")),
        }
        Ok(status)
    }

    fn json(&self, path: &str) -> Result<Value> {
        let answer = self.get(path)?;
        serde_json::from_str(&answer.body)
            .map_err(|error| Failure::new(format!("{path}, status {}: {error}", answer.status)))
    }

    fn get(&self, path: &str) -> Result<Answer> {
        let address = self.http;
        let ask = || -> io::Result<String> {
            let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).map(|_| answer)
        };
        let failure = |problem: &str| Failure::new(format!("http://{address}{path}: {problem}"));
        let answer = ask().map_err(|error| failure(&error.to_string()))?;
        Answer::parse(&answer).ok_or_else(|| failure("the answer is not HTTP, or comes in chunks"))
    }

    fn wait_for(&mut self, what: &str, mut probe: impl FnMut(&Self) -> Result<bool>) -> Result<()> {
        let start = Instant::now();
        while !probe(self)? {
            let ended = !matches!(self.process.0.try_wait(), Ok(None));
            if ended || start.elapsed() > PATIENCE {
                let log = fs::read_to_string(&self.log).unwrap_or_default();
                let why = if ended { "it ended" } else { "it took too long" };
                let log = process::last_lines(&log);
                return Err(Failure::new(format!(
                    "waited for the key server until {what}, but {why}:\n{log}"
                )));
            }
            thread::sleep(PAUSE);
        }
        Ok(())
    }
}

impl Answer {
    fn parse(text: &str) -> Option<Self> {
        let (head, body) = text.split_once("\r\n\r\n")?;
        let status = head.split(' ').nth(1)?.parse().ok()?;
        let answer = Self { status, head: head.to_owned(), body: body.to_owned() };
        answer.header("transfer-encoding").is_none().then_some(answer)
    }

    fn header(&self, name: &str) -> Option<&str> {
        let fields = self.head.lines().filter_map(|line| line.split_once(':'));
        fields.into_iter().find(|(field, _)| field.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
    }
}

/// A browser with a screen of one size.
struct Browser<'a> {
    scene: &'a Scene,
    width: u32,
    height: u32,
}

impl Browser<'_> {
    /// Loads a page, waits until it is still, takes a picture, and answers what is there then.
    fn look(&self, address: &str, picture: &Path) -> Result<Vec<Element>> {
        let profile = tempfile::tempdir_in(&self.scene.folder)
            .map_err(|error| Failure::new(format!("cannot make a folder for the browser: {error}")))?;
        let (width, height) = (self.width, self.height);
        let mut command = Command::new("timeout");
        command.args(["--kill-after=5", &PATIENCE.as_secs().to_string(), "chromium", "--headless"]);
        // It sees this one page; containers and root have no sandbox to offer.
        command.args(["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]);
        command.args(["--disable-background-networking", "--disable-component-update", "--hide-scrollbars"]);
        // A window has at least 500 px, unless it fills a screen that is smaller.
        command.arg("--kiosk").arg(format!("--screen-info={{{width}x{height}}}"));
        command.arg(format!("--window-size={width},{height}"));
        command.arg(format!("--user-data-dir={}", profile.path().display())).env("HOME", profile.path());
        command.args(["--enable-logging=stderr", "--v=0", "--virtual-time-budget=3000", "--dump-dom"]);
        command.arg(format!("--screenshot={}", picture.display())).arg(address);
        let output = process::output(&mut command)?;
        // Violations of the policy and uncaught errors among them; the page itself says nothing there.
        if let Some(line) = output.stderr.lines().find(|line| line.contains(":CONSOLE")) {
            return Err(Failure::new(format!("the page made the browser complain: {line}")));
        }
        is_picture(picture).map(|()| elements(&output.stdout))
    }
}

fn is_picture(path: &Path) -> Result<()> {
    let bytes = fs::read(path).map_err(|error| Failure::file("read", path, &error))?;
    if bytes.starts_with(b"\x89PNG\r\n\x1a\n") && bytes.len() as u64 > PICTURE {
        return Ok(());
    }
    Err(Failure::new(format!(
        "expected a picture of the page, got {} bytes in {}",
        bytes.len(),
        path.display()
    )))
}

/// An element of a page, in the order of the document.
#[derive(Debug, Default)]
struct Element {
    tag: String,
    attributes: BTreeMap<String, String>,
    /// The element around it.
    parent: Option<usize>,
    /// Its text, that of the elements within it included.
    text: String,
}

/// Reads HTML as browsers write it: attributes in double quotes, every element closed that has an end.
fn elements(html: &str) -> Vec<Element> {
    const VOID: [&str; 5] = ["br", "img", "input", "link", "meta"];
    let (mut all, mut open) = (Vec::<Element>::new(), Vec::<usize>::new());
    let mut rest = html;
    while let Some((text, behind)) = rest.split_once('<') {
        for at in &open {
            if let Some(element) = all.get_mut(*at) {
                element.text.push_str(&unescape(text));
            }
        }
        if let Some(comment) = behind.strip_prefix("!--") {
            rest = comment.split_once("-->").map_or("", |(_, rest)| rest);
            continue;
        }
        let (tag, attributes, behind) = read_tag(behind);
        rest = behind;
        if tag.starts_with('!') {
            continue;
        } else if tag.starts_with('/') {
            open.pop();
            continue;
        }
        if matches!(tag, "script" | "style") {
            // Whose content is no HTML.
            rest = rest.split_once(&format!("</{tag}>")).map_or("", |(_, rest)| rest);
        } else if !VOID.contains(&tag) {
            open.push(all.len());
        }
        let parent = open.iter().rev().copied().find(|at| *at < all.len());
        all.push(Element { tag: tag.to_owned(), attributes, parent, text: String::new() });
    }
    all
}

/// Reads what is behind `<`: the name, the attributes, and what comes behind `>`.
fn read_tag(text: &str) -> (&str, BTreeMap<String, String>, &str) {
    let end = text.find(|c: char| c.is_whitespace() || c == '>').unwrap_or(text.len());
    let (tag, mut rest) = text.split_at(end);
    let mut attributes = BTreeMap::new();
    loop {
        rest = rest.trim_start();
        let end = rest.find(|c: char| c.is_whitespace() || matches!(c, '=' | '>')).unwrap_or(rest.len());
        let (name, behind) = rest.split_at(end);
        if let Some((value, behind)) = behind.strip_prefix("=\"").and_then(|value| value.split_once('"')) {
            attributes.insert(name.to_owned(), unescape(value));
            rest = behind;
        } else if name.is_empty() {
            return (tag, attributes, behind.strip_prefix(['>', '=']).unwrap_or_default());
        } else {
            attributes.insert(name.to_owned(), String::new());
            rest = behind;
        }
    }
}

fn unescape(text: &str) -> String {
    const NAMES: [(&str, &str); 5] =
        [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&nbsp;", "\u{a0}"), ("&amp;", "&")];
    NAMES.iter().fold(text.to_owned(), |text, (name, sign)| text.replace(name, sign))
}

/// A part of the page and of the server's answers.
struct Part {
    attribute: &'static str,
    /// Where the object or the list is, as a JSON pointer.
    at: &'static str,
    kind: Kind,
    /// What must be shown, by paths within the object or entry; a longer path only where it leads to something.
    fields: &'static [&'static str],
}

enum Kind {
    /// An object, and the value that the attribute has.
    Object(&'static str),
    /// A list, and what the attribute of an entry repeats.
    List(Option<&'static str>),
}

/// A value on the page.
#[derive(Debug)]
struct Cell {
    /// Where it is in the server's answers, as a JSON pointer.
    at: String,
    value: Option<String>,
    text: String,
}

impl Part {
    const fn object(name: &'static str, at: &'static str, fields: &'static [&'static str]) -> Self {
        Self { attribute: "data-object", at, kind: Kind::Object(name), fields }
    }

    const fn list(
        attribute: &'static str,
        at: &'static str,
        identity: Option<&'static str>,
        fields: &'static [&'static str],
    ) -> Self {
        Self { attribute, at, kind: Kind::List(identity), fields }
    }

    /// Where the objects are that this part shows.
    fn places(&self, says: &Value) -> Vec<String> {
        match self.kind {
            Kind::Object(_) => vec![self.at.to_owned()],
            Kind::List(_) => {
                let length = says.pointer(self.at).and_then(Value::as_array).map_or(0, Vec::len);
                let shown = if self.attribute == "data-key" { length.min(KEYS_SHOWN) } else { length };
                (0..shown).map(|entry| format!("{}/{entry}", self.at)).collect()
            }
        }
    }

    /// Where the object is that an element of the page stands for, if it does for one of this part.
    fn place(&self, page: &[Element], at: usize) -> Option<String> {
        let has = |element: &&Element| element.attributes.contains_key(self.attribute);
        let value = page.get(at)?.attributes.get(self.attribute)?;
        match self.kind {
            Kind::Object(name) => (value == name).then(|| self.at.to_owned()),
            Kind::List(_) => Some(format!("{}/{}", self.at, page.get(..at)?.iter().filter(has).count())),
        }
    }
}

/// Every value on the page.
fn values(page: &[Element]) -> Vec<Cell> {
    let mut found = Vec::new();
    for (at, element) in page.iter().enumerate() {
        let Some(field) = element.attributes.get("data-field") else { continue };
        let around = std::iter::successors(Some(at), |at| page.get(*at)?.parent);
        let place = around.into_iter().find_map(|at| PARTS.iter().find_map(|part| part.place(page, at)));
        found.push(Cell {
            at: format!("{}/{}", place.unwrap_or_default(), field.replace('.', "/")),
            value: element.attributes.get("data-value").cloned(),
            text: element.text.clone(),
        });
    }
    found
}

/// What is missing on the page, and what it shows that the server said neither before nor after.
fn differences(page: &[Element], values: &[Cell], before: &Value, after: &Value) -> Vec<String> {
    let mut wrong = Vec::new();
    for part in &PARTS {
        let places = part.places(after);
        for place in &places {
            let fields =
                part.fields.iter().map(|field| (field, format!("{place}/{}", field.replace('.', "/"))));
            let said = |at: &str| after.pointer(at).is_some_and(|value| !value.is_null());
            let expected = fields.filter(|(field, at)| !field.contains('.') || said(at)).map(|(_, at)| at);
            let missing = expected.filter(|at| !values.iter().any(|cell| cell.at == *at));
            wrong.extend(missing.map(|at| format!("{at} isn't there")));
        }
        if let Kind::List(identity) = part.kind {
            let rows: Vec<_> =
                page.iter().filter_map(|element| element.attributes.get(part.attribute)).collect();
            let names =
                places.iter().filter_map(|place| text(after.pointer(&format!("{place}/{}", identity?))));
            let same = identity.is_none() || names.eq(rows.iter().map(|name| (*name).clone()));
            if !same || rows.len() != places.len() {
                wrong.push(format!("{} has the rows {rows:?}", part.at));
            }
        }
    }
    wrong.extend(values.iter().filter(|cell| !cell.agrees(before, after)).map(|cell| {
        let [before, after] = [before, after].map(|says| says.pointer(&cell.at).unwrap_or(&Value::Null));
        let (value, text) = (cell.value.as_deref().unwrap_or("null"), &cell.text);
        format!("{} is {value}, shown as `{text}`; the server says {before}, and then {after}", cell.at)
    }));
    wrong
}

impl Cell {
    fn agrees(&self, before: &Value, after: &Value) -> bool {
        // Of windows that move on; what they show is gone by now.
        if self.at.contains("/history/") || self.at.contains("/latency_ms") {
            return self.value.as_ref().is_none_or(|value| value.parse::<f64>().is_ok());
        }
        let [before, after] = [before, after].map(|says| says.pointer(&self.at));
        (self.is(before) || self.is(after) || self.is_between(before, after)) && self.is_legible(after)
    }

    fn is(&self, says: Option<&Value>) -> bool {
        match (&self.value, says.and_then(Value::as_f64)) {
            (Some(value), Some(says)) => value.parse() == Ok(says),
            (value, _) => *value == text(says),
        }
    }

    fn is_between(&self, before: Option<&Value>, after: Option<&Value>) -> bool {
        let value = self.value.as_ref().and_then(|value| value.parse::<f64>().ok());
        match (before.and_then(Value::as_f64), value, after.and_then(Value::as_f64)) {
            (Some(before), Some(value), Some(after)) => before <= value && value <= after,
            _ => false,
        }
    }

    /// Whether words are shown as they are: states with a capital, and the roles of certificates in other words.
    fn is_legible(&self, says: Option<&Value>) -> bool {
        match &self.value {
            Some(value) if self.at.ends_with("/state") => self.text.eq_ignore_ascii_case(value),
            Some(value) if says.is_some_and(Value::is_string) && !self.at.ends_with("/role") => {
                self.text == *value
            }
            _ => !self.text.is_empty() || self.at.ends_with("/critical"),
        }
    }
}

/// A value as the page has it in an attribute; nothing for null.
fn text(value: Option<&Value>) -> Option<String> {
    match value? {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        Value::Array(list) => {
            Some(list.iter().filter_map(|entry| text(Some(entry))).collect::<Vec<_>>().join(","))
        }
        other => Some(other.to_string()),
    }
}

/// Two ports that nobody listens on. Somebody could take them before the key server does, which then says so.
fn free_addresses() -> Result<[SocketAddr; 2]> {
    let failure = |error| Failure::new(format!("cannot find a free port: {error}"));
    let listen = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(failure);
    let (one, other) = (listen()?, listen()?);
    Ok([one.local_addr().map_err(failure)?, other.local_addr().map_err(failure)?])
}

fn set_mode(path: &Path, mode: u32) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const ROW: &str = r#"<!DOCTYPE html><!-- <p> --><html data-fresh="true"><script>if (a < b) "<p>"</script><body>
        <b data-field="ready" data-value="true">Ready</b>
        <div data-object="configuration"><br><i data-field="file">–</i></div>
        <tr data-plugin="a"><td><b data-field="name" data-value="a">a</b></td></tr>
        <tr data-plugin="&lt;b&quot;>"><td><b data-field="name" data-value="&lt;b&quot;>">&lt;b"&gt;</b></td></tr>"#;

    fn at<'v>(values: &'v [Cell], place: &str) -> &'v Cell {
        values.iter().find(|cell| cell.at == place).unwrap_or_else(|| panic!("no {place} in {values:?}"))
    }

    #[test]
    fn finds_values_and_their_places() {
        let page = elements(ROW);
        let values = values(&page);
        assert_eq!(values.len(), 4, "{page:?}");
        assert_eq!(at(&values, "/ready").value.as_deref(), Some("true"));
        assert_eq!(at(&values, "/configuration/file").value, None);
        assert_eq!(at(&values, "/plugins/0/name").text, "a");
        assert_eq!(at(&values, "/plugins/1/name").value.as_deref(), Some("<b\">"));
        assert_eq!(at(&values, "/plugins/1/name").text, "<b\">");
    }

    #[test]
    fn a_value_agrees_with_one_reading_or_lies_between() {
        let cell =
            |value: &str| Cell { at: "/n".to_owned(), value: Some(value.to_owned()), text: value.to_owned() };
        let (before, after) = (json!({ "n": 1.0 }), json!({ "n": 3 }));
        for (value, agrees) in [("1", true), ("2", true), ("3", true), ("4", false), ("x", false)] {
            assert_eq!(cell(value).agrees(&before, &after), agrees, "{value}");
        }
        let (before, after) = (json!({ "n": "a" }), json!({ "n": null }));
        for (value, agrees) in [("a", true), ("b", false), ("null", false)] {
            assert_eq!(cell(value).agrees(&before, &after), agrees, "{value}");
        }
    }

    #[test]
    fn tells_what_is_missing_and_what_is_wrong() {
        let page = elements(ROW);
        let plugins = json!([{ "name": "a" }, { "name": "c" }]);
        let says = json!({ "ready": true, "configuration": { "file": null }, "plugins": plugins });
        let wrong = differences(&page, &values(&page), &says, &says).join("\n");
        assert!(wrong.contains("/version isn't there"), "{wrong}");
        assert!(wrong.contains("/plugins has the rows"), "{wrong}");
        assert!(wrong.contains("the server says \"c\""), "{wrong}");
        assert!(!wrong.contains("/ready") && !wrong.contains("/configuration/file"), "{wrong}");
    }

    #[test]
    fn reads_answers_but_no_chunks() {
        let answer =
            Answer::parse("HTTP/1.1 404 Not Found\r\nContent-Type: text/plain\r\n\r\nno\n").expect("HTTP");
        assert_eq!((answer.status, answer.header("content-type")), (404, Some("text/plain")));
        assert!(Answer::parse("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0").is_none());
    }
}
