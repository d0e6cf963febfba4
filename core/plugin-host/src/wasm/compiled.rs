//! A component as machine code: compiled once, kept in a directory that only this service can write to, and found there
//! by its content and by the engine that compiled it. Machine code from anywhere else is never taken.

use std::{
    fs::{self, File},
    hash::{DefaultHasher, Hash, Hasher},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use aws_lc_rs::digest;
use wasmtime::{Engine, component::Component};

use super::one_line;

/// Compiles a component, or takes what was compiled before.
pub(super) fn component(engine: &Engine, cache: Option<&Path>, content: &[u8]) -> Result<Component, String> {
    let kept = cache.and_then(|directory| match own(directory) {
        Ok(()) => Some(directory.join(name(engine, content))),
        Err(why) => {
            tracing::warn!("compiled components are not kept: {why}");
            None
        }
    });
    if let Some(component) = kept.as_deref().and_then(|file| take(engine, file)) {
        return Ok(component);
    }
    let code = engine.precompile_component(content).map_err(|error| invalid(&error))?;
    if let Some(error) = kept.as_deref().and_then(|file| keep(file, &code).err()) {
        tracing::warn!(%error, "a compiled component is not kept, and will be compiled again");
    }
    load(engine, &code)
}

fn invalid(error: &wasmtime::Error) -> String {
    format!("it can't be compiled: {}", one_line(error))
}

fn load(engine: &Engine, code: &[u8]) -> Result<Component, String> {
    // SAFETY: the code was made by this very engine just now, or comes from the file that `take` has checked.
    let component = unsafe { Component::deserialize(engine, code) };
    component.map_err(|error| {
        let hint =
            "where the service may not make memory executable, its unit needs `MemoryDenyWriteExecute=no`";
        format!("its code can't be loaded: {}; {hint}", one_line(&error))
    })
}

/// What was compiled before, if it is there, and nobody else can have written it.
fn take(engine: &Engine, file: &Path) -> Option<Component> {
    let metadata = fs::symlink_metadata(file).ok()?;
    let ours = metadata.is_file() && metadata.uid() == user() && metadata.mode() & 0o077 == 0;
    let code = ours.then(|| fs::read(file)).transpose().ok().flatten()?;
    load(engine, &code).inspect_err(|why| tracing::debug!("{}: {why}", file.display())).ok()
}

/// Puts code in its place, whole or not at all.
fn keep(file: &Path, code: &[u8]) -> io::Result<()> {
    let part = file.with_extension(format!("{}.part", std::process::id()));
    let written = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&part)
        .and_then(|mut open: File| open.write_all(code));
    written.and_then(|()| fs::rename(&part, file)).inspect_err(|_| drop(fs::remove_file(&part)))
}

/// Makes the directory, and refuses one that others could write to.
fn own(directory: &Path) -> Result<(), String> {
    let shown = directory.display();
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(|error| format!("{shown} can't be made: {error}"))?;
    let metadata = fs::symlink_metadata(directory).map_err(|error| format!("{shown}: {error}"))?;
    if !metadata.is_dir() || metadata.uid() != user() || metadata.mode() & 0o077 != 0 {
        return Err(format!(
            "{shown} must be a directory of user {} alone (mode 0700), and is of user {} with mode {:04o}",
            user(),
            metadata.uid(),
            metadata.mode() & 0o7777
        ));
    }
    Ok(())
}

fn user() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// The file of a component that was compiled by an engine.
fn name(engine: &Engine, content: &[u8]) -> PathBuf {
    let mut hasher = DefaultHasher::new();
    engine.precompile_compatibility_hash().hash(&mut hasher);
    let content = digest::digest(&digest::SHA256, content);
    let hex: String = content.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{hex}-{:016x}.cwasm", hasher.finish()).into()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// A component with nothing in it.
    const EMPTY: &[u8] = b"\0asm\x0d\0\x01\0";

    fn files(directory: &Path) -> Vec<PathBuf> {
        fs::read_dir(directory).into_iter().flatten().map(|entry| entry.unwrap().path()).collect()
    }

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn what_was_compiled_is_kept_for_this_user_alone_and_taken_again() {
        let place = tempfile::tempdir().unwrap();
        let directory = place.path().join("a/components");
        let engine = Engine::default();
        component(&engine, Some(&directory), EMPTY).unwrap();
        assert_eq!(fs::metadata(&directory).unwrap().mode() & 0o777, 0o700);
        let [file] = &files(&directory)[..] else { panic!("one file") };
        assert_eq!(fs::metadata(file).unwrap().mode() & 0o777, 0o600);
        let made = fs::metadata(file).unwrap().ino();
        component(&engine, Some(&directory), EMPTY).unwrap();
        assert_eq!(fs::metadata(file).unwrap().ino(), made, "it was taken, not made again");
    }

    #[test]
    fn what_others_can_write_to_or_is_damaged_is_not_taken() {
        let place = tempfile::tempdir().unwrap();
        let directory = place.path().join("components");
        let engine = Engine::default();
        component(&engine, Some(&directory), EMPTY).unwrap();
        let [file] = &files(&directory)[..] else { panic!("one file") };
        assert!(take(&engine, file).is_some());
        set_mode(file, 0o620);
        assert!(take(&engine, file).is_none(), "its group can write to it");
        set_mode(file, 0o600);
        fs::write(file, b"no code").unwrap();
        assert!(take(&engine, file).is_none());
        component(&engine, Some(&directory), EMPTY).unwrap();
        assert!(take(&engine, file).is_some(), "it was compiled again");
        set_mode(&directory, 0o770);
        assert!(own(&directory).unwrap_err().contains("alone (mode 0700)"));
        fs::remove_file(file).unwrap();
        component(&engine, Some(&directory), EMPTY).unwrap();
        assert!(files(&directory).is_empty(), "nothing is kept where others can write");
    }

    #[test]
    fn code_of_another_engine_or_content_has_another_name() {
        let other = Engine::new(wasmtime::Config::new().epoch_interruption(true)).unwrap();
        let engine = Engine::default();
        assert_ne!(name(&engine, EMPTY), name(&other, EMPTY));
        assert_ne!(name(&engine, EMPTY), name(&engine, b"other"));
        assert_eq!(name(&engine, EMPTY), name(&Engine::default(), EMPTY));
    }

    #[test]
    fn what_is_no_component_is_refused_in_one_line() {
        let refused = component(&Engine::default(), None, b"\0asm\x0d\0\x01\0\xff\xff").err().unwrap();
        assert!(refused.starts_with("it can't be compiled: ") && !refused.contains('\n'), "{refused}");
    }
}
