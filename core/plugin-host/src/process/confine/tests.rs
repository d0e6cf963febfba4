//! What a confined process can and can't do, each in a process of its own.

use std::{
    any::type_name,
    env,
    io::{BufRead, BufReader},
    os::fd::IntoRawFd,
    process::{Command, Stdio, id},
    sync::Barrier,
    thread,
    time::Duration,
};

use rustix::process::{dumpable_behavior, parent_process_death_signal};

use super::*;
use crate::process::crash::tests::{alone, is_done, rerun};

const MIB: usize = 1 << 20;

fn plan() -> Confinement {
    let parent = getppid().unwrap().as_raw_nonzero().get().cast_unsigned();
    Confinement { identity: None, memory: 512 << 20, core_dumps: false, parent }
}

/// Does a deed in a process that is confined, and looks that it was done to its end.
fn confined<F: FnOnce()>(deed: F) {
    is_done(&rerun(type_name::<F>(), || {
        assert_eq!(confine(&plan()), Ok(Confined { seccomp: true }));
        deed();
    }));
}

/// What a system call failed with.
fn errno<T: Into<i64>>(result: T) -> i32 {
    assert_eq!(result.into(), -1);
    io::Error::last_os_error().raw_os_error().unwrap()
}

/// Ends a process that shouldn't be there.
fn parent_of(child: i64) -> i64 {
    if child == 0 {
        // SAFETY: nothing of this process is used any more.
        unsafe { libc::_exit(1) };
    }
    child
}

fn status(name: &str) -> String {
    let status = fs::read_to_string("/proc/thread-self/status").unwrap();
    status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned()
}

#[test]
fn it_starts_no_process_by_any_call() {
    confined(|| {
        // SAFETY: none of the calls does anything but fail.
        unsafe {
            assert_eq!(errno(parent_of(libc::fork().into())), libc::EPERM);
            let cloned = libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0);
            assert_eq!(errno(parent_of(cloned)), libc::EPERM);
            assert_eq!(errno(libc::syscall(libc::SYS_clone3, 0, 0)), libc::ENOSYS);
            #[cfg(target_arch = "x86_64")]
            assert_eq!(errno(libc::syscall(libc::SYS_getpid | 0x4000_0000)), libc::EPERM, "x32");
        }
        let error = Command::new("/bin/true").status().unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EPERM));
    });
}

#[test]
fn it_runs_no_program() {
    confined(|| {
        let (none, program) = (std::ptr::null(), c"/bin/true".as_ptr());
        // SAFETY: path and arguments end with 0.
        let result = unsafe { libc::execve(program, [program, none].as_ptr(), [none].as_ptr()) };
        assert_eq!(errno(result), libc::EPERM);
    });
}

#[test]
fn it_signals_nobody_but_itself() {
    confined(|| {
        let parent = getppid().unwrap().as_raw_nonzero().get();
        let own = id().cast_signed();
        // SAFETY: signals that do nothing, and owners of a descriptor of this process.
        unsafe {
            for other in [parent, 0, -1, -own] {
                assert_eq!(errno(libc::kill(other, 0)), libc::EPERM, "{other}");
            }
            assert_eq!(errno(libc::syscall(libc::SYS_tgkill, parent, parent, 0)), libc::EPERM);
            assert_eq!(errno(libc::syscall(libc::SYS_pidfd_open, parent, 0)), libc::EPERM);
            assert_eq!(errno(libc::fcntl(1, libc::F_SETOWN, parent)), libc::EPERM);
            assert_eq!(errno(libc::fcntl(1, 10, libc::SIGKILL)), libc::EPERM);
            assert_eq!(libc::kill(own, 0), 0);
            assert_eq!(libc::fcntl(1, libc::F_SETOWN, own), 0);
        }
    });
}

