//! How a process for plugins dies, in one line: the signal, the address, and the module whose code was running.
//!
//! Only the dying process knows the last two, so it says them in a last line of its output. The plugin in it can write
//! such a line as well, so that what it says is text to be tamed, and believed only with the signal that the kernel names.

use std::{
    ffi::{c_int, c_void},
    fmt, io,
    mem::zeroed,
    os::unix::process::ExitStatusExt,
    process::ExitStatus,
    ptr::null_mut,
};

use crate::failure::tame;

/// What the last line begins with.
const MARKER: &[u8] = b"keystead: crash ";

/// The longest such line; written at once, and whole, below PIPE_BUF.
const LINE: usize = 320;

/// How much of a module's file name is kept.
const NAME: usize = 128;

/// How far from the stack pointer a stack that is full is written to: the room of one function.
const FRAME: u64 = 64 << 10;

/// The signals of a process that has failed by itself.
const SIGNALS: [c_int; 7] =
    [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGABRT, libc::SIGSYS, libc::SIGTRAP];

/// Has this process say on its standard error why it dies. To be called once it has a standard error.
///
/// A thread whose stack is full says so where it has another one for signals: the main thread and those of the host do,
/// by Rust's standard library. One that a plugin starts may leave no more than the signal.
pub(super) fn report_crashes() -> io::Result<()> {
    for signal in SIGNALS {
        // SAFETY: all zeros is a value of it: no flags, nothing blocked.
        let mut action: libc::sigaction = unsafe { zeroed() };
        action.sa_sigaction = crashed as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        // SAFETY: the action lives through the call, and its function keeps to what a signal handler may do.
        if unsafe { libc::sigaction(signal, &raw const action, null_mut()) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Allocates nothing, takes no lock, and ends with the signal's default action, which counts as the death.
///
/// Not by `SA_RESETHAND`: with it, a second thread that fails at the same time would end the process before the line.
extern "C" fn crashed(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel passes both to a handler with SA_SIGINFO.
    let (code, address, (counter, stack)) = unsafe { ((*info).si_code, fault(info), registers(context)) };
    let mut line = Line::new();
    // Before it, the end of whatever line was begun.
    line.push(b"\n");
    line.push(MARKER);
    line.field(b"signal=", signal.unsigned_abs().into());
    // Who was sent a signal, or called `abort`, has no fault of which there is an address.
    let faulted = code > 0 && signal != libc::SIGABRT;
    // Where the kernel doesn't know the address, it says 0.
    if faulted && code != SI_KERNEL {
        line.field(b"address=", address);
        line.field(b"stack=", stack);
    }
    if faulted {
        module_of(counter, &mut line);
    }
    line.push(b"\n");
    // SAFETY: the line is as long as it says; `signal` and `raise` may be called by a handler. What is raised waits until
    // this function has returned.
    unsafe {
        libc::write(2, line.bytes.as_ptr().cast(), line.len);
        libc::signal(signal, libc::SIG_DFL);
        // A fault comes again by itself, and leaves its traces in the system's log and in the core dump.
        if !(faulted && [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE].contains(&signal)) {
            libc::raise(signal);
        }
    }
}

/// The `si_code` of what only the kernel knows more about.
const SI_KERNEL: c_int = 0x80;

/// # Safety
///
/// `info` is what a handler of a signal got.
unsafe fn fault(info: *const libc::siginfo_t) -> u64 {
    // SAFETY: promised by the caller; whatever the signal, the bytes are there.
    unsafe { (*info).si_addr() as u64 }
}

/// The program counter and the stack pointer.
///
/// # Safety
///
/// `context` is what a handler of a signal got.
unsafe fn registers(context: *const c_void) -> (u64, u64) {
    let context: *const libc::ucontext_t = context.cast();
    // SAFETY: promised by the caller.
    let machine = unsafe { &(*context).uc_mcontext };
    #[cfg(target_arch = "x86_64")]
    {
        let register =
            |index: c_int| machine.gregs.get(index as usize).map_or(0, |value| value.cast_unsigned());
        (register(libc::REG_RIP), register(libc::REG_RSP))
    }
    #[cfg(target_arch = "aarch64")]
    {
        (machine.pc, machine.sp)
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    {
        let _ = machine;
        (0, 0)
    }
}

/// Adds the file whose code is at an address, and how far from its beginning.
fn module_of(counter: u64, line: &mut Line) {
    // SAFETY: the path ends with 0.
    let file = unsafe { libc::open(c"/proc/self/maps".as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC) };
    let mut maps = Maps::default();
    let mut chunk = [0; 256];
    loop {
        // SAFETY: the chunk has room for as much.
        let len = unsafe { libc::read(file, chunk.as_mut_ptr().cast(), chunk.len()) };
        let Some(read) = usize::try_from(len).ok().filter(|len| *len > 0).and_then(|len| chunk.get(..len))
        else {
            break;
        };
        if let Some(offset) = read.iter().find_map(|byte| maps.take(*byte, counter)) {
            line.field(b"offset=", offset);
            line.push(b"module=");
            line.push(maps.mapping.name());
            break;
        }
    }
    // SAFETY: nobody else has it.
    unsafe { libc::close(file) };
}

/// `/proc/self/maps`, byte by byte, as `55e0c8a00000-55e0c8a21000 r-xp 00002000 fe:01 1234    /usr/lib/libx.so`.
#[derive(Default)]
struct Maps {
    mapping: Mapping,
    /// The last one that begins a file: what offsets within it are counted from.
    base: Mapping,
    column: u8,
}

#[derive(Clone, Copy)]
struct Mapping {
    start: u64,
    end: u64,
    offset: u64,
    name: [u8; NAME],
    name_len: usize,
}

impl Maps {
    /// Takes the next byte. At the end of the line that an address is in: its offset within the file that it belongs to.
    fn take(&mut self, byte: u8, counter: u64) -> Option<u64> {
        match (self.column, byte) {
            (_, b'\n') => {
                let offset = self.offset_of(counter);
                if offset.is_none() {
                    self.next();
                }
                return offset;
            }
            (0, b'-') | (1..=4, b' ') => self.column += 1,
            (5, byte) if byte != b' ' && !byte.is_ascii_digit() => {
                self.column = 6;
                self.mapping.spell(byte);
            }
            (0, digit) => self.mapping.start = hex(self.mapping.start, digit),
            (1, digit) => self.mapping.end = hex(self.mapping.end, digit),
            (3, digit) => self.mapping.offset = hex(self.mapping.offset, digit),
            (6, byte) => self.mapping.spell(byte),
            _ => {}
        }
        None
    }

    fn offset_of(&self, counter: u64) -> Option<u64> {
        let Mapping { start, end, offset, .. } = self.mapping;
        let base =
            if offset > 0 && self.base.name() == self.mapping.name() { self.base.start } else { start };
        (start..end).contains(&counter).then(|| counter.wrapping_sub(base))
    }

    fn next(&mut self) {
        if self.mapping.offset == 0 && self.mapping.name_len > 0 {
            self.base = self.mapping;
        }
        (self.mapping, self.column) = (Mapping::default(), 0);
    }
}

impl Default for Mapping {
    fn default() -> Self {
        Self { start: 0, end: 0, offset: 0, name: [0; NAME], name_len: 0 }
    }
}

impl Mapping {
    /// What follows the last slash; it is cut where it is too long.
    fn spell(&mut self, byte: u8) {
        if byte == b'/' {
            self.name_len = 0;
        } else if let Some(place) = self.name.get_mut(self.name_len) {
            *place = byte;
            self.name_len += 1;
        }
    }

    fn name(&self) -> &[u8] {
        self.name.get(..self.name_len).unwrap_or_default()
    }
}

fn hex(number: u64, digit: u8) -> u64 {
    let digit = char::from(digit).to_digit(16).unwrap_or(0);
    number.wrapping_shl(4) | u64::from(digit)
}

/// A line that is written without a formatter.
struct Line {
    bytes: [u8; LINE],
    len: usize,
}

impl Line {
    fn new() -> Self {
        Self { bytes: [0; LINE], len: 0 }
    }

    fn push(&mut self, text: &[u8]) {
        for byte in text {
            if let Some(place) = self.bytes.get_mut(self.len) {
                *place = *byte;
                self.len += 1;
            }
        }
    }

    /// A number in hexadecimal digits, and a space.
    fn field(&mut self, name: &[u8], value: u64) {
        self.push(name);
        let digits = (u64::BITS - value.leading_zeros()).div_ceil(4).max(1);
        for place in (0..digits).rev() {
            let digit = u32::try_from((value >> (place * 4)) & 0xf).ok();
            let digit = digit.and_then(|digit| char::from_digit(digit, 16)).unwrap_or('?');
            self.push(digit.encode_utf8(&mut [0; 4]).as_bytes());
        }
        self.push(b" ");
    }
}

/// What a process said of its end, or what a plugin has it say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Crash {
    signal: i32,
    address: Option<u64>,
    stack: Option<u64>,
    /// The module, and how far from its beginning.
    place: Option<(String, u64)>,
}

/// Reads a line of a process's output, with or without its end. The line before it may be empty.
pub(super) fn parse(line: &[u8]) -> Option<Crash> {
    let text = tame(line.strip_prefix(MARKER)?.trim_ascii_end(), LINE);
    let (numbers, module) = match text.split_once("module=") {
        Some((numbers, module)) => (numbers, Some(module)),
        None => (text.as_str(), None),
    };
    let number = |name: &str| {
        let digits = numbers.split(' ').find_map(|field| field.strip_prefix(name)?.strip_prefix('='))?;
        u64::from_str_radix(digits, 16).ok()
    };
    Some(Crash {
        signal: i32::try_from(number("signal")?).ok()?,
        address: number("address"),
        stack: number("stack"),
        place: module.filter(|module| !module.is_empty()).map(str::to_owned).zip(number("offset")),
    })
}

impl Crash {
    /// Whether the address is where a stack ends that has no room left.
    fn is_full_stack(&self) -> bool {
        let near = |address: u64, stack: u64| address.abs_diff(stack) <= FRAME;
        self.signal == libc::SIGSEGV && self.address.zip(self.stack).is_some_and(|(a, s)| near(a, s))
    }
}

impl fmt::Display for Crash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(address) = self.address {
            write!(f, " at {address:#x}")?;
        }
        if let Some((module, offset)) = &self.place {
            write!(f, " in {module}+{offset:#x}")?;
        }
        if self.is_full_stack() {
            f.write_str(" (its stack is full)")?;
        }
        Ok(())
    }
}

/// How a process ended, in one line for the operator.
#[derive(Clone, Debug)]
pub(super) struct Death {
    status: ExitStatus,
    crash: Option<Crash>,
    during: Option<String>,
}

impl Death {
    /// `crash` is the last that it said, and `during` what it was doing, as `signing with key ...`.
    pub(super) fn new(status: ExitStatus, crash: Option<Crash>, during: Option<String>) -> Self {
        let crash = crash.filter(|crash| Some(crash.signal) == status.signal());
        Self { status, crash, during }
    }
}

impl fmt::Display for Death {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.status.code(), self.status.signal()) {
            (Some(code), _) => write!(f, "exited with status {code}")?,
            (None, Some(libc::SIGABRT)) => f.write_str("aborted (SIGABRT)")?,
            (None, Some(signal)) => write!(f, "killed by {}", Signal(signal))?,
            (None, None) => write!(f, "{}", self.status)?,
        }
        if let Some(crash) = &self.crash {
            write!(f, "{crash}")?;
        }
        if self.status.core_dumped() {
            f.write_str(" (core dumped)")?;
        }
        self.during.iter().try_for_each(|during| write!(f, ", while {during}"))
    }
}

