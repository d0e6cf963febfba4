//! From a file to a loaded plugin: one descriptor, checked before any of its code runs, and loaded by that very
//! descriptor, so that nothing can be swapped in between.

use std::{
    fs::File,
    io::{self, Read, Seek},
    mem,
    os::{
        fd::{AsFd, AsRawFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use abi_stable::library::{
    AbiHeaderRef, LibraryError, ROOT_MODULE_LOADER_NAME, ROOT_MODULE_LOADER_NAME_WITH_NUL,
};
use aws_lc_rs::digest;
use keystead_plugin_api::{
    Error,
    abi::{BackendTable, DRAFT, ENTRY_POINT, EntryPoint, RootRef, struct_size},
    schema,
};
use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
use object::{FileKind, Object, ObjectSymbol, read::elf::ElfFile64};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};

#[cfg(feature = "wasm")]
use crate::wasm;
use crate::{Class, Description, Failure, failure::tame, instance::Instance, native, services::HostSide};

/// The largest file that is taken for a plugin: 256 MiB.
const SIZE_MAX: u64 = 256 << 20;

/// Device and inode of a plugin's file: what makes it the one that is meant.
pub(crate) type FileIdentity = (u64, u64);

/// A plugin that is loaded, and stays so until the process ends.
pub(crate) struct Plugin {
    pub(crate) description: Description,
    code: Code,
    sha256: [u8; 32],
}

/// What a plugin runs as.
enum Code {
    Library(&'static BackendTable),
    #[cfg(feature = "wasm")]
    Component(Arc<wasm::Component>),
}

/// A component that has been read, and has the right hash where one is asked for.
#[cfg(feature = "wasm")]
pub(crate) struct Content {
    path: PathBuf,
    bytes: Vec<u8>,
    pub(crate) sha256: [u8; 32],
}

/// A file that may be a plugin: open, and of an owner and mode that can be trusted.
pub(crate) struct Opened {
    file: File,
    path: PathBuf,
    identity: FileIdentity,
}

/// A file that has been read: it has the right hash where one is asked for, and exports a plugin's entry point.
pub(crate) struct Checked {
    file: File,
    path: PathBuf,
    sha256: [u8; 32],
    door: Door,
}

/// How a library hands out its table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Door {
    /// By abi_stable's header, which describes the table's layout: a plugin in Rust.
    Rust,
    /// By a function of the contract: a plugin in C.
    C,
}

/// A library whose code has run. What becomes of it is final: it can't be unloaded and loaded again.
pub(crate) struct Mapped {
    library: Library,
    path: PathBuf,
    sha256: [u8; 32],
    door: Door,
}

impl Opened {
    /// Opens a file within its directory. Both must belong to root or to this process' user, and nobody else may write
    /// to them.
    pub(crate) fn open(path: &Path) -> Result<Self, Failure> {
        let refused = |error: io::Error| {
            let class = if error.kind() == io::ErrorKind::NotFound { Class::NotFound } else { Class::Denied };
            Failure::new(class, format!("{} can't be opened: {error}", path.display()))
        };
        let directory =
            path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let name = path.file_name().ok_or_else(|| refused(io::ErrorKind::NotFound.into()))?;
        // Opening a pipe without a writer would hang, were it not for NONBLOCK.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let directory_fd = rustix::fs::openat(CWD, directory, flags | OFlags::DIRECTORY, Mode::empty())
            .map_err(|error| refused(error.into()))?;
        trusted(&File::from(directory_fd.as_fd().try_clone_to_owned().map_err(refused)?), directory)?;
        let file = File::from(open_beneath(&directory_fd, name, flags).map_err(refused)?);
        let metadata = trusted(&file, path)?;
        if !metadata.is_file() || metadata.len() > SIZE_MAX {
            return Err(Failure::denied(format!(
                "{} is not a regular file of at most 256 MiB",
                path.display()
            )));
        }
        Ok(Self { file, path: path.to_owned(), identity: (metadata.dev(), metadata.ino()) })
    }

    /// Device and inode: two paths with the same identity are one plugin.
    pub(crate) fn identity(&self) -> FileIdentity {
        self.identity
    }

    /// Reads the file, compares its SHA-256 with `pin`, and looks at its symbols.
    pub(crate) fn check(mut self, pin: Option<&[u8; 32]>) -> Result<Checked, Failure> {
        let (content, sha256) = self.read(pin)?;
        let door =
            door(&content).map_err(|what| Failure::invalid(format!("{} {what}", self.path.display())))?;
        Ok(Checked { file: self.file, path: self.path, sha256, door })
    }

    /// Reads a component, and compares its SHA-256 with `pin`.
    #[cfg(feature = "wasm")]
    pub(crate) fn component(mut self, pin: Option<&[u8; 32]>) -> Result<Content, Failure> {
        let (bytes, sha256) = self.read(pin)?;
        let refused = |what: &str| Err(Failure::invalid(format!("{} {what}", self.path.display())));
        // The magic number, and a version and a layer: those of a module are 1 and 0, of a component 13 and 1.
        match bytes.first_chunk() {
            Some(b"\0asm\x0d\0\x01\0") => Ok(Content { path: self.path, bytes, sha256 }),
            Some([0, b'a', b's', b'm', ..]) => refused(
                "is a WebAssembly module, and no component; build it for wasm32-wasip2, or make one of it with \
                 `wasm-tools component new`",
            ),
            _ => refused("is not WebAssembly in binary form"),
        }
    }

    fn read(&mut self, pin: Option<&[u8; 32]>) -> Result<(Vec<u8>, [u8; 32]), Failure> {
        let mut content = Vec::new();
        let read = (&self.file).take(SIZE_MAX).read_to_end(&mut content);
        read.and_then(|_| self.file.rewind()).map_err(|error| {
            Failure::new(Class::Unavailable, format!("{} can't be read: {error}", self.path.display()))
        })?;
        let sha256 = sha256(&content);
        pinned(&self.path, &sha256, pin)?;
        Ok((content, sha256))
    }
}

#[cfg(feature = "wasm")]
impl Content {
    /// Compiles it, and asks it what it is.
    pub(crate) fn load(self, sandbox: &Arc<wasm::Sandbox>) -> Result<Plugin, Failure> {
        let loaded = sandbox.load(&self.bytes);
        let (component, description) = loaded.map_err(|what| refuse(&self.path, &what))?;
        Ok(Plugin { description, code: Code::Component(Arc::new(component)), sha256: self.sha256 })
    }
}

impl Checked {
    /// Maps the library, which runs its constructors: the first of its code. The descriptor stays open for ever: the
    /// loader knows libraries by name, and this one's is its number.
    pub(crate) fn map(self) -> Result<Mapped, Failure> {
        let name = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        // SAFETY: loading runs the library's constructors: native plugins are trusted code by the threat model, from a
        // file that only root or this user can write. Nothing of it is unloaded: the handle is leaked below.
        let library = unsafe { Library::open(Some(&name), RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE) };
        let library = library.map_err(|error| {
            let error = error.to_string().replace(&name, "the library");
            refuse(&self.path, &tame(error.as_bytes(), 200))
        })?;
        mem::forget(self.file);
        Ok(Mapped { library, path: self.path, sha256: self.sha256, door: self.door })
    }
}

impl Mapped {
    /// Checks the library's table and its draft, and asks what it is.
    pub(crate) fn examine(self) -> Result<Plugin, Failure> {
        let table = match self.door {
            Door::Rust => rust_table(&self.library),
            Door::C => c_table(&self.library),
        };
        mem::forget(self.library);
        let table = table.map_err(|what| refuse(&self.path, &what))?;
        let description = native::describe(table).map_err(|what| refuse(&self.path, &what))?;
        Ok(Plugin { description, code: Code::Library(table), sha256: self.sha256 })
    }
}

impl Plugin {
    /// Opens a store, if its configuration fits the plugin's schema.
    /// `memory` is that of a component's instance.
    pub(crate) fn open(
        &self,
        side: &'static dyn HostSide,
        memory: usize,
    ) -> Result<Arc<dyn Instance>, Error> {
        let config = side.config().unwrap_or_default();
        schema::check(&self.description.schema, &serde_json::from_slice(&config).unwrap_or_default())?;
        match &self.code {
            Code::Library(table) => {
                let _ = memory; // whoever runs in this process takes what it wants
                native::open(table, side)
            }
            #[cfg(feature = "wasm")]
            Code::Component(component) => component.open(side, memory),
        }
    }

    /// Names the group of a store by its configuration.
    pub(crate) fn isolation_group(&self, config: &[u8]) -> Result<Option<String>, Error> {
        match &self.code {
            Code::Library(table) => native::isolation_group(table, config),
            #[cfg(feature = "wasm")]
            Code::Component(_) => Ok(None),
        }
    }

    /// The table of a library.
    #[cfg(any(test, feature = "test-support"))]
    pub(crate) fn table(&self) -> Option<&'static BackendTable> {
        match &self.code {
            Code::Library(table) => Some(table),
            #[cfg(feature = "wasm")]
            Code::Component(_) => None,
        }
    }

    /// Whether what was loaded has the hash that this name asks for: one file may have several names.
    pub(crate) fn pinned(&self, path: &Path, pin: Option<&[u8; 32]>) -> Result<(), Failure> {
        pinned(path, &self.sha256, pin)
    }
}

/// Keeps a library mapped whatever happens (dlopen(3)); libloading doesn't name it.
const RTLD_NODELETE: i32 = 0x1000;

fn refuse(path: &Path, what: &str) -> Failure {
    Failure::invalid(format!("{} can't be loaded: {what}", path.display()))
}

/// The table of a plugin in Rust, once its layout, draft and size are known to be those of this host.
fn rust_table(library: &Library) -> Result<&'static BackendTable, String> {
    // SAFETY: the symbol, which was seen in the file, is abi_stable's header by its name; the next call checks that it
    // really is one of a version it knows.
    let header = unsafe { library.get::<AbiHeaderRef>(ROOT_MODULE_LOADER_NAME_WITH_NUL.as_bytes()) };
    let header = *header.map_err(|error| error.to_string())?;
    let root = header
        .upgrade()
        .and_then(abi_stable::library::LibHeader::init_root_module::<RootRef>)
        .map_err(|error| mismatch(&error))?;
    let table = root.backend();
    speaks(table.draft)?;
    has_size(table.size)?;
    Ok(table)
}

