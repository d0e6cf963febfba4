//! From a store's configuration to open tokens.
//!
//! What is wrong with one entry is a finding; only where nothing could be opened at all is opening an error.

use std::{collections::BTreeSet, path::PathBuf, sync::Arc};

use keystead_plugin_api::{Code, Error, Finding, Host};
use serde::Deserialize;
use zeroize::Zeroizing;

use crate::{
    Problem,
    keys::{self, Found},
    module::{Lease, Module, Present},
    sessions::Session,
    token::{self, Pin, Settings, Token},
    uri::{Dialect, ObjectSelector, PinSource, Selectors, Uri},
};

/// JSON Schema of the configuration.
pub(crate) const SCHEMA: &str = r#"{
  "$schema": "https://json-schema.org/draft/2020-12/schema",
  "type": "object",
  "additionalProperties": false,
  "required": ["uris"],
  "properties": {
    "uris": {
      "description": "PKCS#11 URIs (RFC 7512), one private key each; may hold PINs",
      "type": "array",
      "minItems": 1,
      "items": {"type": "string", "writeOnly": true}
    },
    "legacy": {
      "description": "read the URIs as gokeyless does: a plus is a blank, and more",
      "type": "boolean",
      "default": false
    },
    "module": {
      "description": "library for URIs that name none: a full path",
      "type": "string"
    },
    "max_sessions": {
      "description": "most sessions on one token, where no URI of it says max-sessions; one holds the login",
      "type": "integer",
      "minimum": 2
    }
  }
}"#;

/// What opening a store comes to.
pub(crate) struct Opened {
    pub(crate) tokens: Vec<Arc<Token>>,
    pub(crate) entries: Vec<Entry>,
    pub(crate) findings: Vec<Finding>,
}

/// One URI whose token is open.
#[derive(Clone)]
pub(crate) struct Entry {
    /// What findings call it: its position, and the URI without its PIN.
    pub(crate) subject: String,
    pub(crate) token: Arc<Token>,
    pub(crate) object: ObjectSelector,
}

impl Entry {
    /// Finds the entry's key.
    ///
    /// # Errors
    ///
    /// Those of [`keys::find`]; where the token or the login is lost, a missing key may be there all the same, which is
    /// another error.
    pub(crate) fn find(&self, session: &Session) -> Result<Found, Problem> {
        keys::find(&session.raw, &self.object).map_err(|problem| {
            let lost = self.token.lost(session).filter(|_| problem.error.code == Code::NotFound);
            lost.unwrap_or(problem)
        })
    }
}

/// Opens every token that the configuration of `host` means.
///
/// # Errors
///
/// Those of the configuration as a whole; and where no token at all could be opened, what befell the first entry.
pub(crate) fn open(host: Host) -> Result<Opened, Error> {
    let config: Config = host.config()?;
    let mut opening = Opening { host, config: &config, secret: None, findings: Vec::new(), first: None };
    let (mut tokens, mut entries) = (Vec::new(), Vec::new());
    for group in group(opening.wanted()) {
        let Some(token) = opening.open(&group) else { continue };
        let token = Arc::new(token);
        entries.extend(group.members.into_iter().map(|member| Entry {
            subject: member.subject,
            token: Arc::clone(&token),
            object: member.uri.object,
        }));
        tokens.push(token);
    }
    if tokens.is_empty() {
        return Err(opening.failure());
    }
    Ok(Opened { tokens, entries, findings: opening.findings })
}

/// The modules that a store of this configuration uses, by their files: vendors count sessions by process, and a module
/// that crashes takes along what is in the same process. `None` where no URI leads to a module.
pub(crate) fn modules(config: &serde_json::Value) -> Option<String> {
    let config = Config::deserialize(config).ok()?;
    let dialect = config.dialect();
    let uris = config.uris.iter().filter_map(|text| Uri::parse(text, dialect).ok());
    let files: BTreeSet<PathBuf> =
        uris.filter_map(|uri| Module::file(&config.module_of(&uri).ok()?).ok()).collect();
    let names: Vec<_> = files.iter().map(|file| file.display().to_string()).collect();
    (!names.is_empty()).then(|| names.join(", "))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    uris: Vec<Zeroizing<String>>,
    #[serde(default)]
    legacy: bool,
    module: Option<PathBuf>,
    max_sessions: Option<u32>,
}

