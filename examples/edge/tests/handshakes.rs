//! The program, between a key server and a browser that are both in this process.

#![expect(clippy::unwrap_used, reason = "a test that can't go on should fail there")]

#[path = "../../../core/client/tests/key_server/mod.rs"]
mod key_server;

use std::error::Error;
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};

use key_server::{KeyServer, Keys, Pki, SERVER_NAME, generate, provider};
use openssl::ssl::{SslConnector, SslMethod, SslVersion};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_RSA_SHA256};
use rustix::process::{Pid, Signal, kill_process};
use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ClientConnection, StreamOwned, SupportedProtocolVersion};

const BOTH: [&SupportedProtocolVersion; 2] = [&TLS12, &TLS13];

#[test]
fn serves_both_versions_with_the_key_that_the_browser_accepts() {
    let edge = Edge::start();
    for version in BOTH {
        for (accepts, key) in [("ECDSA", "ECDSA"), ("RSA", "RSA"), ("", "ECDSA")] {
            let page = edge.visit("www.test", &edge.browser(version, accepts)).unwrap();
            assert!(page.starts_with("HTTP/1.1 200 OK"), "{page}");
            assert!(page.contains("<h1>www.test</h1>"), "{page}");
            assert!(page.contains(&format!("<dd>{:?}</dd>", version.version)), "{page}");
            assert!(page.contains(&format!("<dd>{key}</dd>")), "{page}");
            assert!(page.contains("<dt>Cipher suite</dt><dd>TLS"), "{page}");
        }
    }
}

#[test]
fn openssl_accepts_each_kind_of_signature() {
    let edge = Edge::start();
    for (version, signature) in [
        (SslVersion::TLS1_2, "ECDSA+SHA256"),
        (SslVersion::TLS1_2, "RSA+SHA256"),
        (SslVersion::TLS1_2, "rsa_pss_rsae_sha384"),
        (SslVersion::TLS1_3, "ecdsa_secp256r1_sha256"),
        (SslVersion::TLS1_3, "rsa_pss_rsae_sha512"),
    ] {
        let page = edge.visit_by_openssl(version, signature).unwrap();
        assert!(page.contains("<h1>www.test</h1>"), "{signature}: {page}");
    }
    assert_eq!(edge.signatures(), 5);
}

#[test]
fn chooses_the_site_by_name() {
    let edge = Edge::start();
    for version in BOTH {
        let page = edge.visit("other.test", &edge.browser(version, "")).unwrap();
        assert!(page.contains("<h1>other.test</h1>") && page.contains("<dd>RSA</dd>"), "{page}");
    }
}

#[test]
fn refuses_names_and_signatures_it_has_not_and_goes_on() {
    let edge = Edge::start();
    for version in BOTH {
        assert!(edge.visit("nobody.test", &edge.browser(version, "")).is_err());
        assert!(edge.visit("other.test", &edge.browser(version, "ECDSA")).is_err());
        assert!(edge.visit("www.test", &edge.browser(version, "")).is_ok());
    }
}

#[test]
fn resumed_sessions_need_no_signature() {
    let edge = Edge::start();
    for version in BOTH {
        let browser = edge.browser(version, "");
        edge.visit("www.test", &browser).unwrap();
        let signatures = edge.signatures();
        let page = edge.visit("www.test", &browser).unwrap();
        assert!(page.contains("the session was resumed"), "{page}");
        assert_eq!(edge.signatures(), signatures);
    }
}

#[test]
fn tells_the_key_server_on_whose_behalf_it_asks() {
    let edge = Edge::start();
    edge.visit("www.test", &edge.browser(&TLS13, "")).unwrap();
    let asked = edge.asked.lock().unwrap();
    assert_eq!(asked.as_slice(), ["www.test 127.0.0.1"]);
}

#[test]
fn a_signal_stops_it_cleanly() {
    let mut edge = Edge::start();
    edge.visit("www.test", &edge.browser(&TLS13, "")).unwrap();
    kill_process(Pid::from_child(&edge.program), Signal::TERM).unwrap();
    assert_eq!(edge.program.wait().unwrap().code(), Some(0));
}

#[test]
fn says_which_file_it_cannot_use() {
    let pki = Pki::new();
    let missing = pki.path("missing.pem");
    let output = command(&pki, "127.0.0.1:1", &[missing]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("missing.pem`"), "{}", stderr(&output));
}

/// The program, with two sites: `www.test` has an ECDSA and an RSA certificate, `other.test` an RSA certificate.
struct Edge {
    pki: Pki,
    program: Child,
    address: String,
    asked: Arc<Mutex<Vec<String>>>,
    _server: KeyServer,
}

