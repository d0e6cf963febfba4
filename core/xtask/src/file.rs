//! Files and folders, with failures that name them.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::failure::{Failure, Result};

/// Makes a folder that goes with the value; its name tells `purpose`.
pub(crate) fn temporary_folder(purpose: &str) -> Result<TempDir> {
    tempfile::Builder::new()
        .prefix(&format!("keystead-{purpose}-"))
        .tempdir()
        .map_err(|error| Failure::new(format!("cannot make a temporary folder: {error}")))
}

/// Makes a folder that only this user may write to.
pub(crate) fn make_folder(path: &Path) -> Result<PathBuf> {
    fs::create_dir_all(path).map_err(|error| Failure::file("make", path, &error))?;
    set_mode(path, 0o700)?;
    Ok(path.to_owned())
}

/// Reads a text.
pub(crate) fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(|error| Failure::file("read", path, &error))
}

/// Writes a text.
pub(crate) fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).map_err(|error| Failure::file("write", path, &error))
}

/// Writes a file that only this user may read, from the first moment on.
pub(crate) fn write_secret(path: &Path, text: &str) -> Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(|error| Failure::file("make", path, &error))?;
    file.write_all(text.as_bytes()).map_err(|error| Failure::file("write", path, &error))
}

/// Copies a plugin, and gives where it is then.
pub(crate) fn install_plugin(from: &Path, to: &Path) -> Result<PathBuf> {
    fs::copy(from, to).map_err(|error| Failure::file("copy", from, &error))?;
    // The key server loads no code that others could have written.
    set_mode(to, 0o644)?;
    Ok(to.to_owned())
}

/// Changes who may do what with a file or folder of this user's.
pub(crate) fn set_mode(path: &Path, mode: u32) -> Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .map_err(|error| Failure::file("set the mode of", path, &error))
}
