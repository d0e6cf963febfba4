//! Files that aren't plugins, or not to be trusted: refused with one clear line each, while the rest is served.

use std::{
    fs::{self, File, Permissions},
    os::unix::fs::{PermissionsExt, chown, symlink},
    path::{Path, PathBuf},
    sync::Arc,
};

use keystead_plugin_api::abi::DRAFT;
use keystead_plugin_host::{
    Class, Failure, Settings,
    testing::{self, PluginDir},
};
use rustix::{
    fs::{CWD, FileType, Mode, mknodat},
    process::geteuid,
};
use serde_json::json;

use crate::rig::{HOSTILE, PATIENCE, Rig, key, opened, sign};

/// A plugin directory with one file of interest, `libkeystead_plugin_odd.so`, beside the hostile plugin.
struct Odd {
    rig: Rig,
    file: PathBuf,
}

impl Odd {
    fn new() -> Self {
        Self::with(|_| ())
    }

    fn with(change: impl FnOnce(&mut Settings)) -> Self {
        let rig = Rig::with(change);
        let file = rig.directory.path().join("libkeystead_plugin_odd.so");
        Self { rig, file }
    }

    /// Compiled from C, with flags that say what is odd about it.
    fn compiled(flags: &[&str]) -> Self {
        let odd = Self::new();
        testing::c_plugin(odd.rig.directory.path(), "odd", &[&testing::source("odd.c")], flags);
        odd
    }

    /// With the content of a good plugin, changed.
    fn changed(change: impl FnOnce(&mut Vec<u8>)) -> Self {
        let odd = Self::new();
        let mut content = fs::read(odd.hostile()).unwrap();
        change(&mut content);
        odd.write(&content);
        odd
    }

    fn hostile(&self) -> PathBuf {
        self.rig.directory.path().join("libkeystead_plugin_hostile.so")
    }

    fn write(&self, content: &[u8]) {
        fs::write(&self.file, content).unwrap();
        set_mode(&self.file, 0o644);
    }

    fn mode(&self, mode: u32) {
        set_mode(&self.file, mode);
    }

    /// Why it isn't loaded, in one line, with the file's name for `FILE` and the directory's for `DIR`; and that the
    /// hostile plugin of the same directory is.
    async fn refusal(&self) -> (Class, String) {
        let failure = self.open().await.unwrap_err();
        opened(&self.rig.store("beside", json!({}))).await;
        self.line(&failure)
    }

    async fn open(&self) -> Result<(), Failure> {
        self.rig.store_with("odd", json!({}), |spec| spec.plugin = "odd".to_owned()).open().await
    }

