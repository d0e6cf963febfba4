//! Entries of `private_key_stores` to stores.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::RangeInclusive;
use std::time::Duration;

use keystead_plugin_host::Surroundings;
use serde_json::json;

use super::{Operation, Prove, Store, StoreLimits, VerifySignatures, cloud, grants, process};
use crate::config::Environment;
use crate::config::notice::{Notice, Position};
use crate::config::secret::{Secret, SecretSource};
use crate::config::table::{self, Table, join, list, misfit, mismatch};
use crate::config::yaml::{Node, Value};

/// The key of the list, which begins the path of everything in it.
pub(super) const LIST: &str = "private_key_stores";
/// What makes an entry; each has exactly one.
const FORMS: [&str; 4] = ["dir", "file", "uri", "plugin"];
/// Every key of an entry: the forms, and what may stand beside `plugin`.
pub(in crate::config) const ENTRY: [&str; 20] = [
    "dir",
    "file",
    "uri",
    "plugin",
    "name",
    "config",
    "secrets",
    "grants",
    "operations",
    "isolation",
    "isolation_group",
    "critical",
    "prove",
    "verify_signatures",
    "limits",
    "env",
    "workdir",
    "user",
    "groups",
    "core_dumps",
];
/// Every key of an entry's `limits`.
pub(in crate::config) const LIMITS: [&str; 7] =
    ["lanes", "queue", "deadline", "health_interval", "stuck_after", "memory", "instances"];
/// How often a store may be asked how it is.
const HEALTH_INTERVALS: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(3_600);

/// The stores of a list, and what is worth a warning.
pub(in crate::config) fn read_list(
    node: Node,
    env: Environment<'_>,
) -> Result<(Vec<Store>, Vec<Notice>), Notice> {
    let entries = match node.value {
        Value::List(entries) => entries,
        other => return Err(misfit(LIST, node.position, &mismatch("a list", &other))),
    };
    let mut reading = Reading { stores: Vec::new(), warnings: Vec::new() };
    for (index, entry) in entries.into_iter().enumerate() {
        reading.entry(entry, &format!("{LIST}[{index}]"))?;
    }
    reading.finish(env)
}

/// The stores of directories and files that a flag or variable lists.
pub(in crate::config) fn key_files(dirs: &[String], files: &[String]) -> Vec<Store> {
    let dirs = dirs.iter().map(|path| ("dir", path));
    let entries = dirs.chain(files.iter().map(|path| ("file", path)));
    let mut stores: Vec<_> =
        entries.map(|(form, path)| Store { position: None, ..legacy_file(form, path) }).collect();
    name_the_unnamed(&mut stores);
    stores
}

struct Reading {
    stores: Vec<Store>,
    warnings: Vec<Notice>,
}

impl Reading {
    fn entry(&mut self, node: Node, path: &str) -> Result<(), Notice> {
        let position = node.position;
        let mut entry = Table::open(node, path, &ENTRY)?;
        let present: Vec<_> = FORMS.into_iter().filter(|form| entry.has(form)).collect();
        match present.as_slice() {
            ["plugin"] => {
                let store = self.native(entry, position)?;
                self.stores.push(store);
            }
            [form] => {
                refuse_options(&entry, form)?;
                let store = entry.read(form, table::text)?.unwrap_or_default();
                self.legacy(form, &store, position)
                    .map_err(|problem| misfit(&join(path, form), position, &problem))?;
            }
            others => return Err(not_one_form(path, position, others)),
        }
        Ok(())
    }

    /// A legacy entry: a store of its own, or one more URI of the store that its plugin already has in this place.
    fn legacy(&mut self, form: &str, value: &str, position: Position) -> Result<(), String> {
        if value.is_empty() {
            return Err("expected a path or URI, got an empty string".into());
        }
        if form != "uri" {
            self.stores.push(Store { position: Some(position), ..legacy_file(form, value) });
            return Ok(());
        }
        let plugin = plugin_of(value).ok_or(
            "expected a URI of PKCS#11 (`pkcs11:…`), Azure (`https://…/keys/…`) or \
                                            Google (`projects/…`), got another string",
        )?;
        let of_plugin = self.stores.iter_mut().filter(|store| store.legacy && store.plugin == plugin);
        let mut lists = of_plugin.filter_map(|store| store.config.get_mut("uris")?.as_array_mut());
        let is_there = |uri: &serde_json::Value| uri.as_str().is_some_and(|uri| place(uri) == place(value));
        match lists.find(|uris| uris.first().is_some_and(is_there)) {
            Some(uris) => uris.push(value.into()),
            None => {
                let config = match plugin {
                    "pkcs11" => json!({ "uris": [value], "legacy": true }),
                    _ => json!({ "uris": [value] }),
                };
                self.stores.push(Store { position: Some(position), ..legacy_store(plugin, config) });
            }
        }
        Ok(())
    }

