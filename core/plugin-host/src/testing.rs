//! Builds the plugin libraries that tests load, and puts them where the host finds them.
//!
//! A test of any crate asks for a plugin by its package, and gets a file that is as new as the sources: cargo itself
//! decides whether there is anything to build. It builds for the profile and into the target directory that the test
//! was built with, so that a plain `cargo test -p X` does all that is needed.
//!
//! Everything here panics where it fails, as a test's own assertions do.

mod inside;
#[cfg(feature = "wasm")]
mod memory;
mod pypi;
pub(crate) mod side;

use std::{
    collections::BTreeMap,
    env,
    ffi::{OsStr, OsString},
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::{LazyLock, Mutex, PoisonError},
};

use keystead_plugin_api::abi::BackendTable;
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    Launcher,
    load::{Checked, Mapped, Opened},
};

pub use self::inside::InServer;
#[cfg(feature = "wasm")]
pub use self::memory::guests_hold;
pub use self::pypi::{archives_from_pypi, from_pypi};
pub use crate::process::InProcess;

/// A plugin directory of a test's own, removed when dropped: mode 0755 whatever the umask.
#[derive(Debug)]
pub struct PluginDir(TempDir);

impl PluginDir {
    /// A directory with the plugins of these packages.
    ///
    /// # Panics
    ///
    /// Where a package can't be built, or the directory can't be made.
    #[must_use]
    pub fn with(packages: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap_or_else(|error| panic!("no temporary directory: {error}"));
        set_mode(directory.path(), 0o755);
        for package in packages {
            install(directory.path(), package);
        }
        Self(directory)
    }

    /// A directory with the components of these packages, whose names end in the plugins'.
    ///
    /// # Panics
    ///
    /// As [`with`](Self::with).
    #[cfg(feature = "wasm")]
    #[must_use]
    pub fn with_components(packages: &[&str]) -> Self {
        let directory = Self::with(&[]);
        for package in packages {
            let name = package.strip_prefix("keystead-plugin-").unwrap_or(package);
            install_component(directory.path(), package, name);
        }
        directory
    }

