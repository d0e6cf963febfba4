//! How processes die, each of them a real one.

use std::{
    any::type_name,
    env,
    hint::black_box,
    process::{Command, Output, exit},
    sync::Barrier,
    thread,
};

use rustix::process::{Resource, Rlimit, setrlimit};

use super::*;

/// What a process exits with that has done all of its deed.
const DONE: i32 = 42;

const ALONE: &str = "KEYSTEAD_TEST_ALONE";

/// Does a deed in a process of its own. The deed is a closure of the test itself, whose name it has.
pub(in crate::process) fn alone<F: FnOnce()>(deed: F) -> Output {
    rerun(type_name::<F>(), deed)
}

/// Runs this program once more, for nothing but the test with a closure of this type, in which the deed is done.
pub(in crate::process) fn rerun(closure: &str, deed: impl FnOnce()) -> Output {
    if env::var_os(ALONE).is_some() {
        deed();
        exit(DONE);
    }
    let test = closure.split_once("::").unwrap().1.strip_suffix("::{{closure}}").unwrap();
    let arguments = ["--exact", test, "--nocapture", "--test-threads=1"];
    Command::new(env::current_exe().unwrap()).args(arguments).env(ALONE, "1").output().unwrap()
}

/// Looks that a deed was done to its end.
pub(in crate::process) fn is_done(output: &Output) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(DONE), "{}\n{out}\n{err}", output.status);
}

/// How a process ends by a deed, as the host tells it.
fn death<F: FnOnce()>(deed: F) -> Death {
    let output = rerun(type_name::<F>(), || {
        setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) }).unwrap();
        report_crashes().unwrap();
        deed();
    });
    let crash = output.stderr.split(|byte| *byte == b'\n').find_map(parse);
    Death::new(output.status, crash, Some("signing".to_owned()))
}

fn read_nowhere() {
    // SAFETY: not at all: that is the point.
    black_box(unsafe { *black_box(std::ptr::without_provenance::<u64>(0x18)) });
}

fn overflow(depth: u64) -> u64 {
    let room = black_box([depth; 64]);
    if depth == 0 { 0 } else { overflow(depth - 1) + room[0] }
}

#[test]
fn a_bad_address_is_told_with_the_code_that_used_it() {
    let death = death(|| {
        read_nowhere();
        exit(0);
    });
    let told = death.to_string();
    let module = env::current_exe().unwrap().file_name().unwrap().to_str().unwrap().to_owned();
    assert!(told.starts_with(&format!("killed by SIGSEGV at 0x18 in {module}+0x")), "{told}");
    assert!(told.ends_with(", while signing") && !told.contains("stack"), "{told}");
}

#[test]
fn the_offset_is_that_of_the_modules_own_addresses() {
    let output = alone(|| {
        report_crashes().unwrap();
        let function = read_nowhere as *const c_void;
        // SAFETY: all zeros is a value of it, and `dladdr` writes to no more.
        let base = unsafe {
            let mut info: libc::Dl_info = zeroed();
            libc::dladdr(function, &raw mut info);
            info.dli_fbase
        };
        println!("\nfunction {}", function as usize - base as usize);
        read_nowhere();
    });
    let out = String::from_utf8(output.stdout).unwrap();
    let function: u64 = out.lines().find_map(|line| line.strip_prefix("function ")?.parse().ok()).unwrap();
    let crash = output.stderr.split(|byte| *byte == b'\n').find_map(parse).unwrap();
    let (_, offset) = crash.place.unwrap();
    assert!((function..function + 512).contains(&offset), "{offset:#x} in a function at {function:#x}");
}

#[test]
fn a_jump_to_nowhere_is_in_no_module() {
    let death = death(|| {
        // SAFETY: not at all: that is the point.
        unsafe { std::mem::transmute::<usize, extern "C" fn()>(black_box(0x10))() };
    });
    assert_eq!(death.to_string(), "killed by SIGSEGV at 0x10, while signing");
}

#[test]
fn an_abort_has_no_address() {
    let death = death(|| std::process::abort());
    assert!(death.crash.is_some(), "{death}");
    assert_eq!(death.to_string(), "aborted (SIGABRT), while signing");
}

#[test]
fn a_signal_that_was_sent_has_no_address() {
    // SAFETY: raising a signal.
    let death = death(|| _ = unsafe { libc::raise(libc::SIGBUS) });
    assert!(death.crash.is_some(), "{death}");
    assert_eq!(death.to_string(), "killed by SIGBUS, while signing");
}

#[test]
fn a_trap_is_told_and_ends_the_process() {
    let death = death(|| {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a breakpoint changes nothing.
        unsafe {
            std::arch::asm!("int3");
        }
        #[cfg(target_arch = "aarch64")]
        // SAFETY: as above.
        unsafe {
            std::arch::asm!("brk #0");
        }
    });
    let told = death.to_string();
    assert!(death.crash.is_some() && told.starts_with("killed by SIGTRAP"), "{told}");
}