    fn native(&mut self, mut entry: Table, position: Position) -> Result<Store, Notice> {
        let operations = [("sign", Operation::Sign), ("decrypt", Operation::Decrypt)];
        let prove = [("start", Prove::Start), ("background", Prove::Background), ("never", Prove::Never)];
        let mut limits = entry.table("limits", &LIMITS)?;
        let core_dumps = (entry.path_of("core_dumps"), entry.position_of("core_dumps"));
        let (isolation, surroundings) = process::read(&mut entry, &mut limits)?;
        let (secrets, exposed) = secrets(&mut entry)?;
        if surroundings.core_dumps {
            self.warnings.push(process::core_dumps_warning(&core_dumps.0, core_dumps.1));
        }
        Ok(Store {
            name: entry.read("name", name)?.unwrap_or_default(),
            plugin: entry.read("plugin", name)?.unwrap_or_default(),
            config: object(&mut entry, "config")?.unwrap_or_else(|| json!({})),
            secrets,
            exposed,
            grants: grants::read(&mut entry)?,
            operations: entry
                .read("operations", table::some(table::word(&operations)))?
                .map_or_else(|| BTreeSet::from([Operation::Sign]), BTreeSet::from_iter),
            isolation,
            surroundings,
            critical: entry.read("critical", table::boolean)?.unwrap_or(false),
            legacy: false,
            prove: entry.read("prove", table::word(&prove))?.unwrap_or_default(),
            verify_signatures: entry.read("verify_signatures", verify_signatures)?.unwrap_or_default(),
            limits: Self::limits(limits)?,
            position: Some(position),
        })
    }

    fn limits(mut limits: Table) -> Result<StoreLimits, Notice> {
        Ok(StoreLimits {
            instances: limits.read("instances", table::whole(1..=1_024))?,
            lanes: limits.read("lanes", table::whole(1..=1_024))?,
            queue: limits.read("queue", table::whole(1..=65_536))?.unwrap_or(StoreLimits::QUEUE),
            deadline: limits.read("deadline", table::duration(StoreLimits::DEADLINES))?,
            health_interval: limits
                .read("health_interval", table::duration(HEALTH_INTERVALS))?
                .unwrap_or(StoreLimits::HEALTH_INTERVAL),
        })
    }

    fn finish(mut self, env: Environment<'_>) -> Result<(Vec<Store>, Vec<Notice>), Notice> {
        let legacy = self.stores.iter_mut().filter(|store| store.legacy);
        self.warnings.extend(legacy.flat_map(|store| cloud::complete(store, env)));
        name_the_unnamed(&mut self.stores);
        refuse_duplicate_names(&self.stores)?;
        process::refuse_disagreement(&self.stores)?;
        self.warnings.extend(decrypt_warning(&self.stores));
        Ok((self.stores, self.warnings))
    }
}

/// Gives each store without a name that of its plugin and its place, from 1, among the plugin's stores.
fn name_the_unnamed(stores: &mut [Store]) {
    let mut counts: HashMap<String, usize> = HashMap::new();
    for store in stores {
        let count = counts.entry(store.plugin.clone()).or_default();
        *count += 1;
        if store.name.is_empty() {
            store.name = format!("{}-{count}", store.plugin);
        }
    }
}

fn refuse_duplicate_names(stores: &[Store]) -> Result<(), Notice> {
    let mut seen: HashMap<&str, Option<Position>> = HashMap::new();
    for store in stores {
        let Some(first) = seen.insert(&store.name, store.position) else { continue };
        let first = first.map_or_else(String::new, |position| format!(", first at {position}"));
        let notice = Notice::new(format!("two stores are named `{}`{first}", store.name)).about(LIST);
        let hint = "give each its own `name`; one without is called after its plugin and a number";
        return Err(Notice { position: store.position, ..notice }.hint(hint));
    }
    Ok(())
}