/// The table of a plugin in C. Nobody has checked its layout, so all that can be checked is before it is believed.
fn c_table(library: &Library) -> Result<&'static BackendTable, String> {
    // SAFETY: the symbol, which was seen in the file, is the entry point of the contract by its name.
    let entry_point = unsafe { library.get::<EntryPoint>(ENTRY_POINT.as_bytes()) };
    let entry_point = *entry_point.map_err(|error| error.to_string())?;
    // SAFETY: an entry point may be called at any time, with any number.
    let table = unsafe { entry_point(DRAFT) };
    if table.is_null() {
        return Err(format!(
            "it doesn't speak draft {DRAFT} of the plugin contract, which is this server's; build it against this \
             server's keystead_plugin.h"
        ));
    }
    if !table.is_aligned() {
        return Err("its table is not aligned".to_owned());
    }
    // SAFETY: a table of any draft begins with its size and draft, and is static; neither is a reference yet.
    let (size, draft) = unsafe { ((&raw const (*table).size).read(), (&raw const (*table).draft).read()) };
    speaks(draft)?;
    has_size(size)?;
    // SAFETY: the table is as large as the struct, aligned and static, and `has_functions` looks for NULL first.
    unsafe {
        has_functions(table)?;
        Ok(&*table)
    }
}

