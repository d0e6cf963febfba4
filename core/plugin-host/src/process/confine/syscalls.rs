//! The system calls that a process for plugins is denied.
//!
//! A list of what is denied, not of what is allowed: what a vendor's library needs is known to nobody, but none signs
//! with a mount, a debugger or a program that it starts. Because it starts none, none outlives the server.

use std::{collections::BTreeMap, env::consts::ARCH, io, process};

use libc::c_long;
use seccompiler::{
    BpfProgram, BpfProgramRef, SeccompAction,
    SeccompCmpArgLen::Dword,
    SeccompCmpOp::{self, Eq, MaskedEq, Ne},
    SeccompCondition, SeccompFilter, SeccompRule, TargetArch, sock_filter,
};

/// Denied whatever their arguments are.
const DENIED: &[c_long] = &[
    // Programs and processes.
    #[cfg(target_arch = "x86_64")]
    libc::SYS_fork,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_vfork,
    libc::SYS_execve,
    libc::SYS_execveat,
    // What other processes have.
    libc::SYS_kcmp,
    libc::SYS_perf_event_open,
    libc::SYS_pidfd_getfd,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_send_signal,
    libc::SYS_process_madvise,
    libc::SYS_process_mrelease,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_ptrace,
    // Who it is.
    libc::SYS_capset,
    libc::SYS_setfsgid,
    libc::SYS_setfsuid,
    libc::SYS_setgid,
    libc::SYS_setgroups,
    libc::SYS_setns,
    libc::SYS_setregid,
    libc::SYS_setresgid,
    libc::SYS_setresuid,
    libc::SYS_setreuid,
    libc::SYS_setuid,
    libc::SYS_unshare,
    // Files by ways around their paths, and what they are mounted on.
    libc::SYS_chroot,
    libc::SYS_fanotify_init,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fsopen,
    libc::SYS_fspick,
    libc::SYS_mount,
    libc::SYS_mount_setattr,
    libc::SYS_move_mount,
    libc::SYS_open_by_handle_at,
    libc::SYS_open_tree,
    libc::SYS_pivot_root,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    libc::SYS_umount2,
    // System calls that this list doesn't see.
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_io_uring_setup,
    // The kernel's keys, which processes share.
    libc::SYS_add_key,
    libc::SYS_keyctl,
    libc::SYS_request_key,
    // The kernel and the machine.
    libc::SYS_acct,
    libc::SYS_bpf,
    libc::SYS_clock_adjtime,
    libc::SYS_clock_settime,
    libc::SYS_delete_module,
    libc::SYS_finit_module,
    libc::SYS_init_module,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ioperm,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_iopl,
    #[cfg(target_env = "gnu")]
    libc::SYS_kexec_file_load,
    libc::SYS_kexec_load,
    libc::SYS_lookup_dcookie,
    libc::SYS_nfsservctl,
    libc::SYS_reboot,
    libc::SYS_setdomainname,
    libc::SYS_sethostname,
    libc::SYS_settimeofday,
    libc::SYS_swapoff,
    libc::SYS_swapon,
    libc::SYS_syslog,
    libc::SYS_userfaultfd,
    libc::SYS_vhangup,
];

/// Numbers from here on are those of the x32 convention on x86-64: the same calls, past every list.
const X32: u32 = 0x4000_0000;

/// What `libc` has no names for, or not of one type on all systems: commands of `fcntl` and `ioctl` that have a descriptor
/// send a signal, or that put keystrokes into a terminal.
const F_SETSIG: u32 = 10;
const F_SETOWN_EX: u32 = 15;
const FIOSETOWN: u32 = 0x8901;
const SIOCSPGRP: u32 = 0x8902;
const TIOCLINUX: u32 = 0x541c;
const TIOCSTI: u32 = 0x5412;

/// Denies them to this thread and all that it starts; `false` where the kernel can't.
pub(super) fn deny() -> Result<bool, String> {
    // No such list for this processor.
    let Ok(arch) = TargetArch::try_from(ARCH) else { return Ok(false) };
    let denied =
        denied(arch).map_err(|error| format!("the list of denied system calls is wrong: {error}"))?;
    Ok(apply(&by_number())? && apply(&denied)?)
}

/// By `prctl`: service managers deny the younger call `seccomp` to services that are confined themselves.
fn apply(program: BpfProgramRef<'_>) -> Result<bool, String> {
    let len = program.len().try_into().map_err(|_| "the list of denied system calls is too long")?;
    let filter = libc::sock_fprog { len, filter: program.as_ptr().cast_mut().cast() };
    // SAFETY: the kernel only reads the program, of the steps that it is said to have; theirs is the kernel's own layout.
    let result = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const filter) };
    match io::Error::last_os_error() {
        _ if result == 0 => Ok(true),
        error if error.raw_os_error() == Some(libc::EINVAL) => Ok(false),
        error => Err(format!("can't have system calls denied: {error}")),
    }
}

