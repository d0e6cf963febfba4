//! A fake as its clients see it, by way of the proxy.

#![expect(clippy::unwrap_used, reason = "whatever fails, fails the test")]

use std::{
    io::{self, Read, Write},
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

use keystead_fakes::{Answer, Asked, Authority, Disturbance, Proxy, Server};
use openssl::ssl::{SslConnector, SslMethod, SslStream};
use serde_json::json;
use tempfile::TempDir;

const NAME: &str = "kms.example";

struct World {
    server: Server,
    proxy: Proxy,
    authority: Authority,
    _folder: TempDir,
}

impl World {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::create(folder.path());
        let echo = |asked: &Asked| Answer::json(200, &json!({"asked": asked.line()}));
        let server = Server::https(&authority, &[NAME], echo);
        let proxy = Proxy::start([(format!("{NAME}:443"), server.address())]);
        Self { server, proxy, authority, _folder: folder }
    }

    /// A tunnel to a name, and what the proxy says of it.
    fn tunnel(&self, name: &str) -> (TcpStream, String) {
        let mut stream = TcpStream::connect(self.proxy.address()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        write!(stream, "CONNECT {name}:443 HTTP/1.1\r\nHost: {name}:443\r\n\r\n").unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            head.extend(byte);
        }
        (stream, String::from_utf8(head).unwrap())
    }

    fn connect(&self, name: &str) -> Option<SslStream<TcpStream>> {
        let mut connector = SslConnector::builder(SslMethod::tls()).unwrap();
        connector.set_ca_file(self.authority.ca()).unwrap();
        connector.build().connect(name, self.tunnel(NAME).0).ok()
    }

    fn get(&self, path: &str) -> io::Result<String> {
        let mut stream = self.connect(NAME).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {NAME}\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).map(|_| answer)
    }
}

#[test]
fn serves_under_its_own_name_and_no_other() {
    let world = World::start();
    let answer = world.get("/keys/a?x=1").unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 200") && answer.ends_with(r#"{"asked":"GET /keys/a?x=1"}"#),
        "{answer}"
    );
    assert!(world.connect("other.example").is_none(), "its certificate is for no other name");
    assert!(world.tunnel("other.example").1.starts_with("HTTP/1.1 502"));
    let asked = world.server.asked();
    assert_eq!((asked.len(), asked.first().and_then(|asked| asked.header("host"))), (1, Some(NAME)));
}

#[test]
fn is_disturbed_as_often_as_it_was_told_and_only_where() {
    let world = World::start();
    world.server.disturb(Disturbance::answer("/keys/a", Answer::text(503, "later")).times(2));
    for status in ["503", "503", "200"] {
        assert!(world.get("/keys/a").unwrap().starts_with(&format!("HTTP/1.1 {status}")));
    }
    world.server.disturb(Disturbance::change("GET", |answer| Answer { status: 201, ..answer }));
    assert!(world.get("/").unwrap().starts_with("HTTP/1.1 201"));
    world.server.calm();
    assert!(world.get("/").unwrap().starts_with("HTTP/1.1 200"));
}

#[test]
fn takes_its_time_breaks_off_and_hangs_until_it_is_calm() {
    let world = World::start();
    world.server.disturb(Disturbance::delay("/slow", Duration::from_millis(200)));
    let start = Instant::now();
    assert!(world.get("/slow").unwrap().starts_with("HTTP/1.1 200"));
    assert!(start.elapsed() >= Duration::from_millis(200));

    world.server.disturb(Disturbance::cut_off("/cut", 3));
    let cut = world.get("/cut").unwrap_or_default();
    assert!(!cut.contains("asked\":"), "{cut}");

    world.server.disturb(Disturbance::hang("/hang"));
    thread::scope(|scope| {
        let hanging = scope.spawn(|| world.get("/hang"));
        while !world.server.asked().iter().any(|asked| asked.path == "/hang") {
            thread::sleep(Duration::from_millis(5));
        }
        thread::sleep(Duration::from_millis(100));
        assert!(!hanging.is_finished());
        world.server.calm();
        assert!(!hanging.join().unwrap().unwrap_or_default().contains("200 OK"));
    });
}
