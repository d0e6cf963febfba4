//! `plugin list`: what is on the search path.

use std::process::ExitCode;

use keystead::{config::Flags, server, status};
use keystead_plugin_host::Found;
use serde_json::{Value, json};

use super::{Failed, Output, load, print, runtime, table};

pub(super) fn list(flags: &Flags, output: Output) -> Result<ExitCode, Failed> {
    let host = server::plugin_host(&load(flags)?.plugins);
    let found = runtime()?.block_on(host.plugins());
    if output.json {
        let plugins: Vec<Value> = found.iter().map(to_json).collect();
        return print(&format!("{:#}\n", Value::from(plugins)));
    }
    let rows = found.iter().map(|plugin| match &plugin.description {
        Ok(description) => [
            plugin.name.clone(),
            description.version.clone(),
            format!("draft {}", description.contract),
            status::isolation(description.isolation).to_owned(),
            description.vendor.clone(),
            plugin.file.display().to_string(),
        ],
        Err(failure) => {
            let none = || "-".to_owned();
            [plugin.name.clone(), none(), "refused".to_owned(), none(), none(), failure.to_string()]
        }
    });
    print(&table(["NAME", "VERSION", "CONTRACT", "ISOLATION", "VENDOR", "FILE"], rows))
}

fn to_json(plugin: &Found) -> Value {
    let description = plugin.description.as_ref().ok();
    json!({
        "name": plugin.name,
        "file": plugin.file,
        "version": description.map(|description| &description.version),
        "vendor": description.map(|description| &description.vendor),
        "contract": description.map(|description| description.contract),
        "isolation": description.map(|description| status::isolation(description.isolation)),
        "refused": plugin.description.as_ref().err().map(|failure| failure.to_string()),
    })
}
