//! Names of what is in Cloud KMS: `projects/P/locations/L/keyRings/R[/cryptoKeys/K[/cryptoKeyVersions/N]]`.

use std::fmt;

use crate::ability::Ability;

/// Why a text is no name of a resource.
pub(crate) const EXPECTED: &str =
    "expected projects/P/locations/L/keyRings/R, …/cryptoKeys/K or …/cryptoKeyVersions/N";

/// A key ring.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Ring {
    project: String,
    location: String,
    ring: String,
}

/// A key of a ring, which has versions.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct CryptoKey {
    pub(crate) ring: Ring,
    pub(crate) key: String,
}

/// A version of a key: a key pair.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Version {
    pub(crate) key: CryptoKey,
    pub(crate) number: u64,
}

/// What an entry of `uris` chooses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Selector {
    /// All keys of a ring.
    Ring(Ring),
    /// One key, by what `versions` says.
    Key(CryptoKey),
    /// One version.
    Version(Version),
}

impl Selector {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut segments = text.split('/');
        let mut part = |collection: &str, may: fn(&str) -> bool| {
            (segments.next()? == collection)
                .then(|| segments.next())?
                .filter(|name| may(name))
                .map(str::to_owned)
        };
        let (project, location) = (part("projects", is_project)?, part("locations", is_location)?);
        let ring = Ring { project, location, ring: part("keyRings", is_name)? };
        let Some(key) = part("cryptoKeys", is_name) else {
            return (ring.to_string() == text).then_some(Self::Ring(ring));
        };
        let key = CryptoKey { ring, key };
        let Some(number) = part("cryptoKeyVersions", is_number) else {
            return (key.to_string() == text).then_some(Self::Key(key));
        };
        let version = Version { key, number: number.parse().ok()? };
        (version.to_string() == text).then_some(Self::Version(version))
    }

    /// Whether a version may be served because of this entry.
    pub(crate) fn covers(&self, version: &Version) -> bool {
        match self {
            Self::Ring(ring) => version.key.ring == *ring,
            Self::Key(key) => version.key == *key,
            Self::Version(only) => version == only,
        }
    }
}

impl Ring {
    /// What an operator calls it.
    pub(crate) fn label(&self) -> &str {
        &self.ring
    }

    /// The key of a name that the service gives for one of this ring's.
    pub(crate) fn key(&self, name: &str) -> Option<CryptoKey> {
        match Selector::parse(name)? {
            Selector::Key(key) if self.is(&key.ring) => Some(CryptoKey { ring: self.clone(), ..key }),
            _ => None,
        }
    }

    /// Whether a name is of the same ring: a project has a number and an id, and the service may answer with the other.
    fn is(&self, other: &Self) -> bool {
        let Self { project, location, ring } = self;
        let is_number = |project: &str| project.chars().all(|c| c.is_ascii_digit());
        let same_project = *project == other.project || is_number(project) != is_number(&other.project);
        same_project && (location, ring) == (&other.location, &other.ring)
    }
}

impl CryptoKey {
    /// Likewise.
    pub(crate) fn label(&self) -> String {
        format!("{}/{}", self.ring.label(), self.key)
    }

    /// The version of a name that the service gives for one of this key's.
    pub(crate) fn version(&self, name: &str) -> Option<Version> {
        match Selector::parse(name)? {
            Selector::Version(Version { key, number }) if self.key == key.key && self.ring.is(&key.ring) => {
                Some(Version { key: self.clone(), number })
            }
            _ => None,
        }
    }
}

impl Version {
    /// The id of the key: all that signing needs. `None` where the names are so long that the host wouldn't take it.
    pub(crate) fn id(&self, ability: Ability) -> Option<Vec<u8>> {
        let Self { key: CryptoKey { ring: Ring { project, location, ring }, key }, number } = self;
        let id = format!("{ability}/{project}/{location}/{ring}/{key}/{number}").into_bytes();
        (id.len() <= 255).then_some(id)
    }

    /// Reads an id that [`Version::id`] has written, to the byte.
    pub(crate) fn of_id(id: &[u8]) -> Option<(Self, Ability)> {
        let parts: Vec<&str> = str::from_utf8(id).ok()?.split('/').collect();
        let [ability, project, location, ring, key, number] = parts.as_slice() else { return None };
        let name = format!(
            "projects/{project}/locations/{location}/keyRings/{ring}/cryptoKeys/{key}/cryptoKeyVersions/{number}"
        );
        let (Selector::Version(version), ability) = (Selector::parse(&name)?, Ability::parse(ability)?)
        else {
            return None;
        };
        (version.id(ability)? == id).then_some((version, ability))
    }

    /// Whether a name that the service gives is its own.
    pub(crate) fn is_called(&self, name: &str) -> bool {
        self.key.version(name).as_ref() == Some(self)
    }

    /// Likewise.
    pub(crate) fn label(&self) -> String {
        format!("{} version {}", self.key.label(), self.number)
    }
}

impl fmt::Display for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "projects/{}/locations/{}/keyRings/{}", self.project, self.location, self.ring)
    }
}

impl fmt::Display for CryptoKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/cryptoKeys/{}", self.ring, self.key)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/cryptoKeyVersions/{}", self.key, self.number)
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ring(ring) => ring.fmt(f),
            Self::Key(key) => key.fmt(f),
            Self::Version(version) => version.fmt(f),
        }
    }
}

