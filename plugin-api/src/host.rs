//! The host as a plugin sees it: configuration, secrets, news of changed keys, the memory of refused credentials.

use serde::de::DeserializeOwned;
use zeroize::Zeroizing;

use crate::{
    Code, Error, Secret,
    abi::{Buffer, Bytes, CREDENTIALS_EXTENSION, CredentialsTable, HostTable},
};

/// A store's way to the host. Cheap to copy, usable from any thread until the process ends.
#[derive(Clone, Copy)]
pub struct Host {
    table: *const HostTable,
}

// SAFETY: the host's functions may be called from any thread, and its table lives until the process ends (`abi`).
unsafe impl Send for Host {}
// SAFETY: as above; the table is never written to.
unsafe impl Sync for Host {}

impl Host {
    /// A way to the host by the table given to `open`.
    pub(crate) fn new(table: *const HostTable) -> Self {
        Self { table }
    }

    /// The store's configuration.
    ///
    /// # Errors
    ///
    /// [`Code::InvalidInput`] which names the member and what was expected there, and not the value, which may be
    /// a secret.
    pub fn config<T: DeserializeOwned>(&self) -> Result<T, Error> {
        let json = self.config_json()?;
        decode(json.expose()).map_err(|message| Error::invalid(format!("config: {message}")))
    }

    pub(crate) fn table(&self) -> &'static HostTable {
        // SAFETY: a `Host` is only made from the table given to `open`, which lives until the process ends.
        unsafe { &*self.table }
    }

    fn config_json(&self) -> Result<Secret, Error> {
        let table = self.table();
        // SAFETY: the empty path and the buffer live through the call.
        read(|buffer| unsafe { (table.config)(table.context, Bytes::EMPTY, buffer) })
            .map_err(|code| Error::new(code, "the host gave no configuration"))
    }

    /// The value of a secret that the store's `secrets` name, read afresh at each call.
    ///
    /// # Errors
    ///
    /// [`Code::NotFound`] where `secrets` has no such name, [`Code::Unavailable`] where its source can't be read.
    pub fn secret(&self, name: &str) -> Result<Secret, Error> {
        let table = self.table();
        // SAFETY: the name and the buffer live through the call.
        read(|buffer| unsafe { (table.secret)(table.context, Bytes::new(name.as_bytes()), buffer) })
            .map_err(|code| Error::new(code, format!("the secret `{name}` can't be had ({code})")))
    }

    /// Tells the host to list the keys again.
    pub fn keys_changed(&self) {
        let table = self.table();
        // SAFETY: the host's own context is passed back to it.
        unsafe { (table.keys_changed)(table.context) }
    }

    /// The host's memory of refused credentials; `None` where the host has none.
    #[must_use]
    pub fn credentials(&self) -> Option<Credentials> {
        let table = self.table();
        let name = Bytes::new(CREDENTIALS_EXTENSION.as_bytes());
        // SAFETY: the name lives through the call; under this name the host answers NULL or a `CredentialsTable`
        // that lives until the process ends.
        let credentials = unsafe {
            let extension = (table.extension)(table.context, name);
            extension.cast::<CredentialsTable>().as_ref()?
        };
        Some(Credentials { host: *self, table: credentials })
    }
}

/// The host's memory of refused credentials: ask before presenting a secret to a token, report when it was refused.
#[derive(Clone, Copy)]
pub struct Credentials {
    host: Host,
    table: &'static CredentialsTable,
}

impl Credentials {
    /// Whether this token has refused this secret before. Then it must not be presented again.
    #[must_use]
    pub fn refused(&self, token: &str, secret: &[u8]) -> bool {
        let context = self.host.table().context;
        // SAFETY: both slices live through the call.
        unsafe { (self.table.refused)(context, Bytes::new(token.as_bytes()), Bytes::new(secret)) != 0 }
    }

    /// Remembers that this token refused this secret, until the secret or the configuration changes.
    pub fn report(&self, token: &str, secret: &[u8]) {
        let context = self.host.table().context;
        // SAFETY: both slices live through the call.
        unsafe { (self.table.report)(context, Bytes::new(token.as_bytes()), Bytes::new(secret)) }
    }

    /// Notes that this token accepted this secret. Until then, or until the store is open, the death of the plugin's
    /// process counts as a refusal.
    pub fn accepted(&self, token: &str, secret: &[u8]) {
        let context = self.host.table().context;
        // SAFETY: both slices live through the call.
        unsafe { (self.table.accepted)(context, Bytes::new(token.as_bytes()), Bytes::new(secret)) }
    }
}

/// Reads a value of unknown length from the host; what it held is zeroed.
fn read(mut get: impl FnMut(*mut Buffer) -> u32) -> Result<Secret, Code> {
    let mut memory = Zeroizing::new(vec![0; 4096]);
    loop {
        let mut buffer = Buffer::new(&mut memory);
        let (code, len) = (get(&raw mut buffer), buffer.len);
        match code {
            0 => return Ok(Secret::new(memory.get(..len).unwrap_or_default().to_vec())),
            code if Code::from_number(code) == Code::BufferTooSmall && len > memory.len() => {
                memory = Zeroizing::new(vec![0; len]);
            }
            code => return Err(Code::from_number(code)),
        }
    }
}

/// Decodes JSON; a message names the member, and never its value.
fn decode<T: DeserializeOwned>(json: &[u8]) -> Result<T, String> {
    let mut decoder = serde_json::Deserializer::from_slice(json);
    serde_path_to_error::deserialize(&mut decoder).map_err(|error| {
        let message = without_value(&error.inner().to_string());
        match error.path().to_string().as_str() {
            "." => message,
            path => format!("`{path}`: {message}"),
        }
    })
}

/// A message of serde_json without the value it quotes, and without its place in a text that nobody wrote.
fn without_value(message: &str) -> String {
    let message = message.rsplit_once(" at line ").map_or(message, |(message, _)| message);
    for kind in ["invalid type", "invalid value", "unknown variant"] {
        if message.starts_with(kind) {
            let expected = message.rfind(", expected ").and_then(|at| message.get(at..));
            return format!("{kind}{}", expected.unwrap_or_default());
        }
    }
    message.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_about_the_configuration_never_quotes_a_value() {
        #[derive(Debug, serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Config {
            #[expect(dead_code, reason = "only decoding is tested")]
            uris: Vec<String>,
        }
        let message = |json: &str| decode::<Config>(json.as_bytes()).unwrap_err();
        assert_eq!(
            message(r#"{"uris": "hunter2, expected nothing"}"#),
            "`uris`: invalid type, expected a sequence"
        );
        assert_eq!(message(r#"{"uris": ["a", 2222]}"#), "`uris[1]`: invalid type, expected a string");
        assert_eq!(message(r#"{"uri": []}"#), "`uri`: unknown field `uri`, expected `uris`");
        assert_eq!(message("{}"), "missing field `uris`");
    }
}
