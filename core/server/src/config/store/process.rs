//! What the process of a plugin gets, where it runs in one of its own.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use keystead_plugin_host::Surroundings;

use super::{Isolation, Store};
use crate::config::notice::{Notice, Position};
use crate::config::secret::SecretSource;
use crate::config::table::{self, Table, mismatch};
use crate::config::units;
use crate::config::yaml::Value;

/// Options of an entry that only mean something to a plugin in a process of its own.
pub(super) const OPTIONS: [&str; 6] = ["isolation_group", "env", "workdir", "user", "groups", "core_dumps"];
/// The same among the entry's `limits`.
const LIMITS: [&str; 2] = ["memory", "stuck_after"];
/// How long calls may hang: an HSM that fails over takes some 20 s, and a minute is 8 times what clients wait.
const STUCK_AFTER: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(3_600);
/// How much memory a process may have. With less than 64 MiB it doesn't get as far as its plugin.
const MEMORY: RangeInclusive<u64> = (64 << 20)..=(1 << 40);

/// Reads where the plugin of an entry runs, and what its process gets. Whoever says what that gets wants one.
pub(super) fn read(
    entry: &mut Table,
    limits: &mut Table,
) -> Result<(Option<Isolation>, Surroundings), Notice> {
    let words = [("inline", Isolation::Inline), ("process", Isolation::Process)];
    let isolation = entry.read("isolation", table::word(&words))?;
    let mut present = OPTIONS.into_iter().filter(|key| entry.has(key)).peekable();
    let wants_one = present.peek().is_some();
    let of_limits = LIMITS.into_iter().filter(|key| limits.has(key)).map(|key| (&*limits, key));
    let first = present.map(|key| (&*entry, key)).chain(of_limits).next();
    if let (Some(Isolation::Inline), Some((table, key))) = (isolation, first) {
        return Err(not_inline(table, key));
    }
    let default = Surroundings::default();
    let surroundings = Surroundings {
        group: entry.read("isolation_group", super::entry::name)?,
        env: entry.read("env", variables)?.unwrap_or_default(),
        workdir: entry.read("workdir", absolute)?,
        user: entry.read("user", account)?,
        groups: entry.read("groups", table::some(account))?.unwrap_or_default(),
        memory: limits.read("memory", memory)?,
        core_dumps: entry.read("core_dumps", table::boolean)?.unwrap_or(default.core_dumps),
        stuck_after: limits.read("stuck_after", table::duration(STUCK_AFTER))?,
    };
    Ok((isolation.or(wants_one.then_some(Isolation::Process)), surroundings))
}

/// Stores that name the same group share a process, which can't be two things.
pub(super) fn refuse_disagreement(stores: &[Store]) -> Result<(), Notice> {
    let mut groups: BTreeMap<&str, &Store> = BTreeMap::new();
    for store in stores {
        let Some(group) = &store.surroundings.group else { continue };
        let first = *groups.entry(group).or_insert(store);
        if let Some(key) = difference(&first.surroundings, &store.surroundings) {
            let (one, other) = (&first.name, &store.name);
            let notice = Notice::new(format!(
                "stores `{one}` and `{other}` share the process `{group}`, and `{key}` isn't the same for both"
            ));
            let hint = "say the same in both entries, or give them an `isolation_group` each";
            return Err(Notice { position: store.position, ..notice }.about("private_key_stores").hint(hint));
        }
    }
    Ok(())
}

/// Where the service manager has put credentials (systemd.exec(5)).
const CREDENTIALS: &str = "CREDENTIALS_DIRECTORY";

