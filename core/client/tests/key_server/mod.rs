//! A key server in the test's own process, and the certificates around it.
//!
//! What it does with a request is up to the test: a handler gets each [`Exchange`], and may answer it now, later, twice
//! or never. Signatures are OpenSSL's, so that nothing here shares code with what is tested.

#![allow(dead_code, unreachable_pub, missing_docs, reason = "several test programs use a part of it each")]
#![allow(clippy::unwrap_used, reason = "a test that can't go on should fail there")]

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc as blocking};
use std::{fs, thread};

use keystead_client::{Builder, Client, client_config};
use keystead_protocol::{ErrorCode, Frame, Opcode, Request, Response, Ski};
use openssl::hash::MessageDigest;
use openssl::md::{Md, MdRef};
use openssl::pkey::{Id, PKey, Private};
use openssl::pkey_ctx::PkeyCtx;
use openssl::rsa::Padding;
use openssl::sign::{RsaPssSaltlen, Signer};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    PKCS_ED25519, SignatureAlgorithm,
};
use rustls::RootCertStore;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio_rustls::TlsAcceptor;

/// The name in the key server's certificate.
pub const SERVER_NAME: &str = "keys.test";

/// A throw-away certificate authority, and PEM files of a client's identity.
pub struct Pki {
    folder: TempDir,
    issuer: Issuer<'static, KeyPair>,
    ca: CertificateDer<'static>,
}

impl Pki {
    pub fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, "throw-away authority"); // not the name of what it signs
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap();
        let folder = TempDir::new().unwrap();
        fs::write(folder.path().join("ca.pem"), certificate.pem()).unwrap();
        let pki = Self { folder, issuer: Issuer::new(params, key), ca: certificate.der().clone() };
        let key = KeyPair::generate().unwrap();
        fs::write(pki.path("client.pem"), pki.issue("edge.test", &key)).unwrap();
        fs::write(pki.path("client-key.pem"), key.serialize_pem()).unwrap();
        pki
    }

    /// One of `ca.pem`, `client.pem`, `client-key.pem`, or what a test puts there.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A certificate for `name`, as PEM.
    pub fn issue(&self, name: &str, key: &KeyPair) -> String {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.signed_by(key, &self.issuer).unwrap().pem()
    }

    /// Trust in this authority and no other.
    pub fn roots(&self) -> Arc<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots.add(self.ca.clone()).unwrap();
        Arc::new(roots)
    }

    /// A client of the key servers at `addresses`, not yet built.
    pub fn client(&self, addresses: &[&str]) -> Builder {
        let [ca, chain, key] = ["ca.pem", "client.pem", "client-key.pem"].map(|name| self.path(name));
        let tls = client_config(&ca, &chain, &key).unwrap();
        Client::builder(addresses.iter().copied(), SERVER_NAME.try_into().unwrap(), Arc::new(tls))
    }

    fn acceptor(&self) -> TlsAcceptor {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateDer::from_pem_slice(self.issue(SERVER_NAME, &key).as_bytes()).unwrap();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let verifier = WebPkiClientVerifier::builder_with_provider(self.roots(), provider()).build().unwrap();
        let config = rustls::ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_single_cert(vec![certificate], key)
            .unwrap();
        Arc::new(config).into()
    }
}

pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// A key server on a thread of its own; it and its connections end when this is dropped.
pub struct KeyServer {
    address: String,
    connections: Arc<AtomicUsize>,
    endings: Mutex<blocking::Receiver<std::io::Result<()>>>,
    _alive: oneshot::Sender<()>,
}

type Handler = Arc<dyn Fn(Exchange) + Send + Sync>;

impl KeyServer {
    pub fn start(pki: &Pki, handler: impl Fn(Exchange) + Send + Sync + 'static) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let connections = Arc::new(AtomicUsize::new(0));
        let (alive, dropped) = oneshot::channel::<()>();
        let (ended, endings) = blocking::channel();
        let (acceptor, counter) = (pki.acceptor(), Arc::clone(&connections));
        let handler: Handler = Arc::new(handler);
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                tokio::select! {
                    () = accept(listener, &acceptor, &handler, &counter, &ended) => {}
                    _ = dropped => {}
                }
            });
        });
        Self { address, connections, endings: Mutex::new(endings), _alive: alive }
    }

    pub fn address(&self) -> &str {
        &self.address
    }

    /// How many connections it has accepted.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// Waits until a connection ends; an error if the client didn't end it in the orderly way.
    pub fn next_ending(&self) -> std::io::Result<()> {
        self.endings.lock().unwrap().recv().unwrap()
    }
}

async fn accept(
    listener: std::net::TcpListener,
    acceptor: &TlsAcceptor,
    handler: &Handler,
    connections: &AtomicUsize,
    ended: &blocking::Sender<std::io::Result<()>>,
) {
    let listener = TcpListener::from_std(listener).unwrap();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let connection = connections.fetch_add(1, Ordering::SeqCst);
        let (acceptor, handler, ended) = (acceptor.clone(), Arc::clone(handler), ended.clone());
        tokio::spawn(async move {
            let outcome = serve(stream, acceptor, handler, connection).await;
            let _ = ended.send(outcome);
        });
    }
}