#[test]
fn it_looks_into_nobody_and_changes_nothing_of_the_system() {
    confined(|| {
        let parent = getppid().unwrap().as_raw_nonzero().get();
        let null = std::ptr::null_mut::<u8>();
        // SAFETY: none of the calls does anything but fail, or answer what is set.
        unsafe {
            assert_eq!(errno(libc::ptrace(libc::PTRACE_SEIZE, parent, null, null)), libc::EPERM);
            assert_eq!(errno(libc::syscall(libc::SYS_prlimit64, parent, 0, null, null)), libc::EPERM);
            assert_eq!(errno(libc::unshare(libc::CLONE_NEWUSER)), libc::EPERM);
            assert_eq!(errno(libc::syscall(libc::SYS_io_uring_setup, 1, null)), libc::EPERM);
            assert_eq!(errno(libc::syscall(libc::SYS_setuid, libc::getuid())), libc::EPERM);
            assert_eq!(errno(libc::prctl(libc::PR_SET_PDEATHSIG, 0)), libc::EPERM);
            assert_eq!(errno(libc::personality(0)), libc::EPERM);
            assert_eq!(libc::personality(0xffff_ffff), 0);
        }
        assert_eq!(getrlimit(Resource::Core).current, Some(0), "its own limits can be asked for");
    });
}

#[test]
fn it_aborts_as_ever() {
    let output = alone(|| {
        confine(&plan()).unwrap();
        std::process::abort();
    });
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&output.status), Some(libc::SIGABRT));
}

#[test]
fn memory_without_end_fails_to_be_allocated() {
    confined(|| {
        let allocated = |len: usize| Vec::<u8>::new().try_reserve_exact(len);
        assert!(allocated(256 * MIB).is_ok());
        assert!(allocated(600 * MIB).is_err());
    });
    is_done(&alone(|| assert!(Vec::<u8>::new().try_reserve_exact(600 * MIB).is_ok(), "without a limit")));
}

#[test]
fn threads_run_and_the_stacks_of_64_fit() {
    is_done(&alone(|| {
        confine(&Confinement { memory: 256 << 20, ..plan() }).unwrap();
        let all = Barrier::new(64);
        let ran = thread::scope(|scope| {
            let threads: Vec<_> = (0..64)
                .map(|_| {
                    thread::Builder::new().stack_size(2 * MIB).spawn_scoped(scope, || all.wait()).unwrap()
                })
                .collect();
            threads.into_iter().filter_map(|thread| thread.join().ok()).count()
        });
        assert_eq!(ran, 64);
    }));
}

#[test]
fn it_shows_its_memory_to_nobody() {
    confined(|| {
        assert_eq!(dumpable_behavior().unwrap(), DumpableBehavior::NotDumpable);
        assert_eq!(getrlimit(Resource::Core).maximum, Some(0));
        assert_eq!(status("NoNewPrivs:"), "1");
        assert_eq!(status("Seccomp:"), "2");
        assert!(getrlimit(Resource::Nofile).current.unwrap() <= DESCRIPTORS);
    });
    is_done(&alone(|| {
        confine(&Confinement { core_dumps: true, ..plan() }).unwrap();
        assert_eq!(dumpable_behavior().unwrap(), DumpableBehavior::Dumpable);
    }));
}

#[test]
fn it_has_no_descriptor_that_it_was_left() {
    is_done(&alone(|| {
        let left = fs::File::open("/").unwrap().into_raw_fd();
        // SAFETY: duplicating, and asking about, a descriptor that nobody owns.
        let far = unsafe { libc::fcntl(left, libc::F_DUPFD, 200) };
        assert!(far >= 200);
        confine(&plan()).unwrap();
        for descriptor in [left, far] {
            // SAFETY: as above.
            assert_eq!(errno(unsafe { libc::fcntl(descriptor, libc::F_GETFD) }), libc::EBADF);
        }
        println!("and what it writes arrives");
    }));
}

