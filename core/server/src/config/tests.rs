mod clouds;
mod files;
mod samples;
mod secrecy;
mod sources;
mod stores;
mod text;
mod types;

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Parser;

use super::*;

const DEFAULT: &str = include_str!("../../../../config/keystead.yaml");
const GOKEYLESS: &str = include_str!("../../../../config/gokeyless.yaml");

#[derive(clap::Parser)]
struct CommandLine {
    #[command(flatten)]
    flags: Flags,
}

fn flags(line: &str) -> Flags {
    CommandLine::parse_from(format!("keystead {line}").split_whitespace()).flags
}

fn no_env(_: &str) -> Option<OsString> {
    None
}

fn env(pairs: &[(&str, &str)]) -> impl Fn(&str) -> Option<OsString> {
    let pairs: HashMap<String, OsString> =
        pairs.iter().map(|(name, value)| (name.to_string(), value.into())).collect();
    move |name| pairs.get(name).cloned()
}

fn accept(yaml: &str) -> Config {
    settings::resolve(yaml, &Flags::default(), &no_env).unwrap_or_else(|error| panic!("{error}\n{yaml}"))
}

fn refusal(yaml: &str) -> String {
    match settings::resolve(yaml, &Flags::default(), &no_env) {
        Ok(_) => panic!("accepted:\n{yaml}"),
        Err(notice) => Notice { file: Some("k.yaml".into()), ..notice }.to_string(),
    }
}

fn warnings(config: &Config) -> Vec<String> {
    config.warnings.iter().map(|warning| warning.to_string().lines().next().unwrap().to_owned()).collect()
}

fn claim_refusals(claims: &[(&str, &str)]) {
    for (yaml, message) in claims {
        assert_eq!(&refusal(yaml), message, "of:\n{yaml}");
    }
}
