//! From a store's configuration to tokens, there or looked for.
//!
//! What is wrong with one entry is a finding; only where not one token is there is opening an error.

use std::{
    collections::BTreeSet,
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use keystead_plugin_api::{Code, Error, Finding, Host};
use serde::{
    Deserialize, Deserializer,
    de::{self, MapAccess, Visitor},
};
use zeroize::Zeroizing;

use crate::{
    ckr,
    keys::Public,
    module::{Lease, Module, Present},
    pin::PinOrigin,
    problem::Problem,
    profile::Profile,
    token::{self, Settings, Token},
    uri::{Dialect, ObjectSelector, PinSource, Selectors, Uri},
};

/// JSON Schema of the configuration.
pub(crate) const SCHEMA: &str = include_str!("schema.json");

/// What opening a store comes to.
pub(crate) struct Opened {
    pub(crate) tokens: Vec<Arc<Token>>,
    pub(crate) entries: Vec<Entry>,
    pub(crate) findings: Vec<Finding>,
}

/// One URI.
#[derive(Clone)]
pub(crate) struct Entry {
    /// What findings call it: its position, and the URI without its PIN.
    pub(crate) subject: String,
    pub(crate) token: Arc<Token>,
    pub(crate) object: ObjectSelector,
    /// The public half of its key, as the operator gave it.
    pub(crate) public: Option<Public>,
}

/// Opens every token that the configuration of `host` means; those that aren't there are looked for from then on.
///
/// # Errors
///
/// Those of the configuration as a whole; and where no token at all is there, what befell the first entry.
pub(crate) fn open(host: Host) -> Result<Opened, Error> {
    let config: Config = host.config()?;
    config.named_profile()?;
    let mut opening = Opening { host, config: &config, findings: Vec::new(), first: None };
    let (mut tokens, mut entries) = (Vec::new(), Vec::new());
    for group in group(opening.wanted()) {
        let Some(token) = opening.token(&group) else { continue };
        entries.extend(group.members.into_iter().map(|member| Entry {
            subject: member.subject,
            token: Arc::clone(&token),
            object: member.uri.object,
            public: member.public,
        }));
        tokens.push(token);
    }
    if tokens.iter().all(|token| token.is_lost()) {
        return Err(opening.failure());
    }
    opening.check_settings(&tokens);
    tokens.iter().for_each(|token| token.module().enlist(token));
    tokens.iter().filter(|token| token.is_lost()).for_each(|token| token.module().recover());
    Ok(Opened { tokens, entries, findings: opening.findings })
}

/// The modules that a store of this configuration uses, by their files: vendors count sessions by process, and a module
/// that crashes takes along what is in the same process. `None` where no URI leads to a module.
pub(crate) fn modules(config: &serde_json::Value) -> Option<String> {
    let config = Config::deserialize(config).ok()?;
    let dialect = config.dialect();
    let uris = config.uris.iter().filter_map(|written| Uri::parse(&written.uri, dialect).ok());
    let files: BTreeSet<PathBuf> =
        uris.filter_map(|uri| Module::file(&config.module_of(&uri).ok()?).ok()).collect();
    let names: Vec<_> = files.iter().map(|file| file.display().to_string()).collect();
    (!names.is_empty()).then(|| names.join(", "))
}

/// What is worth knowing where all is well: the modules, what is in their slots, and what the tokens in use can do.
pub(crate) fn notes(tokens: &[Arc<Token>]) -> Vec<Finding> {
    let mut notes = Vec::new();
    let mut told = BTreeSet::new();
    for token in tokens.iter().filter(|token| told.insert(token.module().path())) {
        let module = token.module();
        let subject = format!("module `{}`", module.path().display());
        let lines = module.describe().into_iter().chain([format!("profile {}", token.profile().name)]);
        notes.extend(lines.map(|line| Finding::note(&subject, line)));
    }
    for token in tokens {
        let subject = format!("token `{}`", token.name());
        notes.extend(token.describe().into_iter().map(|line| Finding::note(&subject, line)));
    }
    notes
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    uris: Vec<Written>,
    #[serde(default)]
    legacy: bool,
    module: Option<PathBuf>,
    #[serde(default)]
    module_folders: Vec<PathBuf>,
    max_sessions: Option<u32>,
    profile: Option<String>,
    #[serde(default)]
    login_as: LoginAs,
    #[serde(default)]
    raw_rsa: bool,
    #[serde(default)]
    pin_commands: bool,
}

/// Who logs in.
#[derive(Clone, Copy, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
enum LoginAs {
    #[default]
    User,
    CryptoUser,
}

/// An entry of `uris`: a text, or a map with more to say.
struct Written {
    uri: Zeroizing<String>,
    public_key: Option<PathBuf>,
}

impl<'de> Deserialize<'de> for Written {
    /// By hand, since what serde derives for either of two forms keeps copies of what may hold a PIN.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Written;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a PKCS#11 URI, or a map with `uri`")
            }

            fn visit_str<E: de::Error>(self, uri: &str) -> Result<Written, E> {
                Ok(Written { uri: Zeroizing::new(uri.to_owned()), public_key: None })
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Written, A::Error> {
                let (mut uri, mut public_key) = (None, None);
                while let Some(name) = map.next_key::<String>()? {
                    match name.as_str() {
                        "uri" => uri = Some(map.next_value()?),
                        "public_key" => public_key = Some(map.next_value()?),
                        _ => return Err(de::Error::unknown_field(&name, &["uri", "public_key"])),
                    }
                }
                Ok(Written { uri: uri.ok_or_else(|| de::Error::missing_field("uri"))?, public_key })
            }
        }
        deserializer.deserialize_any(Either)
    }
}