#[test]
fn it_ends_with_the_process_that_started_it() {
    const SECOND: &str = "KEYSTEAD_TEST_SECOND";
    let output = alone(|| {
        if env::var_os(SECOND).is_some() {
            confine(&plan()).unwrap();
            assert_eq!(parent_process_death_signal().unwrap(), Some(Signal::KILL));
            println!("\nconfined");
            thread::sleep(Duration::from_secs(20));
            eprintln!("outlived");
            return;
        }
        let mut second = Command::new(env::current_exe().unwrap());
        second.args(env::args_os().skip(1)).env(SECOND, "1").stdout(Stdio::piped());
        let mut second = second.spawn().unwrap();
        let mut lines = BufReader::new(second.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap() == "confined"));
        assert_eq!(second.try_wait().unwrap(), None);
    });
    // The second process has this one's standard error, so that all of it is here only when both have ended.
    is_done(&output);
    assert!(!String::from_utf8_lossy(&output.stderr).contains("outlived"));
}

#[test]
fn it_does_not_start_where_the_server_is_gone() {
    is_done(&alone(|| {
        let error = confine(&Confinement { parent: id(), ..plan() }).unwrap_err();
        assert_eq!(error, format!("the server that started it, process {}, is gone", id()));
    }));
}

#[test]
fn it_becomes_another_user_where_the_server_is_root() {
    is_done(&alone(|| {
        let root = geteuid().is_root();
        let identity = Identity { uid: 54_321, gid: 54_322, groups: vec![54_323, 54_324] };
        let result = confine(&Confinement { identity: Some(identity.clone()), ..plan() });
        if root {
            result.unwrap();
            assert_eq!(status("Uid:"), ["54321"; 4].join("\t"));
            assert_eq!(status("Gid:"), ["54322"; 4].join("\t"));
            assert_eq!(status("Groups:"), "54323 54324");
            assert_eq!(status("CapPrm:"), "0000000000000000");
            assert_eq!(status("CapEff:"), "0000000000000000");
            assert_eq!(parent_process_death_signal().unwrap(), Some(Signal::KILL), "set after the change");
            assert_eq!(dumpable_behavior().unwrap(), DumpableBehavior::NotDumpable);
        } else {
            let error = result.unwrap_err();
            assert!(error.starts_with("can't become user 54321 with group 54322"), "{error}");
            assert!(error.contains("isn't run as root"), "{error}");
        }
    }));
}

#[test]
fn it_may_be_told_to_become_who_it_is() {
    is_done(&alone(|| {
        let groups = rustix::process::getgroups().unwrap().into_iter().map(Gid::as_raw).collect();
        let identity = Identity { uid: geteuid().as_raw(), gid: getegid().as_raw(), groups };
        confine(&Confinement { identity: Some(identity), ..plan() }).unwrap();
    }));
}

#[test]
fn users_and_groups_are_found_by_name_and_number() {
    let groups = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let root = resolve(Some("root"), &[]).unwrap().unwrap();
    assert_eq!((root.uid, root.gid), (0, 0));
    assert!(root.groups.contains(&0), "{root:?}");
    assert_eq!(resolve(Some("0"), &[]), Ok(Some(root)));
    let named = resolve(Some("root"), &groups(&["root", "4711"])).unwrap().unwrap();
    assert_eq!(named.groups, [0, 4711]);
    let own = resolve(None, &groups(&["4711"])).unwrap().unwrap();
    assert_eq!((own.uid, own.gid), (geteuid().as_raw(), getegid().as_raw()));
    assert_eq!(resolve(None, &[]), Ok(None));
    let unknown = "there is no user `no-such-user` on this system";
    assert_eq!(resolve(Some("no-such-user"), &[]), Err(unknown.to_owned()));
    let unknown = "there is no group `no-such-group` on this system";
    assert_eq!(resolve(None, &groups(&["no-such-group"])), Err(unknown.to_owned()));
    let unknown = "there is no user `4294967000` on this system";
    assert_eq!(resolve(Some("4294967000"), &[]), Err(unknown.to_owned()), "its group isn't known");
}
