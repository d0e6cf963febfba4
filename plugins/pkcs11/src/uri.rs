//! PKCS#11 URIs (RFC 7512): which token, which object, by which module, with which PIN.
//!
//! Two dialects. [`Dialect::Strict`] is the whole grammar of RFC 7512 section 2.3 and nothing else.
//! [`Dialect::Legacy`] reads what stands in a `gokeyless.yaml` as that server reads it: `+` is a space, the last of
//! several equal attributes counts, and what follows a second `?` doesn't; each of these is a warning.
//!
//! An [`Invalid`] says where and what, from fixed words only: any piece of a URI may be a piece of a PIN, misplaced.

use std::{
    collections::BTreeMap,
    fmt::{self, Write},
    path::PathBuf,
};

use zeroize::Zeroizing;

/// How a URI is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// As RFC 7512 says.
    Strict,
    /// As gokeyless reads it.
    Legacy,
}

/// A PKCS#11 URI, decoded. `Display` and `Debug` leave out the PIN and where it comes from.
#[derive(Default)]
pub(crate) struct Uri {
    /// What the token, its slot and its library must be like.
    pub(crate) token: Selectors,
    /// Which private key on it.
    pub(crate) object: ObjectSelector,
    /// `module-path`.
    pub(crate) module_path: Option<PathBuf>,
    /// `module-name`: neither folder nor suffix.
    pub(crate) module_name: Option<String>,
    /// `pin-value` or `pin-source`.
    pub(crate) pin: Option<PinSource>,
    /// `max-sessions`, an extension of gokeyless.
    pub(crate) max_sessions: Option<u32>,
    /// What the operator should know about how this was read.
    pub(crate) warnings: Vec<&'static str>,
}

/// What a token must be like, attribute by attribute, as normalised text.
pub(crate) type Selectors = BTreeMap<Selector, String>;

/// Which object: by CKA_LABEL, by CKA_ID, or both.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ObjectSelector {
    /// `object`, the CKA_LABEL.
    pub(crate) label: Option<Vec<u8>>,
    /// `id`, the CKA_ID.
    pub(crate) id: Option<Vec<u8>>,
}

/// Where a PIN comes from.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum PinSource {
    /// `pin-value`: the PIN itself.
    Value(Zeroizing<Vec<u8>>),
    /// `pin-source=/path` or `file:`: a file that holds it.
    File(PathBuf),
    /// `pin-source=env:NAME`: a variable of the environment.
    Variable(String),
    /// `pin-source=credential:NAME`: a credential of the service (systemd.exec(5), `LoadCredential=`).
    Credential(String),
    /// `pin-source=|COMMAND`: a shell command that writes it to its standard output.
    Command(String),
}

/// Why a text isn't a PKCS#11 URI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Invalid {
    /// Which character, from 1.
    position: usize,
    what: &'static str,
}

macro_rules! selectors {
    ($($(#[$doc:meta])* $variant:ident = $name:literal;)*) => {
        /// An attribute that a token, its slot or its library must have (RFC 7512 section 2.3).
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub(crate) enum Selector { $($(#[$doc])* $variant),* }

        impl Selector {
            fn from_name(name: &str) -> Option<Self> {
                match name { $($name => Some(Self::$variant),)* _ => None }
            }

            /// The attribute's name in a URI.
            pub(crate) fn name(self) -> &'static str { match self { $(Self::$variant => $name),* } }
        }
    };
}

selectors! {
    /// Label of the token.
    Token = "token";
    /// Manufacturer of the token.
    Manufacturer = "manufacturer";
    /// Serial number of the token.
    Serial = "serial";
    /// Model of the token.
    Model = "model";
    /// Manufacturer of the library.
    LibraryManufacturer = "library-manufacturer";
    /// Description of the library.
    LibraryDescription = "library-description";
    /// Version of the library, `major.minor`.
    LibraryVersion = "library-version";
    /// Manufacturer of the slot.
    SlotManufacturer = "slot-manufacturer";
    /// Description of the slot.
    SlotDescription = "slot-description";
    /// Number of the slot.
    SlotId = "slot-id";
}

impl Uri {
    /// Reads a URI.
    ///
    /// # Errors
    ///
    /// The first thing that the dialect doesn't allow.
    pub(crate) fn parse(text: &str, dialect: Dialect) -> Result<Self, Invalid> {
        let mut reader = Reader { dialect, uri: Self::default() };
        reader.read(text)?;
        Ok(reader.uri)
    }
}

impl fmt::Display for Uri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("pkcs11:")?;
        let mut separator = "";
        for (selector, value) in &self.token {
            write!(f, "{separator}{}={}", selector.name(), Encoded(value.as_bytes()))?;
            separator = ";";
        }
        for (name, value) in [("object", &self.object.label), ("id", &self.object.id)] {
            if let Some(value) = value {
                write!(f, "{separator}{name}={}", Encoded(value))?;
                separator = ";";
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Uri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (character {})", self.what, self.position)
    }
}

/// Bytes as they stand in a URI.
struct Encoded<'a>(&'a [u8]);

impl fmt::Display for Encoded<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|&byte| match byte {
            byte if is_unreserved(byte) => f.write_char(char::from(byte)),
            byte => write!(f, "%{byte:02X}"),
        })
    }
}

const SCHEME: &str = "pkcs11:";

struct Reader {
    dialect: Dialect,
    uri: Uri,
}

/// `name=value` at its place in the whole text.
struct Attribute<'a> {
    name: &'a str,
    value: &'a str,
    /// Where the name starts, from 1.
    start: usize,
    /// Where the value starts, from 1.
    value_start: usize,
}