impl Edge {
    fn start() -> Self {
        let pki = Pki::new();
        let mut keys = Keys::default();
        let (ecdsa, rsa) = (generate(&PKCS_ECDSA_P256_SHA256), generate(&PKCS_RSA_SHA256));
        let sites = [("www.test", &ecdsa), ("www.test", &rsa), ("other.test", &rsa)];
        let sites: Vec<_> = sites.into_iter().map(|(name, key)| site(&pki, &mut keys, name, key)).collect();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let record = Arc::clone(&asked);
        let server = KeyServer::start(&pki, move |exchange| {
            let name = String::from_utf8(exchange.sni.clone().unwrap()).unwrap();
            record.lock().unwrap().push(format!("{name} {}", exchange.client_ip.unwrap()));
            keys.answer(&exchange);
        });
        let mut program = command(&pki, server.address(), &sites).stderr(Stdio::null()).spawn().unwrap();
        let mut ready = String::new();
        BufReader::new(program.stdout.take().unwrap()).read_line(&mut ready).unwrap();
        let address = ready.trim_end().strip_prefix("listening on ").unwrap().to_owned();
        Self { pki, program, address, asked, _server: server }
    }

    /// A browser that speaks this version, and accepts signatures of schemes whose names start so.
    fn browser(&self, version: &'static SupportedProtocolVersion, accepts: &str) -> Arc<ClientConfig> {
        let provider = provider();
        let algorithms = accepting(provider.signature_verification_algorithms, accepts);
        let provider =
            CryptoProvider { signature_verification_algorithms: algorithms, ..(*provider).clone() };
        let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(self.pki.roots())
            .with_no_client_auth();
        config.resumption = Resumption::in_memory_sessions(8);
        Arc::new(config)
    }

    /// Asks for the page; returns the whole answer.
    fn visit(&self, name: &'static str, browser: &Arc<ClientConfig>) -> io::Result<String> {
        let connection = ClientConnection::new(Arc::clone(browser), name.try_into().unwrap()).unwrap();
        let mut stream = StreamOwned::new(connection, TcpStream::connect(&self.address)?);
        write!(stream, "GET / HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }

    /// Asks for the page of `www.test`, and accepts no other version, nor signatures of other schemes.
    fn visit_by_openssl(&self, version: SslVersion, signature: &str) -> Result<String, Box<dyn Error>> {
        let mut connector = SslConnector::builder(SslMethod::tls_client())?;
        connector.set_ca_file(self.pki.path("ca.pem"))?;
        connector.set_min_proto_version(Some(version))?;
        connector.set_max_proto_version(Some(version))?;
        connector.set_sigalgs_list(signature)?;
        let mut stream = connector.build().connect("www.test", TcpStream::connect(&self.address)?)?;
        write!(stream, "GET / HTTP/1.1\r\nHost: www.test\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }

    fn signatures(&self) -> usize {
        self.asked.lock().unwrap().len()
    }
}

impl Drop for Edge {
    fn drop(&mut self) {
        let _ = self.program.kill(); // it may have ended already
        let _ = self.program.wait();
    }
}

/// Puts the key on the key server, and its certificate into a file.
fn site(pki: &Pki, keys: &mut Keys, name: &str, key: &KeyPair) -> PathBuf {
    let ski = keys.add(key);
    let path = pki.path(&format!("{name}-{ski}.pem"));
    fs::write(&path, pki.issue(name, key)).unwrap();
    path
}

fn command(pki: &Pki, server: &str, sites: &[PathBuf]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_keystead-edge"));
    command.args(["--listen", "127.0.0.1:0", "--server", server, "--server-name", SERVER_NAME]);
    for (flag, file) in [("--ca", "ca.pem"), ("--cert", "client.pem"), ("--key", "client-key.pem")] {
        command.arg(flag).arg(pki.path(file));
    }
    sites.iter().for_each(|site| {
        command.arg("--site").arg(site);
    });
    command.stdout(Stdio::piped());
    command
}

/// Those algorithms whose schemes' names start so; certificates are signed with ECDSA all the same.
fn accepting(algorithms: WebPkiSupportedAlgorithms, start: &str) -> WebPkiSupportedAlgorithms {
    let named = |name: &str| name.starts_with(start);
    let mapping = algorithms.mapping.iter().filter(|(scheme, _)| named(&format!("{scheme:?}"))).copied();
    WebPkiSupportedAlgorithms { mapping: Box::leak(mapping.collect()), ..algorithms }
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}
