//! What the operator lets a store do in the network.

use std::{
    collections::BTreeSet,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
    str::FromStr,
};

use hyper::Uri;

use crate::failure::tame;

/// One service that a store may talk to.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_structs, reason = "the server fills it in as a literal")]
pub struct Grant {
    /// Scheme, host and port.
    pub origin: Origin,
    /// The methods of requests, in upper case.
    pub methods: BTreeSet<String>,
    /// The secrets that may be sent there.
    pub secrets: BTreeSet<String>,
    /// Where the host's name may lead beside public addresses.
    pub addresses: Vec<Network>,
    /// PEM file of the authorities that the service's certificate is verified by; the system's without one.
    pub ca: Option<PathBuf>,
    /// The certificate to show there.
    pub client: Option<ClientCertificate>,
    /// The proxy to go by, with `CONNECT`; it then is the one that resolves the name.
    pub proxy: Option<Origin>,
}

/// PEM files of a certificate and its key.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_structs, reason = "the server fills it in as a literal")]
pub struct ClientCertificate {
    /// The chain, the client's own first.
    pub certificate: PathBuf,
    /// The private key.
    pub key: PathBuf,
}

/// Scheme, host and port of a service: `https://kms.example:443`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    https: bool,
    /// In lower case; an IPv6 address without its brackets.
    host: String,
    port: u16,
}

/// Addresses with the same first bits: `10.0.0.0/8`, or a single one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    prefix: u8,
}

impl Grant {
    /// Whether a connection for this grant may go to an address: a public one, or one that the operator wrote down.
    pub(super) fn leads_to(&self, address: IpAddr) -> bool {
        is_public(address)
            || self.origin.literal() == Some(address)
            || self.addresses.iter().any(|network| network.contains(address))
    }
}

impl Origin {
    /// Of a URL, whatever its path.
    pub(super) fn of(url: &Uri) -> Result<Self, String> {
        let https = match url.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err("expected a URL that begins with `https://` or `http://`".to_owned()),
        };
        let authority = url.authority().ok_or("expected a host")?;
        if authority.as_str().contains('@') {
            return Err("expected no user before the host".to_owned());
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
        if host.is_empty() {
            return Err("expected a host".to_owned());
        }
        let port = authority.port_u16().unwrap_or(if https { 443 } else { 80 });
        Ok(Self { https, host, port })
    }

    /// Whether it speaks TLS.
    #[must_use]
    pub fn is_https(&self) -> bool {
        self.https
    }

    pub(super) fn host(&self) -> &str {
        &self.host
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// The address, where no name has to be resolved.
    pub(super) fn literal(&self) -> Option<IpAddr> {
        self.host.parse().ok()
    }
}

impl FromStr for Origin {
    type Err = String;