fn speaks(draft: u32) -> Result<(), String> {
    if draft == DRAFT {
        return Ok(());
    }
    Err(format!(
        "it was built for draft {draft} of the plugin contract, and this server speaks draft {DRAFT}; build it against \
         this server's keystead-plugin-api"
    ))
}

fn has_size(size: u32) -> Result<(), String> {
    let expected = struct_size::<BackendTable>();
    if size >= expected { Ok(()) } else { Err(format!("its table has {size} bytes, expected {expected}")) }
}

/// No function may be NULL, which for a reference to the table would be undefined behaviour already.
///
/// # Safety
///
/// `table` points to readable memory of the struct's size and alignment.
unsafe fn has_functions(table: *const BackendTable) -> Result<(), String> {
    macro_rules! check {
        ($($function:ident),+) => {$(
            // SAFETY: promised by the caller; whatever the bits are, they are a number.
            let bits = unsafe { (&raw const (*table).$function).cast::<usize>().read() };
            if bits == 0 {
                return Err(concat!("the function `", stringify!($function), "` of its table is NULL").to_owned());
            }
        )+};
    }
    check!(describe, open, close, keys, sign, decrypt, health, extension);
    Ok(())
}

/// One line; the full comparison of the layouts, 20 kB of it, goes to the debug log.
fn mismatch(error: &LibraryError) -> String {
    tracing::debug!(%error, "the plugin's table differs");
    "its table differs from this server's; build it against this server's keystead-plugin-api (the debug log has the \
     differences)"
        .to_owned()
}

