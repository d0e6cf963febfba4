//! Where plugins are looked for. A directory is a search path: nothing in it runs unless YAML names it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::{Class, Description, Failure};

const PREFIX: &str = "libkeystead_plugin_";
const SUFFIX: &str = ".so";

/// The end of a component's file: `NAME.wasm`.
const COMPONENT: &str = "wasm";

/// The directory of packages.
const SYSTEM: &str = "/usr/lib/keystead/plugins";

/// One plugin file on the search path.
#[derive(Debug)]
#[non_exhaustive]
pub struct Found {
    /// The name that YAML calls it by.
    pub name: String,
    /// The file.
    pub file: PathBuf,
    /// What it says it is, or why it is refused.
    pub description: Result<Description, Failure>,
}

/// The directories to look in: those configured, else the executable's own directory and `/usr/lib/keystead/plugins`.
#[must_use]
pub fn search_path(configured: &[PathBuf], executable: Option<&Path>) -> Vec<PathBuf> {
    if !configured.is_empty() {
        return configured.to_vec();
    }
    let own = executable.and_then(Path::parent).map(Path::to_path_buf);
    own.into_iter().chain([PathBuf::from(SYSTEM)]).collect()
}

/// Whether a file is to be a component.
pub(crate) fn is_component(file: &Path) -> bool {
    file.extension().is_some_and(|extension| extension == COMPONENT)
}

/// The file of a plugin: the first on the path, and in one directory the library before the component.
pub(crate) fn first(path: &[PathBuf], name: &str) -> Result<PathBuf, Failure> {
    if !is_name(name) {
        return Err(Failure::invalid(format!(
            "`{name}` can't be the name of a plugin: expected lower-case letters, digits and hyphens"
        )));
    }
    let files = [format!("{PREFIX}{}{SUFFIX}", name.replace('-', "_")), format!("{name}.{COMPONENT}")];
    let mut candidates = path.iter().flat_map(|place| match plugin_name(place) {
        Some(found) if found == name => vec![place.clone()],
        _ => files.iter().map(|file| place.join(file)).collect(),
    });
    candidates.find(|file| file.symlink_metadata().is_ok()).ok_or_else(|| {
        let [library, component] = &files;
        Failure::new(
            Class::NotFound,
            format!("plugin `{name}` was not found: no {library} or {component} in {}", joined(path)),
        )
    })
}

/// Every plugin file on the path, by name.
pub(crate) fn all(path: &[PathBuf]) -> Vec<(String, PathBuf)> {
    let mut found = Vec::new();
    for directory in path {
        let mut files: Vec<PathBuf> =
            fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
        files.sort();
        found.extend(files.into_iter().filter_map(|file| Some((plugin_name(&file)?, file))));
    }
    found
}

/// The name of the plugin that a file is by its own name: `libkeystead_plugin_NAME.so` or `NAME.wasm`.
#[must_use]
pub fn plugin_name(file: &Path) -> Option<String> {
    let name = match is_component(file) {
        true => file.file_stem()?.to_str()?.to_owned(),
        false => file.file_name()?.to_str()?.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?.replace('_', "-"),
    };
    is_name(&name).then_some(name)
}

fn is_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 64
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
}

fn joined(path: &[PathBuf]) -> String {
    path.iter().map(|directory| directory.display().to_string()).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configured_directories_come_before_the_executables_own_and_the_systems() {
        let exe = Some(Path::new("/opt/keystead/bin/keystead"));
        assert_eq!(search_path(&["/a".into()], exe), [PathBuf::from("/a")]);
        assert_eq!(search_path(&[], exe), [PathBuf::from("/opt/keystead/bin"), PathBuf::from(SYSTEM)]);
        assert_eq!(search_path(&[], None), [PathBuf::from(SYSTEM)]);
    }

    #[test]
    fn a_name_never_leads_out_of_its_directory() {
        for name in ["../evil", "a/b", "", "UPPER", "a.b", "a_b"] {
            assert_eq!(first(&["/tmp".into()], name).unwrap_err().class, Class::InvalidInput, "{name}");
        }
    }

    #[test]
    fn a_missing_plugin_is_named_with_where_it_was_looked_for() {
        let failure = first(&["/nowhere".into(), "/neither".into()], "in-house").unwrap_err();
        assert_eq!(
            failure.to_string(),
            "plugin `in-house` was not found: no libkeystead_plugin_in_house.so or in-house.wasm in \
             /nowhere, /neither"
        );
    }
}