impl Attribute<'_> {
    fn refuse(&self, what: &'static str) -> Invalid {
        Invalid { position: self.start, what }
    }

    fn refuse_value(&self, what: &'static str) -> Invalid {
        Invalid { position: self.value_start, what }
    }
}

impl Reader {
    fn read(&mut self, text: &str) -> Result<(), Invalid> {
        let scheme = text.get(..SCHEME.len()).unwrap_or_default();
        if !scheme.eq_ignore_ascii_case(SCHEME) {
            return Err(Invalid { position: 1, what: "a PKCS#11 URI starts with `pkcs11:`" });
        }
        let rest = text.get(SCHEME.len()..).unwrap_or_default();
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let start = SCHEME.len() + 1;
        self.each(path, start, ';', is_path_char, Self::path)?;
        self.each(self.cut(query), start + path.len() + 1, '&', is_query_char, Self::query)?;
        self.warn_of_cut(query);
        Ok(())
    }

    /// gokeyless drops what follows a second `?`; in RFC 7512 that is a character like any other.
    fn cut<'a>(&self, query: &'a str) -> &'a str {
        match self.dialect {
            Dialect::Legacy => query.split('?').next().unwrap_or_default(),
            Dialect::Strict => query,
        }
    }

    fn warn_of_cut(&mut self, query: &str) {
        if self.cut(query).len() < query.len() {
            self.warn("what follows the second `?` is ignored, as gokeyless does");
        }
    }

    /// Takes a component apart and hands its attributes on. An empty component has none (`pkcs11:` is valid).
    fn each(
        &mut self,
        component: &str,
        mut start: usize,
        separator: char,
        allowed: fn(u8) -> bool,
        take: fn(&mut Self, &Attribute<'_>) -> Result<(), Invalid>,
    ) -> Result<(), Invalid> {
        if component.is_empty() {
            return Ok(());
        }
        for piece in component.split(separator) {
            let attribute = self.attribute(piece, start, allowed)?;
            take(self, &attribute)?;
            start += piece.len() + 1;
        }
        Ok(())
    }

    fn attribute<'a>(
        &self,
        piece: &'a str,
        start: usize,
        allowed: fn(u8) -> bool,
    ) -> Result<Attribute<'a>, Invalid> {
        let (name, value) =
            piece.split_once('=').ok_or(Invalid { position: start, what: "expected `name=value`" })?;
        let mut value_start = start + name.len() + 1;
        if name.is_empty() || !name.bytes().all(is_name_char) {
            return Err(Invalid { position: start, what: "not the name of an attribute" });
        }
        let mut trimmed = value;
        if self.dialect == Dialect::Legacy {
            value_start += value.len() - value.trim_start().len();
            trimmed = value.trim();
        }
        match trimmed.bytes().position(|byte| byte != b'%' && !allowed(byte)) {
            Some(at) => Err(Invalid {
                position: value_start + at,
                what: "this character must be written as `%` and two hex digits",
            }),
            None => Ok(Attribute { name, value: trimmed, start, value_start }),
        }
    }

    fn path(&mut self, attribute: &Attribute<'_>) -> Result<(), Invalid> {
        if attribute.value.contains("pin-value") || attribute.value.contains("pin-source") {
            // `;object=key&pin-value=…`: read as a label, the PIN would go to logs.
            return Err(attribute.refuse_value("a PIN belongs behind a `?`, after the path"));
        }
        match attribute.name {
            "object" => {
                let label = self.decode(attribute)?;
                self.once(attribute, |uri| &mut uri.object.label, label.to_vec())
            }
            "id" => {
                let id = self.decode(attribute)?;
                self.once(attribute, |uri| &mut uri.object.id, id.to_vec())
            }
            "type" => self.object_type(attribute),
            name => match Selector::from_name(name) {
                Some(selector) => self.selector(attribute, selector),
                None => Err(attribute.refuse(
                    "no such attribute; before the `?` there are token, manufacturer, serial, model, object, \
                     id, type, slot-id, slot-manufacturer, slot-description, library-manufacturer, \
                     library-description and library-version",
                )),
            },
        }
    }

    fn query(&mut self, attribute: &Attribute<'_>) -> Result<(), Invalid> {
        match attribute.name {
            "module-path" => {
                let path = PathBuf::from(self.text(attribute)?);
                self.once(attribute, |uri| &mut uri.module_path, path)
            }
            "module-name" => {
                let name = self.text(attribute)?;
                if name.is_empty() || name.contains('/') {
                    return Err(attribute.refuse_value("a module's name has neither folder nor suffix"));
                }
                self.once(attribute, |uri| &mut uri.module_name, name)
            }
            "max-sessions" => {
                let number = self.text(attribute)?.parse();
                let number = number.map_err(|_| attribute.refuse_value("expected a whole number"))?;
                self.once(attribute, |uri| &mut uri.max_sessions, number)
            }
            "pin-value" => {
                let pin = PinSource::Value(self.decode(attribute)?);
                self.pin(attribute, pin)
            }
            "pin-source" => {
                let pin = self.pin_source(attribute)?;
                self.pin(attribute, pin)
            }
            _ => {
                // RFC 7512 section 2.3 leaves such names to vendors. Not named here: after a PIN with an `&` in it,
                // the "name" is a piece of that PIN.
                self.warn(
                    "an unknown attribute behind the `?` is ignored; \
                     if it is part of a PIN, write `&` as %26",
                );
                Ok(())
            }
        }
    }

    fn selector(&mut self, attribute: &Attribute<'_>, selector: Selector) -> Result<(), Invalid> {
        let text = self.text(attribute)?;
        let value = match selector {
            Selector::SlotId => {
                let number: Option<u64> = digits(&text);
                number.ok_or(attribute.refuse_value("expected a whole number"))?.to_string()
            }
            Selector::LibraryVersion => {
                version(&text).ok_or(attribute.refuse_value("expected a version such as 2.6"))?
            }
            _ => text.trim_end_matches(' ').to_owned(), // tokens pad with blanks, which count for nothing
        };
        let twice = self.uri.token.insert(selector, value).is_some();
        self.refuse_twice(attribute, twice)
    }

    fn object_type(&mut self, attribute: &Attribute<'_>) -> Result<(), Invalid> {
        match (attribute.value, self.dialect) {
            ("private", _) => Ok(()),
            (_, Dialect::Legacy) => {
                self.warn("`type` is ignored, as gokeyless does: only private keys are looked for");
                Ok(())
            }
            ("public" | "cert" | "secret-key" | "data", _) => {
                Err(attribute
                    .refuse_value("only private keys can serve; leave `type` out or write type=private"))
            }
            _ => Err(attribute.refuse_value("expected public, private, cert, secret-key or data")),
        }
    }

    fn pin_source(&mut self, attribute: &Attribute<'_>) -> Result<PinSource, Invalid> {
        let text = Zeroizing::new(self.text(attribute)?);
        if let Some(command) = text.strip_prefix('|') {
            return Ok(PinSource::Command(command.to_owned()));
        }
        for (prefix, source) in [
            ("env:", PinSource::Variable as fn(String) -> PinSource),
            ("credential:", PinSource::Credential as fn(String) -> PinSource),
        ] {
            match text.strip_prefix(prefix) {
                Some(name) if !name.is_empty() && !name.contains(['/', '=', '\0']) => {
                    return Ok(source(name.to_owned()));
                }
                Some(_) => return Err(attribute.refuse_value("expected a name after the colon")),
                None => {}
            }
        }
        let path = text.strip_prefix("file:").unwrap_or(&text);
        let path = path.strip_prefix("//localhost").or_else(|| path.strip_prefix("//")).unwrap_or(path);
        if !path.starts_with('/') {
            return Err(attribute.refuse_value(
                "a pin-source is a full path, a file: URI, env:NAME, credential:NAME or |command",
            ));
        }
        Ok(PinSource::File(PathBuf::from(path)))
    }

    /// RFC 7512 section 2.4 refuses a URI with both sources; gokeyless knows `pin-value` only.
    fn pin(&mut self, attribute: &Attribute<'_>, pin: PinSource) -> Result<(), Invalid> {
        let is_value = |pin: &PinSource| matches!(pin, PinSource::Value(_));
        match &self.uri.pin {
            Some(other) if is_value(other) != is_value(&pin) => {
                if self.dialect == Dialect::Strict {
                    return Err(attribute.refuse("pin-value and pin-source exclude each other"));
                }
                self.warn("pin-source is ignored where there is a pin-value, as gokeyless does");
                if is_value(&pin) {
                    self.uri.pin = Some(pin);
                }
                Ok(())
            }
            _ => self.once(attribute, |uri| &mut uri.pin, pin),
        }
    }

    fn once<T>(
        &mut self,
        attribute: &Attribute<'_>,
        member: fn(&mut Uri) -> &mut Option<T>,
        value: T,
    ) -> Result<(), Invalid> {
        let twice = member(&mut self.uri).replace(value).is_some();
        self.refuse_twice(attribute, twice)
    }

    fn refuse_twice(&mut self, attribute: &Attribute<'_>, twice: bool) -> Result<(), Invalid> {
        match self.dialect {
            _ if !twice => Ok(()),
            Dialect::Strict => Err(attribute.refuse("an attribute stands here for the second time")),
            Dialect::Legacy => {
                self.warn("an attribute is given twice; the last counts, as with gokeyless");
                Ok(())
            }
        }
    }

    fn text(&mut self, attribute: &Attribute<'_>) -> Result<String, Invalid> {
        let bytes = self.decode(attribute)?;
        let text = std::str::from_utf8(&bytes).map_err(|_| attribute.refuse_value("expected UTF-8 text"))?;
        Ok(text.to_owned())
    }

    fn decode(&mut self, attribute: &Attribute<'_>) -> Result<Zeroizing<Vec<u8>>, Invalid> {
        let mut decoded = Zeroizing::new(Vec::with_capacity(attribute.value.len()));
        let mut bytes = attribute.value.bytes().enumerate();
        while let Some((at, byte)) = bytes.next() {
            decoded.push(match byte {
                b'%' => {
                    let (high, low) = (bytes.next().and_then(hex), bytes.next().and_then(hex));
                    let position = attribute.value_start + at;
                    let what = "`%` must be followed by two hex digits";
                    high.zip(low).map(|(high, low)| high << 4 | low).ok_or(Invalid { position, what })?
                }
                b'+' if self.dialect == Dialect::Legacy => {
                    self.warn(
                        "`+` is read as a blank, as gokeyless does; write %20 for a blank and %2B for a plus",
                    );
                    b' '
                }
                byte => byte,
            });
        }
        Ok(decoded)
    }

    fn warn(&mut self, warning: &'static str) {
        if !self.uri.warnings.contains(&warning) {
            self.uri.warnings.push(warning);
        }
    }
}