/// Answers EPERM. Calls of another processor's convention end the process.
fn denied(arch: TargetArch) -> Result<BpfProgram, seccompiler::BackendError> {
    let mut rules = judged()?;
    rules.extend(DENIED.iter().map(|number| (*number, Vec::new())));
    let errno = SeccompAction::Errno(libc::EPERM.cast_unsigned());
    SeccompFilter::new(rules, SeccompAction::Allow, errno, arch)?.try_into()
}

/// Those whose arguments decide.
fn judged() -> Result<BTreeMap<c_long, Vec<SeccompRule>>, seccompiler::BackendError> {
    let own = process::id();
    let others = || rule(&[(0, Ne, own)]);
    // 0 is whoever calls.
    let others_by_number = || rule(&[(0, Ne, own), (0, Ne, 0)]);
    Ok(BTreeMap::from([
        (libc::SYS_clone, vec![rule(&[(0, MaskedEq(libc::CLONE_THREAD.cast_unsigned().into()), 0)])?]),
        // Signals to others, which also come from a descriptor that others "own".
        (libc::SYS_kill, vec![others()?]),
        (libc::SYS_rt_sigqueueinfo, vec![others()?]),
        (libc::SYS_rt_tgsigqueueinfo, vec![others()?]),
        (libc::SYS_tgkill, vec![others()?]),
        (libc::SYS_tkill, vec![others()?]),
        (
            libc::SYS_fcntl,
            vec![
                rule(&[(1, Eq, F_SETSIG)])?,
                rule(&[(1, Eq, F_SETOWN_EX)])?,
                rule(&[(1, Eq, libc::F_SETOWN.cast_unsigned()), (2, Ne, own)])?,
            ],
        ),
        (libc::SYS_ioctl, one_of(1, [FIOSETOWN, SIOCSPGRP, TIOCLINUX, TIOCSTI])?),
        (libc::SYS_migrate_pages, vec![others_by_number()?]),
        (libc::SYS_move_pages, vec![others_by_number()?]),
        (libc::SYS_prlimit64, vec![others_by_number()?]),
        // All ones only asks.
        (libc::SYS_personality, vec![rule(&[(0, Ne, u32::MAX)])?]),
        // What this process has just decided.
        (
            libc::SYS_prctl,
            one_of(
                0,
                [libc::PR_SET_DUMPABLE, libc::PR_SET_PDEATHSIG, libc::PR_SET_PTRACER].map(i32::cast_unsigned),
            )?,
        ),
    ]))
}

/// Denies a call where all conditions on its arguments hold: which, how compared, with what.
fn rule(conditions: &[(u8, SeccompCmpOp, u32)]) -> Result<SeccompRule, seccompiler::BackendError> {
    let condition = |(index, operator, value): &(u8, SeccompCmpOp, u32)| {
        SeccompCondition::new(*index, Dword, operator.clone(), (*value).into())
    };
    SeccompRule::new(conditions.iter().map(condition).collect::<Result<_, _>>()?)
}

fn one_of<const N: usize>(
    argument: u8,
    values: [u32; N],
) -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
    values.into_iter().map(|value| rule(&[(argument, Eq, value)])).collect()
}

/// What isn't judged by a rule. `clone3` hides its arguments in memory: it answers ENOSYS, as a kernel does that doesn't
/// have it, so that the C library takes `clone`. The x32 convention is denied as a whole.
#[expect(clippy::cast_possible_truncation, reason = "the numbers are small, of types that vary")]
fn by_number() -> BpfProgram {
    const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const AT_LEAST: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;
    const ANSWER: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    const CLONE3: u32 = libc::SYS_clone3 as u32;
    let error = |errno: i32| libc::SECCOMP_RET_ERRNO | errno.cast_unsigned();
    let step = |code, jt, k| sock_filter { code, jt, jf: 0, k };
    vec![
        step(LOAD, 0, 0), // the number is what `seccomp_data` begins with
        step(EQUAL, 2, CLONE3),
        step(AT_LEAST, 2, X32),
        step(ANSWER, 0, libc::SECCOMP_RET_ALLOW),
        step(ANSWER, 0, error(libc::ENOSYS)),
        step(ANSWER, 0, error(libc::EPERM)),
    ]
}
