//! The test's end of the module that misbehaves: builds it, tells it what to do, and hears what its caller did.
//!
//! Whatever [`Control`] says holds for calls that begin after it returned, in every process that has the module loaded
//! at the path in [`VARIABLE`], and in every one that loads it later: a process that is started anew meets the same
//! faults. What happens once (sessions are forgotten) happens in those that are there. "The next N calls" are N calls
//! in whichever process; counts are of all processes, dead ones included. In one process, the module is one: copies of
//! it in several files would share SoftHSM2.
//!
//! Functions go by the names that PKCS#11 has for them, and `any` is all of them. Tokens go by the label that they have
//! in SoftHSM2, and [`EVERY_TOKEN`] is all of them.
//!
//! Everything here panics where it fails, as a test's own assertions do.

use std::{
    env,
    fs::{self, File, OpenOptions},
    hash::{DefaultHasher, Hash, Hasher},
    io::{self, BufRead, BufReader, ErrorKind, Write},
    os::unix::{
        fs::FileExt,
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc, LazyLock, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// Where the module looks for the path of its test's socket.
pub(crate) const VARIABLE: &str = "KEYSTEAD_TEST_MODULE_CONTROL";

/// Stands for the label of every token, those that come later included.
pub(crate) const EVERY_TOKEN: &str = "*";

/// The module, for a URI. Compiled where it hasn't been since its sources changed.
pub(crate) fn module() -> &'static Path {
    static BUILT: LazyLock<PathBuf> = LazyLock::new(build);
    &BUILT
}

const HEADERS: [(&str, &str); 2] =
    [("module.h", include_str!("module.h")), ("functions.h", include_str!("functions.h"))];
const SOURCES: [(&str, &str); 7] = [
    ("calls.c", include_str!("calls.c")),
    ("control.c", include_str!("control.c")),
    ("crypto.c", include_str!("crypto.c")),
    ("library.c", include_str!("library.c")),
    ("objects.c", include_str!("objects.c")),
    ("rules.c", include_str!("rules.c")),
    ("tokens.c", include_str!("tokens.c")),
];
const FLAGS: [&str; 8] =
    ["-std=c11", "-D_GNU_SOURCE", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-pthread"];
/// It stays when it is unloaded, since a thread of its own is in it.
const SHARED: [&str; 4] = ["-shared", "-fPIC", "-fvisibility=hidden", "-Wl,-z,nodelete"];
const SOFTHSM: [&str; 4] = [
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib64/libsofthsm2.so",
    "/usr/lib64/softhsm/libsofthsm2.so",
];

/// Several test processes may be at it at once: each compiles for itself, and the last to be done leaves its own.
fn build() -> PathBuf {
    let softhsm = SOFTHSM.into_iter().find(|path| Path::new(path).exists());
    let softhsm =
        softhsm.unwrap_or_else(|| panic!("these tests need softhsm2: none of {SOFTHSM:?} is there"));
    let mut hasher = DefaultHasher::new();
    (HEADERS, SOURCES, FLAGS, SHARED, softhsm).hash(&mut hasher);
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let library = folder.join(format!("misbehaving-{:016x}.so", hasher.finish()));
    if !library.exists() {
        let own = tempfile::tempdir_in(folder).unwrap();
        compile(own.path(), softhsm);
        fs::rename(own.path().join("module.so"), &library).unwrap();
    }
    library
}

fn compile(folder: &Path, softhsm: &str) {
    for (name, text) in HEADERS.iter().chain(&SOURCES) {
        fs::write(folder.join(name), text).unwrap();
    }
    let mut compiler = compiler();
    compiler.current_dir(folder).args(SHARED).arg(format!("-DSOFTHSM=\"{softhsm}\""));
    said(compiler.args(SOURCES.map(|(name, _)| name)).args(["-o", "module.so"]));
}

/// Compiles a program in C that uses PKCS#11.
pub(crate) fn compile_program(source: &Path, program: &Path) {
    said(compiler().arg(source).arg("-o").arg(program));
}

fn compiler() -> Command {
    let flags = said(Command::new("pkg-config").args(["--cflags", "p11-kit-1"]));
    let mut compiler = Command::new("cc");
    compiler.args(FLAGS).args(flags.split_whitespace());
    compiler
}

fn said(command: &mut Command) -> String {
    let output = command.output();
    let output = output.unwrap_or_else(|error| panic!("these tests need {command:?}: {error}"));
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?} (is libp11-kit-dev installed?): {complaint}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Tells the module what to do, as long as it lives. Then what was said stays, and calls that hang go on.
pub(crate) struct Control {
    path: PathBuf,
    page: File,
    told: Arc<Mutex<Told>>,
    over: Arc<AtomicBool>,
    listener: Option<JoinHandle<()>>,
}

/// What holds from now on, and whoever is to be told.
#[derive(Default)]
struct Told {
    /// What a line is about, and the line; in the order of being said.
    settings: Vec<(String, String)>,
    processes: Vec<Process>,
}

/// A process that has the module loaded.
struct Process {
    commands: UnixStream,
    answers: BufReader<UnixStream>,
}

/// How long a process may take for an answer, or for what a test waits for. Nothing takes that long unless it is stuck.
const PATIENCE: Duration = Duration::from_secs(30);

impl Control {
    /// Listens where the environment of this process says.
    pub(crate) fn listen() -> Self {
        Self::listen_at(Path::new(&env::var_os(VARIABLE).expect(VARIABLE)))
    }

    /// Listens at a path, for processes that have it in [`VARIABLE`]. Its folder is the test's own.
    pub(crate) fn listen_at(path: &Path) -> Self {
        let page = file(path, "page");
        page.set_len(Page::place_of_peak(Page::PEAKS)).unwrap();
        file(path, "violations");
        let listener = UnixListener::bind(path).unwrap();
        let (told, over): (Arc<Mutex<Told>>, Arc<AtomicBool>) = Default::default();
        let shared = (Arc::clone(&told), Arc::clone(&over));
        let listener = Some(thread::spawn(move || welcome(&listener, &shared.0, &shared.1)));
        Self { path: path.to_owned(), page, told, over, listener }
    }

    // ---- What a function does ----

    /// Calls take that long from beginning to end, what they do included. None of it holds for calls that only ask how
    /// long a signature or a plaintext will be.
    pub(crate) fn latency(&self, function: &str, latency: Duration) {
        self.write(function, Page::LATENCY, latency.as_nanos().try_into().unwrap());
    }

    /// Calls answer with a code, until [`Self::works`]. SoftHSM2 isn't asked.
    pub(crate) fn fails(&self, function: &str, code: u64) {
        self.fails_next(u64::MAX, function, code);
    }

    /// The next calls answer with a code.
    pub(crate) fn fails_next(&self, calls: u64, function: &str, code: u64) {
        assert_ne!(code, 0, "CKR_OK without having done anything would be no answer");
        self.write(function, Page::CODE, code);
        self.write(function, Page::CODE_LEFT, calls);
    }

    /// Calls neither fail nor hang any more, and take no longer than they do.
    pub(crate) fn works(&self, function: &str) {
        for field in [Page::CODE_LEFT, Page::CRASH_LEFT, Page::LATENCY] {
            self.write(function, field, 0);
        }
        self.release(function);
    }

    /// Calls hang until [`Self::release`]; after a minute, the process aborts.
    pub(crate) fn hangs(&self, function: &str) {
        self.hangs_next(u64::MAX, function);
    }

    /// The next calls hang until [`Self::release`].
    pub(crate) fn hangs_next(&self, calls: u64, function: &str) {
        self.write(function, Page::HANG_LEFT, calls);
    }

    /// Those that hang go on, and no more begin to.
    pub(crate) fn release(&self, function: &str) {
        self.write(function, Page::HANG_LEFT, 0);
        self.write(function, Page::RELEASED, self.read(function, Page::RELEASED) + 1);
    }

    /// The next call is the end of its process, by SIGSEGV.
    pub(crate) fn crashes_next(&self, function: &str) {
        self.write(function, Page::CRASH_LEFT, 1);
    }

    // ---- What was done ----

    /// How many calls began.
    pub(crate) fn calls(&self, function: &str) -> u64 {
        self.read(function, Page::CALLS)
    }

    /// How many calls of C_Sign or C_Decrypt only asked how long the answer would be.
    pub(crate) fn queries(&self, function: &str) -> u64 {
        self.read(function, Page::QUERIES)
    }

    /// The most calls that one process had inside at once.
    pub(crate) fn at_once(&self, function: &str) -> u64 {
        self.read(function, Page::AT_ONCE)
    }

    /// How many calls are inside at this moment, hanging ones included.
    pub(crate) fn inside(&self, function: &str) -> u64 {
        self.ask(&format!("inside\t{function}"))
    }

    /// How many sessions are open on a token.
    pub(crate) fn sessions(&self, token: &str) -> u64 {
        self.ask(&format!("sessions\t{token}"))
    }

    /// The most sessions that one process had open on a token.
    pub(crate) fn peak_sessions(&self, token: &str) -> u64 {
        (0..Page::PEAKS).find_map(|number| self.peak(number, token)).unwrap_or(0)
    }

    /// What callers did that they shouldn't, a line each: `C_Logout: logs everybody out`.
    pub(crate) fn violations(&self) -> Vec<String> {
        fs::read_to_string(beside(&self.path, "violations")).unwrap().lines().map(str::to_owned).collect()
    }

    /// How many processes have the module loaded.
    pub(crate) fn processes(&self) -> usize {
        self.told().tell_each("inside\tany").len()
    }

    /// Waits until something is so.
    pub(crate) fn wait_until(&self, what: &str, is_so: impl Fn(&Self) -> bool) {
        let end = Instant::now() + PATIENCE;
        while !is_so(self) {
            assert!(Instant::now() < end, "it never came to this: {what}");
            thread::sleep(Duration::from_millis(1));
        }
    }

    // ---- What a token does ----

    /// It has no more than so many sessions in a process (CKR_SESSION_COUNT); 0: as many as are wanted. It doesn't say
    /// so.
    pub(crate) fn limits_sessions(&self, token: &str, most: u64) {
        self.holds(&["limit", token], &[&most, &0]);
    }

    /// Likewise, and its CK_TOKEN_INFO says so.
    pub(crate) fn tells_its_session_limit(&self, token: &str, most: u64) {
        self.holds(&["limit", token], &[&most, &1]);
    }

    /// Its sessions are gone, and with the last one the login: CKR_SESSION_HANDLE_INVALID.
    pub(crate) fn forgets_sessions(&self, token: &str) {
        self.once(&format!("forget-sessions\t{token}"));
    }

    /// Handles of its objects are good no more, and answered with a code.
    pub(crate) fn forgets_objects(&self, token: &str, code: u64) {
        self.once(&format!("forget-objects\t{token}\t{code}"));
        self.answers_stale_handles(token, code);
    }

    /// The code for handles that are good no more, for whatever reason; else CKR_OBJECT_HANDLE_INVALID.
    pub(crate) fn answers_stale_handles(&self, token: &str, code: u64) {
        self.holds(&["stale", token], &[&code]);
    }

    /// Nobody is logged in any more. Private keys can't be seen, their handles are good no more, and to begin a
    /// signature is answered with CKR_USER_NOT_LOGGED_IN until the next login.
    pub(crate) fn forgets_login(&self, token: &str) {
        self.once(&format!("forget-login\t{token}"));
    }

    /// It goes, and its sessions with it. All that concerns it is answered with a code, but for C_GetTokenInfo:
    /// CKR_TOKEN_NOT_PRESENT.
    pub(crate) fn goes(&self, token: &str, code: u64) {
        self.presence(token, &format!("gone\t{token}\t{code}"));
    }

    /// It is there again; a new session works.
    pub(crate) fn comes_back(&self, token: &str) {
        self.presence(token, &format!("back\t{token}"));
    }

    /// It is there again, but of no use in processes that have initialised the module: all that concerns it is answered
    /// with a code until C_Finalize and C_Initialize.
    pub(crate) fn comes_back_once_initialised_anew(&self, token: &str, code: u64) {
        self.presence(token, &format!("back-if-initialised\t{token}\t{code}"));
    }

    /// It needs no login: its flags say so, all private keys can be seen and used, and C_Login is answered with a code.
    /// The module presents the PIN to SoftHSM2. An empty PIN ends this.
    pub(crate) fn needs_no_login(&self, token: &str, pin: &str, code: u64) {
        self.holds(&["no-login", token], &[&pin, &code]);
    }

    /// Flags of its CK_TOKEN_INFO beside SoftHSM2's. With CKF_USER_PIN_LOCKED every login is answered with
    /// CKR_PIN_LOCKED.
    pub(crate) fn shows_flags(&self, token: &str, flags: u64) {
        self.holds(&["more-flags", token], &[&flags]);
    }

    /// Flags that its CK_TOKEN_INFO hasn't, though SoftHSM2's has.
    pub(crate) fn lacks_flags(&self, token: &str, flags: u64) {
        self.holds(&["less-flags", token], &[&flags]);
    }

    /// What it is called in place of the label that it has in SoftHSM2; to this module's test it still is that one.
    pub(crate) fn is_labelled(&self, token: &str, label: &str) {
        self.holds(&["token-label", token], &[&label]);
    }

    /// Who made it, and its model.
    pub(crate) fn is_made_by(&self, token: &str, manufacturer: &str, model: &str) {
        self.holds(&["token-manufacturer", token], &[&manufacturer]);
        self.holds(&["token-model", token], &[&model]);
    }

    // ---- Customs of the module ----

    /// What the library says of itself.
    pub(crate) fn library(&self, manufacturer: &str, description: &str, version: (u8, u8)) {
        self.holds(&["set", "manufacturer"], &[&manufacturer]);
        self.holds(&["set", "description"], &[&description]);
        self.holds(&["set", "version"], &[&u16::from_be_bytes([version.0, version.1])]);
    }

    /// Public keys aren't found.
    pub(crate) fn hides_public_keys(&self) {
        self.set("public-keys-hidden", 1);
    }

    /// CKA_EC_POINT is the point itself, not in an OCTET STRING.
    pub(crate) fn has_raw_points(&self) {
        self.set("raw-points", 1);
    }

    /// Handles of objects are good in the session that found them only.
    pub(crate) fn has_objects_of_sessions(&self) {
        self.set("objects-of-session", 1);
    }

    /// Sessions that weren't used for so long are gone; with zero, they stay.
    pub(crate) fn drops_idle_sessions(&self, after: Duration) {
        self.set("idle-ms", after.as_millis().try_into().unwrap());
    }

    /// Opening a read-only session is answered with a code; CKR_OK ends this.
    pub(crate) fn refuses_read_only_sessions(&self, code: u64) {
        self.set("read-only-code", code);
    }

    /// Opening a read-write session is answered with a code; CKR_OK ends this.
    pub(crate) fn refuses_read_write_sessions(&self, code: u64) {
        self.set("read-write-code", code);
    }

    /// A mechanism isn't listed, and not accepted: CKR_MECHANISM_INVALID.
    pub(crate) fn hides_mechanism(&self, mechanism: u64) {
        let line = format!("hide-mechanism\t{mechanism}");
        self.keep(&format!("mechanism\t{mechanism}"), &line);
    }

    /// It is there again.
    pub(crate) fn shows_mechanism(&self, mechanism: u64) {
        let line = format!("show-mechanism\t{mechanism}");
        self.keep(&format!("mechanism\t{mechanism}"), &line);
    }

    /// Whether keys are subject to CKA_ALWAYS_AUTHENTICATE.
    pub(crate) fn always_authenticate(&self, answer: AlwaysAuthenticate) {
        self.set("always-authenticate", answer as u64);
    }

    /// A user type of the vendor's stands for CKU_USER as well.
    pub(crate) fn accepts_user(&self, vendor: u64) {
        self.set("vendor-user", vendor);
        self.set("vendor-user-only", 0);
    }

    /// A user type of the vendor's stands in the place of CKU_USER, which is answered with CKR_USER_TYPE_INVALID.
    pub(crate) fn accepts_only_user(&self, vendor: u64) {
        self.set("vendor-user", vendor);
        self.set("vendor-user-only", 1);
    }

    /// A PIN is `user:PIN`; one without this user is answered with a code.
    pub(crate) fn expects_user_in_pin(&self, user: &str, code: u64) {
        self.set("pin-user-code", code);
        self.holds(&["set", "pin-user"], &[&user]);
    }

    // ---- How it is told ----

    fn set(&self, name: &str, value: u64) {
        self.holds(&["set", name], &[&value]);
    }

    fn presence(&self, token: &str, line: &str) {
        self.keep(&format!("presence\t{token}"), line);
    }

    /// What a line is about, and what it says.
    fn holds(&self, subject: &[&str], words: &[&dyn ToString]) {
        let subject = subject.join("\t");
        let words: String = words.iter().map(|word| format!("\t{}", word.to_string())).collect();
        self.keep(&subject, &format!("{subject}{words}"));
    }

    /// Says it to all processes that are there, and to all that come.
    fn keep(&self, subject: &str, line: &str) {
        let mut told = self.told();
        told.settings.retain(|(other, _)| other != subject);
        told.settings.push((subject.to_owned(), line.to_owned()));
        told.tell(line);
    }

    fn once(&self, line: &str) {
        self.told().tell(line);
    }

    /// The sum of what the processes answer.
    fn ask(&self, line: &str) -> u64 {
        let answers = self.told().tell_each(line);
        answers
            .iter()
            .map(|answer| answer.parse::<u64>().unwrap_or_else(|_| panic!("{line}: {answer}")))
            .sum()
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self, function: &str, field: u64) -> u64 {
        Page::number_at(&self.page, Page::place(function, field))
    }

    fn write(&self, function: &str, field: u64, value: u64) {
        self.page.write_all_at(&value.to_ne_bytes(), Page::place(function, field)).unwrap();
    }

    fn peak(&self, number: u64, token: &str) -> Option<u64> {
        let place = Page::place_of_peak(number);
        let mut label = [0; 48];
        self.page.read_exact_at(&mut label, place + 16).unwrap();
        let label = label.split(|byte| *byte == 0).next();
        (label == Some(token.as_bytes())).then(|| Page::number_at(&self.page, place + 8))
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        let _woken = UnixStream::connect(&self.path);
        if let Some(listener) = self.listener.take() {
            let _ended = listener.join();
        }
        let _removed = fs::remove_file(&self.path);
    }
}

/// What CKA_ALWAYS_AUTHENTICATE says.
#[derive(Clone, Copy)]
pub(crate) enum AlwaysAuthenticate {
    /// What it says in SoftHSM2.
    AsItIs,
    /// CKR_ATTRIBUTE_TYPE_INVALID.
    Unknown,
    /// It is true of every key: C_Login with CKU_CONTEXT_SPECIFIC and the PIN is due between C_SignInit and C_Sign.
    Yes,
}

/// Says all that was said so far to each process that loads the module.
fn welcome(listener: &UnixListener, told: &Mutex<Told>, over: &AtomicBool) {
    while let Ok((stream, _)) = listener.accept() {
        if over.load(Ordering::SeqCst) {
            return;
        }
        let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
        let lines: Vec<_> = told.settings.iter().map(|(_, line)| line.clone()).collect();
        let mut process = Process::new(stream);
        // One that dies meanwhile is none to be told any more.
        if lines.iter().map(String::as_str).chain(["go"]).all(|line| process.tell(line).is_ok()) {
            told.processes.push(process);
        }
    }
}

impl Told {
    fn tell(&mut self, line: &str) {
        for answer in self.tell_each(line) {
            assert_eq!(answer, "ok", "{line}");
        }
    }

    /// The answers, of processes that are still there.
    fn tell_each(&mut self, line: &str) -> Vec<String> {
        let mut answers = Vec::new();
        self.processes.retain_mut(|process| match process.tell(line) {
            Ok(answer) => {
                answers.push(answer);
                true
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => panic!("no answer to `{line}`"),
            Err(_) => false,
        });
        answers
    }
}

impl Process {
    fn new(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { commands: stream.try_clone().unwrap(), answers: BufReader::new(stream) }
    }

    fn tell(&mut self, line: &str) -> io::Result<String> {
        self.commands.write_all(format!("{line}\n").as_bytes())?;
        let mut answer = String::new();
        match self.answers.read_line(&mut answer)? {
            0 => Err(ErrorKind::UnexpectedEof.into()),
            _ => Ok(answer.trim_end().to_owned()),
        }
    }
}

/// The page that is shared with the module: `struct page` in rules.c.
struct Page;

impl Page {
    const CALLS: u64 = 0;
    const QUERIES: u64 = 1;
    const AT_ONCE: u64 = 2;
    const LATENCY: u64 = 3;
    const CODE: u64 = 4;
    const CODE_LEFT: u64 = 5;
    const HANG_LEFT: u64 = 6;
    const RELEASED: u64 = 7;
    const CRASH_LEFT: u64 = 8;
    const FIELDS: u64 = 9;

    const PEAKS: u64 = 16;
    const PEAK: u64 = 64;

    /// The functions in the order of their rules, `any` first.
    fn functions() -> impl Iterator<Item = &'static str> {
        let names = include_str!("functions.h").lines().filter_map(|line| line.strip_prefix("FUNCTION("));
        ["any"].into_iter().chain(names.map(|name| name.trim_end_matches(')')))
    }

    fn place(function: &str, field: u64) -> u64 {
        let number = (0..).zip(Self::functions()).find(|(_, name)| *name == function);
        let (number, _) = number.unwrap_or_else(|| panic!("no function is called `{function}`"));
        (number * Self::FIELDS + field) * 8
    }

    fn place_of_peak(number: u64) -> u64 {
        let rules = u64::try_from(Self::functions().count()).unwrap();
        rules * Self::FIELDS * 8 + number * Self::PEAK
    }

    fn number_at(page: &File, place: u64) -> u64 {
        let mut number = [0; 8];
        page.read_exact_at(&mut number, place).unwrap();
        u64::from_ne_bytes(number)
    }
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{suffix}"));
    name.into()
}

/// Makes a file beside the socket, empty.
fn file(path: &Path, suffix: &str) -> File {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(true).open(beside(path, suffix)).unwrap()
}