/// Hands on to every process where credentials are, since a plugin's own configuration may name one; and to those of
/// legacy entries, which can't say `env`, the server's environment: vendors' libraries find their configuration by
/// variables, and did so in the reference's process. Not handed on is what belongs to the server itself: its own options,
/// what else its service manager tells it, and what some store has a secret in.
pub(in crate::config) fn hand_on(
    stores: &mut [Store],
    environment: impl Iterator<Item = (OsString, OsString)>,
) {
    const ITS_OWN: [&str; 7] =
        ["JOURNAL_STREAM", "KEYLESS_", "KEYSTEAD_", "LISTEN_", "NOTIFY_SOCKET", "SYSTEMD_", "WATCHDOG_"];
    let sources = stores.iter().flat_map(|store| store.secrets.values());
    let secret: Vec<_> = sources.filter_map(SecretSource::variable).map(str::to_owned).collect();
    let is_its_own = |name: &str| ITS_OWN.iter().any(|own| name.starts_with(own));
    let variables =
        environment.filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    let variables: BTreeMap<_, _> =
        variables.filter(|(name, _)| !is_its_own(name) && !secret.contains(name)).collect();
    for store in stores {
        let env = &mut store.surroundings.env;
        if store.legacy {
            env.clone_from(&variables);
        } else if let Some(folder) = variables.get(CREDENTIALS) {
            env.entry(CREDENTIALS.to_owned()).or_insert_with(|| folder.clone());
        }
    }
}

/// What a process that may leave core dumps is worth: a warning.
pub(super) fn core_dumps_warning(path: &str, position: Option<Position>) -> Notice {
    let notice = Notice::new(format!("`{path}`: a core dump of this process holds its keys and PINs"));
    let hint = "it is meant for development; remove it where keys are real";
    Notice { position, ..notice }.about(path).hint(hint)
}

fn not_inline(table: &Table, key: &str) -> Notice {
    let path = table.path_of(key);
    let notice = Notice::new(format!("`{path}`: expected nothing of a process beside `isolation: inline`"));
    let hint = "it is for a plugin in a process of its own: write `isolation: process`, or remove it";
    Notice { position: table.position_of(key), ..notice }.about(path).hint(hint)
}

/// The first option by which two surroundings differ.
fn difference(one: &Surroundings, other: &Surroundings) -> Option<&'static str> {
    let Surroundings { group: _, env, workdir, user, groups, memory, core_dumps, stuck_after } = one;
    let same = [
        ("env", *env == other.env),
        ("workdir", *workdir == other.workdir),
        ("user", *user == other.user),
        ("groups", *groups == other.groups),
        ("core_dumps", *core_dumps == other.core_dumps),
        ("limits.memory", *memory == other.memory),
        ("limits.stuck_after", *stuck_after == other.stuck_after),
    ];
    same.into_iter().find(|(_, same)| !same).map(|(key, _)| key)
}

/// An environment. Nothing of it is repeated in an error: what a vendor's library reads from there may be a secret.
fn variables(value: &Value) -> Result<BTreeMap<String, String>, String> {
    let Value::Map(entries) = value else { return Err(mismatch("a map of variables", value)) };
    let variables = entries.iter().map(|entry| {
        let value = table::text(&entry.node.value)?;
        if entry.key.is_empty() || entry.key.contains(['=', '\0']) || value.contains('\0') {
            return Err("expected names without `=`, and values without a zero byte".to_owned());
        }
        Ok((entry.key.clone(), value))
    });
    variables.collect()
}

/// A path that means the same wherever the server was started.
fn absolute(value: &Value) -> Result<PathBuf, String> {
    let path = table::path(value)?;
    let legal = path.is_absolute() && !path.as_os_str().as_encoded_bytes().contains(&0);
    if legal { Ok(path) } else { Err("expected an absolute path, got another string".into()) }
}

/// A user or a group, by name or number.
fn account(value: &Value) -> Result<String, String> {
    let expected = "a name or a number";
    match value {
        Value::Number(number) if number.as_u64().is_some_and(|number| number < u64::from(u32::MAX)) => {
            Ok(number.to_string())
        }
        Value::Number(_) => Err(mismatch(expected, value)),
        _ => {
            let name = table::text(value)?;
            let legal = !name.is_empty() && !name.contains([':', '\0', '\n']);
            if legal { Ok(name) } else { Err(format!("expected {expected}, got another string")) }
        }
    }
}

fn memory(value: &Value) -> Result<u64, String> {
    let size = table::size(value)?;
    if MEMORY.contains(&size) {
        return Ok(size);
    }
    let [least, most] = [MEMORY.start(), MEMORY.end()].map(|size| units::size_text(*size));
    Err(format!("expected {least} to {most}, got {}", units::size_text(size)))
}
