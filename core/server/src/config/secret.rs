//! Secrets: where they come from, and a value that doesn't show itself.

mod member;

use std::convert::Infallible;
use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use zeroize::Zeroizing;

/// A secret's size may not exceed this; PINs, passphrases and tokens are far below, a wrong path often isn't.
const MAX_SECRET: usize = 64 * 1024;

/// A secret that was written into the configuration: zeroed when dropped, invisible in `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

/// Where a secret comes from. Read anew each time, so that a rotated secret is picked up.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SecretSource {
    /// `credential: NAME`, the file of that name in systemd's `$CREDENTIALS_DIRECTORY` (systemd.exec(5)).
    Credential(String),
    /// `env: NAME`, a variable of the server's environment.
    Env(String),
    /// `file: PATH`.
    File(PathBuf),
    /// `value: TEXT`, in the configuration file itself.
    Value(Secret),
    /// `pointer: POINTER` beside one of the others: the text at a JSON Pointer (RFC 6901) in what that has.
    Member(Box<Self>, String),
}

/// Why a secret couldn't be read. Names the source, never the content.
#[derive(Debug)]
#[non_exhaustive]
pub enum SecretError {
    /// The file can't be read.
    File(PathBuf, io::Error),
    /// `$CREDENTIALS_DIRECTORY` isn't set: the server wasn't started by systemd, or the unit loads no credentials.
    NoCredentials(String),
    /// What the source has isn't JSON with a text at the pointer; says what is there.
    Member(String, &'static str),
    /// The file is larger than 64 KiB.
    TooLarge(PathBuf),
    /// The variable isn't set.
    Unset(String),
}

impl SecretSource {
    /// The secret's bytes. Of a file or credential, one trailing newline (LF or CR LF) is not part of it.
    ///
    /// # Errors
    /// The source is missing, unreadable, or larger than 64 KiB.
    pub fn read(&self) -> Result<Zeroizing<Vec<u8>>, SecretError> {
        self.read_with(&|name| std::env::var_os(name))
    }

    /// Where the whole comes from, of which this may be a member.
    #[must_use]
    pub fn whole(&self) -> &Self {
        if let Self::Member(whole, _) = self { whole.whole() } else { self }
    }

    /// The variable of the server's environment that holds it.
    pub(super) fn variable(&self) -> Option<&str> {
        if let Self::Env(name) = self.whole() { Some(name) } else { None }
    }

    fn read_with(&self, env: &dyn Fn(&str) -> Option<OsString>) -> Result<Zeroizing<Vec<u8>>, SecretError> {
        match self {
            Self::Credential(name) => {
                let directory =
                    env("CREDENTIALS_DIRECTORY").ok_or_else(|| SecretError::NoCredentials(name.clone()))?;
                read_file(&Path::new(&directory).join(name))
            }
            Self::Env(name) => {
                let value = env(name).ok_or_else(|| SecretError::Unset(name.clone()))?;
                Ok(Zeroizing::new(value.into_encoded_bytes()))
            }
            Self::File(path) => read_file(path),
            Self::Member(whole, pointer) => member::text(&whole.read_with(env)?, pointer)
                .map_err(|found| SecretError::Member(self.to_string(), found)),
            Self::Value(secret) => Ok(Zeroizing::new(secret.expose().as_bytes().to_vec())),
        }
    }
}

impl fmt::Display for SecretSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Credential(name) => write!(f, "credential `{name}`"),
            Self::Env(name) => write!(f, "secret variable `{name}`"),
            Self::File(path) => write!(f, "secret file `{}`", path.display()),
            Self::Member(whole, pointer) => write!(f, "`{pointer}` of {whole}"),
            Self::Value(_) => f.write_str("secret value"),
        }
    }
}

impl Secret {
    /// The secret itself; the name makes its uses easy to find.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(Zeroizing::new(text))
    }
}

impl FromStr for Secret {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self::from(text.to_owned()))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl fmt::Display for SecretError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path, error) => write!(f, "secret file `{}`: {}", path.display(), error.kind()),
            Self::NoCredentials(name) => write!(f, "credential `{name}`: `CREDENTIALS_DIRECTORY` is not set"),
            Self::Member(source, found) => {
                write!(f, "{source}: expected a JSON document with a text there, got {found}")
            }
            Self::TooLarge(path) => {
                write!(f, "secret file `{}`: expected at most {MAX_SECRET} bytes, got more", path.display())
            }
            Self::Unset(name) => write!(f, "secret variable `{name}` is not set"),
        }
    }
}