/// One warning for all legacy stores whose keys also decrypt, as the reference lets them.
pub(in crate::config) fn decrypt_warning(stores: &[Store]) -> Option<Notice> {
    let decrypts = |store: &&Store| store.legacy && store.operations.contains(&Operation::Decrypt);
    let legacy: Vec<_> = stores.iter().filter(decrypts).collect();
    let names: Vec<_> = legacy.iter().map(|store| store.name.as_str()).take(8).collect();
    let more = legacy.len() - names.len();
    let names =
        if more == 0 { list(&names, "and") } else { format!("{} and {more} more", list(&names, "and")) };
    let notice = Notice::new(format!("clients may also decrypt with the keys of {names}, as in gokeyless"));
    let notice =
        notice.about(LIST).hint("only the RSA key exchange of old TLS needs it; a native entry signs only");
    legacy.first().map(|first| Notice { position: first.position, ..notice })
}

fn legacy_file(form: &str, path: &str) -> Store {
    legacy_store("file", json!({ (form): path, "permissions": "warn" }))
}

fn legacy_store(plugin: &str, config: serde_json::Value) -> Store {
    Store {
        name: String::new(),
        plugin: plugin.to_owned(),
        config,
        secrets: BTreeMap::new(),
        exposed: BTreeSet::new(),
        grants: Vec::new(),
        operations: BTreeSet::from([Operation::Sign, Operation::Decrypt]),
        isolation: None,
        surroundings: Surroundings::default(),
        critical: false,
        legacy: true,
        prove: Prove::default(),
        verify_signatures: VerifySignatures::default(),
        limits: StoreLimits {
            lanes: None,
            queue: StoreLimits::QUEUE,
            deadline: None,
            instances: None,
            health_interval: StoreLimits::HEALTH_INTERVAL,
        },
        position: None,
    }
}

/// The plugin that serves a URI of the reference.
fn plugin_of(uri: &str) -> Option<&'static str> {
    if uri.starts_with("projects/") {
        return Some("gcp");
    }
    let (scheme, _) = uri.split_once(':')?;
    match scheme.to_ascii_lowercase().as_str() {
        "pkcs11" => Some("pkcs11"),
        "https" if uri.contains("/keys/") => Some("azure"),
        _ => None,
    }
}

/// Where the key of a URI is, as far as that makes one store: what fails there takes its store along, and no other's. A
/// PKCS#11 module, a vault of Azure, all of Google.
fn place(uri: &str) -> Option<&str> {
    cloud::vault(uri).or_else(|| module(uri))
}

/// The module that a PKCS#11 URI names, as it stands there; the last one counts, as in the reference.
fn module(uri: &str) -> Option<&str> {
    let query = uri.split('?').nth(1)?;
    let named = |key| query.split('&').rev().find(|attribute| attribute.starts_with(key));
    named("module-path=").or_else(|| named("module-name="))
}

fn refuse_options(entry: &Table, form: &str) -> Result<(), Notice> {
    let mut options = ENTRY.into_iter().filter(|key| !FORMS.contains(key));
    let Some(option) = options.find(|option| entry.has(option)) else { return Ok(()) };
    let path = entry.path_of(option);
    let notice = Notice::new(format!("`{path}`: expected nothing beside `{form}`")).about(path);
    let hint = match form {
        "uri" => {
            "options need the native form: `plugin: pkcs11` with `config: {uris: [\"pkcs11:…\"]}`".to_owned()
        }
        _ => format!("options need the native form: `plugin: file` with `config: {{{form}: PATH}}`"),
    };
    Err(Notice { position: entry.position_of(option), ..notice }.hint(hint))
}

fn not_one_form(path: &str, position: Position, present: &[&str]) -> Notice {
    let got = if present.is_empty() { "none".to_owned() } else { list(present, "and") };
    let problem = format!("expected exactly one of {}, got {got}", list(&FORMS, "or"));
    misfit(path, position, &problem).hint("give each directory, file, URI and plugin an entry of its own")
}

/// A name of a store, plugin or group: it becomes a label of metrics, a word in logs and a part of a file's name.
pub(super) fn name(value: &Value) -> Result<String, String> {
    let name = table::text(value)?;
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if (1..=64).contains(&name.len()) && name.chars().all(legal) && !name.starts_with('.') {
        return Ok(name);
    }
    Err("expected 1 to 64 letters, digits, `-`, `_` and `.`, not beginning with a dot, got another string"
        .into())
}

fn verify_signatures(value: &Value) -> Result<VerifySignatures, String> {
    let words =
        [("auto", VerifySignatures::Auto), ("on", VerifySignatures::On), ("off", VerifySignatures::Off)];
    match value {
        Value::Bool(true) => Ok(VerifySignatures::On),
        Value::Bool(false) => Ok(VerifySignatures::Off),
        _ => table::word(&words)(value),
    }
}

