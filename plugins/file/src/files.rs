//! Which files hold keys, and their bytes. The rules are those of gokeyless, made explicit.

use std::{
    collections::HashSet,
    ffi::OsStr,
    fs::{self, File, Metadata},
    hash::{DefaultHasher, Hash, Hasher},
    io::{self, Read},
    os::unix::{
        ffi::OsStrExt,
        fs::{MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
};

use keystead_plugin_api::{Code, Error, Finding, Severity};
use rustix::fs::OFlags;
use serde::Deserialize;
use zeroize::Zeroizing;

use crate::decode::Refusal;

/// The largest file that is read, in bytes: a key of 8192 bits behind a long chain of certificates takes a tenth.
const FILE_MAX: u64 = 1 << 20;

/// Where a store's keys are.
#[derive(Debug)]
pub(crate) enum Place {
    /// A directory, searched recursively for names that end in `.key`.
    Directory(PathBuf),
    /// One file of any name.
    File(PathBuf),
}

/// What becomes of a key file that others on the machine can read or change.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Permissions {
    /// It isn't served.
    #[default]
    Refuse,
    /// It is served, with a warning.
    Warn,
}

/// The files of a place at one time.
#[derive(Debug, Default)]
pub(crate) struct Files {
    /// In lexical order, each file once.
    pub(crate) paths: Vec<PathBuf>,
    /// What was seen on the way.
    pub(crate) findings: Vec<Finding>,
    /// Differs when files, their contents, owners or modes have changed.
    pub(crate) fingerprint: u64,
}

impl Place {
    /// Looks which files there are. Costs a `stat` for each, and reads none.
    pub(crate) fn files(&self) -> Result<Files, Error> {
        let mut walk = Walk::default();
        match self {
            Self::File(path) => {
                let metadata = fs::metadata(path).map_err(|error| absent(path, &error))?;
                walk.file(path, &metadata);
            }
            Self::Directory(path) => {
                let metadata = fs::metadata(path).map_err(|error| absent(path, &error))?;
                if !metadata.is_dir() {
                    return Err(Error::invalid(format!(
                        "`{}` is not a directory; a single key goes under `file`",
                        path.display()
                    )));
                }
                walk.directory(path, &metadata).map_err(|error| absent(path, &error))?;
            }
        }
        Ok(Files { fingerprint: walk.hasher.finish(), ..walk.files })
    }
}

/// Reads a file whole; answers with a finding beside it where its permissions are too wide.
pub(crate) fn read(
    path: &Path,
    permissions: Permissions,
) -> Result<(Zeroizing<Vec<u8>>, Option<Finding>), Refusal> {
    let unreadable = |error: io::Error| {
        Refusal::new(
            code(&error),
            format!("it can't be read: {error}"),
            "the server's user must be able to read it",
        )
    };
    // A named pipe would block without NONBLOCK; a file doesn't care.
    let flags = i32::try_from((OFlags::NONBLOCK | OFlags::NOCTTY).bits()).unwrap_or(0);
    let mut file = File::options().read(true).custom_flags(flags).open(path).map_err(unreadable)?;
    let metadata = file.metadata().map_err(unreadable)?;
    let size = size(&metadata)?;
    let exposed = exposure(&metadata);
    if let (Some(refusal), Permissions::Refuse) = (&exposed, permissions) {
        return Err(Refusal { error: refusal.error.clone(), hint: refusal.hint.clone() });
    }
    // As long as the file, so that the bytes are in one place only, which is zeroed.
    let mut bytes = Zeroizing::new(vec![0; size]);
    file.read_exact(&mut bytes).map_err(unreadable)?;
    Ok((bytes, exposed.map(|refusal| finding(Severity::Warning, path, refusal))))
}

/// A finding about a path.
pub(crate) fn finding(severity: Severity, path: &Path, refusal: Refusal) -> Finding {
    Finding { severity, subject: path.display().to_string(), error: refusal.error, hint: refusal.hint }
}

fn size(metadata: &Metadata) -> Result<usize, Refusal> {
    let refuse = |what: String| Refusal::new(Code::InvalidInput, what, "put only key files here");
    if !metadata.is_file() {
        return Err(refuse("it is not a regular file".to_owned()));
    }
    usize::try_from(metadata.len())
        .ok()
        .filter(|_| metadata.len() <= FILE_MAX)
        .ok_or_else(|| refuse(format!("it has {} bytes, at most {FILE_MAX} are read", metadata.len())))
}

/// Who reads a key can be the server it stands for, and who writes it can take the server down. A group may read: that
/// is how an administrator's group, or a pod's, is given keys. Nobody but the owner may write.
fn exposure(metadata: &Metadata) -> Option<Refusal> {
    let mode = metadata.mode() & 0o7777;
    let who = match mode {
        _ if mode & 0o004 != 0 => "everybody on this machine can read it",
        _ if mode & 0o002 != 0 => "everybody on this machine can change it",
        _ if mode & 0o020 != 0 => "its group can change it",
        _ => return None,
    };
    Some(Refusal::new(
        Code::Denied,
        format!("{who} (mode {mode:04o})"),
        "chmod 0400, or 0440 for a group of readers",
    ))
}

/// A walk through directories.
#[derive(Default)]
struct Walk {
    files: Files,
    hasher: DefaultHasher,
    /// Device and inode of every directory and file, so that links neither lead round in circles nor double a key.
    seen: HashSet<(u64, u64)>,
}

impl Walk {
    /// What lies in a directory, in the order of its names.
    fn directory(&mut self, path: &Path, metadata: &Metadata) -> io::Result<()> {
        if !self.note(path, metadata) {
            return Ok(());
        }
        let mut names =
            fs::read_dir(path)?.map(|entry| Ok(entry?.file_name())).collect::<io::Result<Vec<_>>>()?;
        names.sort();
        for name in names.iter().filter(|name| !name.as_bytes().starts_with(b"..")) {
            self.entry(&path.join(name), name);
        }
        Ok(())
    }

    fn entry(&mut self, path: &Path, name: &OsStr) {
        let is_key = name.len() > 4 && name.as_bytes().ends_with(b".key");
        match fs::metadata(path) {
            Ok(metadata) if metadata.is_dir() => {
                if let Err(error) = self.directory(path, &metadata) {
                    self.failed(path, &error);
                }
            }
            Ok(metadata) if is_key => self.file(path, &metadata),
            Err(error) if is_key => self.failed(path, &error),
            _ if matched_by_gokeyless(name) => self.passed_over(path),
            _ => {}
        }
    }

    fn file(&mut self, path: &Path, metadata: &Metadata) {
        if self.note(path, metadata) {
            self.files.paths.push(path.to_owned());
        }
    }

    /// Takes something into the fingerprint; answers false where it was there under another name.
    fn note(&mut self, path: &Path, metadata: &Metadata) -> bool {
        let identity = (metadata.dev(), metadata.ino());
        let modified = (metadata.mtime(), metadata.mtime_nsec(), metadata.ctime(), metadata.ctime_nsec());
        (path, identity, metadata.len(), modified).hash(&mut self.hasher);
        self.seen.insert(identity)
    }

    fn failed(&mut self, path: &Path, error: &io::Error) {
        (path, error.raw_os_error()).hash(&mut self.hasher);
        let refusal = Refusal::new(code(error), format!("it can't be read: {error}"), "");
        self.files.findings.push(finding(Severity::Error, path, refusal));
    }

    fn passed_over(&mut self, path: &Path) {
        let refusal = Refusal::new(
            Code::InvalidInput,
            "its name does not end in `.key`, so it isn't loaded; gokeyless would have loaded it",
            "rename it if it is a key to be served, else move it out of the directory",
        );
        self.files.findings.push(finding(Severity::Warning, path, refusal));
    }
}

/// gokeyless loads what its pattern `.+\.key` finds anywhere in a name: `x.key.bak`, `x.keystore`.
fn matched_by_gokeyless(name: &OsStr) -> bool {
    name.as_bytes().get(1..).is_some_and(|rest| rest.windows(4).any(|window| window == b".key"))
}

/// The error of a store whose place isn't there: it may come yet, as a mount does.
fn absent(path: &Path, error: &io::Error) -> Error {
    let code = match error.kind() {
        io::ErrorKind::PermissionDenied => Code::Denied,
        _ => Code::Unavailable,
    };
    Error::new(code, format!("`{}` can't be read: {error}", path.display()))
}

fn code(error: &io::Error) -> Code {
    match error.kind() {
        io::ErrorKind::NotFound => Code::NotFound,
        io::ErrorKind::PermissionDenied => Code::Denied,
        _ => Code::Unavailable,
    }
}