#[test]
fn a_full_stack_is_told_where_the_thread_is_one_of_ours() {
    let death = death(|| {
        let thread = thread::Builder::new().stack_size(256 << 10).spawn(|| black_box(overflow(u64::MAX)));
        thread.unwrap().join().unwrap();
    });
    let told = death.to_string();
    assert!(told.starts_with("killed by SIGSEGV at 0x"), "{told}");
    assert!(told.ends_with(" (its stack is full), while signing"), "{told}");
}

#[test]
fn many_that_fail_at_once_leave_a_whole_line() {
    let death = death(|| {
        let start = Barrier::new(16);
        thread::scope(|scope| {
            for _ in 0..16 {
                scope.spawn(|| {
                    start.wait();
                    read_nowhere();
                });
            }
        });
    });
    assert!(death.to_string().starts_with("killed by SIGSEGV at 0x18 in "), "{death}");
}

#[test]
fn an_exit_is_told_with_its_status() {
    assert_eq!(death(|| exit(0)).to_string(), "exited with status 0, while signing");
    assert_eq!(Death::new(ExitStatus::from_raw(7 << 8), None, None).to_string(), "exited with status 7");
}

#[test]
fn a_line_begins_anew_after_a_begun_one() {
    let output = alone(|| {
        report_crashes().unwrap();
        eprint!("a begun line");
        std::process::abort();
    });
    let lines: Vec<_> = output.stderr.split(|byte| *byte == b'\n').collect();
    let begun = lines.iter().position(|line| line.ends_with(b"a begun line"));
    assert!(begun.is_some_and(|begun| parse(lines[begun + 1]).is_some()), "{output:?}");
}

#[test]
fn a_handler_of_the_plugins_own_takes_its_place() {
    extern "C" fn own(_signal: c_int) {
        // SAFETY: `_exit` may be called by a handler.
        unsafe { libc::_exit(9) };
    }
    let death = death(|| {
        // SAFETY: the handler does nothing but what it may.
        unsafe { libc::signal(libc::SIGABRT, own as *const () as usize) };
        std::process::abort();
    });
    assert_eq!(death.to_string(), "exited with status 9, while signing");
}

#[test]
fn what_a_plugin_writes_is_tamed_and_not_believed() {
    let line = [MARKER, b"signal=b address=0 module=\x1b[31m\xff"].concat();
    let crash = parse(&line).unwrap();
    assert_eq!(crash.place, None, "a module without an offset");
    let line = [MARKER, b"signal=b offset=10 module=\x1b[31m", &[b'x'; 5000]].concat();
    let crash = parse(&line).unwrap();
    let told = crash.to_string();
    assert!(told.starts_with(" in \\u{1b}[31mxxx") && told.len() < 400, "{told}");
    assert_eq!(Death::new(ExitStatus::from_raw(9), Some(crash), None).to_string(), "killed by SIGKILL");
    for line in
        ["", "signal=", "signal=zz", "signal=ffffffffffffffff", "signal=11111111111111111", "module=x"]
    {
        assert_eq!(parse(&[MARKER, line.as_bytes()].concat()), None, "{line}");
    }
    assert_eq!(parse(b"another line"), None);
    let full = parse(&[MARKER, b"signal=b address=ffffffffffffffff stack=ffffffffffffffff"].concat());
    assert!(full.unwrap().to_string().starts_with(" at 0xffffffffffffffff"));
}

#[test]
fn an_offset_counts_from_where_the_file_begins() {
    let maps = b"1000-2000 r--p 00000000 fe:01 12     /opt/a lib/libone.so\n\
        2000-3000 r-xp 00001000 fe:01 12     /opt/a lib/libone.so\n\
        3000-4000 rw-p 00000000 00:00 0 \n\
        5000-6000 r-xp 00003000 fe:01 13     /opt/libtwo.so (deleted)\n\
        7000-8000 r-xp 00000000 00:00 0      [vdso]\n";
    let found = |counter| {
        let mut read = Maps::default();
        let offset = maps.iter().find_map(|byte| read.take(*byte, counter));
        offset.map(|offset| (String::from_utf8(read.mapping.name().to_vec()).unwrap(), offset))
    };
    assert_eq!(found(0x2fff), Some(("libone.so".to_owned(), 0x1fff)));
    assert_eq!(found(0x3000), Some((String::new(), 0)));
    assert_eq!(found(0x5010), Some(("libtwo.so (deleted)".to_owned(), 0x10)));
    assert_eq!(found(0x7001), Some(("[vdso]".to_owned(), 1)));
    assert_eq!(found(0x4fff), None);
}
