//! `cargo xtask test page`: the status page of a running server in a browser. What it shows is compared, value by
//! value, with what the server says; it breaks no rule of its content security policy, and fits on a phone.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::authority::{Authority, Identity, Usage};
use crate::daemon::Daemon;
use crate::failure::{Failure, Result};
use crate::interrupt::Interrupt;
use crate::key_pair::{self, KeyPair};
use crate::workspace::Programs;
use crate::{file, http, ports, process};

/// Name of the key server in its certificate.
const KEY_SERVER: &str = "keys.page.test";
/// Name of the client in its certificate: what it must not become on the page.
const CLIENT: &str = "<img src=x onerror=nope()>";
/// The keys of the store that works: the names of their files, and of what kind they are.
const KEYS: [(&str, key_pair::Kind); 3] =
    [("ec", key_pair::P256), ("rsa", key_pair::RSA_2048), ("<img src=x>", key_pair::ED25519)];
/// How often each of them signs.
const SIGNATURES: usize = 2;

/// How long the browser may take, however busy this machine is, in seconds.
const PATIENCE: &str = "60";
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
const PARTS: [Part; 10] = [
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
        "data-process",
        "/processes",
        Some("name"),
        &["name", "plugins", "stores", "pid", "since", "restarts", "last_death"],
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
    let interrupt = Interrupt::listen()?;
    let programs = Programs::build(&["keystead", "keystead-plugin-file"])?;
    let folder = file::temporary_folder("page")?;
    let scene = Scene::set(folder.path(), programs, interrupt)?;

    switched_off(&scene.serve("status_page: false\n")?)?;
    println!("switched off, the page and its data aren't found");

    let mut server = scene.serve("")?;
    as_a_file(&server)?;
    println!("the page is one file without references, and its policy is strict");
    let _client = scene.keep_busy(&mut server)?;
    tells_why(&server)?;
    println!("the store that is down tells why");
    for (name, width, height) in SCREENS {
        let browser = Browser { interrupt: &scene.interrupt, width, height };
        let values = compare(&server, &browser, &scene.path(&format!("{name}.png")))?;
        println!("on a {name}, {width} px wide, {values} values are what the server says");
    }
    Ok(())
}

