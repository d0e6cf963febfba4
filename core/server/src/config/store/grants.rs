//! What a store may reach through the host.

use std::collections::BTreeSet;
use std::str::FromStr;

use keystead_plugin_host::{ClientCertificate, Grant, Network, Origin};

use crate::config::notice::Notice;
use crate::config::table::{self, Table, misfit, mismatch};
use crate::config::yaml::{Node, Value};

/// Every kind of grant.
const GRANTS: [&str; 1] = ["http"];
/// Every key of a grant of HTTP.
const HTTP: [&str; 8] =
    ["url", "methods", "secrets", "addresses", "ca", "client_certificate", "client_key", "proxy"];

/// Reads the grants of an entry.
pub(super) fn read(entry: &mut Table) -> Result<Vec<Grant>, Notice> {
    let mut grants = entry.table("grants", &GRANTS)?;
    let path = grants.path_of("http");
    let Some(node) = grants.take("http") else { return Ok(Vec::new()) };
    let Value::List(items) = node.value else {
        return Err(misfit(&path, node.position, &mismatch("a list", &node.value)));
    };
    items.into_iter().enumerate().map(|(index, item)| http(item, &format!("{path}[{index}]"))).collect()
}

fn http(node: Node, path: &str) -> Result<Grant, Notice> {
    let position = node.position;
    let mut grant = Table::open(node, path, &HTTP)?;
    let missing = |key: &str, hint: &str| {
        Err(misfit(path, position, &format!("expected a `{key}`, got none")).hint(hint))
    };
    let Some(origin) = grant.read("url", parsed::<Origin>)? else {
        return missing("url", "name the service: `url: \"https://kms.example:443\"`");
    };
    let Some(methods) = grant.read("methods", table::some(method))? else {
        return missing("methods", "name those that the plugin needs: `methods: [GET, POST]`");
    };
    let certificate = grant.position_of("client_certificate").or(grant.position_of("client_key"));
    let client =
        match (grant.read("client_certificate", table::path)?, grant.read("client_key", table::path)?) {
            (None, None) => None,
            (Some(certificate), Some(key)) => Some(ClientCertificate { certificate, key }),
            _ => {
                let problem = "expected both of `client_certificate` and `client_key`, got one";
                return Err(misfit(path, certificate.unwrap_or(position), problem));
            }
        };
    let ca = grant.read("ca", table::path)?;
    let proxy_position = grant.position_of("proxy");
    let proxy = grant.read("proxy", parsed::<Origin>)?;
    if !origin.is_https() && (ca.is_some() || client.is_some() || proxy.is_some()) {
        let problem = "`ca`, `client_certificate`, `client_key` and `proxy` are for a `url` with `https://`";
        return Err(misfit(path, position, problem));
    }
    if proxy.as_ref().is_some_and(Origin::is_https) {
        let problem = "expected a proxy that speaks plain HTTP, such as `http://proxy.example:3128`";
        return Err(misfit(&grant.path_of("proxy"), proxy_position.unwrap_or(position), problem));
    }
    Ok(Grant {
        origin,
        methods: methods.into_iter().collect(),
        secrets: grant
            .read("secrets", table::some(table::text))?
            .map(BTreeSet::from_iter)
            .unwrap_or_default(),
        addresses: grant.read("addresses", table::some(parsed::<Network>))?.unwrap_or_default(),
        ca,
        client,
        proxy,
    })
}

/// Something with a notation of its own; what stands there isn't repeated.
fn parsed<T: FromStr<Err = String>>(value: &Value) -> Result<T, String> {
    table::text(value)?.parse()
}

fn method(value: &Value) -> Result<String, String> {
    let method = table::text(value)?;
    let legal = !method.is_empty() && method.bytes().all(|byte| byte.is_ascii_uppercase());
    if legal { Ok(method) } else { Err("expected a method such as `GET`, in capitals".into()) }
}