    /// Where it is: an entry for `plugins.path`.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

/// Builds a package and copies its library into a directory, under its own name and with mode 0644; answers the copy.
///
/// # Panics
///
/// Where the package can't be built, or the file not be written.
pub fn install(directory: &Path, package: &str) -> PathBuf {
    let library = library(package);
    let copy = directory.join(library.file_name().unwrap_or_default());
    fs::copy(&library, &copy).unwrap_or_else(|error| panic!("{}: {error}", copy.display()));
    set_mode(&copy, 0o644);
    copy
}

/// Builds a package of this workspace whose library is a `cdylib`, and answers where that is. Once per package and
/// process.
///
/// # Panics
///
/// Where the package can't be built, with cargo's own words.
#[must_use]
pub fn library(package: &str) -> PathBuf {
    static BUILT: Mutex<BTreeMap<String, PathBuf>> = Mutex::new(BTreeMap::new());
    // Held while building, so that tests that want the same library wait for one build.
    let mut built = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
    built.entry(package.to_owned()).or_insert_with(|| build(package)).clone()
}

/// Builds a package of this workspace for WebAssembly, and answers the component.
///
/// # Panics
///
/// Where the package can't be built, with cargo's own words.
#[must_use]
#[cfg(feature = "wasm")]
pub fn component(package: &str) -> PathBuf {
    static BUILT: Mutex<BTreeMap<String, PathBuf>> = Mutex::new(BTreeMap::new());
    let mut built = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
    built.entry(package.to_owned()).or_insert_with(|| build_component(package)).clone()
}

/// Builds a package and copies its component into a directory as `NAME.wasm`, with mode 0644; answers the copy.
///
/// # Panics
///
/// Where the package can't be built, or the file not be written.
#[cfg(feature = "wasm")]
pub fn install_component(directory: &Path, package: &str, name: &str) -> PathBuf {
    let copy = directory.join(format!("{name}.wasm"));
    fs::copy(component(package), &copy).unwrap_or_else(|error| panic!("{}: {error}", copy.display()));
    set_mode(&copy, 0o644);
    copy
}

/// How tests have a process for plugins started, where the server's binary isn't there. Built once per process.
///
/// # Panics
///
/// Where it can't be built, with cargo's own words.
#[must_use]
pub fn launcher() -> Launcher {
    static BUILT: LazyLock<PathBuf> = LazyLock::new(|| {
        let options = ["--package", "keystead-plugin-host", "--features", "test-support", "--bin", PROCESS];
        executable(PROCESS, &options)
    });
    Launcher { program: BUILT.clone(), arguments: Vec::new() }
}

/// Builds the program of a package of this workspace, which has the package's name, and answers where it is.
///
/// # Panics
///
/// Where it can't be built, with cargo's own words.
#[must_use]
pub fn program(package: &str) -> PathBuf {
    executable(package, &["--package", package])
}

/// The program that is nothing but a process for plugins.
const PROCESS: &str = "keystead-plugin-process";

/// Compiles sources in C as `libkeystead_plugin_NAME.so` into a directory, with mode 0644; answers the library. The
/// header is found, warnings are errors, and `flags` come last: `-D` to vary a source, `-std=`, `-l`, `-Wno-…`.
///
/// # Panics
///
/// Where the compiler can't be run, or refuses: with its own words.
pub fn c_plugin(directory: &Path, name: &str, sources: &[&Path], flags: &[&str]) -> PathBuf {
    let library = directory.join(format!("libkeystead_plugin_{name}.so"));
    let mut command = Command::new("cc");
    command.args(["-std=c11", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-fvisibility=hidden"]);
    command.arg("-I").arg(folder("plugin-api/include")).arg("-o").arg(&library);
    run(command.args(sources).args(flags));
    set_mode(&library, 0o644);
    library
}

/// Has the Makefile of a folder of this workspace build into a directory, and answers the library with mode 0644 that
/// it leaves there. `arguments` are those of make: targets, and variables such as `CC=clang`.
///
/// # Panics
///
/// Where make can't be run, or fails, with its own words; where no library comes of it.
pub fn make_plugin(makefile: &str, directory: &Path, arguments: &[&str]) -> PathBuf {
    let mut command = Command::new("make");
    command.arg("--silent").arg("-C").arg(folder(makefile));
    run(command.arg(format!("BUILD={}", directory.display())).args(arguments));
    let mut made = fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
    let library = made.find(|file| file.extension() == Some(OsStr::new("so")));
    let library = library.unwrap_or_else(|| panic!("{makefile} makes no library in {}", directory.display()));
    set_mode(&library, 0o644);
    library
}

/// Loads a library as the server does, and answers the table it hands out.
///
/// # Panics
///
/// Where it is refused, with the reason.
#[must_use]
pub fn table(library: &Path) -> &'static BackendTable {
    let checked = Opened::open(library).and_then(|opened| opened.check(None));
    let plugin = checked.and_then(Checked::map).and_then(Mapped::examine);
    let plugin = plugin.unwrap_or_else(|failure| panic!("{failure}"));
    plugin.table().unwrap_or_else(|| panic!("{} has no table", library.display()))
}

/// A source of the test plugins in C.
#[must_use]
pub fn source(name: &str) -> PathBuf {
    folder("plugin-api/tests/plugins/c").join(name)
}

/// A folder of this workspace.
fn folder(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
}

/// Runs a tool to its end.
fn run(command: &mut Command) {
    let output = command.stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|error| {
        panic!("{} can't be run: {error}; is it installed?", command.get_program().display())
    });
    assert!(
        output.status.success(),
        "{command:?} fails:\n{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

fn build(package: &str) -> PathBuf {
    let output = cargo(&["--package", package]);
    let library = built(&output).then(|| artifact(package, "filenames", "so", &output)).flatten();
    library.unwrap_or_else(|| {
        panic!("no library of `{package}` was built:\n{}", String::from_utf8_lossy(&output.stderr))
    })
}

/// Components are small, and quick only where they are optimised: they are built for release, beside all else.
#[cfg(feature = "wasm")]
fn build_component(package: &str) -> PathBuf {
    let mut options = same_build();
    options.truncate(2); // the target directory
    options.extend(["--target", WASM_TARGET, "--release"].map(OsString::from));
    let output = cargo_with(&["--package", package], options);
    let component = built(&output).then(|| artifact(package, "filenames", "wasm", &output)).flatten();
    component.unwrap_or_else(|| {
        panic!(
            "no component of `{package}` was built; is the target there (`rustup target add {WASM_TARGET}`)?\n{}",
            String::from_utf8_lossy(&output.stderr)
        )
    })
}

/// What components are built for.
#[cfg(feature = "wasm")]
const WASM_TARGET: &str = "wasm32-wasip2";

fn executable(name: &str, options: &[&str]) -> PathBuf {
    let output = cargo(options);
    let program = built(&output).then(|| artifact(name, "executable", "", &output)).flatten();
    program.unwrap_or_else(|| panic!("no `{name}` was built:\n{}", String::from_utf8_lossy(&output.stderr)))
}

fn built(output: &Output) -> bool {
    output.status.success()
}

fn cargo(what: &[&str]) -> Output {
    cargo_with(what, same_build())
}

fn cargo_with(what: &[&str], options: Vec<OsString>) -> Output {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["build", "--quiet", "--message-format=json-render-diagnostics"]).args(what);
    command
        .args(options)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("cargo can't be run: {error}"))
}

/// The file of a target with an extension among what cargo says it built or found fresh: a library among its `filenames`,
/// or its `executable`.
fn artifact(target: &str, kind: &str, extension: &str, output: &Output) -> Option<PathBuf> {
    let name = if kind == "executable" { target.to_owned() } else { target.replace('-', "_") };
    let text = String::from_utf8_lossy(&output.stdout);
    let artifacts = text
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|message| message.pointer("/target/name").is_some_and(|target| *target == name));
    let mut files = artifacts.flat_map(|message| match message.get(kind) {
        Some(Value::Array(files)) => files.clone(),
        Some(file @ Value::String(_)) => vec![file.clone()],
        _ => Vec::new(),
    });
    files.find_map(|file| {
        let file = PathBuf::from(file.as_str()?);
        (file.extension().unwrap_or_default() == extension).then_some(file)
    })
}

