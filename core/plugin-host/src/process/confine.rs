//! What a process for plugins does to itself before any of a plugin's code runs: another user, limits, and system calls
//! that are denied.
//!
//! There is no Landlock in it. A vendor's library opens what only its manual knows (devices, sockets, configuration below
//! `/opt`, locks below `/var`), so that a policy would either allow almost everything or break some of them; the file
//! modes of the process's own user say the same, and the operator knows them.

mod syscalls;

use std::{collections::BTreeSet, fs, io};

use nix::unistd::{Group, User};
use rustix::{
    process::{
        DumpableBehavior, Resource, Rlimit, Signal, getegid, geteuid, getppid, getrlimit,
        set_dumpable_behavior, set_parent_process_death_signal, setrlimit,
    },
    thread::{
        CapabilitySet, CapabilitySets, Gid, Uid, capabilities, set_capabilities, set_no_new_privs,
        set_thread_groups, set_thread_res_gid, set_thread_res_uid,
    },
};
use serde::{Deserialize, Serialize};

/// How many descriptors it may have. The server's own limit is raised as far as it goes, but libraries walk through all
/// that there may be, or put them into an `fd_set`.
const DESCRIPTORS: u64 = 4096;

/// What a process for plugins is to be held to.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(super) struct Confinement {
    /// Whom it becomes; it stays who it is without one.
    pub(super) identity: Option<Identity>,
    /// The most memory that it may write to, in bytes. What counts is the heap, the writable data of libraries, and the
    /// stacks of all threads in full, used or not (64 threads of 2 MiB: 128 MiB); what doesn't is address space that is
    /// only reserved, shared memory, and files that are mapped to be read.
    pub(super) memory: u64,
    /// Whether it may leave core dumps, and be looked into by other processes of its user.
    pub(super) core_dumps: bool,
    /// The process that started it, and that it doesn't outlive. The kernel means the thread that did: it must live as
    /// long as that process.
    pub(super) parent: u32,
}

/// A user with groups, as the kernel knows them.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(super) struct Identity {
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// The supplementary groups.
    pub(super) groups: Vec<u32>,
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Confined {
    /// Whether system calls are denied. Some kernels can't.
    pub(super) seccomp: bool,
}

/// Confines this process for the rest of its life. To be called while it has one thread.
pub(super) fn confine(confinement: &Confinement) -> Result<Confined, String> {
    close_inherited().map_err(|error| format!("can't close the descriptors it was started with: {error}"))?;
    limit(confinement).map_err(|error| format!("can't set its resource limits: {error}"))?;
    if let Some(identity) = &confinement.identity {
        identity.take_on()?;
    }
    // After the change of the user, which resets both of these.
    hide(confinement.core_dumps).map_err(|error| format!("can't decide about its core dumps: {error}"))?;
    die_with(confinement.parent)?;
    set_no_new_privs(true).map_err(|error| format!("can't renounce new privileges: {error}"))?;
    Ok(Confined { seccomp: syscalls::deny()? })
}

/// Closes every descriptor but the three standard ones. Whoever started the server may have left it some that aren't
/// closed on execution.
fn close_inherited() -> io::Result<()> {
    // SAFETY: nothing in this process owns a descriptor yet but the standard ones.
    if unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0) } == 0 {
        return Ok(());
    }
    // Linux before 5.9. The list is complete before the first is closed; its own descriptor is closed by then.
    let open: Vec<i32> = fs::read_dir("/proc/self/fd")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|descriptor| *descriptor > 2)
        .collect();
    for descriptor in open {
        // SAFETY: as above.
        unsafe { libc::close(descriptor) };
    }
    Ok(())
}

fn limit(confinement: &Confinement) -> io::Result<()> {
    let capped = |resource, most: u64| {
        let maximum = getrlimit(resource).maximum.map_or(most, |maximum| maximum.min(most));
        Rlimit { current: Some(maximum), maximum: Some(maximum) }
    };
    setrlimit(Resource::Data, capped(Resource::Data, confinement.memory))?;
    if !confinement.core_dumps {
        setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    }
    let soft = capped(Resource::Nofile, DESCRIPTORS).current;
    Ok(setrlimit(Resource::Nofile, Rlimit { current: soft, ..getrlimit(Resource::Nofile) })?)
}

/// Who isn't dumpable isn't debugged by other processes of its user either.
fn hide(core_dumps: bool) -> io::Result<()> {
    Ok(set_dumpable_behavior(match core_dumps {
        true => DumpableBehavior::Dumpable,
        false => DumpableBehavior::NotDumpable,
    })?)
}