fn open_beneath(
    directory: &impl AsFd,
    name: &std::ffi::OsStr,
    flags: OFlags,
) -> io::Result<rustix::fd::OwnedFd> {
    let within = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    match rustix::fs::openat2(directory, name, flags, Mode::empty(), within) {
        // Kernels before 5.6, and sandboxes that don't know the call: no symbolic link at all then.
        Err(rustix::io::Errno::NOSYS | rustix::io::Errno::PERM) => {
            Ok(rustix::fs::openat(directory, name, flags | OFlags::NOFOLLOW, Mode::empty())?)
        }
        other => Ok(other?),
    }
}

fn trusted(file: &File, path: &Path) -> Result<std::fs::Metadata, Failure> {
    let metadata = file
        .metadata()
        .map_err(|error| Failure::denied(format!("{} can't be examined: {error}", path.display())))?;
    trustworthy(path, metadata.uid(), metadata.mode(), rustix::process::geteuid().as_raw())?;
    Ok(metadata)
}

/// What belongs to anybody but root and the `user` who runs the server, or can be written by others, isn't trusted.
fn trustworthy(path: &Path, owner: u32, mode: u32, user: u32) -> Result<(), Failure> {
    if owner != 0 && owner != user {
        return Err(Failure::denied(format!(
            "{} belongs to user {owner}, expected root or user {user} who runs the server",
            path.display()
        )));
    }
    if mode & 0o022 != 0 {
        return Err(Failure::denied(format!(
            "{} can be written by others (mode {:04o}); run `chmod go-w` on it",
            path.display(),
            mode & 0o7777
        )));
    }
    Ok(())
}

fn sha256(content: &[u8]) -> [u8; 32] {
    let mut sha256 = [0; 32];
    sha256.copy_from_slice(digest::digest(&digest::SHA256, content).as_ref());
    sha256
}

