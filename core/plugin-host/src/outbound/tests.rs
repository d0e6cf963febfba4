use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use keystead_plugin_api::http::Value;
use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::{
    RootCertStore,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
    server::WebPkiClientVerifier,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::TlsAcceptor;

use super::*;

/// A service that answers every request with the same, and keeps what it was sent.
struct Fake {
    port: u16,
    seen: Arc<Mutex<Vec<String>>>,
    connections: Arc<AtomicUsize>,
}

impl Fake {
    async fn start(answer: &str) -> Self {
        Self::start_with(answer.to_owned().into_bytes(), None).await
    }

    async fn start_with(answer: Vec<u8>, tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let fake = Self { port, seen: Arc::default(), connections: Arc::default() };
        let (seen, connections) = (Arc::clone(&fake.seen), Arc::clone(&fake.connections));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                connections.fetch_add(1, Ordering::SeqCst);
                let (seen, answer, tls) = (Arc::clone(&seen), answer.clone(), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        None => serve(stream, &seen, &answer).await,
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                serve(stream, &seen, &answer).await;
                            }
                        }
                    }
                });
            }
        });
        fake
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    fn last(&self) -> String {
        self.seen.lock().unwrap().last().cloned().unwrap_or_default()
    }
}

async fn serve(
    mut stream: impl AsyncReadExt + AsyncWriteExt + Unpin,
    seen: &Mutex<Vec<String>>,
    answer: &[u8],
) {
    let mut request = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(read @ 1..) = stream.read(&mut buffer).await {
        request.extend_from_slice(&buffer[..read]);
        let text = String::from_utf8_lossy(&request).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        if body.len() < length.map_or(0, |length| length.parse().unwrap()) {
            continue;
        }
        seen.lock().unwrap().push(text);
        request.clear();
        stream.write_all(answer).await.unwrap();
    }
}

const OK: &str = "HTTP/1.1 200 OK\r\nX-Kind: test\r\ncontent-length: 2\r\n\r\nok";

fn grant(url: &str) -> Grant {
    Grant {
        origin: url.parse().unwrap(),
        methods: ["GET", "POST"].map(str::to_owned).into(),
        secrets: ["token".to_owned()].into(),
        addresses: Vec::new(),
        ca: None,
        client: None,
        proxy: None,
    }
}

impl Secrets for BTreeMap<&str, &str> {
    fn read(&self, name: &str) -> Option<Result<Zeroizing<Vec<u8>>, String>> {
        self.get(name).map(|value| Ok(Zeroizing::new(value.as_bytes().to_vec())))
    }
}

async fn fetch(outbound: &Outbound, request: Request) -> Result<Response, Error> {
    let secrets = BTreeMap::from([("token", "s3same&co"), ("other", "not for them")]);
    outbound.fetch(request, &secrets, Instant::now() + Duration::from_secs(10)).await
}

fn store(grants: Vec<Grant>) -> Outbound {
    Outbound::new("kms", grants, &by_the_system())
}

fn get(url: &str) -> Request {
    Request::new("GET", url)
}

#[tokio::test]
async fn a_granted_request_is_answered_with_secrets_where_they_belong() {
    let fake = Fake::start(OK).await;
    let outbound = store(vec![grant(&fake.url())]);
    let request = Request::new("POST", format!("{}/v1/sign?a=b", fake.url()))
        .header("authorization", Value::text("Bearer ").and_secret("token"))
        .form([("grant_type", Value::text("x y")), ("secret", Value::secret("token"))]);
    let response = fetch(&outbound, request).await.unwrap();
    assert_eq!((response.status, response.body.as_slice()), (200, &b"ok"[..]));
    assert_eq!(response.header("x-kind"), Some("test"));
    let seen = fake.last();
    assert!(seen.starts_with("POST /v1/sign?a=b HTTP/1.1\r\n"), "{seen}");
    assert!(seen.contains("authorization: Bearer s3same&co\r\n"), "{seen}");
    assert!(seen.contains(&format!("host: 127.0.0.1:{}\r\n", fake.port)), "{seen}");
    assert!(seen.ends_with("\r\n\r\ngrant_type=x+y&secret=s3same%26co"), "{seen}");
}