fn die_with(parent: u32) -> Result<(), String> {
    set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(|error| format!("can't be ended with the server: {error}"))?;
    // It may have died before.
    let actual = getppid().map(|pid| pid.as_raw_nonzero().get().cast_unsigned());
    if actual != Some(parent) {
        return Err(format!("the server that started it, process {parent}, is gone"));
    }
    Ok(())
}

impl Identity {
    fn take_on(&self) -> Result<(), String> {
        if !self.is_taken_on()? {
            self.change().map_err(|error| {
                format!(
                    "can't become user {} with group {} and groups {:?}: {error}; a server that isn't run as root \
                     can't change the user and the groups of its processes",
                    self.uid, self.gid, self.groups
                )
            })?;
        }
        if self.uid != 0 {
            give_up_capabilities().map_err(|error| format!("can't give up its capabilities: {error}"))?;
        }
        match self.is_taken_on()? {
            true => Ok(()),
            false => Err(format!("is not user {} with its groups after the change to it", self.uid)),
        }
    }

    /// Changes the one thread there is.
    fn change(&self) -> io::Result<()> {
        let groups: Vec<Gid> = self.groups.iter().map(|group| Gid::from_raw(*group)).collect();
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        set_thread_groups(&groups)?;
        set_thread_res_gid(gid, gid, gid)?;
        Ok(set_thread_res_uid(uid, uid, uid)?)
    }

    /// Whether the kernel says so: real, effective, saved and file system ids.
    fn is_taken_on(&self) -> Result<bool, String> {
        let status = fs::read_to_string("/proc/thread-self/status")
            .map_err(|error| format!("can't read who it is in /proc/thread-self/status: {error}"))?;
        let ids = |name: &str| -> BTreeSet<u32> {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
            line.split_whitespace().filter_map(|id| id.parse().ok()).collect()
        };
        Ok(ids("Uid:") == BTreeSet::from([self.uid])
            && ids("Gid:") == BTreeSet::from([self.gid])
            && ids("Groups:") == self.groups.iter().copied().collect())
    }
}

/// They are kept over a change from one ordinary user to another. Nothing is called where there are none: who confines
/// the server may have denied the call.
fn give_up_capabilities() -> io::Result<()> {
    let none = CapabilitySet::empty();
    let none = CapabilitySets { effective: none, permitted: none, inheritable: none };
    if capabilities(None)? != none {
        set_capabilities(None, none)?;
    }
    Ok(())
}

/// Whom a process becomes, from names or numbers: the user with its group, and the given groups, or else the user's
/// own. Nothing where neither is given.
pub(super) fn resolve(user: Option<&str>, groups: &[String]) -> Result<Option<Identity>, String> {
    let named = groups.iter().map(|group| gid_of(group)).collect::<Result<Vec<_>, _>>()?;
    let Some(name) = user else {
        let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
        return Ok((!named.is_empty()).then_some(Identity { uid, gid, groups: named }));
    };
    let user = user_of(name)?;
    let groups = match named.is_empty() {
        true => {
            groups_of(&user).map_err(|error| format!("can't look up the groups of user `{name}`: {error}"))?
        }
        false => named,
    };
    Ok(Some(Identity { uid: user.uid.as_raw(), gid: user.gid.as_raw(), groups }))
}

fn user_of(name: &str) -> Result<User, String> {
    let numbered = || match name.parse() {
        Ok(uid) => User::from_uid(nix::unistd::Uid::from_raw(uid)),
        Err(_) => Ok(None),
    };
    let found = User::from_name(name).and_then(|user| user.map_or_else(numbered, |user| Ok(Some(user))));
    found
        .map_err(|error| format!("can't look up user `{name}`: {error}"))?
        .ok_or_else(|| format!("there is no user `{name}` on this system"))
}

fn gid_of(name: &str) -> Result<u32, String> {
    let found = Group::from_name(name).map_err(|error| format!("can't look up group `{name}`: {error}"))?;
    found
        .map(|group| group.gid.as_raw())
        .or_else(|| name.parse().ok())
        .ok_or_else(|| format!("there is no group `{name}` on this system"))
}

fn groups_of(user: &User) -> io::Result<Vec<u32>> {
    let name = std::ffi::CString::new(user.name.as_str())?;
    let groups = nix::unistd::getgrouplist(&name, user.gid)?;
    Ok(groups.into_iter().map(nix::unistd::Gid::as_raw).collect())
}

#[cfg(test)]
mod tests;