/// A signal by its name, where it has one.
struct Signal(i32);

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.0 {
            libc::SIGHUP => "SIGHUP",
            libc::SIGINT => "SIGINT",
            libc::SIGQUIT => "SIGQUIT",
            libc::SIGILL => "SIGILL",
            libc::SIGTRAP => "SIGTRAP",
            libc::SIGABRT => "SIGABRT",
            libc::SIGBUS => "SIGBUS",
            libc::SIGFPE => "SIGFPE",
            libc::SIGKILL => "SIGKILL",
            libc::SIGUSR1 => "SIGUSR1",
            libc::SIGSEGV => "SIGSEGV",
            libc::SIGUSR2 => "SIGUSR2",
            libc::SIGPIPE => "SIGPIPE",
            libc::SIGALRM => "SIGALRM",
            libc::SIGTERM => "SIGTERM",
            libc::SIGSTKFLT => "SIGSTKFLT",
            libc::SIGCHLD => "SIGCHLD",
            libc::SIGCONT => "SIGCONT",
            libc::SIGSTOP => "SIGSTOP",
            libc::SIGTSTP => "SIGTSTP",
            libc::SIGTTIN => "SIGTTIN",
            libc::SIGTTOU => "SIGTTOU",
            libc::SIGURG => "SIGURG",
            libc::SIGXCPU => "SIGXCPU",
            libc::SIGXFSZ => "SIGXFSZ",
            libc::SIGVTALRM => "SIGVTALRM",
            libc::SIGPROF => "SIGPROF",
            libc::SIGWINCH => "SIGWINCH",
            libc::SIGIO => "SIGIO",
            libc::SIGPWR => "SIGPWR",
            libc::SIGSYS => "SIGSYS",
            other => return write!(f, "signal {other}"),
        };
        f.write_str(name)
    }
}

#[cfg(test)]
pub(super) mod tests;
