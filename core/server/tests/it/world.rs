//! What every test needs: a throw-away PKI, a running `keystead`, and a client that speaks raw bytes.

use std::{
    cell::Cell,
    collections::HashMap,
    fs::{self, File},
    io::{self, BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Condvar, LazyLock, Mutex, mpsc},
    thread,
    time::{Duration, Instant, SystemTime},
};

use keystead_plugin_host::testing;
use keystead_protocol::{ErrorCode, Frame, HEADER_LEN, Header, Opcode, Request, Response, Ski};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyIdMethod, KeyPair, RevokedCertParams, SerialNumber, date_time_ymd,
};
use rustix::{
    fs::{CWD, FileType, Mode, mknodat},
    process::{Pid, Signal, kill_process},
};
use rustls::{
    ClientConfig, ClientConnection, HandshakeKind, RootCertStore, StreamOwned,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    version::{TLS12, TLS13},
};
use tempfile::TempDir;

/// How long anything may take that must happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Where the recorded exchanges and their keys are.
const RECORDED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../protocol/tests/fixtures");

/// A recorded fixture.
pub(crate) fn recorded(name: &str) -> serde_json::Value {
    let text = fs::read(Path::new(RECORDED).join(name)).unwrap();
    serde_json::from_slice(&text).unwrap()
}

/// Bytes of a hexadecimal text.
pub(crate) fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

/// The plugin libraries of all tests, built once.
static PLUGINS: LazyLock<testing::PluginDir> = LazyLock::new(|| {
    testing::PluginDir::with(&["keystead-plugin-file", "keystead-plugin-pkcs11", "keystead-plugin-hostile"])
});

/// The directory with the plugins.
pub(crate) fn plugins() -> &'static Path {
    PLUGINS.path()
}

/// A directory with certificates for the server and for a client, and the recorded keys as DER files in `keys`.
pub(crate) struct Files {
    directory: TempDir,
    ca: Issuer<'static, KeyPair>,
    /// How many configurations were written: each has an admin socket of its own.
    configurations: Cell<u32>,
}

/// Serial numbers of the certificates.
pub(crate) const SERVER: u64 = 1;
pub(crate) const CLIENT: u64 = 2;

impl Files {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (ca, root) = authority("first");
        let files = Self { directory, ca, configurations: Cell::new(0) };
        files.write("ca.pem", root.as_bytes());
        files.issue("server", SERVER, ExtendedKeyUsagePurpose::ServerAuth);
        files.issue("client", CLIENT, ExtendedKeyUsagePurpose::ClientAuth);
        fs::create_dir(files.path("keys")).unwrap();
        for (name, key) in recorded("keys.json")["keys"].as_object().unwrap() {
            files.write(&format!("keys/{name}.key"), &unhex(key.as_str().unwrap()));
        }
        files
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Writes a file that only its owner can read.
    pub(crate) fn write(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        path
    }

    /// Has the CA issue a certificate for localhost; it and its key become files of that name.
    pub(crate) fn issue(&self, name: &str, serial: u64, usage: ExtendedKeyUsagePurpose) {
        self.issue_by(&self.ca, name, leaf(serial, usage));
    }

    /// Has the CA issue a client's certificate that expires after some time.
    pub(crate) fn issue_until(&self, name: &str, serial: u64, expires: SystemTime) {
        let mut leaf = leaf(serial, ExtendedKeyUsagePurpose::ClientAuth);
        leaf.not_after = expires.into();
        self.issue_by(&self.ca, name, leaf);
    }

    /// Has another CA issue a certificate.
    pub(crate) fn issue_by(&self, ca: &Issuer<'_, KeyPair>, name: &str, leaf: CertificateParams) {
        let key = KeyPair::generate().unwrap();
        self.write(&format!("{name}.pem"), leaf.signed_by(&key, ca).unwrap().pem().as_bytes());
        self.write(&format!("{name}-key.pem"), key.serialize_pem().as_bytes());
    }

    /// What a file holds.
    pub(crate) fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    /// Has the CA revoke a serial number, in a list that is current until a year begins.
    pub(crate) fn revoke(&self, serial: u64, until: i32) -> PathBuf {
        self.revoke_until(serial, date_time_ymd(until, 1, 1).into())
    }

