//! What the machine must have, and how to get it with apt.

use std::env;
use std::path::Path;
use std::process::Command;

use crate::failure::{Failure, Result};
use crate::process;

/// A Debian package, and how to tell that what it brings is there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Package {
    name: &'static str,
    sign: Sign,
}

/// What shows that a package isn't needed any more.
#[derive(Clone, Copy, Debug)]
enum Sign {
    /// A program that succeeds with these arguments.
    Answers(&'static str, &'static [&'static str]),
    /// Any of these files.
    AnyFile(&'static [&'static str]),
    /// A program in `PATH`.
    Program(&'static str),
}

/// What `cargo xtask demo` needs: a compiler, a token, its tool, and two TLS clients.
pub(crate) const FOR_DEMO: &[Package] = &[
    Package::new("gcc", Sign::Program("cc")),
    Package::new("libc6-dev", Sign::AnyFile(&["/usr/include/stdlib.h"])),
    Package::new("softhsm2", Sign::AnyFile(SOFTHSM_MODULES)),
    Package::new("opensc", Sign::Program("pkcs11-tool")),
    Package::new("curl", Sign::Program("curl")),
    Package::new("openssl", Sign::Program("openssl")),
];

/// What a plugin in C needs: make, and OpenSSL to build with.
pub(crate) const FOR_C: &[Package] = &[
    Package::new("make", Sign::Program("make")),
    Package::new("libssl-dev", Sign::AnyFile(&["/usr/include/openssl/evp.h"])),
];

/// What the fakes of clouds need: OpenSSL to build with, and the way to it.
pub(crate) const FOR_FAKES: &[Package] = &[
    Package::new("pkg-config", Sign::Program("pkg-config")),
    Package::new("libssl-dev", Sign::AnyFile(&["/usr/include/openssl/evp.h"])),
];

/// What the PKCS#11 module for the tests needs beside both: the header to write one, and the way to it and to OpenSSL,
/// the independent judge of signatures.
pub(crate) const FOR_MODULE: &[Package] = &[
    Package::new("pkg-config", Sign::Program("pkg-config")),
    Package::new("libp11-kit-dev", Sign::AnyFile(&["/usr/include/p11-kit-1/p11-kit/pkcs11.h"])),
];

/// What `cargo xtask test` needs beside all of these: further compilers for plugins in C (clang's library also helps to
/// build Kryoptic), a linker and a libc for those that are components, a module that logs calls, one that hands them to a
/// server, a TPM in software, a token behind a daemon with the mounts that keep it apart, the database of Kryoptic, Python
/// to install the licence checker, a browser, a judge of alert rules, and a systemd with something to boot it in.
pub(crate) const FOR_TEST: &[Package] = &[
    Package::new("g++", Sign::Program("g++")),
    Package::new("clang", Sign::Program("clang++")),
    Package::new("lld", Sign::Program("wasm-ld")),
    Package::new("wasi-libc", Sign::AnyFile(&["/usr/lib/wasm32-wasi/libc.a"])),
    Package::new("libclang-rt-dev-wasm32", Sign::AnyFile(WASM_BUILTINS)),
    Package::new("p11-kit", Sign::Program("p11-kit")),
    Package::new("p11-kit-modules", Sign::AnyFile(REMOTE_MODULES)),
    Package::new("swtpm", Sign::Program("swtpm")),
    Package::new("tpm2-tools", Sign::Program("tpm2_flushcontext")),
    Package::new("libtpm2-pkcs11-1", Sign::AnyFile(TPM_MODULES)),
    Package::new("opencryptoki", Sign::AnyFile(OPENCRYPTOKI_MODULES)),
    Package::new("mount", Sign::Program("mount")),
    Package::new("libsqlite3-dev", Sign::AnyFile(&["/usr/include/sqlite3.h"])),
    Package::new("procps", Sign::Program("pkill")),
    Package::new("opensc-pkcs11", Sign::AnyFile(SPY_MODULES)),
    Package::new("python3-venv", Sign::Answers("python3", &["-c", "import venv, ensurepip"])),
    Package::new("chromium", Sign::Program("chromium")),
    Package::new("fonts-dejavu-core", Sign::AnyFile(&["/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf"])),
    Package::new("systemd", Sign::Program("systemd-analyze")),
    Package::new("systemd-container", Sign::Program("systemd-nspawn")),
    Package::new("prometheus", Sign::Program("promtool")),
];

/// Where distributions put SoftHSM2's module.
const SOFTHSM_MODULES: &[&str] = &[
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib64/libsofthsm2.so",
    "/usr/lib64/pkcs11/libsofthsm2.so",
];

/// Where distributions put the module that logs each call on its way to another module.
const SPY_MODULES: &[&str] = &[
    "/usr/lib/x86_64-linux-gnu/pkcs11-spy.so",
    "/usr/lib/aarch64-linux-gnu/pkcs11-spy.so",
    "/usr/lib/x86_64-linux-gnu/pkcs11/pkcs11-spy.so",
    "/usr/lib64/pkcs11/pkcs11-spy.so",
];

/// Where distributions put the module that hands each call to a server.
const REMOTE_MODULES: &[&str] = &[
    "/usr/lib/x86_64-linux-gnu/pkcs11/p11-kit-client.so",
    "/usr/lib/aarch64-linux-gnu/pkcs11/p11-kit-client.so",
    "/usr/lib64/pkcs11/p11-kit-client.so",
];

/// Where Debian 12 and 13 put what clang's code for WebAssembly calls.
const WASM_BUILTINS: &[&str] = &[
    "/usr/lib/llvm-14/lib/clang/14.0.6/lib/wasi/libclang_rt.builtins-wasm32.a",
    "/usr/lib/llvm-19/lib/clang/19/lib/wasi/libclang_rt.builtins-wasm32.a",
];

/// Where distributions put the module for keys in a TPM.
const TPM_MODULES: &[&str] = &[
    "/usr/lib/x86_64-linux-gnu/libtpm2_pkcs11.so.1",
    "/usr/lib/aarch64-linux-gnu/libtpm2_pkcs11.so.1",
    "/usr/lib64/pkcs11/libtpm2_pkcs11.so.0",
];

/// Where distributions put the module for opencryptoki's tokens.
const OPENCRYPTOKI_MODULES: &[&str] = &[
    "/usr/lib/x86_64-linux-gnu/opencryptoki/libopencryptoki.so.0",
    "/usr/lib/aarch64-linux-gnu/opencryptoki/libopencryptoki.so.0",
    "/usr/lib64/opencryptoki/libopencryptoki.so.0",
];

/// Installs those of the packages that are missing: as root or through `sudo -n`, by one line of apt.
pub(crate) fn ensure(packages: &[Package]) -> Result<()> {
    let missing: Vec<_> =
        packages.iter().filter(|package| !package.sign.is_there()).map(|p| p.name).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names = missing.join(" ");
    let Some(privilege) = privilege() else { return Err(by_hand(&names)) };
    println!("installing what is missing here: {names}");
    apt(privilege, &["update", "--quiet=2"]).map_err(|failure| failure.hint(one_line(&names)))?;
    let install = ["install", "--quiet", "--yes", "--no-install-recommends"];
    apt(privilege, &[&install[..], &missing].concat()).map_err(|failure| failure.hint(one_line(&names)))?;
    still_missing(packages)
}

/// What plugins that are components are built for.
pub(crate) const WASM_TARGET: &str = "wasm32-wasip2";

/// Has the Rust that runs this build components: its rustup adds the target, if that is missing.
pub(crate) fn ensure_wasm_target() -> Result<()> {
    if has_wasm_target() {
        return Ok(());
    }
    println!("installing what is missing here: Rust's target {WASM_TARGET}");
    let hint = format!("this Rust builds no components; `rustup target add {WASM_TARGET}` puts it right");
    process::run(Command::new("rustup").args(["target", "add", WASM_TARGET]))
        .map_err(|failure| failure.hint(&hint))?;
    if has_wasm_target() { Ok(()) } else { Err(Failure::new(hint).not_started()) }
}

fn has_wasm_target() -> bool {
    let mut rustc = Command::new(env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    let folder = rustc.args(["--print", "target-libdir", "--target", WASM_TARGET]).output();
    folder.is_ok_and(|output| Path::new(String::from_utf8_lossy(&output.stdout).trim()).is_dir())
}

/// The module of SoftHSM2.
pub(crate) fn softhsm_module() -> Result<&'static Path> {
    first_file(SOFTHSM_MODULES)
        .ok_or_else(|| Failure::new("SoftHSM2's module is in none of the usual places"))
}

impl Package {
    const fn new(name: &'static str, sign: Sign) -> Self {
        Self { name, sign }
    }
}

impl Sign {
    fn is_there(self) -> bool {
        match self {
            Self::Answers(program, arguments) => process::succeeds(program, arguments),
            Self::AnyFile(paths) => first_file(paths).is_some(),
            Self::Program(name) => in_path(name),
        }
    }
}

/// What to put before apt-get; `None` where this user may not install anything.
fn privilege() -> Option<&'static [&'static str]> {
    if !in_path("apt-get") {
        return None;
    }
    if rustix::process::geteuid().is_root() {
        return Some(&[]);
    }
    process::succeeds("sudo", &["-n", "true"]).then_some(&["sudo", "-n"])
}

fn apt(privilege: &[&str], arguments: &[&str]) -> Result<()> {
    let words = [privilege, &["env", "DEBIAN_FRONTEND=noninteractive", "apt-get"], arguments].concat();
    let (program, arguments) = words.split_first().ok_or_else(|| Failure::new("nothing to run"))?;
    process::run(Command::new(program).args(arguments))
}

fn still_missing(packages: &[Package]) -> Result<()> {
    match packages.iter().find(|package| !package.sign.is_there()) {
        Some(package) => Err(Failure::new(format!(
            "`{}` is installed, but what it should bring is still not found: {:?}",
            package.name, package.sign
        ))),
        None => Ok(()),
    }
}

fn by_hand(names: &str) -> Failure {
    Failure::new(format!("this machine lacks {names}, and I may not install it"))
        .hint(one_line(names))
        .not_started()
}

fn one_line(names: &str) -> String {
    format!("on Debian: sudo apt-get update && sudo apt-get install --yes --no-install-recommends {names}")
}

fn first_file(paths: &[&'static str]) -> Option<&'static Path> {
    paths.iter().copied().map(Path::new).find(|path| path.is_file())
}

fn in_path(name: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).any(|folder| folder.join(name).is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_what_is_there_from_what_is_not() {
        assert!(Sign::Program("sh").is_there());
        assert!(!Sign::Program("no-such-program").is_there());
        assert!(Sign::AnyFile(&["/no/such/file", "/etc/passwd"]).is_there());
        assert!(!Sign::AnyFile(&["/no/such/file"]).is_there());
        assert!(Sign::Answers("sh", &["-c", "exit 0"]).is_there());
        assert!(!Sign::Answers("sh", &["-c", "exit 1"]).is_there());
        assert!(!Sign::Answers("no-such-program", &[]).is_there());
    }

    #[test]
    fn asks_for_nothing_when_nothing_is_missing() {
        ensure(&[Package::new("bash", Sign::Program("sh"))]).expect("nothing to install");
    }

    #[test]
    fn who_may_not_install_gets_the_one_line() {
        let text = by_hand("curl softhsm2").to_string();
        assert!(text.contains("apt-get install --yes --no-install-recommends curl softhsm2"), "{text}");
    }
}