/// The options that make cargo build as the running test was built, which is `TARGET_DIR[/TRIPLE]/PROFILE/deps/TEST`.
fn same_build() -> Vec<OsString> {
    let test = env::current_exe().unwrap_or_else(|error| panic!("where is the running test? {error}"));
    options(&test, |directory| directory.join("CACHEDIR.TAG").exists())
}

/// `is_target_dir` knows a target directory by the tag that cargo leaves there.
fn options(test: &Path, is_target_dir: impl Fn(&Path) -> bool) -> Vec<OsString> {
    let target = test.ancestors().skip(1).find(|directory| is_target_dir(directory));
    let target = target.unwrap_or_else(|| panic!("{} is in no target directory", test.display()));
    let mut below = test.strip_prefix(target).unwrap_or(test).iter();
    let mut profile = below.next().unwrap_or_default();
    let mut options = vec!["--target-dir".into(), target.into()];
    if is_triple(profile) {
        options.extend(["--target".into(), profile.into()]);
        profile = below.next().unwrap_or_default();
    }
    options.extend(["--profile".into(), profile_of(profile).into()]);
    options
}

/// A triple is there only if `--target` was given, and then before the profile. No profile has three parts by custom.
fn is_triple(name: &OsStr) -> bool {
    name.to_str().is_some_and(|name| name.split('-').count() >= 3)
}

/// The profile of a directory: `dev` is the one that is called differently.
fn profile_of(directory: &OsStr) -> &OsStr {
    if directory == "debug" { OsStr::new("dev") } else { directory }
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options_of(test: &str) -> Vec<String> {
        let options = options(Path::new(test), |directory| directory == Path::new("/t"));
        options.into_iter().map(|option| option.into_string().unwrap()).collect()
    }

    #[test]
    fn builds_as_the_running_test_was_built() {
        let plain = ["--target-dir", "/t", "--profile", "dev"];
        assert_eq!(options_of("/t/debug/deps/store-0123"), plain);
        assert_eq!(options_of("/t/debug/keystead"), plain);
        assert_eq!(options_of("/t/release/deps/x")[2..], ["--profile", "release"]);
        assert_eq!(
            options_of("/t/x86_64-unknown-linux-gnu/bench/deps/x")[2..],
            ["--target", "x86_64-unknown-linux-gnu", "--profile", "bench"]
        );
    }

    #[test]
    fn installs_a_library_that_only_its_owner_can_write() {
        let directory = PluginDir::with(&["keystead-plugin-hostile"]);
        let file = directory.path().join("libkeystead_plugin_hostile.so");
        assert_eq!(fs::metadata(file).unwrap().permissions().mode() & 0o777, 0o644);
        assert_eq!(fs::metadata(directory.path()).unwrap().permissions().mode() & 0o777, 0o755);
    }

    #[test]
    #[should_panic(expected = "package ID specification `keystead-plugin-nowhere`")]
    fn a_package_that_cannot_be_built_is_told_in_the_words_of_cargo() {
        let _ = library("keystead-plugin-nowhere");
    }
}