    /// Has the CA revoke a serial number, in a list that is current until some time.
    pub(crate) fn revoke_until(&self, serial: u64, until: SystemTime) -> PathBuf {
        let revoked = RevokedCertParams {
            serial_number: SerialNumber::from(serial),
            revocation_time: date_time_ymd(2020, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2020, 1, 1),
            next_update: until.into(),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: vec![revoked],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        self.write("revoked.pem", list.signed_by(&self.ca).unwrap().pem().unwrap().as_bytes())
    }

    /// Writes a configuration: the test's own lines, and what every test's server has.
    pub(crate) fn config(&self, lines: &str) -> PathBuf {
        self.configurations.update(|written| written + 1);
        self.change_config(lines)
    }

    /// Writes the configuration of a server that runs anew.
    pub(crate) fn change_config(&self, lines: &str) -> PathBuf {
        let [cert, key, ca] = ["server.pem", "server-key.pem", "ca.pem"].map(|name| self.path(name));
        let text = format!(
            "listen: 127.0.0.1:0\nmetrics_listen: 127.0.0.1:0\nadmin_socket: {}\nauth_cert: {}\nauth_key: {}\n\
             client_ca: {}\nplugins: {{path: [{}]}}\n{lines}",
            self.path(&format!("admin-{}.sock", self.configurations.get())).display(),
            cert.display(),
            key.display(),
            ca.display(),
            plugins().display()
        );
        self.write("keystead.yaml", text.as_bytes())
    }

    /// The client's TLS, for the versions given.
    pub(crate) fn client_tls(
        &self,
        versions: &[&'static rustls::SupportedProtocolVersion],
    ) -> Arc<ClientConfig> {
        self.client_tls_as("client", versions)
    }

    /// The TLS of the client whose certificate was issued under a name.
    pub(crate) fn client_tls_as(
        &self,
        name: &str,
        versions: &[&'static rustls::SupportedProtocolVersion],
    ) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.path("ca.pem")).unwrap()).unwrap();
        let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(roots)
            .with_client_auth_cert(
                vec![CertificateDer::from_pem_file(self.path(&format!("{name}.pem"))).unwrap()],
                PrivateKeyDer::from_pem_file(self.path(&format!("{name}-key.pem"))).unwrap(),
            )
            .unwrap();
        Arc::new(config)
    }
}

/// A certificate authority, and its own certificate in PEM.
pub(crate) fn authority(name: &str) -> (Issuer<'static, KeyPair>, String) {
    let mut ca = CertificateParams::new([]).unwrap();
    ca.distinguished_name.push(DnType::CommonName, name);
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let root = ca.self_signed(&key).unwrap().pem();
    (Issuer::new(ca, key), root)
}

/// What a certificate for localhost says.
pub(crate) fn leaf(serial: u64, usage: ExtendedKeyUsagePurpose) -> CertificateParams {
    let mut leaf = CertificateParams::new(["localhost".to_owned()]).unwrap();
    leaf.serial_number = Some(SerialNumber::from(serial));
    leaf.extended_key_usages = vec![usage];
    leaf
}

/// A `keystead` that runs; killed when dropped.
pub(crate) struct Server {
    child: Child,
    log: Arc<Log>,
    pub(crate) address: SocketAddr,
    pub(crate) metrics: SocketAddr,
    /// Its admin socket.
    pub(crate) admin: PathBuf,
}

/// What the server has logged, and a way to wait for more.
#[derive(Default)]
struct Log {
    lines: Mutex<(Vec<String>, bool)>,
    more: Condvar,
}

impl Server {
    /// Starts a server with the recorded keys in a file store, and further lines of configuration.
    pub(crate) fn with_keys(files: &Files, lines: &str) -> Self {
        let stores = format!("private_key_stores: [{{dir: {}}}]\n{lines}", files.path("keys").display());
        Self::start(files, &stores)
    }

    /// Starts a server, and waits until it is ready.
    pub(crate) fn start(files: &Files, lines: &str) -> Self {
        let server = Self::start_unready(files, lines);
        server.wait_until_ready();
        server
    }

