//! Addresses of services, as the configuration may have them.

use keystead_plugin_api::Error;

/// One of scheme, host and port, without a slash at its end.
pub(crate) fn of(member: &str, url: &str) -> Result<String, Error> {
    let url = url.trim_end_matches('/');
    match host_and_path(url) {
        Some((_, "")) => Ok(url.to_owned()),
        _ => Err(Error::invalid(format!("config: {member}: expected https://HOST and no path"))),
    }
}

/// One with a path.
pub(crate) fn with_path(member: &str, url: &str) -> Result<(), Error> {
    match host_and_path(url) {
        Some((_, path)) if !path.contains(['?', '#']) => Ok(()),
        _ => Err(Error::invalid(format!("config: {member}: expected https://HOST/PATH"))),
    }
}

fn host_and_path(url: &str) -> Option<(&str, &str)> {
    let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"))?;
    let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    (!host.is_empty() && !host.contains(['?', '#', '@'])).then_some((host, path))
}
