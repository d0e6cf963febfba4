//! What a vault answers to whoever doesn't say who he is: where tokens for it are made, and for what. No I/O.
//!
//! ```text
//! WWW-Authenticate: Bearer authorization="https://login.microsoftonline.com/TENANT",
//!     resource="https://vault.azure.net"
//! ```

use keystead_plugin_api::{Code, Error};

use crate::place::Vault;

/// Where tokens are made, and what they are for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Challenge {
    /// `https://HOST/TENANT`
    pub(crate) authority: String,
    /// `https://vault.azure.net`
    pub(crate) resource: String,
}

impl Challenge {
    /// Reads a challenge of a vault's. A token is for a resource by its name, and whoever gets one can use it there: so
    /// a vault can ask only for tokens whose resource its own name ends in.
    pub(crate) fn parse(vault: &Vault, header: &str) -> Result<Self, Error> {
        let odd = |what: &str| {
            let what = format!("{}: its challenge {what}; no token is sent there", vault.url());
            Err(Error::new(Code::Denied, what))
        };
        let parameters = parameters(header);
        let find = |names: [&str; 2]| {
            let (_, value) = parameters.iter().find(|(name, _)| names.contains(&name.as_str()))?;
            Some(value.trim_end_matches('/'))
        };
        let Some(authority) = find(["authorization", "authorization_uri"]).and_then(authority) else {
            return odd("names no authority (https://HOST/TENANT)");
        };
        let resource = find(["resource", "scope"]).map(|text| text.trim_end_matches("/.default"));
        let Some(resource) = resource.filter(|resource| host(resource).is_some()) else {
            return odd("names no resource");
        };
        let suffix = format!(".{}", host(resource).unwrap_or_default().to_ascii_lowercase());
        if !vault.host().ends_with(&suffix) {
            return odd(&format!("is for `{}`, whose name the vault's doesn't end in", clipped(resource)));
        }
        Ok(Self { authority, resource: resource.to_owned() })
    }

    /// As a value to keep, and back.
    pub(crate) fn written(&self) -> String {
        format!("{} {}", self.authority, self.resource)
    }

    pub(crate) fn read(written: &[u8]) -> Option<Self> {
        let (authority, resource) = str::from_utf8(written).ok()?.split_once(' ')?;
        Some(Self { authority: authority.to_owned(), resource: resource.to_owned() })
    }

    /// The tenant, the last part of the authority.
    pub(crate) fn tenant(&self) -> &str {
        self.authority.rsplit('/').next().unwrap_or_default()
    }
}

/// `https://HOST/TENANT`. The oldest vaults still name the host that login.microsoftonline.com once was.
fn authority(text: &str) -> Option<String> {
    let (host, tenant) = text.strip_prefix("https://")?.split_once('/')?;
    let host = if host == "login.windows.net" { "login.microsoftonline.com" } else { host };
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | ':');
    let is_plain = |part: &str| !part.is_empty() && part.chars().all(plain);
    (is_plain(host) && is_plain(tenant)).then(|| format!("https://{host}/{tenant}"))
}

/// The host of `https://HOST`.
fn host(resource: &str) -> Option<&str> {
    let host = resource.strip_prefix("https://")?;
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.');
    (!host.is_empty() && host.chars().all(plain)).then_some(host)
}

fn clipped(text: &str) -> String {
    text.chars().take(100).collect()
}

