//! Where keys are: the URLs of the configuration, and the ids of keys. No I/O.

use keystead_plugin_api::encode::Curve;

/// The longest `host[:port]`: with it, an id has 255 bytes at most.
const HOST_MAX: usize = 76;

/// The longest name of a key, and of a version, that the services have.
const NAME_MAX: usize = 127;
const VERSION_MAX: usize = 32;

/// What one URL of the configuration means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) vault: Vault,
    pub(crate) keys: Keys,
}

/// A vault or a managed HSM: `host[:port]` in lower case.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Vault(String);

/// Which keys of a vault. Names and versions are in lower case: to the services, case makes no difference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Keys {
    /// `/keys`
    All,
    /// `/keys/NAME`
    Named(String),
    /// `/keys/NAME/VERSION`
    Version(String, String),
}

impl Place {
    /// Reads `https://HOST[:PORT]/keys[/NAME[/VERSION]]`.
    pub(crate) fn parse(url: &str) -> Option<Self> {
        let (vault, path) = url.strip_prefix("https://")?.split_once('/')?;
        let vault = Vault::parse(vault)?;
        let path = path.strip_suffix('/').unwrap_or(path);
        let mut segments = path.split('/');
        let keys = match (segments.next()?, segments.next(), segments.next(), segments.next()) {
            ("keys", None, None, None) => Keys::All,
            ("keys", Some(name), None, None) => {
                Keys::Named(is_name(name).then(|| name.to_ascii_lowercase())?)
            }
            ("keys", Some(name), Some(version), None) if is_name(name) && is_version(version) => {
                Keys::Version(name.to_ascii_lowercase(), version.to_ascii_lowercase())
            }
            _ => return None,
        };
        Some(Self { vault, keys })
    }

    /// Whether a key is one of these, as far as its id says.
    pub(crate) fn covers(&self, id: &Id, prefix: &str) -> bool {
        self.vault == id.vault
            && match &self.keys {
                Keys::All => id.name.starts_with(prefix),
                Keys::Named(name) => *name == id.name,
                Keys::Version(name, version) => (name, version) == (&id.name, &id.version),
            }
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.keys {
            Keys::All => write!(f, "{}/keys", self.vault.url()),
            Keys::Named(name) => write!(f, "{}/keys/{name}", self.vault.url()),
            Keys::Version(name, version) => write!(f, "{}/keys/{name}/{version}", self.vault.url()),
        }
    }
}

impl Vault {
    fn parse(text: &str) -> Option<Self> {
        let (host, port) = text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port)));
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
        let is_host = !host.is_empty() && !host.starts_with(['.', '-']) && host.chars().all(plain);
        let is_port =
            port.is_none_or(|port| port.parse::<u16>().is_ok_and(|number| number.to_string() == port));
        let text = text.strip_suffix(":443").unwrap_or(text);
        (is_host && is_port && text.len() <= HOST_MAX).then(|| Self(text.to_ascii_lowercase()))
    }

    /// `https://host[:port]`
    pub(crate) fn url(&self) -> String {
        format!("https://{}", self.0)
    }

    /// A link that is this vault's own, with the host as it is written here: the services add `:443` to theirs.
    pub(crate) fn own(&self, link: &str) -> Option<String> {
        let (vault, rest) = link.strip_prefix("https://")?.split_once('/')?;
        (Self::parse(vault)? == *self).then(|| format!("{}/{rest}", self.url()))
    }

    /// The name without the port.
    pub(crate) fn host(&self) -> &str {
        self.0.split(':').next().unwrap_or_default()
    }

    /// Whether it is a managed HSM, in whichever cloud.
    pub(crate) fn is_hsm(&self) -> bool {
        self.0.split('.').nth(1) == Some("managedhsm")
    }
}

/// The type of a key, as far as signing must know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Rsa,
    Ec(Curve),
}

impl Kind {
    const ALL: [Self; 4] = [Self::Rsa, Self::Ec(Curve::P256), Self::Ec(Curve::P384), Self::Ec(Curve::P521)];

    fn name(self) -> &'static str {
        match self {
            Self::Rsa => "rsa",
            Self::Ec(Curve::P384) => "p384",
            Self::Ec(Curve::P521) => "p521",
            Self::Ec(_) => "p256",
        }
    }
}

/// One version of a key. As text it is the key's id: all that is needed to sign with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Id {
    pub(crate) kind: Kind,
    pub(crate) vault: Vault,
    pub(crate) name: String,
    pub(crate) version: String,
}

impl Id {
    /// Reads an id that [`Id::bytes`] has written, to the byte.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let (kind, url) = str::from_utf8(bytes).ok()?.split_once(' ')?;
        let kind = Kind::ALL.into_iter().find(|known| known.name() == kind)?;
        let Place { vault, keys: Keys::Version(name, version) } = Place::parse(url)? else { return None };
        let id = Self { kind, vault, name, version };
        (id.bytes() == bytes).then_some(id)
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        format!("{} {}", self.kind.name(), self.url()).into_bytes()
    }

    /// What the services call it (`kid`).
    pub(crate) fn url(&self) -> String {
        format!("{}/keys/{}/{}", self.vault.url(), self.name, self.version)
    }
}

/// Name and version, in lower case, of a `kid` that a service writes; in a list of keys it has no version.
pub(crate) fn of_kid(kid: &str) -> Option<(String, Option<String>)> {
    match Place::parse(kid)?.keys {
        Keys::All => None,
        Keys::Named(name) => Some((name, None)),
        Keys::Version(name, version) => Some((name, Some(version))),
    }
}