#[tokio::test]
async fn connections_are_kept() {
    let fake = Fake::start(OK).await;
    let outbound = store(vec![grant(&fake.url())]);
    for _ in 0..8 {
        fetch(&outbound, get(&fake.url())).await.unwrap();
    }
    assert_eq!(fake.connections.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn the_line_that_would_allow_it_has_what_its_own_grant_has_and_goes_the_way_of_others() {
    let own = Grant {
        addresses: vec!["10.0.0.0/8".parse().unwrap()],
        ca: Some("/ca.pem".into()),
        client: Some(ClientCertificate { certificate: "/c.pem".into(), key: "/k.pem".into() }),
        proxy: Some("http://proxy:3128".parse().unwrap()),
        ..grant("https://kms.example")
    };
    let outbound = store(vec![own]);
    let denied = async |request| fetch(&outbound, request).await.unwrap_err().message;
    let line = "methods: [GET, POST, PUT], secrets: [token], addresses: [10.0.0.0/8], ca: /ca.pem, client_certificate: /c.pem, \
                client_key: /k.pem, proxy: \"http://proxy:3128\"}]}`";
    let message = denied(Request::new("PUT", "https://kms.example")).await;
    assert!(message.ends_with(line), "{message}");
    let line = "methods: [GET], ca: /ca.pem, proxy: \"http://proxy:3128\"}]}`";
    let message = denied(get("https://login.example")).await;
    assert!(message.ends_with(line), "{message}");
    assert!(
        denied(get("http://169.254.169.254")).await.ends_with("methods: [GET]}]}`"),
        "no proxy for plain HTTP"
    );
}

#[tokio::test]
async fn what_is_not_granted_is_denied_with_the_line_that_would_allow_it() {
    let fake = Fake::start(OK).await;
    let outbound = store(vec![grant(&fake.url())]);
    let denied = async |request| {
        let error = fetch(&outbound, request).await.unwrap_err();
        assert_eq!(error.code, Code::Denied, "{error}");
        error.message
    };
    assert_eq!(
        denied(get("https://evil.example/x")).await,
        "GET https://evil.example:443 is not granted to the store `kms`; this would allow it: `grants: {http: [{url: \
         \"https://evil.example:443\", methods: [GET]}]}`"
    );
    let method = denied(Request::new("DELETE", fake.url())).await;
    let whole = "this in place of its grant would allow it: `grants: {http: [{url: \"";
    assert!(
        method.contains(whole) && method.ends_with("methods: [DELETE, GET, POST], secrets: [token]}]}`"),
        "{method}"
    );
    let other_port = denied(get("http://127.0.0.1:1")).await;
    assert!(other_port.contains("http://127.0.0.1:1"), "{other_port}");
    let secret = denied(get(&fake.url()).header("x", Value::secret("other"))).await;
    assert!(secret.starts_with("sending the secret `other` to http://127.0.0.1:"), "{secret}");
    assert!(secret.contains("secrets: [other, token]"), "{secret}");
    assert!(fake.seen.lock().unwrap().is_empty(), "nothing of it was sent");
}

#[tokio::test]
async fn a_redirect_is_an_answer_and_is_not_followed() {
    let target = Fake::start(OK).await;
    let away = format!("HTTP/1.1 302 Found\r\nlocation: {}/x\r\ncontent-length: 0\r\n\r\n", target.url());
    let fake = Fake::start(&away).await;
    let outbound = store(vec![grant(&fake.url())]);
    let response = fetch(&outbound, get(&fake.url())).await.unwrap();
    assert_eq!(response.status, 302);
    let error = fetch(&outbound, get(response.header("location").unwrap())).await.unwrap_err();
    assert_eq!(error.code, Code::Denied);
    assert_eq!(target.connections.load(Ordering::SeqCst), 0);
}

/// Answers each question with the next of these addresses.
fn resolver(answers: &'static [&'static str]) -> (Resolve, Arc<AtomicUsize>) {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let resolve: Resolve = Arc::new(move |_| {
        let answer = answers[count.fetch_add(1, Ordering::SeqCst).min(answers.len() - 1)];
        let addresses = answer.split(' ').map(|address| address.parse::<IpAddr>().unwrap()).collect();
        Box::pin(async move { Ok(addresses) })
    });
    (resolve, asked)
}

#[tokio::test]
async fn a_name_that_leads_inwards_is_denied_unless_its_addresses_are_granted() {
    let fake = Fake::start(OK).await;
    let url = format!("http://kms.example:{}", fake.port);
    let (resolve, _) = resolver(&["127.0.0.1"]);
    let error = fetch(&Outbound::new("kms", vec![grant(&url)], &resolve), get(&url)).await.unwrap_err();
    assert_eq!(error.code, Code::Denied);
    assert!(error.message.contains("its grant needs `addresses: [127.0.0.1]`"), "{error}");
    assert_eq!(fake.connections.load(Ordering::SeqCst), 0);
    let granted = Grant { addresses: vec!["127.0.0.0/8".parse().unwrap()], ..grant(&url) };
    fetch(&Outbound::new("kms", vec![granted], &resolve), get(&url)).await.unwrap();
    assert!(fake.last().contains(&format!("host: kms.example:{}", fake.port)));
}

#[tokio::test]
async fn the_address_that_was_checked_is_the_one_that_is_connected_to() {
    let fake = Fake::start(OK).await;
    let url = format!("http://kms.example:{}", fake.port);
    // First an address that is granted and where nobody listens, then one within the machine, as rebinding does it. The
    // name is asked for once for each connection, and so never leads from one to the other.
    let (resolve, asked) = resolver(&["127.0.0.9", "127.0.0.1"]);
    let granted = Grant { addresses: vec!["127.0.0.9".parse().unwrap()], ..grant(&url) };
    let outbound = Outbound::new("kms", vec![granted], &resolve);
    assert_eq!(fetch(&outbound, get(&url)).await.unwrap_err().code, Code::Unavailable);
    assert_eq!(asked.load(Ordering::SeqCst), 1);
    assert_eq!(fetch(&outbound, get(&url)).await.unwrap_err().code, Code::Denied);
    assert_eq!(fake.connections.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn of_several_addresses_only_granted_ones_are_tried() {
    let fake = Fake::start(OK).await;
    let url = format!("http://kms.example:{}", fake.port);
    let (resolve, _) = resolver(&["10.0.0.1 127.0.0.9 127.0.0.1"]);
    let addresses = vec!["127.0.0.9".parse().unwrap(), "127.0.0.1".parse().unwrap()];
    let outbound = Outbound::new("kms", vec![Grant { addresses, ..grant(&url) }], &resolve);
    fetch(&outbound, get(&url)).await.unwrap();
}

#[tokio::test]
async fn answers_that_are_too_long_broken_or_late_are_errors() {
    let long = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", RESPONSE_MAX + 1);
    let long = [long.into_bytes(), vec![b'x'; RESPONSE_MAX + 1]].concat();
    let fake = Fake::start_with(long, None).await;
    let error = fetch(&store(vec![grant(&fake.url())]), get(&fake.url())).await.unwrap_err();
    assert_eq!(error.code, Code::Unavailable);
    assert!(error.message.ends_with("its answer has more than 2 MiB"), "{error}");

    let fake = Fake::start("nonsense\r\n\r\n").await;
    let error = fetch(&store(vec![grant(&fake.url())]), get(&fake.url())).await.unwrap_err();
    assert_eq!(error.code, Code::Unavailable, "{error}");

    let fake = Fake::start("").await;
    let outbound = store(vec![grant(&fake.url())]);
    let soon = Instant::now() + Duration::from_millis(50);
    let error = outbound.fetch(get(&fake.url()), &BTreeMap::new(), soon).await.unwrap_err();
    assert_eq!(error.code, Code::Deadline);

    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let url = format!("http://{gone}");
    let error = fetch(&store(vec![grant(&url)]), get(&url)).await.unwrap_err();
    assert_eq!(error.code, Code::Unavailable);
    assert!(error.message.contains("Connection refused"), "{error}");
}

#[tokio::test]
async fn requests_that_cannot_be_sent_are_refused() {
    let fake = Fake::start(OK).await;
    let outbound = store(vec![grant(&fake.url())]);
    let url = fake.url();
    for (request, what) in [
        (get("no url"), "its URL is none"),
        (get("ftp://x"), "expected a URL that begins with"),
        (get("http://user:pass@x"), "expected no user"),
        (get(&url).header("host", "evil.example"), "the header `host` is the host's own"),
        (
            get(&url).header("transfer-encoding", "chunked"),
            "the header `transfer-encoding` is the host's own",
        ),
        (get(&url).header("a b", "x"), "`a b` is not the name of a header"),
        (get(&url).header("a", "x\r\nhost: evil"), "the value of the header `a` can't be sent"),
        (get(&url).body("x/y", vec![0; REQUEST_MAX + 1]), "its body has more than 1 MiB"),
    ] {
        let error = fetch(&outbound, request).await.unwrap_err();
        assert_eq!(error.code, Code::InvalidInput, "{what}");
        assert!(error.message.contains(what), "{error}");
    }
    assert!(fake.seen.lock().unwrap().is_empty());
}

/// A directory with a self-signed certificate of `kms.example` and its key, and a server that shows it.
async fn with_tls() -> (tempfile::TempDir, Fake) {
    with_tls_for(false).await
}

/// Likewise; where `known_only`, for clients that show the same certificate.
async fn with_tls_for(known_only: bool) -> (tempfile::TempDir, Fake) {
    let CertifiedKey { cert, signing_key } = generate_simple_self_signed(["kms.example".to_owned()]).unwrap();
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("ca.pem"), cert.pem()).unwrap();
    std::fs::write(directory.path().join("key.pem"), signing_key.serialize_pem()).unwrap();
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(signing_key.serialize_der()));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(cert.der().clone()).unwrap();
    let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(match known_only {
            true => clients.build().unwrap(),
            false => WebPkiClientVerifier::no_client_auth(),
        })
        .with_single_cert(vec![cert.der().clone()], key)
        .unwrap();
    let fake = Fake::start_with(OK.into(), Some(TlsAcceptor::from(Arc::new(config)))).await;
    (directory, fake)
}

#[tokio::test]
async fn tls_is_verified_by_the_grants_authority_which_is_read_anew() {
    let (directory, fake) = with_tls().await;
    let url = format!("https://kms.example:{}", fake.port);
    let (resolve, _) = resolver(&["127.0.0.1"]);
    let addresses = vec!["127.0.0.1".parse().unwrap()];
    let ca = directory.path().join("later.pem");
    let granted = Grant { addresses: addresses.clone(), ca: Some(ca.clone()), ..grant(&url) };
    let outbound = Outbound::new("kms", vec![granted], &resolve);
    let error = fetch(&outbound, get(&url)).await.unwrap_err();
    assert_eq!(error.code, Code::InvalidInput);
    assert!(error.message.contains("later.pem can't be used"), "{error}");
    std::fs::rename(directory.path().join("ca.pem"), ca).unwrap();
    fetch(&outbound, get(&url)).await.unwrap();

    let unknown = Outbound::new("kms", vec![Grant { addresses, ..grant(&url) }], &resolve);
    let error = fetch(&unknown, get(&url)).await.unwrap_err();
    assert!(error.message.contains("certificate"), "{error}");
}

#[tokio::test]
async fn a_client_certificate_is_shown_where_the_grant_has_one() {
    let (directory, fake) = with_tls_for(true).await;
    let url = format!("https://kms.example:{}", fake.port);
    let (resolve, _) = resolver(&["127.0.0.1"]);
    let (ca, key) = (directory.path().join("ca.pem"), directory.path().join("key.pem"));
    let stranger =
        Grant { addresses: vec!["127.0.0.1".parse().unwrap()], ca: Some(ca.clone()), ..grant(&url) };
    let known = Grant { client: Some(ClientCertificate { certificate: ca, key }), ..stranger.clone() };
    let answer = async |grant| fetch(&Outbound::new("kms", vec![grant], &resolve), get(&url)).await;
    assert_eq!(answer(known).await.unwrap().status, 200);
    assert_eq!(answer(stranger).await.unwrap_err().code, Code::Unavailable);
}

/// A proxy that makes one tunnel after the other, to wherever it is told; answers what it was told.
async fn proxy(to: u16) -> (u16, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let told = Arc::new(Mutex::new(Vec::new()));
    let keep = Arc::clone(&told);
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let mut buffer = [0; 1024];
            let read = client.read(&mut buffer).await.unwrap();
            keep.lock().unwrap().push(String::from_utf8_lossy(&buffer[..read]).into_owned());
            client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await.unwrap();
            let mut service = TcpStream::connect(("127.0.0.1", to)).await.unwrap();
            let _ = tokio::io::copy_bidirectional(&mut client, &mut service).await;
        }
    });
    (port, told)
}

#[tokio::test]
async fn a_proxy_is_gone_through_with_tls_to_the_service_inside() {
    let (directory, fake) = with_tls().await;
    let (proxy, told) = proxy(fake.port).await;
    let url = "https://kms.example:443";
    let granted = Grant {
        ca: Some(directory.path().join("ca.pem")),
        proxy: Some(format!("http://127.0.0.1:{proxy}").parse().unwrap()),
        ..grant(url)
    };
    fetch(&store(vec![granted]), get(url)).await.unwrap();
    let told = told.lock().unwrap().join("");
    assert!(told.starts_with("CONNECT kms.example:443 HTTP/1.1\r\n"), "{told}");
}
