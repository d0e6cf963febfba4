//! Finding and reading the configuration file.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::notice::Notice;
use super::yaml::{self, MAX_BYTES};

/// Where a file is looked for when none is named: paths without their ending, in this order.
pub(super) const LOCATIONS: [&str; 4] =
    ["keystead", "gokeyless", "/etc/keystead/keystead", "/etc/keyless/gokeyless"];

/// Endings of what is read. JSON is YAML.
const ENDINGS: [&str; 3] = ["yaml", "yml", "json"];
/// Endings of what the reference reads beside it.
const FOREIGN: [&str; 4] = ["toml", "hcl", "ini", "properties"];

/// A configuration file that was read.
pub(super) struct Source {
    pub(super) path: PathBuf,
    /// The text, which may hold secrets.
    pub(super) text: Zeroizing<String>,
    /// Whether every user of the machine may read it.
    pub(super) world_readable: bool,
}

/// Reads the file that a flag names.
pub(super) fn named(path: &Path) -> Result<Source, Notice> {
    match path.extension().map(|ending| ending.to_string_lossy().to_ascii_lowercase()) {
        Some(ending) if !ENDINGS.contains(&ending.as_str()) => Err(foreign(path)),
        _ => read(path).map_err(|error| match error {
            Failure::Io(error) if error.kind() == io::ErrorKind::NotFound => missing(path),
            other => other.at(path),
        }),
    }
}

/// Reads the first file that exists of `locations`, which are paths without their ending.
pub(super) fn first_of(locations: &[impl AsRef<Path>]) -> Result<Option<Source>, Notice> {
    for location in locations {
        for path in ENDINGS.map(|ending| location.as_ref().with_added_extension(ending)) {
            match read(&path) {
                Err(Failure::Io(error)) if is_absent(&error) => {}
                read => return read.map(Some).map_err(|error| error.at(&path)),
            }
        }
        let others = FOREIGN.map(|ending| location.as_ref().with_added_extension(ending));
        if let Some(other) = others.iter().find(|path| path.is_file()) {
            return Err(foreign(other));
        }
    }
    Ok(None)
}

enum Failure {
    Io(io::Error),
    NotText,
    TooLarge,
}

impl Failure {
    fn at(self, path: &Path) -> Notice {
        let notice = match self {
            Self::Io(error) => Notice::new(format!("cannot read the configuration: {}", error.kind()))
                .hint("check that it is a file, and that the server's user may read it"),
            Self::NotText => Notice::new("the configuration is not UTF-8 text").hint("convert it to UTF-8"),
            Self::TooLarge => yaml::too_large(),
        };
        Notice { file: Some(path.to_owned()), ..notice }
    }
}

fn read(path: &Path) -> Result<Source, Failure> {
    let file = File::open(path).map_err(Failure::Io)?;
    let world_readable = is_world_readable(&file).map_err(Failure::Io)?;
    // One allocation, and a limit: the text may hold secrets, and the path may lead to a device without end.
    let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_BYTES + 1));
    file.take(MAX_BYTES as u64 + 1).read_to_end(&mut bytes).map_err(Failure::Io)?;
    if bytes.len() > MAX_BYTES {
        return Err(Failure::TooLarge);
    }
    let text = String::from_utf8(std::mem::take(&mut *bytes)).map_err(|error| {
        drop(Zeroizing::new(error.into_bytes()));
        Failure::NotText
    })?;
    Ok(Source { path: path.to_owned(), text: Zeroizing::new(text), world_readable })
}

fn is_world_readable(file: &File) -> io::Result<bool> {
    use std::os::unix::fs::PermissionsExt;
    let metadata = file.metadata()?;
    Ok(metadata.is_file() && metadata.permissions().mode() & 0o004 != 0)
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

fn missing(path: &Path) -> Notice {
    let notice = Notice::new("no such configuration file");
    Notice { file: Some(path.to_owned()), ..notice }
        .hint("correct `--config-file`, or start from what `keystead default-config` prints")
}

fn foreign(path: &Path) -> Notice {
    let notice = Notice::new("expected a file ending in `.yaml`, `.yml` or `.json`");
    Notice { file: Some(path.to_owned()), ..notice }.hint("convert it to YAML; the keys keep their names")
}