fn switched_off(server: &Server) -> Result<()> {
    for path in ["/", "/status.json", "/keys.json"] {
        let status = http::get(server.http, path)?.status;
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
    let answer = http::get(server.http, "/")?;
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
    let says = says(server.http)?;
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
        let before = says(server.http)?;
        let page = browser.look(&format!("http://{}/", server.http), picture)?;
        let after = says(server.http)?;
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
    programs: Programs,
    authority: Authority,
    client: Identity,
    interrupt: Interrupt,
}

impl Scene {
    /// Makes certificates, keys, and a directory for the plugin.
    fn set(folder: &Path, programs: Programs, interrupt: Interrupt) -> Result<Self> {
        let authority = Authority::create(folder, "Page test CA")?;
        authority.issue("server", KEY_SERVER, Usage::Server)?;
        let client = authority.issue("client", CLIENT, Usage::Client)?;
        let keys = file::make_folder(&folder.join("keys"))?;
        for (name, kind) in KEYS {
            make_key(&keys.join(name), kind)?;
        }
        make_key(&folder.join("stranger"), key_pair::ED25519)?;
        programs.install_plugin("file", &file::make_folder(&folder.join("plugins"))?)?;
        Ok(Self { folder: folder.to_owned(), programs, authority, client, interrupt })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Starts a server with a store that works and one that doesn't, and waits until it is ready.
    fn serve(&self, options: &str) -> Result<Server> {
        let [keys, http] = ports::free_addresses()?;
        let (folder, configuration) = (self.folder.display(), self.path("keystead.yaml"));
        file::write(
            &configuration,
            &format!(
                "listen: \"{keys}\"\nmetrics_listen: \"{http}\"\nadmin_socket: off\n{options}\
                 auth_cert: {folder}/server.pem\nauth_key: {folder}/server-key.pem\nclient_ca: {folder}/ca.pem\n\
                 plugins: {{path: [{folder}/plugins]}}\nlimits: {{idle_timeout: 10m}}\n\
                 private_key_stores:\n\
                 - {{plugin: file, name: web, isolation: process, config: {{dir: {folder}/keys}}}}\n\
                 - {{plugin: no-such-plugin, name: absent}}\n"
            ),
        )?;
        let mut command = Command::new(self.programs.path("keystead"));
        command.arg("run").arg("-c").arg(configuration);
        let mut daemon = Daemon::start("key server", command, &self.path("keystead.log"))?;
        daemon.wait_for(&self.interrupt, "it was ready", || http::is_ready(http).then_some(()))?;
        Ok(Server { daemon, keys, http })
    }

    /// Has every key sign, and one that the server doesn't have; leaves a client connected, and waits for its figures.
    fn keep_busy(&self, server: &mut Server) -> Result<Daemon> {
        for (key, _) in KEYS.iter().cycle().take(KEYS.len() * SIGNATURES) {
            process::output(&mut self.sign(server, &format!("keys/{key}.pem")))?;
        }
        let _ = process::output(&mut self.sign(server, "stranger.pem"));
        let mut command = Command::new("openssl");
        // Quiet, it stays although it has nothing to send.
        command.args(["s_client", "-quiet", "-verify_quiet", "-connect", &server.keys.to_string()]);
        command.args(["-servername", KEY_SERVER, "-CAfile"]).arg(self.authority.certificate());
        command.arg("-cert").arg(&self.client.certificate).arg("-key").arg(&self.client.key);
        let client = Daemon::start("client", command, &self.path("client.log"))?;
        let http = server.http;
        let figures = || says(http).map(|says| has_figures(&says).then_some(())).transpose();
        server.daemon.wait_for(&self.interrupt, "it told of a peer and of latencies", figures)??;
        Ok(client)
    }

    fn sign(&self, server: &Server, key: &str) -> Command {
        let mut command = Command::new(self.programs.path("keystead"));
        command.args(["sign", "--server", &server.keys.to_string(), "--server-name", KEY_SERVER]);
        command.arg("--ca").arg(self.authority.certificate()).arg("--cert").arg(&self.client.certificate);
        command.arg("--key").arg(&self.client.key).arg("--for").arg(self.path(key));
        command
    }
}

/// Makes a private key `{stem}.key`, which only this user may read, and writes its public half `{stem}.pem`.
fn make_key(stem: &Path, kind: key_pair::Kind) -> Result<()> {
    let pair = KeyPair::generate(kind)?;
    file::write_secret(&stem.with_extension("key"), &pair.private)?;
    file::write(&stem.with_extension("pem"), &pair.public)
}

/// A key server.
struct Server {
    daemon: Daemon,
    /// Where it serves keys.
    keys: SocketAddr,
    /// Where it tells how it is.
    http: SocketAddr,
}

/// What a server says of itself: its status, and in it the keys as `keys`.
fn says(http: SocketAddr) -> Result<Value> {
    let mut status = json(http, "/status.json")?;
    let keys = json(http, "/keys.json")?;
    match status.as_object_mut() {
        Some(object) => drop(object.insert("keys".to_owned(), keys)),
        None => return Err(Failure::new("/status.json: expected an object")),
    }
    Ok(status)
}

fn json(http: SocketAddr, path: &str) -> Result<Value> {
    let answer = http::get(http, path)?;
    serde_json::from_str(&answer.body)
        .map_err(|error| Failure::new(format!("{path}, status {}: {error}", answer.status)))
}

/// Whether a server has told of a peer, and of how long a store took.
fn has_figures(says: &Value) -> bool {
    let samples = says.pointer("/stores/0/history").and_then(Value::as_array);
    let measured =
        samples.is_some_and(|all| all.iter().any(|one| one.get("p50_ms").is_some_and(Value::is_f64)));
    measured && says.pointer("/connections/peers/0").is_some()
}

/// A browser with a screen of one size.
struct Browser<'a> {
    interrupt: &'a Interrupt,
    width: u32,
    height: u32,
}

impl Browser<'_> {
    /// Loads a page, waits until it is still, takes a picture, and answers what is there then.
    fn look(&self, address: &str, picture: &Path) -> Result<Vec<Element>> {
        self.interrupt.check()?;
        let profile = file::temporary_folder("browser")?;
        let (width, height) = (self.width, self.height);
        let mut command = Command::new("timeout");
        command.args(["--kill-after=5", PATIENCE, "chromium", "--headless"]);
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
}