impl Config {
    fn dialect(&self) -> Dialect {
        if self.legacy { Dialect::Legacy } else { Dialect::Strict }
    }

    /// The library that a URI means.
    fn module_of(&self, uri: &Uri) -> Result<PathBuf, Problem> {
        match (&uri.module_path, &uri.module_name, &self.module) {
            (Some(path), ..) => Ok(path.clone()),
            (None, Some(name), _) => Module::path_of(name),
            (None, None, Some(path)) => Ok(path.clone()),
            (None, None, None) => Err(Problem::new(Error::invalid("the URI names no module"))
                .hint("add ?module-path= with the full path of the vendor's PKCS#11 library")),
        }
    }
}

/// One URI whose token is there.
struct Wanted {
    subject: String,
    uri: Uri,
    module: &'static Module,
    present: Present,
}

/// The URIs that mean one token.
struct Group {
    module: &'static Module,
    present: Present,
    members: Vec<Wanted>,
}

fn group(wanted: Vec<Wanted>) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for member in wanted {
        let same = |group: &&mut Group| {
            group.module.path() == member.module.path() && group.present.slot == member.present.slot
        };
        match groups.iter_mut().find(same) {
            Some(group) => group.members.push(member),
            None => groups.push(Group {
                module: member.module,
                present: member.present.clone(),
                members: vec![member],
            }),
        }
    }
    groups
}

struct Opening<'a> {
    host: Host,
    config: &'a Config,
    /// The secret `pin`, once it was asked for.
    secret: Option<Result<Option<Pin>, Error>>,
    findings: Vec<Finding>,
    /// The first entry that can't be served, and why.
    first: Option<(String, Problem)>,
}

impl Opening<'_> {
    fn wanted(&mut self) -> Vec<Wanted> {
        let mut slots = Slots::default();
        let config = self.config;
        let numbered = config.uris.iter().zip(1..);
        numbered.filter_map(|(text, number)| self.resolve(text, number, &mut slots)).collect()
    }

    fn resolve(&mut self, text: &str, number: usize, slots: &mut Slots) -> Option<Wanted> {
        let uri = match Uri::parse(text, self.config.dialect()) {
            Ok(uri) => uri,
            Err(invalid) => {
                self.fail(&format!("uri {number}"), Problem::new(Error::invalid(invalid.to_string())));
                return None;
            }
        };
        let subject = format!("uri {number} ({uri})");
        for warning in &uri.warnings {
            self.findings.push(Problem::new(Error::invalid(*warning)).warning(&subject));
        }
        match self.locate(&uri, slots) {
            Ok((module, present)) => Some(Wanted { subject, uri, module, present }),
            Err(problem) => {
                self.fail(&subject, problem);
                None
            }
        }
    }

    fn locate(&self, uri: &Uri, slots: &mut Slots) -> Result<(&'static Module, Present), Problem> {
        let module = Module::at(&self.config.module_of(uri)?)?;
        Ok((module, slots.choose(module, &uri.token)?))
    }

    fn open(&mut self, group: &Group) -> Option<Token> {
        let opened =
            self.settings(group).and_then(|settings| Token::open(group.module, &group.present, settings));
        match opened {
            Ok(token) => Some(token),
            Err(problem) => {
                group.members.iter().for_each(|member| self.fail(&member.subject, problem.clone()));
                None
            }
        }
    }

    fn settings(&mut self, group: &Group) -> Result<Settings, Problem> {
        let limits = group.members.iter().filter_map(|member| member.uri.max_sessions);
        Ok(Settings {
            pin: self.pin(group)?,
            max_sessions: limits.max().or(self.config.max_sessions),
            credentials: self.host.credentials(),
        })
    }

    /// The PIN for a token: the first that its URIs give, else the secret. A token has one login, so one PIN; trying a
    /// second after a first was refused would be guessing.
    fn pin(&mut self, group: &Group) -> Result<Option<Pin>, Problem> {
        let mut given: Option<(Pin, &str)> = None;
        for Wanted { subject, uri, .. } in &group.members {
            let Some(source) = &uri.pin else { continue };
            let pin = read(source)?;
            match &given {
                None => given = Some((pin, subject)),
                Some((first, _)) if *first == pin => {}
                Some((_, owner)) => {
                    let message =
                        format!("has another PIN for the same token than {owner}, whose PIN is used");
                    let problem = Problem::new(Error::invalid(message)).hint("give one PIN for each token");
                    self.findings.push(problem.warning(subject));
                }
            }
        }
        match given {
            Some((pin, _)) => Ok(Some(pin)),
            None => Ok(self.secret.get_or_insert_with(|| secret(self.host)).clone()?),
        }
    }

    /// Notes that an entry can't be served.
    fn fail(&mut self, subject: &str, problem: Problem) {
        self.first.get_or_insert_with(|| (subject.to_owned(), problem.clone()));
        self.findings.push(problem.finding(subject));
    }

    /// What to say where nothing could be opened: one line, about the first entry.
    fn failure(self) -> Error {
        let Some((subject, Problem { mut error, hint })) = self.first else {
            return Error::invalid("config: `uris` is empty; give at least one PKCS#11 URI");
        };
        let more = match self.config.uris.len() {
            1 => String::new(),
            all => format!(" (and {} more)", all - 1),
        };
        let hint = if hint.is_empty() { hint } else { format!("; {hint}") };
        error.message = format!("{subject}{more}: {}{hint}", error.message);
        error
    }
}