impl Config {
    fn dialect(&self) -> Dialect {
        if self.legacy { Dialect::Legacy } else { Dialect::Strict }
    }

    /// The library that a URI means.
    fn module_of(&self, uri: &Uri) -> Result<PathBuf, Problem> {
        match (&uri.module_path, &uri.module_name, &self.module) {
            (Some(path), ..) => Ok(path.clone()),
            (None, Some(name), _) => Module::path_of(name, &self.module_folders),
            (None, None, Some(path)) => Ok(path.clone()),
            (None, None, None) => Err(Problem::new(Error::invalid("the URI names no module"))
                .hint("add ?module-path= with the full path of the vendor's PKCS#11 library")),
        }
    }

    /// The profile that the option names.
    fn named_profile(&self) -> Result<Option<&'static Profile>, Error> {
        let Some(name) = &self.profile else { return Ok(None) };
        let named = Profile::named(name).ok_or_else(|| {
            let names: Vec<_> = Profile::all().map(|profile| profile.name).collect();
            Error::invalid(format!(
                "config: `profile`: there is none of that name; there are {}",
                names.join(", ")
            ))
        });
        named.map(Some)
    }
}

/// One URI whose module is there.
struct Wanted {
    subject: String,
    uri: Uri,
    public: Option<Public>,
    module: &'static Module,
    /// Its token, or why that isn't there.
    token: Result<Present, Problem>,
}

/// The URIs that mean one token.
struct Group {
    module: &'static Module,
    token: Result<Present, Problem>,
    members: Vec<Wanted>,
}

impl Group {
    fn takes(&self, wanted: &Wanted) -> bool {
        let same = match (&self.token, &wanted.token) {
            (Ok(one), Ok(other)) => one.slot == other.slot,
            (Err(_), Err(_)) => self.selectors() == Some(&wanted.uri.token),
            _ => false,
        };
        same && self.module.path() == wanted.module.path()
    }

    fn selectors(&self) -> Option<&Selectors> {
        self.members.first().map(|member| &member.uri.token)
    }
}

fn group(wanted: Vec<Wanted>) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for member in wanted {
        match groups.iter_mut().find(|group| group.takes(&member)) {
            Some(group) => group.members.push(member),
            None => groups.push(Group {
                module: member.module,
                token: member.token.clone(),
                members: vec![member],
            }),
        }
    }
    groups
}

struct Opening<'a> {
    host: Host,
    config: &'a Config,
    findings: Vec<Finding>,
    /// The first entry that can't be served, and why.
    first: Option<(String, Problem)>,
}

