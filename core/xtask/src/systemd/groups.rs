//! Control groups of a machine's own, where no systemd on this system makes them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::failure::{Failure, Result};
use crate::patience;

/// How long processes that were killed may take to leave their group.
const PATIENCE: Duration = Duration::from_secs(2);
/// Where control groups are.
const ROOT: &str = "/sys/fs/cgroup";

/// A group for one machine in each hierarchy that its systemd works with. They go when this does.
pub(super) struct ControlGroups(Vec<PathBuf>);

impl ControlGroups {
    /// Makes the groups beside this process; two machines in one would end each other's processes. None at all where
    /// systemd runs this system, since systemd-nspawn then asks it for a scope.
    pub(super) fn create(name: &str) -> Result<Self> {
        let mut groups = Self(Vec::new());
        if is_run_by_systemd() {
            return Ok(groups);
        }
        let own = Path::new("/proc/self/cgroup");
        let own = fs::read_to_string(own).map_err(|error| Failure::file("read", own, &error))?;
        for group in own.lines().filter_map(folder_of).map(|folder| folder.join(name)) {
            fs::create_dir(&group).map_err(|error| Failure::file("make", &group, &error))?;
            groups.0.push(group);
        }
        Ok(groups)
    }

    /// Where they are.
    pub(super) fn folders(&self) -> &[PathBuf] {
        &self.0
    }
}

impl Drop for ControlGroups {
    fn drop(&mut self) {
        for group in &self.0 {
            // What still holds processes after that time can't be removed.
            let _ = patience::wait_for(PATIENCE, || Ok(remove(group).ok()));
        }
    }
}

/// Whether systemd runs this system: what `sd_booted(3)` looks at.
pub(super) fn is_run_by_systemd() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

/// The folder of this process's group, by a line of `/proc/self/cgroup` about a hierarchy that systemd works with: the
/// unified one, and its own of version 1.
fn folder_of(line: &str) -> Option<PathBuf> {
    let mut parts = line.splitn(3, ':');
    let (number, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
    let hierarchies: &[&str] = match (number, controllers) {
        ("0", "") => &["unified", ""],
        (_, "name=systemd") => &["systemd"],
        _ => return None,
    };
    let folders = hierarchies
        .iter()
        .map(|hierarchy| Path::new(ROOT).join(hierarchy).join(path.trim_start_matches('/')));
    folders.into_iter().find(|folder| folder.join("cgroup.procs").exists())
}

/// Removes a group and those within it. Only the folders can be removed; the files in them go with them.
fn remove(group: &Path) -> io::Result<()> {
    for entry in fs::read_dir(group)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove(&entry.path())?;
        }
    }
    fs::remove_dir(group)
}
