//! The files of a machine: this system's own `/usr` with something laid over it, and everything else its own.

use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::failure::{Failure, Result};
use crate::file;

/// A machine's identity. One without counts as new, and systemd would enable whatever this system has installed.
const MACHINE_ID: &str = "6b657973746561642d746573742d3031";

/// The files of a machine, in a folder that goes when this does.
pub(super) struct Files(TempDir);

/// Who may do what with a file.
#[derive(Clone, Copy)]
pub(super) struct Access {
    pub(super) owner: u32,
    pub(super) group: u32,
    pub(super) mode: u32,
}

impl Access {
    /// What everybody reads.
    pub(super) const PUBLIC: Self = Self { owner: 0, group: 0, mode: 0o644 };
    /// What everybody runs.
    pub(super) const PROGRAM: Self = Self { owner: 0, group: 0, mode: 0o755 };

    /// The owner first: changing it clears bits of the mode.
    fn apply(self, path: &Path) -> io::Result<()> {
        chown(path, Some(self.owner), Some(self.group))?;
        fs::set_permissions(path, fs::Permissions::from_mode(self.mode))
    }
}

impl Files {
    /// Makes what systemd needs to boot, and no more.
    pub(super) fn create() -> Result<Self> {
        let files = Self(file::temporary_folder("systemd")?);
        for name in ["dev", "etc/systemd/system", "proc", "root", "run", "sys", "tmp", "usr", "var"] {
            make_folder(&files.root().join(name))?;
        }
        make_folder(&files.over_usr())?;
        for name in ["bin", "lib", "lib64", "sbin"] {
            files.link(&format!("/{name}"), &format!("usr/{name}"))?;
        }
        files.link("/etc/systemd/system/default.target", "/usr/lib/systemd/system/basic.target")?;
        files.copy(Path::new("/usr/lib/os-release"), "/etc/os-release", Access::PUBLIC)?;
        files.write("/etc/machine-id", MACHINE_ID, Access::PUBLIC)?;
        files.write("/etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files\n", Access::PUBLIC)?;
        files.write("/etc/hosts", "127.0.0.1 localhost\n::1 localhost\n", Access::PUBLIC)?;
        Ok(files)
    }

    /// The root of the machine; without its `/usr`.
    pub(super) fn root(&self) -> PathBuf {
        self.0.path().join("root")
    }

    /// What the machine sees in `/usr` beside what this system has there.
    pub(super) fn over_usr(&self) -> PathBuf {
        self.0.path().join("usr")
    }

    /// Where systemd-nspawn writes what it has to say.
    pub(super) fn console(&self) -> PathBuf {
        self.0.path().join("console")
    }

    /// Where a file of the machine is here.
    pub(super) fn path(&self, path: &str) -> PathBuf {
        match path.strip_prefix("/usr/") {
            Some(path) => self.over_usr().join(path),
            None => self.root().join(path.trim_start_matches('/')),
        }
    }

    /// Writes a file of the machine; whoever looks finds either nothing or all of it.
    pub(super) fn write(&self, path: &str, text: &str, access: Access) -> Result<()> {
        self.place(path, access, |new| fs::write(new, text))
    }

    /// Copies a file into the machine.
    pub(super) fn copy(&self, from: &Path, path: &str, access: Access) -> Result<()> {
        self.place(path, access, |new| fs::copy(from, new).map(drop))
    }

    /// Makes a folder, and those above it, for everybody to read.
    pub(super) fn folder(&self, path: &str) -> Result<PathBuf> {
        let path = self.path(path);
        make_folder(&path).map(|()| path)
    }

    /// Changes who may do what with a file or folder.
    pub(super) fn give(&self, path: &str, access: Access) -> Result<()> {
        let path = self.path(path);
        access.apply(&path).map_err(|error| Failure::file("change the owner of", &path, &error))
    }

    fn place(&self, path: &str, access: Access, make: impl FnOnce(&Path) -> io::Result<()>) -> Result<()> {
        let path = self.path(path);
        make_folder(path.parent().unwrap_or(&path))?;
        let new = path.with_extension("new");
        make(&new)
            .and_then(|()| access.apply(&new))
            .and_then(|()| fs::rename(&new, &path))
            .map_err(|error| Failure::file("write", &path, &error))
    }

    fn link(&self, path: &str, target: &str) -> Result<()> {
        let path = self.path(path);
        symlink(target, &path).map_err(|error| Failure::file("make", &path, &error))
    }
}

/// Makes a folder, and those above it, that everybody may pass through, whatever the umask of whoever runs this.
fn make_folder(path: &Path) -> Result<()> {
    let missing: Vec<_> = path.ancestors().take_while(|path| !path.exists()).collect();
    missing.into_iter().rev().try_for_each(|path| {
        fs::create_dir(path)
            .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o755)))
            .map_err(|error| Failure::file("make", path, &error))
    })
}