fn pinned(path: &Path, found: &[u8; 32], pin: Option<&[u8; 32]>) -> Result<(), Failure> {
    match pin.filter(|pin| *pin != found) {
        None => Ok(()),
        Some(pin) => Err(Failure::denied(format!(
            "{}: its SHA-256 is {}, and `plugins.sha256` has {}",
            path.display(),
            hex(found),
            hex(pin)
        ))),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Looks at a file's headers and symbols: a library for this machine and this libc that is a plugin.
fn door(content: &[u8]) -> Result<Door, String> {
    let kind = FileKind::parse(content).map_err(|_| "is not an ELF library".to_owned())?;
    if !matches!(kind, FileKind::Elf32 | FileKind::Elf64) {
        return Err("is not an ELF library".to_owned());
    }
    let own = own_machine();
    let machine = content.get(18..20).and_then(|bytes| bytes.try_into().ok()).map(u16::from_le_bytes);
    if kind != FileKind::Elf64 || machine != Some(own) {
        return Err(format!(
            "is a library for another machine (ELF machine {}, expected {own}, 64 bits)",
            machine.unwrap_or_default()
        ));
    }
    let broken = |error| format!("is truncated or damaged: {error}");
    let library = ElfFile64::<object::Endianness>::parse(content).map_err(broken)?;
    complete(content)?;
    needs_no_musl(&library)?;
    exported_door(&library).ok_or_else(|| {
        "exports no plugin entry point; is it a plugin, built with `export_backend!` or with `keystead_plugin`?".to_owned()
    })
}

/// A library that offers both is taken as one in Rust, whose layout can be checked.
fn exported_door(library: &ElfFile64<'_>) -> Option<Door> {
    let exported = |name: &str| {
        library.dynamic_symbols().any(|symbol| symbol.is_definition() && symbol.name() == Ok(name))
    };
    if exported(ROOT_MODULE_LOADER_NAME) {
        return Some(Door::Rust);
    }
    exported(ENTRY_POINT).then_some(Door::C)
}

/// A library that needs musl would bring a second libc into this process, which ends in crashes far from their cause.
fn needs_no_musl(library: &ElfFile64<'_>) -> Result<(), String> {
    let broken = |error| format!("is truncated or damaged: {error}");
    let table = library.elf_dynamic_table().map_err(broken)?;
    for entry in table.iter().filter(|entry| entry.tag == object::elf::DT_NEEDED) {
        let name = table.string(entry).map_err(broken)?;
        if is_musl(name) {
            return Err(format!(
                "is linked against musl ({}), and this server runs with glibc; build it on a system with glibc, such as \
                 Debian",
                tame(name, 64)
            ));
        }
    }
    Ok(())
}

/// What musl's library is called, by Alpine and by itself. That of glibc is `libc.so.6`.
fn is_musl(name: &[u8]) -> bool {
    name == b"libc.so" || name.starts_with(b"libc.musl-") || name.starts_with(b"ld-musl")
}

/// Every segment must lie in the file: mapping a shorter one would end the process with SIGBUS.
fn complete(content: &[u8]) -> Result<(), String> {
    use object::read::elf::{FileHeader, ProgramHeader};
    let broken = |error: object::Error| format!("is truncated or damaged: {error}");
    let header = object::elf::FileHeader64::<object::Endianness>::parse(content).map_err(broken)?;
    let endian = header.endian().map_err(broken)?;
    for segment in header.program_headers(endian, content).map_err(broken)? {
        let end = segment.p_offset(endian).saturating_add(segment.p_filesz(endian));
        if end > content.len() as u64 {
            return Err(format!("is truncated: it has {} bytes of at least {end}", content.len()));
        }
    }
    Ok(())
}

const fn own_machine() -> u16 {
    if cfg!(target_arch = "aarch64") { object::elf::EM_AARCH64.0 } else { object::elf::EM_X86_64.0 }
}

#[cfg(test)]
mod tests {
    use std::{fs, ptr};

    use super::*;
    use crate::testing::{self, PluginDir};

    const HOSTILE: &str = "keystead-plugin-hostile";

    fn hostile(directory: &PluginDir) -> PathBuf {
        directory.path().join("libkeystead_plugin_hostile.so")
    }

    fn load(file: &Path) -> Plugin {
        Opened::open(file).unwrap().check(None).unwrap().map().unwrap().examine().unwrap()
    }

    #[test]
    fn what_was_checked_is_what_is_loaded_whatever_the_name_leads_to_by_then() {
        let directory = PluginDir::with(&[HOSTILE]);
        let file = hostile(&directory);
        let checked = Opened::open(&file).unwrap().check(None).unwrap();
        let swapped = testing::install(directory.path(), "keystead-plugin-other-draft");
        fs::rename(swapped, &file).unwrap();
        assert_eq!(checked.map().unwrap().examine().unwrap().description.name, "hostile");
        let now = Opened::open(&file).unwrap().check(None).unwrap().map().unwrap().examine();
        assert!(now.err().unwrap().message.contains("draft 3"));
    }

    #[test]
    fn what_was_opened_is_what_is_checked() {
        let directory = PluginDir::with(&[HOSTILE]);
        let file = hostile(&directory);
        let opened = Opened::open(&file).unwrap();
        fs::rename(&file, directory.path().join("aside")).unwrap();
        fs::write(&file, "swapped").unwrap();
        let hash = sha256(&fs::read(testing::library(HOSTILE)).unwrap());
        assert!(opened.check(Some(&hash)).is_ok());
    }

    #[test]
    fn two_files_are_two_plugins_even_where_their_content_is_the_same() {
        let (one, other) = (PluginDir::with(&[HOSTILE]), PluginDir::with(&[HOSTILE]));
        let (first, second) = (load(&hostile(&one)), load(&hostile(&other)));
        assert!(!ptr::eq(first.table().unwrap(), second.table().unwrap()));
        let again = load(&hostile(&one));
        assert!(ptr::eq(first.table().unwrap(), again.table().unwrap()), "one file is one plugin");
    }

    #[test]
    fn a_deleted_file_never_lends_its_identity_to_another() {
        let directory = PluginDir::with(&[HOSTILE]);
        let mut tables = Vec::new();
        for _ in 0..3 {
            let file = testing::install(directory.path(), HOSTILE);
            tables.push(ptr::from_ref(load(&file).table().unwrap()));
            fs::remove_file(file).unwrap(); // frees the inode's number, were it not held
        }
        tables.dedup();
        assert_eq!(tables.len(), 3);
    }

    #[test]
    fn a_library_with_both_entry_points_is_taken_as_one_in_rust() {
        let directory = PluginDir::with(&[]);
        let both = testing::c_plugin(directory.path(), "both", &[&testing::source("odd.c")], &["-DBOTH"]);
        let c = testing::c_plugin(directory.path(), "c", &[&testing::source("odd.c")], &[]);
        let rust = fs::read(testing::library(HOSTILE)).unwrap();
        assert_eq!(door(&fs::read(both).unwrap()), Ok(Door::Rust));
        assert_eq!(door(&fs::read(c).unwrap()), Ok(Door::C));
        assert_eq!(door(&rust), Ok(Door::Rust));
    }

    #[test]
    fn knows_the_libraries_of_musl_by_their_names() {
        for name in ["libc.musl-x86_64.so.1", "ld-musl-aarch64.so.1", "libc.so"] {
            assert!(is_musl(name.as_bytes()), "{name}");
        }
        for name in ["libc.so.6", "ld-linux-x86-64.so.2", "libmuscle.so.1", "libc++.so.1"] {
            assert!(!is_musl(name.as_bytes()), "{name}");
        }
    }

    #[test]
    fn trusts_root_and_itself_and_nobody_else() {
        let path = Path::new("/p");
        assert!(trustworthy(path, 0, 0o100_755, 1000).is_ok());
        assert!(trustworthy(path, 1000, 0o100_600, 1000).is_ok());
        let stranger = trustworthy(path, 1001, 0o100_644, 1000).unwrap_err();
        let line = "/p belongs to user 1001, expected root or user 1000 who runs the server";
        assert_eq!((stranger.class, stranger.to_string().as_str()), (Class::Denied, line));
        assert!(trustworthy(path, 1000, 0o100_644, 0).is_err(), "root doesn't run what a user can write");
        assert!(trustworthy(path, 0, 0o100_664, 0).is_err());
    }
}