    fn line(&self, failure: &Failure) -> (Class, String) {
        let line = failure.to_string();
        assert!(line.len() < 300 && !line.contains('\n'), "{line}");
        let directory = self.rig.directory.path().display().to_string();
        (failure.class, line.replace(&self.file.display().to_string(), "FILE").replace(&directory, "DIR"))
    }
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

fn invalid(message: &str) -> (Class, String) {
    (Class::InvalidInput, message.to_owned())
}

fn denied(message: &str) -> (Class, String) {
    (Class::Denied, message.to_owned())
}

#[tokio::test]
async fn refuses_what_is_no_elf_library() {
    for content in [&b"#!/bin/sh\nexit 1\n"[..], b"", b"\x7fELF"] {
        let odd = Odd::new();
        odd.write(content);
        assert_eq!(odd.refusal().await, invalid("FILE is not an ELF library"));
    }
}

#[tokio::test]
async fn refuses_what_is_truncated() {
    let odd = Odd::changed(|content| content.truncate(content.len() / 2));
    let (class, line) = odd.refusal().await;
    assert_eq!(class, Class::InvalidInput);
    assert!(line.starts_with("FILE is truncated or damaged: "), "{line}");

    // Without the section headers, which nobody needs to load it, the segments still tell.
    let odd = Odd::changed(|content| {
        content.truncate(0x10000);
        content[0x28..0x30].fill(0); // e_shoff
        content[0x3a..0x40].fill(0); // e_shentsize, e_shnum, e_shstrndx
    });
    let (class, line) = odd.refusal().await;
    assert_eq!(class, Class::InvalidInput);
    assert!(line.starts_with("FILE is truncated: it has 65536 bytes of at least "), "{line}");
}

#[tokio::test]
async fn refuses_a_library_for_another_machine() {
    let (own, other) = if cfg!(target_arch = "aarch64") { (183, 62) } else { (62, 183) };
    let odd = Odd::changed(|content| content[18] = other);
    let line =
        format!("FILE is a library for another machine (ELF machine {other}, expected {own}, 64 bits)");
    assert_eq!(odd.refusal().await, invalid(&line));
    let odd = Odd::changed(|content| content[4] = 1); // ELFCLASS32
    let line = format!("FILE is a library for another machine (ELF machine {own}, expected {own}, 64 bits)");
    assert_eq!(odd.refusal().await, invalid(&line));
}

#[tokio::test]
async fn refuses_a_library_without_entry_point() {
    let odd = Odd::new();
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let libc = maps.split_whitespace().find(|word| word.ends_with("/libc.so.6")).unwrap();
    odd.write(&fs::read(libc).unwrap());
    let line = "FILE exports no plugin entry point; is it a plugin, built with `export_backend!` or with \
                `keystead_plugin`?";
    assert_eq!(odd.refusal().await, invalid(line));
}

#[tokio::test]
async fn refuses_another_draft_and_another_layout_however_often() {
    for (package, line) in [
        (
            "keystead-plugin-other-draft",
            "FILE can't be loaded: it was built for draft 3 of the plugin contract, and this server speaks draft 2; \
             build it against this server's keystead-plugin-api",
        ),
        (
            "keystead-plugin-other-layout",
            "FILE can't be loaded: its table differs from this server's; build it against this server's \
             keystead-plugin-api (the debug log has the differences)",
        ),
    ] {
        let odd = Odd::new();
        odd.write(&fs::read(testing::library(package)).unwrap());
        assert_eq!(odd.refusal().await, invalid(line));
        assert_eq!(odd.refusal().await, invalid(line));
        assert_eq!(descriptors_of(&odd.file), 1, "another look costs another descriptor");
    }
}

#[tokio::test]
async fn loads_a_plugin_in_c() {
    let odd = Odd::compiled(&[]);
    odd.open().await.unwrap();
    let found = odd.rig.host.plugins().await;
    let description = found[1].description.as_ref().unwrap();
    assert_eq!((description.name.as_str(), description.contract), ("odd", DRAFT));
    assert_eq!((description.vendor.as_str(), description.lanes_max), ("the tests", None));
}

#[tokio::test]
async fn refuses_a_table_in_c_that_cannot_be_used() {
    let next = format!("-DDRAFT={}", DRAFT + 1);
    let other_draft = format!(
        "it was built for draft {} of the plugin contract, and this server speaks draft {DRAFT}; build it against \
         this server's keystead-plugin-api",
        DRAFT + 1
    );
    let silent = format!(
        "it doesn't speak draft {DRAFT} of the plugin contract, which is this server's; build it against this \
         server's keystead_plugin.h"
    );
    for (flag, reason) in [
        ("-DSILENT", silent.as_str()),
        (&next, &other_draft),
        ("-DSIZE=64", "its table has 64 bytes, expected 72"),
        ("-DHEALTH_IS_NULL", "the function `health` of its table is NULL"),
        ("-DMISALIGNED", "its table is not aligned"),
    ] {
        let odd = Odd::compiled(&[flag]);
        let line = format!("FILE can't be loaded: {reason}");
        assert_eq!(odd.refusal().await, invalid(&line));
        assert_eq!(odd.refusal().await, invalid(&line), "its code has run, and is not loaded again");
    }
}

#[tokio::test]
async fn refuses_a_library_for_musl_before_any_of_its_code_runs() {
    let odd = Odd::new();
    let directory = odd.rig.directory.path();
    // A stand-in: what counts is the name that the linker notes. The constructor would end this process.
    let name = "-Wl,-soname,libc.musl-x86_64.so.1";
    let libc = testing::c_plugin(directory, "libc", &[&testing::source("odd.c")], &[name]);
    let needs = ["-Wl,--no-as-needed", libc.to_str().unwrap()];
    testing::c_plugin(directory, "odd", &[&testing::source("musl.c"), &testing::source("odd.c")], &needs);
    let line = "FILE is linked against musl (libc.musl-x86_64.so.1), and this server runs with glibc; build it on a \
                system with glibc, such as Debian";
    assert_eq!(odd.refusal().await, invalid(line));
}

#[tokio::test]
async fn a_configuration_that_does_not_fit_the_schema_never_reaches_the_plugin() {
    let odd = Odd::compiled(&[]);
    let config = json!({"colour": "hunter2"});
    let store = odd.rig.store_with("unfit", config, |spec| spec.plugin = "odd".to_owned());
    let failure = store.open().await.unwrap_err();
    let line = "config: `colour`: unknown field `colour`, there are no fields";
    assert_eq!((failure.class, failure.to_string().as_str()), (Class::InvalidInput, line));
}

/// How many descriptors of this process lead to a file.
fn descriptors_of(file: &Path) -> usize {
    let links = fs::read_dir("/proc/self/fd").unwrap().flatten();
    links.filter(|link| fs::read_link(link.path()).is_ok_and(|target| target == file)).count()
}

#[tokio::test]
async fn refuses_a_file_or_a_directory_that_others_can_write_to() {
    for mode in [0o664, 0o646, 0o666] {
        let odd = Odd::changed(|_| ());
        odd.mode(mode);
        let line = format!("FILE can be written by others (mode 0{mode:o}); run `chmod go-w` on it");
        assert_eq!(odd.refusal().await, denied(&line));
    }
    for mode in [0o775, 0o757, 0o1777] {
        let odd = Odd::changed(|_| ());
        set_mode(odd.rig.directory.path(), mode);
        let failure = odd.open().await.unwrap_err();
        let line = format!("DIR can be written by others (mode {mode:04o}); run `chmod go-w` on it");
        assert_eq!(odd.line(&failure), denied(&line));
    }
}

/// Root can give a file away and see it refused. Anybody else can only show that a file of root's isn't taken for a
/// stranger's; that a stranger's is refused is then the business of the unit test beside the check itself.
#[tokio::test]
async fn refuses_a_file_that_belongs_to_a_stranger() {
    let odd = Odd::changed(|_| ());
    if geteuid().is_root() {
        chown(&odd.file, Some(12_345), None).unwrap();
        let line = "FILE belongs to user 12345, expected root or user 0 who runs the server";
        assert_eq!(odd.refusal().await, denied(line));
        chown(&odd.file, Some(0), None).unwrap();
        chown(odd.rig.directory.path(), Some(12_345), None).unwrap();
        let line = "DIR belongs to user 12345, expected root or user 0 who runs the server";
        assert_eq!(odd.line(&odd.open().await.unwrap_err()), denied(line));
    } else {
        assert_eq!(odd.open().await, Ok(()), "one's own file is fine");
    }
}

#[tokio::test]
async fn refuses_a_link_that_leaves_the_directory_and_follows_one_that_stays() {
    let elsewhere = PluginDir::with(&[HOSTILE]);
    let odd = Odd::new();
    symlink(elsewhere.path().join("libkeystead_plugin_hostile.so"), &odd.file).unwrap();
    let line = "FILE can't be opened: Invalid cross-device link (os error 18)";
    assert_eq!(odd.refusal().await, denied(line));
    fs::remove_file(&odd.file).unwrap();
    symlink("libkeystead_plugin_hostile.so", &odd.file).unwrap();
    assert_eq!(odd.open().await, Ok(()));
}

#[tokio::test]
async fn refuses_what_is_no_regular_file_and_does_not_hang_on_a_pipe() {
    let odd = Odd::new();
    mknodat(CWD, &odd.file, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    assert_eq!(odd.refusal().await, denied("FILE is not a regular file of at most 256 MiB"));
    let odd = Odd::new();
    fs::create_dir(&odd.file).unwrap();
    set_mode(&odd.file, 0o755);
    assert_eq!(odd.refusal().await, denied("FILE is not a regular file of at most 256 MiB"));
    let odd = Odd::new();
    odd.write(b"");
    File::options().write(true).open(&odd.file).unwrap().set_len((256 << 20) + 1).unwrap();
    assert_eq!(odd.refusal().await, denied("FILE is not a regular file of at most 256 MiB"));
}

#[tokio::test]
async fn a_missing_plugin_is_told_with_where_it_was_looked_for() {
    let odd = Odd::new();
    let line = "plugin `odd` was not found: no libkeystead_plugin_odd.so or odd.wasm in DIR";
    assert_eq!(odd.refusal().await, (Class::NotFound, line.to_owned()));
}

#[tokio::test]
async fn a_hash_that_is_configured_must_be_that_of_the_file() {
    let content = fs::read(testing::library(HOSTILE)).unwrap();
    let hash = |content: &[u8]| {
        let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, content);
        <[u8; 32]>::try_from(hash.as_ref()).unwrap()
    };
    let right = Odd::with(|settings| {
        settings.require_sha256 = true;
        settings.sha256 =
            [("hostile".to_owned(), hash(&content)), ("odd".to_owned(), hash(b"something else"))].into();
    });
    right.write(&content);
    let hex = |hash: [u8; 32]| hash.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let line = format!(
        "FILE: its SHA-256 is {}, and `plugins.sha256` has {}",
        hex(hash(&content)),
        hex(hash(b"something else"))
    );
    let failure = right.open().await.unwrap_err();
    let told = failure.to_string();
    assert_eq!(told.replace(&right.file.display().to_string(), "FILE"), line);
    assert!(!told.contains('\n'));
    opened(&right.rig.store("pinned", json!({}))).await;

    // A second name of a library that is loaded already gets through no more easily.
    fs::remove_file(&right.file).unwrap();
    fs::hard_link(right.hostile(), &right.file).unwrap();
    assert_eq!(right.open().await.unwrap_err().to_string(), told);
}

#[tokio::test]
async fn a_hash_that_is_required_must_be_configured() {
    let odd = Odd::with(|settings| settings.require_sha256 = true);
    odd.write(&fs::read(odd.hostile()).unwrap());
    let failure = odd.open().await.unwrap_err();
    let line = "plugin `odd` has no entry in `plugins.sha256`, and `plugins.require_sha256` is on";
    assert_eq!(odd.line(&failure), denied(line));
}

#[tokio::test]
async fn a_replaced_file_is_another_plugin_and_the_old_one_goes_on() {
    let odd = Odd::changed(|_| ());
    let store = odd.rig.store_with("replaced", json!({}), |spec| spec.plugin = "odd".to_owned());
    let listing = opened(&store).await;
    let fresh = odd.rig.directory.path().join("fresh");
    fs::copy(testing::library("keystead-plugin-other-draft"), &fresh).unwrap();
    set_mode(&fresh, 0o644);
    fs::rename(&fresh, &odd.file).unwrap();
    let (_, line) = odd.refusal().await;
    assert!(line.contains("draft 3"), "{line}");
    sign(&store, &key(&listing, "key"), "", PATIENCE).await.unwrap();
}

#[tokio::test]
async fn nothing_is_ever_unloaded() {
    let odd = Odd::changed(|_| ());
    odd.open().await.unwrap();
    let file = odd.file.display().to_string();
    let mapped = || fs::read_to_string("/proc/self/maps").unwrap().contains(&file);
    assert!(mapped());
    let host = Arc::downgrade(&odd.rig.host);
    drop(odd);
    assert!(host.upgrade().is_none() && mapped());
}

#[tokio::test]
async fn the_list_of_plugins_says_what_each_is_or_why_it_is_refused() {
    let odd = Odd::new();
    odd.write(b"nothing");
    fs::write(odd.rig.directory.path().join("libother.so"), b"").unwrap();
    let found = odd.rig.host.plugins().await;
    let names: Vec<&str> = found.iter().map(|found| found.name.as_str()).collect();
    assert_eq!(names, ["hostile", "odd"]);
    let description = found[0].description.as_ref().unwrap();
    assert_eq!((description.name.as_str(), description.contract), ("hostile", DRAFT));
    assert_eq!((description.vendor.as_str(), description.lanes_max), ("the tests", Some(4)));
    assert_eq!(found[1].description.as_ref().unwrap_err().class, Class::InvalidInput);
}