/// The `name="value"` pairs of a challenge (RFC 9110 section 11.2), names in lower case.
fn parameters(header: &str) -> Vec<(String, String)> {
    let text = header.trim_start();
    let is_bearer = text.get(..7).is_some_and(|scheme| scheme.eq_ignore_ascii_case("bearer "));
    let mut rest = if is_bearer { text.get(7..).unwrap_or_default() } else { "" };
    let mut found = Vec::new();
    while let Some((name, after)) = rest.split_once('=') {
        let (value, after) = match after.trim_start().strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').unwrap_or((quoted, "")),
            None => after.split_once([',', ' ']).unwrap_or((after, "")),
        };
        found.push((name.trim_matches([',', ' ']).to_ascii_lowercase(), value.trim().to_owned()));
        rest = after;
    }
    found
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::place::Place;

    fn parse(host: &str, header: &str) -> Result<Challenge, Error> {
        Challenge::parse(&Place::parse(&format!("https://{host}/keys")).unwrap().vault, header)
    }

    #[test]
    fn a_challenge_says_where_tokens_are_made_and_what_for() {
        for (host, header, authority, resource) in [
            (
                "demo.vault.azure.net",
                r#"Bearer authorization="https://login.windows.net/t-1", resource="https://vault.azure.net""#,
                "https://login.microsoftonline.com/t-1",
                "https://vault.azure.net",
            ),
            (
                "demo.managedhsm.azure.net",
                r#"Bearer authorization="https://login.microsoftonline.com/t" resource="https://managedhsm.azure.net""#,
                "https://login.microsoftonline.com/t",
                "https://managedhsm.azure.net",
            ),
            (
                "demo.vault.usgovcloudapi.net",
                "bearer  authorization_uri=\"https://login.microsoftonline.us/t/\" \
                 scope=\"https://vault.usgovcloudapi.net/.default\"",
                "https://login.microsoftonline.us/t",
                "https://vault.usgovcloudapi.net",
            ),
            (
                "demo.vault.azure.cn:8443",
                "Bearer authorization=https://login.chinacloudapi.cn/t, resource=https://vault.azure.cn",
                "https://login.chinacloudapi.cn/t",
                "https://vault.azure.cn",
            ),
        ] {
            let challenge = parse(host, header).unwrap();
            assert_eq!((challenge.authority.as_str(), challenge.resource.as_str()), (authority, resource));
            assert_eq!(Challenge::read(challenge.written().as_bytes()), Some(challenge));
        }
    }

    #[test]
    fn a_vault_gets_no_token_for_another_service() {
        let asks = |resource: &str| {
            let authority = "https://login.microsoftonline.com/t";
            let header = format!(r#"Bearer authorization="{authority}", resource="{resource}""#);
            parse("demo.vault.azure.net", &header)
        };
        asks("https://vault.azure.net").unwrap();
        asks("https://VAULT.azure.net").unwrap();
        for resource in [
            "https://management.azure.com",
            "https://graph.microsoft.com",
            "https://ault.azure.net",
            "https://evil.net/.vault.azure.net",
            "https://demo.vault.azure.net",
            "https://managedhsm.azure.net",
            "http://vault.azure.net",
            "vault.azure.net",
            "https://",
            "",
        ] {
            let error = asks(resource).unwrap_err();
            assert_eq!(error.code, Code::Denied, "{resource}");
            assert!(error.message.contains("no token is sent there"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn a_token_is_for_what_the_vaults_own_name_ends_in(resource in "(vault|demo|a|t|[.]|azure|net|com){1,7}") {
            let header = format!(r#"Bearer authorization="https://login/t", resource="https://{resource}""#);
            let ends = "demo.vault.azure.net".ends_with(&format!(".{resource}"));
            prop_assert_eq!(parse("demo.vault.azure.net", &header).is_ok(), ends, "{}", resource);
        }

        #[test]
        fn no_header_is_too_odd(header in "(Bearer |bearer)?[a-z=\", :/.é]{0,80}") {
            let _ = parse("demo.vault.azure.net", &header);
        }

        #[test]
        fn a_challenge_is_read_however_its_parts_are_put(
            gap in ", ?| {1,3}",
            quote in "\"?",
            first in any::<bool>(),
            more in "[a-z_]{1,9}=[a-z0-9]{0,9}",
        ) {
            let part = |name: &str, value: &str| format!("{name}={quote}{value}{quote}");
            let mut parts = [
                part("authorization", "https://login.microsoftonline.com/t"),
                part("resource", "https://vault.azure.net"),
            ];
            if first {
                parts.reverse();
            }
            let header = format!("Bearer {more}{gap}{}", parts.join(&gap));
            let challenge = parse("demo.vault.azure.net", &header).unwrap();
            prop_assert_eq!(challenge.authority, "https://login.microsoftonline.com/t");
            prop_assert_eq!(challenge.resource, "https://vault.azure.net");
        }
    }

    #[test]
    fn what_is_no_challenge_is_refused_and_never_panics() {
        for header in [
            "",
            "Bearer",
            "Bearer ",
            "Basic realm=x",
            "Bearer =",
            r#"Bearer authorization=""#,
            r#"Bearer authorization="https://login.microsoftonline.com", resource="https://vault.azure.net""#,
            r#"Bearer authorization="http://login.microsoftonline.com/t", resource="https://vault.azure.net""#,
            r#"Bearer authorization="https://me@login.microsoftonline.com/t", resource="https://vault.azure.net""#,
            r#"Bearer authorization="https://login.microsoftonline.com/t?x", resource="https://vault.azure.net""#,
            r#"Bearer authorization="https://login.microsoftonline.com/a/b", resource="https://vault.azure.net""#,
            "Bearéré",
        ] {
            assert_eq!(parse("demo.vault.azure.net", header).unwrap_err().code, Code::Denied, "{header}");
        }
    }
}
