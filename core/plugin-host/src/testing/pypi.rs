//! What tests get from PyPI: once, by its hash, and kept beside what Cargo builds.

use std::{
    env, fs,
    hash::{DefaultHasher, Hash, Hasher},
    path::{Path, PathBuf},
    process::Command,
};

use tempfile::TempDir;

use super::{run, same_build};

/// The folder of the packages that a file of requirements pins, installed as wheels: a `PYTHONPATH`.
///
/// # Panics
///
/// Where they can't be had.
#[must_use]
pub fn from_pypi(pins: &Path) -> PathBuf {
    kept(pins, &["install", "--only-binary", ":all:", "--target"])
}

/// The folder of the archives that a file of requirements pins, as they are: of sources where it says `--no-binary NAME`.
///
/// # Panics
///
/// As [`from_pypi`].
#[must_use]
pub fn archives_from_pypi(pins: &Path) -> PathBuf {
    kept(pins, &["download", "--dest"])
}

/// The folder that pip fills, which has the name of the file and a mark of what it pins.
fn kept(pins: &Path, pip: &[&str]) -> PathBuf {
    let text = fs::read(pins).unwrap_or_else(|error| panic!("{}: {error}", pins.display()));
    let mut hasher = DefaultHasher::new();
    (text, pip).hash(&mut hasher);
    let name = pins.file_stem().unwrap_or_default().display();
    let tools = tools();
    let home = tools.join(format!("{name}-{:016x}", hasher.finish()));
    if !home.is_dir() {
        fetch(&tools, &home, pins, pip);
    }
    home
}

/// Fills a folder of its own, which then takes its place as a whole: other tests may be doing the same.
fn fetch(tools: &Path, home: &Path, pins: &Path, pip: &[&str]) {
    let folder = TempDir::new_in(tools).unwrap_or_else(|error| panic!("{}: {error}", tools.display()));
    let [venv, packages] = ["venv", "packages"].map(|name| folder.path().join(name));
    run(Command::new("python3").args(["-m", "venv"]).arg(&venv));
    let mut command = Command::new(venv.join("bin/python3"));
    command.args(["-m", "pip", "--disable-pip-version-check", "--no-input", "--quiet"]);
    command.args(pip).arg(&packages).args(["--no-deps", "--require-hashes", "--requirement"]);
    run(command.arg(pins));
    let moved = fs::rename(&packages, home);
    assert!(moved.is_ok() || home.is_dir(), "{}: {moved:?}", home.display());
}

/// Where what isn't built is kept, in the target directory of the running test.
fn tools() -> PathBuf {
    let target = same_build().into_iter().nth(1).unwrap_or_else(|| env::temp_dir().into());
    let tools = PathBuf::from(target).join("tools");
    fs::create_dir_all(&tools).unwrap_or_else(|error| panic!("{}: {error}", tools.display()));
    tools
}