    /// Starts a server, and waits until it listens.
    pub(crate) fn start_unready(files: &Files, lines: &str) -> Self {
        Self::run(&files.config(lines))
    }

    /// Starts a server with a configuration that is written already, and waits until it listens.
    pub(crate) fn run(config: &Path) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_keystead"));
        command.arg("run").arg("-c").arg(config);
        Self::spawn(command)
    }

    /// Starts a command that serves, and waits until it listens.
    pub(crate) fn spawn(command: Command) -> Self {
        Self::spawn_with(command, Stdio::null())
    }

    /// As [`Self::spawn`], with something as its standard input.
    pub(crate) fn spawn_with(mut command: Command, input: impl Into<Stdio>) -> Self {
        let mut child = command.stdin(input).stderr(Stdio::piped()).spawn().unwrap();
        let log = Arc::new(Log::default());
        let (errors, shared) = (child.stderr.take().unwrap(), Arc::clone(&log));
        thread::spawn(move || shared.collect(errors));
        let metrics = address(&log.wait_for("metrics and health on "), "metrics and health on ");
        let address = address(&log.wait_for("listening on "), "listening on ");
        let lines = log.lines.lock().unwrap().0.join("\n"); // whose socket is said before
        let admin = lines.lines().find_map(|line| line.split_once("administration on "));
        let admin = admin.map_or_else(PathBuf::new, |(_, path)| path.into());
        Self { child, log, address, metrics, admin }
    }

    /// Waits until the server can do its work, and every store has been tried.
    pub(crate) fn wait_until_ready(&self) {
        let end = Instant::now() + PATIENCE;
        loop {
            let (status, stores) = self.get("/readyz");
            if status == 200 && !stores.contains("opening") {
                return;
            }
            assert!(Instant::now() < end, "never ready:\n{}", self.log());
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits for a line of the log that contains a text, and answers it.
    pub(crate) fn wait_for(&self, text: &str) -> String {
        self.log.wait_for(text)
    }

    /// Waits until a text stands in the log so many times.
    pub(crate) fn wait_for_times(&self, text: &str, times: usize) {
        let end = Instant::now() + PATIENCE;
        while self.log().matches(text).count() < times {
            assert!(Instant::now() < end, "`{text}` is not {times} times in\n{}", self.log());
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// The log so far.
    pub(crate) fn log(&self) -> String {
        self.log.lines.lock().unwrap().0.join("\n")
    }

    /// Status and body of a page of the metrics port.
    pub(crate) fn get(&self, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.metrics).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    /// Waits until the metrics have a line.
    pub(crate) fn wait_for_metric(&self, line: &str) {
        let end = Instant::now() + PATIENCE;
        loop {
            let (_, metrics) = self.get("/metrics");
            if metrics.lines().any(|other| other == line) {
                return;
            }
            assert!(Instant::now() < end, "`{line}` never came:\n{metrics}");
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Has a command of the administrator's talk to the server; answers its exit status and both its outputs.
    pub(crate) fn admin(&self, arguments: &[&str]) -> (i32, String, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_keystead"));
        let output = command.args(arguments).arg("--socket").arg(&self.admin).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    }

    /// What `keystead status --json` says.
    pub(crate) fn status(&self) -> serde_json::Value {
        let (code, json, errors) = self.admin(&["status", "--json"]);
        assert_eq!(code, 0, "{errors}");
        serde_json::from_str(&json).unwrap()
    }

    /// Reloads, which must work.
    pub(crate) fn reload(&self) -> serde_json::Value {
        let (code, json, errors) = self.admin(&["reload", "--json"]);
        assert_eq!(code, 0, "{errors}\n{}", self.log());
        serde_json::from_str(&json).unwrap()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits until the process has ended.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < end, "it doesn't end:\n{}", self.log());
            thread::sleep(Duration::from_millis(10));
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Resident memory of the process, in bytes.
    pub(crate) fn memory(&self) -> usize {
        self.figure("VmRSS") << 10
    }

    /// A figure of the process, as its `status` in proc(5) has it: memory in KiB.
    pub(crate) fn figure(&self, name: &str) -> usize {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let mut fields = status.lines().filter_map(|line| line.split_once(':'));
        let (_, figure) = fields.find(|(field, _)| *field == name).unwrap();
        figure.split_whitespace().next().unwrap().parse().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            let _ = writeln!(io::stdout(), "the server's log:\n{}", self.log());
        }
    }
}

impl Log {
    fn collect(&self, errors: impl Read) {
        for line in BufReader::new(errors).lines().map_while(Result::ok) {
            self.lines.lock().unwrap().0.push(line);
            self.more.notify_all();
        }
        self.lines.lock().unwrap().1 = true;
        self.more.notify_all();
    }

    fn wait_for(&self, text: &str) -> String {
        let found = |lines: &[String]| lines.iter().find(|line| line.contains(text)).cloned();
        let lines = self.lines.lock().unwrap();
        let (lines, _) = self
            .more
            .wait_timeout_while(lines, PATIENCE, |(lines, ended)| !*ended && found(lines).is_none())
            .unwrap();
        let (line, all) = (found(&lines.0), lines.0.join("\n"));
        drop(lines); // a panic must not leave it poisoned
        line.unwrap_or_else(|| panic!("`{text}` never appeared in\n{all}"))
    }
}

fn address(line: &str, before: &str) -> SocketAddr {
    let (_, rest) = line.split_once(before).unwrap();
    let end =
        rest.find(|character: char| character.is_whitespace() || character == ',').unwrap_or(rest.len());
    rest[..end].parse().unwrap_or_else(|error| panic!("{error}: {line}"))
}

/// Configuration lines of a store `hostile` that holds the recorded P-256 key, and does what `plan` says with it.
pub(crate) fn hostile(files: &Files, plan: &str) -> String {
    let key = files.path("keys/p256.key");
    format!(
        "private_key_stores:\n- {{name: hostile, plugin: hostile, prove: never, config: {{keys: [{{file: {}, {plan}}}]}}}}\n",
        key.display()
    )
}

/// A named pipe that a call of the hostile plugin waits at: its deed is `{wait_for: PATH}`.
pub(crate) struct Gate {
    pub(crate) path: PathBuf,
    writer: Option<File>,
}

impl Gate {
    pub(crate) fn new(files: &Files) -> Self {
        let path = files.path("gate");
        mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        Self { path, writer: None }
    }

    /// Returns when a call waits; fails where none comes.
    pub(crate) fn reached(&mut self) {
        let ((opened, writer), path) = (mpsc::channel(), self.path.clone());
        // Opening ends when the other end is open too. In a thread, for it may never be.
        thread::spawn(move || opened.send(File::options().write(true).open(path)));
        self.writer = Some(writer.recv_timeout(PATIENCE).expect("no call came to the gate").unwrap());
    }

    /// Lets it pass.
    pub(crate) fn open(&mut self) {
        self.writer = None;
    }
}

/// A client that speaks raw bytes over TLS.
pub(crate) struct Client {
    stream: StreamOwned<ClientConnection, TcpStream>,
    buffer: Vec<u8>,
}

impl Client {
    pub(crate) fn connect(files: &Files, server: &Server) -> Self {
        Self::connect_with(files.client_tls(&[&TLS12, &TLS13]), server.address).unwrap()
    }

    /// Connects and shakes hands.
    pub(crate) fn connect_with(tls: Arc<ClientConfig>, address: SocketAddr) -> io::Result<Self> {
        let mut socket = TcpStream::connect(address)?;
        socket.set_nodelay(true)?; // what was sent has left
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
        let mut connection =
            ClientConnection::new(tls, "localhost".try_into().unwrap()).map_err(io::Error::other)?;
        while connection.is_handshaking() {
            connection.complete_io(&mut socket)?;
        }
        Ok(Self { stream: StreamOwned::new(connection, socket), buffer: Vec::new() })
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        assert!(self.try_send(bytes), "the server takes no more");
    }

    /// Sends; false where the server doesn't take it.
    pub(crate) fn try_send(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).and_then(|()| self.stream.flush()).is_ok()
    }

    /// Whether the server has closed the connection, as far as can be seen without waiting.
    pub(crate) fn is_closed(&mut self) -> bool {
        self.stream.sock.set_nonblocking(true).unwrap();
        let closed = match self.stream.conn.read_tls(&mut self.stream.sock) {
            Ok(0) => true,
            Ok(_) => self.stream.conn.process_new_packets().is_ok_and(|state| state.peer_has_closed()),
            Err(error) => error.kind() != io::ErrorKind::WouldBlock,
        };
        self.stream.sock.set_nonblocking(false).unwrap();
        closed
    }

    /// The next answer as raw bytes; `None` where the server has closed the connection, however.
    pub(crate) fn receive(&mut self) -> Option<Vec<u8>> {
        match self.try_receive() {
            Ok(frame) => frame,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => None,
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => None,
            Err(error) => panic!("reading an answer: {error}"),
        }
    }

    /// The next answer as raw bytes; `None` where the server has closed the connection as it should.
    pub(crate) fn try_receive(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            if let Some((frame, _)) = Frame::split(&self.buffer) {
                let len = frame.len();
                let rest = self.buffer.split_off(len);
                return Ok(Some(std::mem::replace(&mut self.buffer, rest)));
            }
            let mut chunk = [0; 16 << 10];
            match self.stream.read(&mut chunk)? {
                0 => return Ok(None),
                read => self.buffer.extend_from_slice(&chunk[..read]),
            }
        }
    }

    /// Id and content of the next answer.
    pub(crate) fn answer(&mut self) -> (u32, Result<Vec<u8>, ErrorCode>) {
        let frame = self.receive().expect("the server closed the connection");
        (id(&frame), content(&frame))
    }

    /// One operation, there and back.
    pub(crate) fn ask(&mut self, ski: Ski, opcode: Opcode, payload: &[u8]) -> Result<Vec<u8>, ErrorCode> {
        self.send(&request(1, ski, opcode, payload));
        self.answer().1
    }

    /// Says that nothing more will be sent.
    pub(crate) fn finish(&mut self) {
        self.stream.conn.send_close_notify();
        self.stream.flush().unwrap();
        self.stream.sock.shutdown(std::net::Shutdown::Write).unwrap();
    }

    /// The certificate that the server has shown.
    pub(crate) fn server_certificate(&self) -> CertificateDer<'static> {
        self.stream.conn.peer_certificates().unwrap()[0].clone()
    }

    /// Whether the session was resumed.
    pub(crate) fn is_resumed(&self) -> bool {
        self.stream.conn.handshake_kind() == Some(HandshakeKind::Resumed)
    }

    pub(crate) fn version(&self) -> rustls::ProtocolVersion {
        self.stream.conn.protocol_version().unwrap()
    }

    pub(crate) fn socket(&self) -> &TcpStream {
        &self.stream.sock
    }
}

/// The id of a frame.
pub(crate) fn id(frame: &[u8]) -> u32 {
    Header::decode(frame[..HEADER_LEN].try_into().unwrap()).id
}

/// The content of an answer.
pub(crate) fn content(frame: &[u8]) -> Result<Vec<u8>, ErrorCode> {
    match Response::decode(&frame[HEADER_LEN..]).unwrap() {
        Response::Success(payload) | Response::Pong(payload) => Ok(payload.to_vec()),
        Response::Failure(code) => Err(code),
    }
}

/// A request as bytes.
pub(crate) fn request(id: u32, ski: Ski, opcode: Opcode, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    Request { opcode, payload, ski: Some(ski), ..Request::default() }.encode(id, &mut bytes).unwrap();
    bytes
}

/// A ping as bytes.
pub(crate) fn ping(id: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    Request { opcode: Opcode::PING, payload, ..Request::default() }.encode(id, &mut bytes).unwrap();
    bytes
}

/// The SKIs of the recorded keys.
pub(crate) fn skis() -> HashMap<String, Ski> {
    let skis = recorded("server.json")["skis"].clone();
    skis.as_object()
        .unwrap()
        .iter()
        .map(|(name, ski)| (name.clone(), ski.as_str().unwrap().parse().unwrap()))
        .collect()
}
