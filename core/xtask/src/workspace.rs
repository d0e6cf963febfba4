//! This workspace: where it is, its Cargo, and the programs that are built of it.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::failure::{Failure, Result};
use crate::system::WASM_TARGET;
use crate::{file, process};

/// Names a folder with programs to use, in place of those that Cargo builds now.
const BUILT: &str = "KEYSTEAD_BUILT";

/// The folder of the workspace.
pub(crate) fn root() -> &'static Path {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.ancestors().nth(2).unwrap_or(own)
}

/// The Cargo that runs this program, in the workspace's folder.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// This very program.
pub(crate) fn own_program() -> Result<PathBuf> {
    env::current_exe().map_err(|error| Failure::new(format!("cannot tell where I am: {error}")))
}

/// The folder into which Cargo builds with the dev profile: where this very program is.
pub(crate) fn built() -> Result<PathBuf> {
    let own = own_program()?;
    own.parent()
        .map(Path::to_path_buf)
        .ok_or_else(|| Failure::new(format!("{} is in no folder", own.display())))
}

/// The folder for what is built or installed once and isn't of this workspace.
pub(crate) fn tools() -> Result<PathBuf> {
    let built = built()?;
    Ok(built.parent().unwrap_or(&built).join("tools"))
}

/// Programs and plugins of this workspace, in one folder.
pub(crate) struct Programs(PathBuf);

impl Programs {
    /// Builds packages, unless the environment names a folder where this has been done. They are without the sandbox for
    /// components, whose compiler takes minutes to build.
    pub(crate) fn build(packages: &[&str]) -> Result<Self> {
        if let Some(folder) = env::var_os(BUILT) {
            return Ok(Self(folder.into()));
        }
        Self::build_with(&["--no-default-features"], packages)
    }

    /// Builds packages, with the sandbox.
    pub(crate) fn build_with_sandbox(packages: &[&str]) -> Result<Self> {
        Self::build_with(&[], packages)
    }

    fn build_with(options: &[&str], packages: &[&str]) -> Result<Self> {
        let packages = packages.iter().flat_map(|package| ["--package", package]);
        process::run(cargo().args(["build", "--locked"]).args(options).args(packages))?;
        built().map(Self)
    }

    /// What has another run of this program use the same, as `env` takes it.
    pub(crate) fn variable(&self) -> String {
        format!("{BUILT}={}", self.0.display())
    }

    /// Where a program is.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Copies a plugin into a folder, and gives where it is then.
    pub(crate) fn install_plugin(&self, name: &str, folder: &Path) -> Result<PathBuf> {
        let library = format!("libkeystead_plugin_{name}.so");
        file::install_plugin(&self.path(&library), &folder.join(library))
    }
}

/// Builds a package as a component. Components are small, and quick only where they are optimised.
pub(crate) fn build_component(package: &str) -> Result<()> {
    let target = ["--release", "--target", WASM_TARGET];
    process::run(cargo().args(["build", "--locked", "--package", package]).args(target))
}

/// Copies a plugin that was built as a component into a folder, and gives where it is then.
pub(crate) fn install_component(name: &str, folder: &Path) -> Result<PathBuf> {
    let built = built()?;
    let built = built.parent().unwrap_or(&built).join(WASM_TARGET).join("release");
    let component = built.join(format!("keystead_plugin_{name}.wasm"));
    file::install_plugin(&component, &folder.join(format!("{name}.wasm")))
}