/// The tokens of each module, listed once.
#[derive(Default)]
struct Slots(Vec<Slotted>);

struct Slotted {
    module: &'static Module,
    tokens: Vec<Present>,
    library: Option<cryptoki::context::Info>,
    lease: Lease,
    /// Whether the module has been initialised anew for a token that wasn't there.
    renewed: bool,
}

impl Slots {
    /// The one token that selectors mean. Where it isn't there, the module is initialised anew and asked once more, if
    /// nobody uses it: SoftHSM2, for one, looks for tokens only then.
    fn choose(&mut self, module: &'static Module, selectors: &Selectors) -> Result<Present, Problem> {
        let known = self.0.iter().position(|slotted| slotted.module.path() == module.path());
        let mut slotted = match known {
            Some(at) => self.0.swap_remove(at),
            None => Slotted::list(module)?,
        };
        let mut chosen = slotted.choose(selectors);
        let absent = |problem: &Problem| problem.error.code == Code::Unavailable;
        if chosen.as_ref().is_err_and(absent) && !slotted.renewed {
            slotted = slotted.list_anew()?;
            chosen = slotted.choose(selectors);
        }
        self.0.push(slotted);
        chosen
    }
}

impl Slotted {
    fn list(module: &'static Module) -> Result<Self, Problem> {
        let lease = module.lease()?;
        let tokens = module.tokens(&lease)?;
        Ok(Self { module, tokens, library: module.info(), lease, renewed: false })
    }

    /// What is listed after the module has been initialised anew; or the same, where others use it.
    fn list_anew(self) -> Result<Self, Problem> {
        let (module, life) = (self.module, self.lease.life);
        drop(self);
        module.renew(life);
        Ok(Self { renewed: true, ..Self::list(module)? })
    }

    fn choose(&self, selectors: &Selectors) -> Result<Present, Problem> {
        token::choose(&self.tokens, self.library.as_ref(), selectors).cloned()
    }
}

fn read(source: &PinSource) -> Result<Pin, Problem> {
    match source {
        PinSource::Value(pin) => Ok(pin.clone()),
        PinSource::File(path) => {
            let content = std::fs::read(path).map_err(|error| {
                let error = Error::invalid(format!("the file of pin-source can't be read: {}", error.kind()));
                Problem::new(error).hint("check that it exists and that the server's user may read it")
            })?;
            let content = Zeroizing::new(content);
            Ok(Zeroizing::new(without_newline(&content).to_vec()))
        }
    }
}

fn without_newline(content: &[u8]) -> &[u8] {
    let content = content.strip_suffix(b"\n").unwrap_or(content);
    content.strip_suffix(b"\r").unwrap_or(content)
}

/// The store's secret `pin`; `None` where it has none.
fn secret(host: Host) -> Result<Option<Pin>, Error> {
    match host.secret("pin") {
        Ok(secret) => Ok(Some(Zeroizing::new(secret.expose().to_vec()))),
        Err(error) if error.code == Code::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