/// A map that is passed on as it is.
fn object(entry: &mut Table, key: &str) -> Result<Option<serde_json::Value>, Notice> {
    let path = entry.path_of(key);
    match entry.take(key) {
        None => Ok(None),
        Some(Node { value: value @ Value::Map(_), .. }) => Ok(Some(value.into_json())),
        Some(other) => Err(misfit(&path, other.position, &mismatch("a map", &other.value))),
    }
}

/// The secrets of an entry, and which of them a component may see.
fn secrets(entry: &mut Table) -> Result<(BTreeMap<String, SecretSource>, BTreeSet<String>), Notice> {
    let path = entry.path_of("secrets");
    let Some(node) = entry.take("secrets") else { return Ok(Default::default()) };
    let Value::Map(entries) = node.value else {
        return Err(misfit(&path, node.position, &mismatch("a map of names and sources", &node.value)));
    };
    let (mut secrets, mut exposed) = (BTreeMap::new(), BTreeSet::new());
    for mut entry in entries {
        let path = join(&path, &entry.key.escape_debug().to_string());
        if option(&mut entry.node, &path, "expose", table::boolean)? == Some(true) {
            exposed.insert(entry.key.clone());
        }
        let pointer = option(&mut entry.node, &path, "pointer", pointer)?;
        let source = secret_source(entry.node, &path)?;
        secrets.insert(
            entry.key,
            match pointer {
                Some(pointer) => SecretSource::Member(source.into(), pointer),
                None => source,
            },
        );
    }
    Ok((secrets, exposed))
}

/// Takes out what may stand beside a secret's source.
fn option<T>(
    secret: &mut Node,
    path: &str,
    key: &str,
    read: fn(&Value) -> Result<T, String>,
) -> Result<Option<T>, Notice> {
    let Value::Map(entries) = &mut secret.value else { return Ok(None) };
    let Some(at) = entries.iter().position(|entry| entry.key.eq_ignore_ascii_case(key)) else {
        return Ok(None);
    };
    let node = entries.remove(at).node;
    read(&node.value).map(Some).map_err(|problem| misfit(&join(path, key), node.position, &problem))
}

/// A JSON Pointer that isn't the whole document.
fn pointer(value: &Value) -> Result<String, String> {
    let pointer = table::text(value)?;
    let legal = pointer.starts_with('/') && !pointer.replace("~0", "").replace("~1", "").contains('~');
    if legal {
        Ok(pointer)
    } else {
        Err("expected a JSON Pointer such as `/private_key`, got another string".into())
    }
}

/// One secret. Nothing of what stands here is repeated in an error, not even a key: it may be the secret.
fn secret_source(node: Node, path: &str) -> Result<SecretSource, Notice> {
    let expected = "a map with one of `file`, `env`, `credential` or `value`";
    let position = node.position;
    let refuse = |got: &str| misfit(path, position, &format!("expected {expected}, got {got}"));
    let mut entries = match node.value {
        Value::Map(entries) => entries,
        other => return Err(refuse(other.kind()).hint("write `{file: PATH}`, or `{value: \"…\"}`")),
    };
    let (Some(entry), None) = (entries.pop(), entries.pop()) else {
        return Err(refuse("none or several"));
    };
    let fault = |problem: String| misfit(path, entry.node.position, &problem);
    let value = &entry.node.value;
    match entry.key.to_ascii_lowercase().as_str() {
        "file" => table::path(value).map(SecretSource::File).map_err(fault),
        "env" => variable(value).map(SecretSource::Env).map_err(fault),
        "credential" => credential(value).map(SecretSource::Credential).map_err(fault),
        "value" => table::text(value).map(|text| SecretSource::Value(Secret::from(text))).map_err(fault),
        _ => Err(refuse("another key")),
    }
}

fn variable(value: &Value) -> Result<String, String> {
    let name = table::text(value)?;
    let legal = !name.is_empty() && !name.contains(['=', '\0']);
    if legal { Ok(name) } else { Err("expected the name of a variable, got another string".into()) }
}

/// The name of a file in `$CREDENTIALS_DIRECTORY`, which it must not lead out of.
fn credential(value: &Value) -> Result<String, String> {
    let name = table::text(value)?;
    let legal = !name.is_empty() && !name.contains(['/', '\0']) && name != "." && name != "..";
    if legal { Ok(name) } else { Err("expected the name of a credential, got another string".into()) }
}