fn hex((_, digit): (usize, u8)) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

fn digits<T: std::str::FromStr>(text: &str) -> Option<T> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

/// `2.6` as it is, `2` as `2.0` (RFC 7512 section 2.3).
fn version(text: &str) -> Option<String> {
    let (major, minor) = text.split_once('.').unwrap_or((text, "0"));
    Some(format!("{}.{}", digits::<u8>(major)?, digits::<u8>(minor)?))
}

/// `pk11-v-attr-nm-char`.
fn is_name_char(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_')
}

/// RFC 3986 section 2.3.
fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// `pk11-res-avail`, beside the unreserved.
fn is_available(byte: u8) -> bool {
    is_unreserved(byte) || b":[]@!$'()*+,=".contains(&byte)
}

/// `pk11-pchar`, but for `pct-encoded`.
fn is_path_char(byte: u8) -> bool {
    is_available(byte) || byte == b'&'
}

/// `pk11-qchar`, but for `pct-encoded`.
fn is_query_char(byte: u8) -> bool {
    is_available(byte) || b"/?|".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strict(text: &str) -> Result<Uri, Invalid> {
        Uri::parse(text, Dialect::Strict)
    }

    fn legacy(text: &str) -> Result<Uri, Invalid> {
        Uri::parse(text, Dialect::Legacy)
    }

    fn pin(uri: &Uri) -> &[u8] {
        match &uri.pin {
            Some(PinSource::Value(pin)) => pin,
            _ => panic!("no pin-value"),
        }
    }

    #[test]
    fn reads_every_attribute() {
        let uri = strict(
            "pkcs11:token=My%20token;manufacturer=M;serial=0a;model=X;library-manufacturer=L;\
             library-description=D;library-version=2;object=k%2Fey;id=%a0%00;type=private;\
             slot-manufacturer=S;slot-description=SD;slot-id=007\
             ?module-path=/lib/m.so&module-name=m&pin-value=12%2634&max-sessions=4",
        )
        .unwrap();
        let wanted = [
            (Selector::Token, "My token"),
            (Selector::Manufacturer, "M"),
            (Selector::Serial, "0a"),
            (Selector::Model, "X"),
            (Selector::LibraryManufacturer, "L"),
            (Selector::LibraryDescription, "D"),
            (Selector::LibraryVersion, "2.0"),
            (Selector::SlotManufacturer, "S"),
            (Selector::SlotDescription, "SD"),
            (Selector::SlotId, "7"),
        ];
        assert_eq!(uri.token, wanted.map(|(selector, value)| (selector, value.to_owned())).into());
        assert_eq!(uri.object.label.as_deref(), Some(&b"k/ey"[..]));
        assert_eq!(uri.object.id.as_deref(), Some(&[0xa0, 0][..]));
        assert_eq!(uri.module_path, Some("/lib/m.so".into()));
        assert_eq!(uri.module_name.as_deref(), Some("m"));
        assert_eq!(uri.max_sessions, Some(4));
        assert_eq!(pin(&uri), b"12&34");
        assert!(uri.warnings.is_empty());
    }

    #[test]
    fn takes_all_that_the_grammar_allows() {
        for text in [
            "pkcs11:",
            "PKCS11:",
            "pkcs11:token=",
            "pkcs11:?",
            "pkcs11:?module-path=/a?b|c",
            "pkcs11:object=a=b&c:[]@!$'()*+,",
            "pkcs11:?pin-value=a=b",
            "pkcs11:token=%C3%A4",
        ] {
            strict(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        }
        assert_eq!(pin(&strict("pkcs11:?pin-value=a+b?c").unwrap()), b"a+b?c");
    }

    #[test]
    fn refuses_the_rest_and_says_where() {
        for (text, position) in [
            ("", 1),
            ("pkcs12:token=a", 1),
            ("pkcs11:token", 8),
            ("pkcs11:token=a;", 16),
            ("pkcs11:;token=a", 8),
            ("pkcs11:token=a?", 0),
            ("pkcs11:token=a&pin-value=1", 14),
            ("pkcs11:token=a?pin-value=1&", 28),
            ("pkcs11:token=a b", 15),
            ("pkcs11:token=a/b", 15),
            ("pkcs11:token=a#b", 15),
            ("pkcs11:token=ä", 14),
            ("pkcs11:token=%4", 14),
            ("pkcs11:token=%zz", 14),
            ("pkcs11:token=%FF", 14),
            ("pkcs11:token=a;token=b", 16),
            ("pkcs11:id=1;id=2", 13),
            ("pkcs11:tokens=a", 8),
            ("pkcs11:Token=a", 8),
            ("pkcs11:to%6ben=a", 8),
            ("pkcs11:slot-id=x", 16),
            ("pkcs11:slot-id=", 16),
            ("pkcs11:slot-id=+1", 16),
            ("pkcs11:library-version=1.x", 24),
            ("pkcs11:type=cert", 13),
            ("pkcs11:type=nonsense", 13),
            ("pkcs11:?pin-value=1&pin-source=/a", 21),
            ("pkcs11:?pin-value=1&pin-value=1", 21),
            ("pkcs11:?pin-source=1234", 20),
            ("pkcs11:?pin-source=env:", 20),
            ("pkcs11:?pin-source=credential:../x", 20),
            ("pkcs11:?max-sessions=-1", 22),
            ("pkcs11:?module-name=../x", 21),
            ("pkcs11:??pin-value=1", 9),
        ] {
            match strict(text) {
                Err(error) => assert_eq!(error.position, position, "{text}: {error}"),
                Ok(_) => assert_eq!(position, 0, "{text} was taken"),
            }
        }
    }

    #[test]
    fn never_tells_a_pin() {
        for text in [
            "pkcs11:token=a;object=b?pin-value=s3cr3t",
            "pkcs11:token=a?pin-value=s3cr3t&s3cr3t=1",
            "pkcs11:token=a?pin-value=x&s3cr3t",
            "pkcs11:token=a?s3cr3t",
            "pkcs11:token=a&pin-value=s3cr3t",
            "pkcs11:token=a;pin-value=s3cr3t",
            "pkcs11:s3cr3t=1",
            "pkcs11:token=a?pin-source=s3cr3t",
            "pkcs11:token=a?pin-source=/run/s3cr3t",
            "pkcs11:token=a??pin-value=s3cr3t",
            "s3cr3t",
        ] {
            for dialect in [Dialect::Strict, Dialect::Legacy] {
                let told = match Uri::parse(text, dialect) {
                    Ok(uri) => format!("{uri} {uri:?} {:?}", uri.warnings),
                    Err(error) => format!("{error} {error:?}"),
                };
                assert!(!told.contains("s3cr3t"), "{text}: {told}");
            }
        }
    }

    #[test]
    fn reads_file_uris_as_pin_sources() {
        for text in ["/run/pin", "file:/run/pin", "file:///run/pin", "file://localhost/run/pin"] {
            let uri = strict(&format!("pkcs11:?pin-source={text}")).unwrap();
            assert!(uri.pin == Some(PinSource::File("/run/pin".into())), "{text}");
        }
    }

    #[test]
    fn reads_pin_sources_that_are_no_files() {
        for (text, source) in [
            ("env:PIN", PinSource::Variable("PIN".into())),
            ("credential:hsm-pin", PinSource::Credential("hsm-pin".into())),
            ("|pass%20show%20hsm", PinSource::Command("pass show hsm".into())),
            ("%7Ccat", PinSource::Command("cat".into())),
        ] {
            let uri = strict(&format!("pkcs11:?pin-source={text}")).unwrap();
            assert!(uri.pin == Some(source), "{text}");
        }
    }

    #[test]
    fn ignores_vendor_attributes_behind_the_question_mark_with_a_warning() {
        let uri = strict("pkcs11:token=a?x-vendor=1&x-vendor=2").unwrap();
        assert_eq!(uri.warnings.len(), 1);
    }

    #[test]
    fn legacy_reads_plus_as_a_blank_and_says_so() {
        let uri = legacy("pkcs11:token=My+token;object=a%2Bb?pin-value=1+2").unwrap();
        assert_eq!(uri.token.get(&Selector::Token).unwrap(), "My token");
        assert_eq!(uri.object.label.as_deref(), Some(&b"a+b"[..]));
        assert_eq!(pin(&uri), b"1 2");
        assert_eq!(uri.warnings.len(), 1);
        assert_eq!(pin(&strict("pkcs11:?pin-value=1+2").unwrap()), b"1+2");
    }

    #[test]
    fn legacy_reads_what_gokeyless_reads() {
        let uri =
            legacy("pkcs11:token=a;token=b;type=cert?pin-value=1&pin-source=/x&pin-value=2?junk").unwrap();
        assert_eq!(uri.token.get(&Selector::Token).unwrap(), "b");
        assert_eq!(pin(&uri), b"2");
        assert_eq!(uri.warnings.len(), 4, "{:?}", uri.warnings);
        let documented = "pkcs11:token=test-token;id=%a0%00?module-path=/usr/lib/softhsm/libsofthsm2.so\
                          &pin-value=1234&max-sessions=1";
        assert!(legacy(documented).unwrap().warnings.is_empty());
    }

    #[test]
    fn shows_itself_as_a_uri_again() {
        let shown = strict("pkcs11:id=%01%ff;token=My%20token;object=a?pin-value=1&module-path=/m")
            .unwrap()
            .to_string();
        assert_eq!(shown, "pkcs11:token=My%20token;object=a;id=%01%FF");
    }
}