/// Ids and numbers of projects; those of an organisation's own domain have it before a colon.
fn is_project(name: &str) -> bool {
    is_of(name, 100, |c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.' | ':'))
        && name.starts_with(|first: char| first.is_ascii_alphanumeric())
}

fn is_location(name: &str) -> bool {
    is_of(name, 63, |c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
}

/// Names of rings and keys.
fn is_name(name: &str) -> bool {
    is_of(name, 63, |c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'))
}

fn is_number(name: &str) -> bool {
    is_of(name, 19, |c| c.is_ascii_digit())
}

fn is_of(name: &str, most: usize, may: impl Fn(char) -> bool) -> bool {
    (1..=most).contains(&name.len()) && name.chars().all(may)
}

/// Whether a text can be part of the name of a key.
pub(crate) fn is_prefix(text: &str) -> bool {
    is_name(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RING: &str = "projects/p-1/locations/europe-west1/keyRings/tls";

    fn version(name: &str) -> Version {
        match Selector::parse(name).unwrap() {
            Selector::Version(version) => version,
            other => panic!("{other} is no version"),
        }
    }

    #[test]
    fn a_name_is_of_a_ring_a_key_or_a_version() {
        let [key, full] = ["/cryptoKeys/www_A-1", "/cryptoKeys/www_A-1/cryptoKeyVersions/12"]
            .map(|end| format!("{RING}{end}"));
        assert!(matches!(Selector::parse(RING), Some(Selector::Ring(_))));
        assert!(matches!(Selector::parse(&key), Some(Selector::Key(_))));
        assert_eq!(version(&full).number, 12);
        for name in
            [RING, &key, &full, &full.replace("p-1", "example.com:p-1"), &full.replace("p-1", "123456")]
        {
            assert_eq!(Selector::parse(name).unwrap().to_string(), name);
        }
    }

    #[test]
    fn what_would_lead_elsewhere_is_no_name() {
        for end in [
            "",
            "/",
            "/cryptoKeys",
            "/cryptoKeys/",
            "/cryptoKeys/a/",
            "/cryptoKeys/a?b",
            "/cryptoKeys/a#b",
            "/cryptoKeys/..",
            "/cryptoKeys/a%2fb",
            "/cryptoKeys/a/cryptoKeyVersions/01",
            "/cryptoKeys/a/cryptoKeyVersions/+1",
            "/cryptoKeys/a/cryptoKeyVersions/1:asymmetricSign",
            "/cryptoKeys/a/cryptoKeyVersions/1/x",
            "/importJobs/a",
        ] {
            let name = format!("{RING}{end}");
            assert_eq!(Selector::parse(&name).is_some(), end.is_empty(), "{name}");
        }
        for name in [
            "",
            "projects",
            "projects/../locations/l/keyRings/r",
            "projects/P/locations/l/keyRings/r",
            &format!("/{RING}"),
            &format!("projects/p/locations/l/keyRings/{}", "r".repeat(64)),
        ] {
            assert_eq!(Selector::parse(name), None, "{name}");
        }
    }

    #[test]
    fn an_id_says_what_signing_needs_and_nothing_else_passes_for_one() {
        let version = version(&format!("{RING}/cryptoKeys/www/cryptoKeyVersions/3"));
        let id = version.id(Ability::P256).unwrap();
        assert_eq!(id, b"p256/p-1/europe-west1/tls/www/3");
        assert_eq!(Version::of_id(&id), Some((version, Ability::P256)));
        for id in [
            "",
            "p256",
            "p256/p/l/r/k",
            "p256/p/l/r/k/03",
            "p256/p/l/r/k/3/",
            "aes/p/l/r/k/3",
            "p256/p/l/r/../3",
            "p256/p/l/r/k?/3",
        ] {
            assert_eq!(Version::of_id(id.as_bytes()), None, "{id}");
        }
    }

    #[test]
    fn an_id_that_the_host_would_not_take_is_none() {
        let names = |len| {
            format!(
                "projects/{0}/locations/{1}/keyRings/{1}/cryptoKeys/{1}/cryptoKeyVersions/3",
                "p".repeat(len),
                "r".repeat(63)
            )
        };
        assert!(version(&names(30)).id(Ability::Pkcs1Sha256).is_some());
        assert!(version(&names(100)).id(Ability::Pkcs1Sha256).is_none());
    }

    #[test]
    fn a_name_of_the_service_may_have_the_number_of_the_project_and_is_no_other_for_that() {
        let www = version(&format!("{RING}/cryptoKeys/www/cryptoKeyVersions/3"));
        let by_number = www.to_string().replace("p-1", "1234");
        assert!(www.is_called(&www.to_string()) && www.is_called(&by_number));
        assert!(version(&by_number).is_called(&www.to_string()));
        assert_eq!(www.key.version(&by_number), Some(www.clone()), "it stays called as it was");
        assert_eq!(www.key.ring.key(&www.key.to_string().replace("p-1", "1234")), Some(www.key.clone()));
        for (part, other) in [("p-1", "p-2"), ("europe", "us"), ("tls", "ssl"), ("www", "api"), ("/3", "/4")]
        {
            assert!(!www.is_called(&www.to_string().replace(part, other)), "{other}");
        }
        assert!(!version(&by_number).is_called(&by_number.replace("1234", "1235")));
        assert!(!www.is_called("") && !www.is_called(&www.key.to_string()));
    }

    #[test]
    fn an_entry_covers_what_it_chooses() {
        let www = version(&format!("{RING}/cryptoKeys/www/cryptoKeyVersions/3"));
        let covers = |name: &str| Selector::parse(name).unwrap().covers(&www);
        assert!(covers(RING) && covers(&www.key.to_string()) && covers(&www.to_string()));
        assert!(!covers(&RING.replace("tls", "other")) && !covers(&format!("{RING}/cryptoKeys/api")));
        assert!(!covers(&format!("{RING}/cryptoKeys/www/cryptoKeyVersions/4")));
    }
}