impl Opening<'_> {
    fn wanted(&mut self) -> Vec<Wanted> {
        let mut slots = Slots::default();
        let config = self.config;
        let numbered = config.uris.iter().zip(1..);
        numbered.filter_map(|(written, number)| self.resolve(written, number, &mut slots)).collect()
    }

    fn resolve(&mut self, written: &Written, number: usize, slots: &mut Slots) -> Option<Wanted> {
        let uri = match Uri::parse(&written.uri, self.config.dialect()) {
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
        match self.locate(&subject, uri, written.public_key.as_deref(), slots) {
            Ok(wanted) => Some(wanted),
            Err(problem) => {
                self.fail(&subject, problem);
                None
            }
        }
    }

    fn locate(
        &self,
        subject: &str,
        uri: Uri,
        public_key: Option<&Path>,
        slots: &mut Slots,
    ) -> Result<Wanted, Problem> {
        let module = Module::at(&self.config.module_of(&uri)?)?;
        let public = public_key.map(Public::read).transpose()?;
        match slots.choose(module, &uri.token) {
            Err(problem) if !ckr::may_pass(&problem.error) => Err(problem),
            token => Ok(Wanted { subject: subject.to_owned(), uri, public, module, token }),
        }
    }

    /// The token of a group, there or looked for; `None` where it can't be used as things are.
    fn token(&mut self, group: &Group) -> Option<Arc<Token>> {
        match self.take(group) {
            Ok((token, None)) => Some(token),
            // The listing says so, as long as it is so.
            Ok((token, Some(problem))) => {
                let subject = group.members.first().map_or_else(String::new, |member| member.subject.clone());
                token.miss(problem.clone());
                self.first.get_or_insert((subject, problem));
                Some(token)
            }
            Err(problem) => {
                group.members.iter().for_each(|member| self.fail(&member.subject, problem.clone()));
                None
            }
        }
    }

    /// Takes the token, or says why it isn't there.
    fn take(&mut self, group: &Group) -> Result<(Arc<Token>, Option<Problem>), Problem> {
        let settings = self.settings(group)?;
        let token =
            Arc::new(Token::new(group.module, group.selectors().cloned().unwrap_or_default(), settings));
        match group.token.clone().and_then(|present| token.take(&present)) {
            Ok(()) => Ok((token, None)),
            Err(problem) if ckr::may_pass(&problem.error) => Ok((token, Some(problem))),
            Err(problem) => Err(problem),
        }
    }

    fn settings(&mut self, group: &Group) -> Result<Settings, Problem> {
        let limits = group.members.iter().filter_map(|member| member.uri.max_sessions);
        let profile = self.config.named_profile()?.unwrap_or_else(|| group.module.profile());
        Ok(Settings {
            profile,
            pin: PinOrigin::new(self.pin_source(group), self.config.pin_commands, self.host),
            user: profile.user(self.config.login_as == LoginAs::CryptoUser)?,
            max_sessions: limits.max().or(self.config.max_sessions),
            raw_rsa: self.config.raw_rsa,
            credentials: self.host.credentials(),
            host: self.host,
        })
    }

    /// Where the PIN for a token is: what the first of its URIs says that says anything. A token has one login, so one
    /// PIN; trying a second after a first was refused would be guessing.
    fn pin_source(&mut self, group: &Group) -> Option<PinSource> {
        let mut given =
            group.members.iter().filter_map(|member| Some((&member.subject, member.uri.pin.as_ref()?)));
        let (owner, source) = given.next()?;
        for (subject, _) in given.filter(|(_, other)| *other != source) {
            let message = format!("has another PIN for the same token than {owner}, whose PIN is used");
            let problem = Problem::new(Error::invalid(message)).hint("give one PIN for each token");
            self.findings.push(problem.warning(subject));
        }
        Some(source.clone())
    }

    /// Warns of what is wrong with the settings of vendors' libraries.
    fn check_settings(&mut self, tokens: &[Arc<Token>]) {
        let mut told = BTreeSet::new();
        for token in tokens {
            let (path, settings) = (token.module().path(), token.profile().settings);
            let complaint = settings.and_then(|settings| settings.complaint(|name| std::env::var(name).ok()));
            if let Some(problem) = complaint.filter(|_| told.insert(path)) {
                self.findings.push(problem.warning(&format!("module `{}`", path.display())));
            }
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