async fn serve(
    stream: TcpStream,
    acceptor: TlsAcceptor,
    handler: Handler,
    connection: usize,
) -> std::io::Result<()> {
    let mut stream = acceptor.accept(stream).await?;
    let (out, mut outgoing) = mpsc::unbounded_channel::<Option<Vec<u8>>>();
    let mut buffer = Vec::new();
    loop {
        tokio::select! {
            read = stream.read_buf(&mut buffer) => if read? == 0 { return Ok(()) },
            frame = outgoing.recv() => match frame.unwrap() {
                Some(frame) => { stream.write_all(&frame).await?; stream.flush().await? }
                None => return Ok(()),
            },
        }
        while let Some((frame, rest)) = Frame::split(&buffer) {
            handler(Exchange::new(&frame, connection, out.clone()));
            buffer = rest.to_vec();
        }
    }
}

/// A request, and the way back.
#[derive(Debug)]
pub struct Exchange {
    pub id: u32,
    pub opcode: Opcode,
    pub payload: Vec<u8>,
    pub ski: Option<Ski>,
    pub sni: Option<Vec<u8>>,
    pub client_ip: Option<IpAddr>,
    /// Which connection it came on, from 0.
    pub connection: usize,
    out: mpsc::UnboundedSender<Option<Vec<u8>>>,
}

impl Exchange {
    fn new(frame: &Frame<'_>, connection: usize, out: mpsc::UnboundedSender<Option<Vec<u8>>>) -> Self {
        let request = Request::decode(frame.body).unwrap();
        Self {
            id: frame.header.id,
            opcode: request.opcode,
            payload: request.payload.to_vec(),
            ski: request.ski,
            sni: request.sni.map(<[u8]>::to_vec),
            client_ip: request.client_ip,
            connection,
            out,
        }
    }

    /// Answers with the id of the request.
    pub fn answer(&self, response: &Response<'_>) {
        self.answer_as(self.id, response);
    }

    /// Answers with any id.
    pub fn answer_as(&self, id: u32, response: &Response<'_>) {
        let mut frame = Vec::new();
        response.encode(id, &mut frame).unwrap();
        self.send(frame);
    }

    /// Sends any bytes.
    pub fn send(&self, bytes: Vec<u8>) {
        let _ = self.out.send(Some(bytes)); // the connection may be gone
    }

    /// Answers a ping.
    pub fn pong(&self) {
        self.answer(&Response::Pong(&self.payload));
    }

    /// Breaks the connection.
    pub fn hang_up(&self) {
        let _ = self.out.send(None);
    }
}

/// A new key, in a form that OpenSSL can read: it knows Ed25519 keys only without their public half (RFC 5208).
pub fn generate(algorithm: &'static SignatureAlgorithm) -> KeyPair {
    if algorithm != &PKCS_ED25519 {
        return KeyPair::generate_for(algorithm).unwrap();
    }
    let key = PKey::generate_ed25519().unwrap().private_key_to_pkcs8().unwrap();
    KeyPair::from_pkcs8_der_and_sign_algo(&key.into(), algorithm).unwrap()
}

/// Private keys by the SKIs of their public halves.
#[derive(Default)]
pub struct Keys(HashMap<Ski, PKey<Private>>);

impl Keys {
    pub fn add(&mut self, key: &KeyPair) -> Ski {
        let key = PKey::private_key_from_der(key.serialized_der()).unwrap();
        let ski = Ski::from_spki(&key.public_key_to_der().unwrap()).unwrap();
        self.0.insert(ski, key);
        ski
    }

    /// Answers a request as a key server should.
    pub fn answer(&self, exchange: &Exchange) {
        let key = exchange.ski.and_then(|ski| self.0.get(&ski));
        match key.map(|key| sign(key, exchange.opcode, &exchange.payload)) {
            None => exchange.answer(&Response::Failure(ErrorCode::KEY_NOT_FOUND)),
            Some(None) => exchange.answer(&Response::Failure(ErrorCode::CRYPTOGRAPHY)),
            Some(Some(signature)) => exchange.answer(&Response::Success(&signature)),
        }
    }
}

fn sign(key: &PKey<Private>, opcode: Opcode, payload: &[u8]) -> Option<Vec<u8>> {
    if opcode == Opcode::ED25519_SIGN {
        return Signer::new_without_digest(key).unwrap().sign_oneshot_to_vec(payload).ok();
    }
    let (id, hash, pss) = match opcode.0 {
        0x05 => (Id::RSA, Md::sha256(), false),
        0x06 => (Id::RSA, Md::sha384(), false),
        0x07 => (Id::RSA, Md::sha512(), false),
        0x35 => (Id::RSA, Md::sha256(), true),
        0x36 => (Id::RSA, Md::sha384(), true),
        0x37 => (Id::RSA, Md::sha512(), true),
        0x15 => (Id::EC, Md::sha256(), false),
        0x16 => (Id::EC, Md::sha384(), false),
        0x17 => (Id::EC, Md::sha512(), false),
        _ => return None,
    };
    (key.id() == id).then(|| sign_digest(key, hash, pss, payload))
}

fn sign_digest(key: &PKey<Private>, hash: &MdRef, pss: bool, digest: &[u8]) -> Vec<u8> {
    let mut context = PkeyCtx::new(key).unwrap();
    context.sign_init().unwrap();
    if pss {
        context.set_rsa_padding(Padding::PKCS1_PSS).unwrap();
        context.set_rsa_pss_saltlen(RsaPssSaltlen::DIGEST_LENGTH).unwrap();
    }
    context.set_signature_md(hash).unwrap();
    let mut signature = Vec::new();
    context.sign_to_vec(digest, &mut signature).unwrap();
    signature
}

/// The digest that a TLS signature scheme of this many bits uses.
pub fn message_digest(bits: u32) -> MessageDigest {
    match bits {
        256 => MessageDigest::sha256(),
        384 => MessageDigest::sha384(),
        _ => MessageDigest::sha512(),
    }
}