fn is_name(name: &str) -> bool {
    (1..=NAME_MAX).contains(&name.len()) && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
}

fn is_version(version: &str) -> bool {
    (1..=VERSION_MAX).contains(&version.len()) && version.chars().all(|c| c.is_ascii_alphanumeric())
}

#[cfg(test)]
mod tests {
    use super::*;

    const VERSION: &str = "0123456789abcdef0123456789abcdef";

    #[test]
    fn a_url_names_a_version_a_key_or_all_keys() {
        let keys = |url: &str| Place::parse(url).map(|place| place.keys);
        let version = format!("https://demo.vault.azure.net/keys/WWW/{VERSION}");
        assert_eq!(keys(&version), Some(Keys::Version("www".to_owned(), VERSION.to_owned())));
        assert_eq!(keys("https://demo.vault.azure.net/keys/www/"), Some(Keys::Named("www".to_owned())));
        assert_eq!(keys("https://demo.managedhsm.usgovcloudapi.net/keys"), Some(Keys::All));
        assert_eq!(Place::parse(&version).unwrap().to_string(), version.replace("WWW", "www"));
    }

    #[test]
    fn what_could_lead_elsewhere_is_no_url_of_a_key() {
        for url in [
            "demo.vault.azure.net/keys/www",
            "http://demo.vault.azure.net/keys/www",
            "https://demo.vault.azure.net",
            "https://demo.vault.azure.net/",
            "https://demo.vault.azure.net/secrets/www",
            "https://demo.vault.azure.net/keys//",
            "https://demo.vault.azure.net/keys/w_w",
            "https://demo.vault.azure.net/keys/../secrets",
            "https://demo.vault.azure.net/keys/www/v/sign",
            "https://demo.vault.azure.net/keys/www?x=1",
            "https://demo.vault.azure.net/keys/www#x",
            "https://demo.vault.azure.net/keys/www/a%2fb",
            "https://me@demo.vault.azure.net/keys/www",
            "https://demo.vault.azure.net:x/keys/www",
            "https://demo.vault.azure.net:/keys/www",
            "https://:443/keys/www",
            "https:///keys/www",
        ] {
            assert_eq!(Place::parse(url), None, "{url}");
        }
        assert_eq!(Place::parse(&format!("https://{}/keys", "a".repeat(81))), None);
    }

    #[test]
    fn an_id_says_what_signing_needs_and_nothing_else_passes_for_one() {
        let longest = format!("https://{}/keys/{}/{VERSION}", "a".repeat(HOST_MAX), "n".repeat(NAME_MAX));
        for url in [&longest, &format!("https://demo.vault.azure.net:8443/keys/www/{VERSION}")] {
            let bytes = format!("p384 {url}").into_bytes();
            let id = Id::parse(&bytes).unwrap();
            assert_eq!((id.kind, id.bytes()), (Kind::Ec(Curve::P384), bytes));
            assert!(id.bytes().len() <= 255);
        }
        let url = "https://demo.vault.azure.net/keys/www";
        for id in [
            format!("rsa {url}"),
            format!("p224 {url}/{VERSION}"),
            format!("rsa {url}/{VERSION}/"),
            format!("rsa  {url}/{VERSION}"),
            format!("rsa {}/{VERSION}", url.replace("www", "WWW")),
            format!("rsa {}/{VERSION}", url.replace(".net", ".net:443")),
            format!("{url}/{VERSION}"),
            String::new(),
        ] {
            assert_eq!(Id::parse(id.as_bytes()), None, "{id}");
        }
    }

    #[test]
    fn a_place_covers_its_own_keys_and_no_others() {
        let id =
            Id::parse(format!("rsa https://demo.vault.azure.net/keys/www-1/{VERSION}").as_bytes()).unwrap();
        let covers = |url: &str, prefix| Place::parse(url).unwrap().covers(&id, prefix);
        assert!(covers("https://Demo.vault.azure.net:443/keys", "www"));
        assert!(!covers("https://demo.vault.azure.net/keys", "api"));
        assert!(!covers("https://other.vault.azure.net/keys", ""));
        assert!(covers("https://demo.vault.azure.net/keys/www-1", "api"), "a prefix is for all keys");
        assert!(!covers("https://demo.vault.azure.net/keys/www", ""));
        assert!(covers(&id.url(), "") && !covers(&id.url().replace("0123", "4567"), ""));
    }

    #[test]
    fn only_a_vaults_own_links_are_its_own() {
        let vault = Vault::parse("demo.vault.azure.net").unwrap();
        let page = "https://demo.vault.azure.net/keys?$skiptoken=x";
        for link in [page, "https://Demo.vault.azure.net:443/keys?$skiptoken=x"] {
            assert_eq!(vault.own(link).as_deref(), Some(page));
        }
        for link in [
            "https://demo.vault.azure.net",
            "https://demo.vault.azure.net:8443/keys",
            "https://demo.vault.azure.net.evil.example/keys",
            "https://demo.vault.azure.net@evil.example/keys",
            "http://demo.vault.azure.net/keys",
            "/keys",
        ] {
            assert_eq!(vault.own(link), None, "{link}");
        }
    }

    #[test]
    fn a_managed_hsm_is_known_by_its_name_in_every_cloud() {
        let is_hsm = |host: &str| Vault::parse(host).unwrap().is_hsm();
        assert!(is_hsm("demo.managedhsm.azure.net") && is_hsm("demo.managedhsm.azure.cn"));
        assert!(!is_hsm("demo.vault.azure.net") && !is_hsm("managedhsm.vault.azure.net"));
    }
}