impl std::error::Error for SecretError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::File(_, error) => Some(error),
            Self::NoCredentials(_) | Self::Member(..) | Self::TooLarge(_) | Self::Unset(_) => None,
        }
    }
}

/// Reads into a buffer that never grows, since growing would leave copies behind that nobody zeroes.
fn read_file(path: &Path) -> Result<Zeroizing<Vec<u8>>, SecretError> {
    let fault = |error| SecretError::File(path.to_owned(), error);
    let mut buffer = Zeroizing::new(vec![0; MAX_SECRET + 1]);
    let mut file = File::open(path).map_err(fault)?;
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match file.read(rest) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(fault(error)),
        }
    }
    if filled > MAX_SECRET {
        return Err(SecretError::TooLarge(path.to_owned()));
    }
    buffer.truncate(filled);
    trim_newline(&mut buffer);
    Ok(buffer)
}

fn trim_newline(bytes: &mut Vec<u8>) {
    if bytes.last() == Some(&b'\n') {
        bytes.pop();
        if bytes.last() == Some(&b'\r') {
            bytes.pop();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(source: &SecretSource, directory: Option<&Path>) -> Result<String, String> {
        let env = |name: &str| match name {
            "CREDENTIALS_DIRECTORY" => directory.map(|directory| directory.as_os_str().to_owned()),
            "PIN" => Some(OsString::from("1234\n")),
            _ => None,
        };
        let secret = source.read_with(&env).map_err(|error| error.to_string())?;
        Ok(String::from_utf8(secret.to_vec()).unwrap())
    }

    #[test]
    fn one_newline_at_the_end_of_a_file_is_not_part_of_the_secret() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pin");
        for (content, secret) in
            [("", ""), ("x", "x"), ("x\n", "x"), ("x\r\n", "x"), ("x\n\n", "x\n"), ("x \r", "x \r")]
        {
            std::fs::write(&path, content).unwrap();
            assert_eq!(read(&SecretSource::File(path.clone()), None).unwrap(), secret, "{content:?}");
            let credential = SecretSource::Credential("pin".to_owned());
            assert_eq!(read(&credential, Some(directory.path())).unwrap(), secret, "{content:?}");
        }
    }

    #[test]
    fn variables_and_values_are_taken_as_they_are() {
        assert_eq!(read(&SecretSource::Env("PIN".to_owned()), None).unwrap(), "1234\n");
        assert_eq!(read(&SecretSource::Value(Secret::from("x\n".to_owned())), None).unwrap(), "x\n");
    }

    #[test]
    fn what_is_missing_is_named() {
        let claims = [
            (SecretSource::Env("NONE".to_owned()), "secret variable `NONE` is not set"),
            (
                SecretSource::Credential("pin".to_owned()),
                "credential `pin`: `CREDENTIALS_DIRECTORY` is not set",
            ),
            (SecretSource::File("/nowhere/pin".into()), "secret file `/nowhere/pin`: entity not found"),
            (
                SecretSource::File("/dev/zero".into()),
                "secret file `/dev/zero`: expected at most 65536 bytes, got more",
            ),
        ];
        for (source, message) in claims {
            assert_eq!(read(&source, None).unwrap_err(), message);
        }
    }

    #[test]
    fn a_member_of_a_document_is_read_and_one_that_is_not_there_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("account.json");
        std::fs::write(&path, r#"{"private_key": "-----\nsesame\n", "size": 1}"#).unwrap();
        let member =
            |pointer: &str| SecretSource::Member(SecretSource::File(path.clone()).into(), pointer.to_owned());
        assert_eq!(read(&member("/private_key"), None).unwrap(), "-----\nsesame\n");
        for (pointer, found) in [("/key", "nothing"), ("/size", "no text")] {
            let message = format!(
                "`{pointer}` of secret file `{}`: expected a JSON document with a text there, got {found}",
                path.display()
            );
            assert_eq!(read(&member(pointer), None).unwrap_err(), message);
        }
        let nowhere = SecretSource::Member(SecretSource::Env("NONE".to_owned()).into(), "/a".to_owned());
        assert_eq!(read(&nowhere, None).unwrap_err(), "secret variable `NONE` is not set");
        assert_eq!(nowhere.variable(), Some("NONE"));
    }

    #[test]
    fn a_secret_does_not_show_itself() {
        assert_eq!(
            format!("{:?}", SecretSource::Value(Secret::from("sesame".to_owned()))),
            "Value(Secret(..))"
        );
    }
}