    /// Takes `scheme://host[:port]`, and nothing after it.
    fn from_str(text: &str) -> Result<Self, String> {
        let url: Uri = text.parse().map_err(|_| "expected a URL such as `https://host:443`".to_owned())?;
        let origin = Self::of(&url)?;
        match url.path_and_query().map_or("/", |rest| rest.as_str()) {
            "" | "/" => Ok(origin),
            _ => Err("expected nothing after host and port: a grant is for the whole service".to_owned()),
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.https { "https" } else { "http" };
        match self.host.contains(':') {
            true => write!(f, "{scheme}://[{}]:{}", self.host, self.port),
            false => write!(f, "{scheme}://{}:{}", self.host, self.port),
        }
    }
}

/// How a grant reads in YAML that adds a method and secrets to what a service's own has, and is reached like another.
pub(super) fn line(
    origin: &Origin,
    own: Option<&Grant>,
    like: Option<&Grant>,
    (method, secrets): (&str, &[&str]),
) -> String {
    let with = |had: Option<&BTreeSet<String>>, more: &[&str]| {
        let mut all: BTreeSet<&str> = had.into_iter().flatten().map(String::as_str).collect();
        all.extend(more);
        tame(Vec::from_iter(all).join(", ").as_bytes(), 256)
    };
    let mut line =
        format!("url: \"{origin}\", methods: [{}]", with(own.map(|grant| &grant.methods), &[method]));
    let mut add = |key: &str, value: String| line.extend([", ", key, ": ", &value]);
    let secrets = with(own.map(|grant| &grant.secrets), secrets);
    if !secrets.is_empty() {
        add("secrets", format!("[{secrets}]"));
    }
    let addresses = own.map(|grant| grant.addresses.as_slice()).unwrap_or_default();
    if !addresses.is_empty() {
        let list: Vec<_> = addresses.iter().map(ToString::to_string).collect();
        add("addresses", format!("[{}]", list.join(", ")));
    }
    if let Some(ca) = like.and_then(|grant| grant.ca.as_ref()) {
        add("ca", ca.display().to_string());
    }
    if let Some(client) = own.and_then(|grant| grant.client.as_ref()) {
        add("client_certificate", client.certificate.display().to_string());
        add("client_key", client.key.display().to_string());
    }
    if let Some(proxy) = like.and_then(|grant| grant.proxy.as_ref()) {
        add("proxy", format!("\"{proxy}\""));
    }
    format!("{{{line}}}")
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl Network {
    fn contains(self, address: IpAddr) -> bool {
        let ((own, len), (other, other_len)) = (bits(self.address), bits(address));
        let first = |bits: u128| bits.checked_shr(u32::from(len - self.prefix)).unwrap_or(0);
        len == other_len && first(own) == first(other)
    }
}

/// An address as a number, and how many bits it has.
fn bits(address: IpAddr) -> (u128, u8) {
    match address {
        IpAddr::V4(address) => (u128::from(u32::from(address)), 32),
        IpAddr::V6(address) => (u128::from(address), 128),
    }
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || "expected an address, or a network such as `10.0.0.0/8`".to_owned();
        let (address, prefix) = text.split_once('/').map_or((text, None), |(a, p)| (a, Some(p)));
        let address: IpAddr = address.parse().map_err(|_| expected())?;
        let (_, len) = bits(address);
        let prefix = prefix.map_or(Ok(len), str::parse).map_err(|_| expected())?;
        if prefix > len { Err(expected()) } else { Ok(Self { address, prefix }) }
    }
}

/// Whether an address is anybody's on the internet: none of those that lead into the machine or the local network, or
/// that stand for such ones (IANA's registries of special-purpose addresses, RFC 6890).
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => match embedded(address) {
            Some(inner) => is_public_v4(inner),
            None => is_public_v6(address),
        },
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    let special = matches!(
        (a, b, c),
        (0 | 240..=255, _, _) | (100, 64..=127, _) | (192, 0, 0) | (198, 18..=19, _) | (192, 88, 99)
    );
    !special
        && !address.is_private()
        && !address.is_loopback()
        && !address.is_link_local()
        && !address.is_multicast()
        && !address.is_documentation()
}

/// Global unicast is 2000::/3 (RFC 4291 section 2.4), less documentation (RFC 3849) and what isn't routed (2001::/23).
fn is_public_v6(address: Ipv6Addr) -> bool {
    let [first, second, ..] = address.segments();
    first & 0xe000 == 0x2000 && (first, second) != (0x2001, 0x0db8) && !(first == 0x2001 && second < 0x0200)
}

/// The IPv4 address within an IPv6 one: mapped (::ffff:0:0/96), NAT64 (64:ff9b::/96, RFC 6052), 6to4 (2002::/16).
fn embedded(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let [first, second, third, _, _, _, high, low] = address.segments();
    let join = |high: u16, low: u16| Ipv4Addr::from((u32::from(high) << 16) | u32::from(low));
    match (first, second) {
        (0x2002, _) => Some(join(second, third)),
        (0x0064, 0xff9b) => Some(join(high, low)),
        _ => address.to_ipv4_mapped(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn public(address: &str) -> bool {
        is_public(address.parse().unwrap())
    }

    #[test]
    fn addresses_that_lead_inwards_are_not_public() {
        for inward in [
            "127.0.0.1",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "0.0.0.0",
            "100.64.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "198.18.0.1",
            "192.0.2.1",
            "::1",
            "::",
            "fe80::1",
            "fc00::1",
            "ff02::1",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "64:ff9b::a01:203",
            "2002:7f00:1::",
            "2001:db8::1",
            "fec0::1",
        ] {
            assert!(!public(inward), "{inward}");
        }
        for outward in
            ["93.184.216.34", "8.8.8.8", "2606:2800:220:1::1", "64:ff9b::808:808", "::ffff:8.8.8.8"]
        {
            assert!(public(outward), "{outward}");
        }
    }

    #[test]
    fn a_network_holds_its_addresses_and_no_others() {
        let holds = |network: &str, address: &str| {
            network.parse::<Network>().unwrap().contains(address.parse().unwrap())
        };
        assert!(holds("10.0.0.0/8", "10.255.0.1") && !holds("10.0.0.0/8", "11.0.0.1"));
        assert!(holds("127.0.0.1", "127.0.0.1") && !holds("127.0.0.1", "127.0.0.2"));
        assert!(holds("0.0.0.0/0", "1.2.3.4") && !holds("0.0.0.0/0", "::1"));
        assert!(holds("fd00::/8", "fd12::1") && holds("::/0", "::1"));
        for wrong in ["10.0.0.0/33", "10.0.0/8", "x", "", "::/129", "10.0.0.0/-1"] {
            wrong.parse::<Network>().unwrap_err();
        }
    }

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        let origin = |text: &str| text.parse::<Origin>().map(|origin| origin.to_string());
        assert_eq!(origin("https://KMS.example").unwrap(), "https://kms.example:443");
        assert_eq!(origin("http://[::1]:8200/").unwrap(), "http://[::1]:8200");
        for wrong in ["kms.example", "ftp://x", "https://u:p@x", "https://x/path", "https://x?q", "https://"]
        {
            origin(wrong).unwrap_err();
        }
    }
}
