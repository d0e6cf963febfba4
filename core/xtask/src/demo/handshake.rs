//! Handshakes by clients that know nothing of Keystead.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use super::site::Site;
use crate::failure::{Failure, Result};
use crate::file;
use crate::process::{self, line};

/// One handshake: who does it, what is asked for, and what must come of it.
#[derive(Debug)]
pub(super) struct Handshake {
    client: Client,
    /// The site that is asked for.
    pub(super) site: &'static Site,
    /// What is signed with, for people.
    pub(super) signature: &'static str,
    /// The one signature algorithm that the client accepts, as OpenSSL calls it.
    algorithm: &'static str,
    /// How the names of the opcodes begin that make such a signature.
    pub(super) opcode: &'static str,
}

#[derive(Clone, Copy, Debug)]
enum Client {
    /// curl, with TLS 1.3.
    Curl,
    /// `openssl s_client`, with TLS 1.2, a cipher suite, and what it calls the signature.
    OpenSsl { suite: &'static str, signature: &'static str },
}

/// Whom a client turns to, and whom it trusts.
pub(super) struct Target<'a> {
    /// Address of the edge.
    pub(super) edge: SocketAddr,
    /// Certificate of the authority of sites.
    pub(super) authority: &'a Path,
    /// Name of that authority.
    pub(super) authority_name: &'a str,
    /// Where a client's configuration may be written.
    pub(super) folder: &'a Path,
}

impl Handshake {
    /// The four of the demo.
    pub(super) const ALL: &[Self] = &[
        Self {
            client: Client::Curl,
            site: &Site::ECDSA,
            signature: "ECDSA",
            algorithm: "ecdsa_secp256r1_sha256",
            opcode: "OpECDSASign",
        },
        Self {
            client: Client::Curl,
            site: &Site::RSA,
            signature: "RSA-PSS",
            algorithm: "rsa_pss_rsae_sha256",
            opcode: "OpRSAPSSSign",
        },
        Self {
            client: Client::OpenSsl { suite: "ECDHE-ECDSA-AES256-GCM-SHA384", signature: "ECDSA" },
            site: &Site::ECDSA,
            signature: "ECDSA",
            algorithm: "ECDSA+SHA256",
            opcode: "OpECDSASign",
        },
        Self {
            client: Client::OpenSsl { suite: "ECDHE-RSA-AES256-GCM-SHA384", signature: "RSA" },
            site: &Site::RSA,
            signature: "RSA PKCS#1",
            algorithm: "RSA+SHA256",
            opcode: "OpRSASign",
        },
    ];

    /// The client's name.
    pub(super) const fn client(&self) -> &'static str {
        match self.client {
            Client::Curl => "curl",
            Client::OpenSsl { .. } => "openssl",
        }
    }

    /// The version of TLS.
    pub(super) const fn version(&self) -> &'static str {
        match self.client {
            Client::Curl => "TLS 1.3",
            Client::OpenSsl { .. } => "TLS 1.2",
        }
    }

    /// Does the handshake, asks for a page, and expects that everything is as it should be.
    pub(super) fn perform(&self, target: &Target<'_>) -> Result<()> {
        let mut command = self.command(target)?;
        let output = process::output_for(&mut command, &self.request())?;
        let said = format!("{}\n{}", output.stdout, output.stderr);
        for expected in self.expectations(target) {
            if !said.contains(&expected) {
                return Err(self.failure(&format!("`{}` never said `{expected}`", line(&command)), &said));
            }
        }
        Ok(())
    }

    /// The command that does the handshake; also what a person may try.
    pub(super) fn command(&self, target: &Target<'_>) -> Result<Command> {
        match self.client {
            Client::Curl => self.curl(target),
            Client::OpenSsl { suite, .. } => Ok(self.openssl(target, suite)),
        }
    }

    /// curl leaves the choice of signature algorithms to the configuration of OpenSSL, so it gets one of its own: any
    /// other signature ends the handshake.
    fn curl(&self, target: &Target<'_>) -> Result<Command> {
        let configuration = target.folder.join(format!("{}.cnf", self.algorithm));
        let sections = "openssl_conf = all\n[all]\nssl_conf = ssl\n[ssl]\nsystem_default = tls\n[tls]\n";
        file::write(&configuration, &format!("{sections}SignatureAlgorithms = {}\n", self.algorithm))?;
        let (site, port) = (self.site.name, target.edge.port());
        let mut command = Command::new("curl");
        command.env("OPENSSL_CONF", configuration);
        command.args(["--disable", "--silent", "--show-error", "--verbose", "--fail", "--max-time", "20"]);
        command.args(["--noproxy", "*", "--tlsv1.3", "--tls-max", "1.3", "--cacert"]).arg(target.authority);
        command.args(["--resolve", &format!("{site}:{port}:{}", target.edge.ip())]);
        command.arg(format!("https://{site}:{port}/"));
        Ok(command)
    }

    fn openssl(&self, target: &Target<'_>, suite: &str) -> Command {
        let site = self.site.name;
        let mut command = Command::new("openssl");
        command.args(["s_client", "-connect", &target.edge.to_string(), "-servername", site]);
        command.args(["-tls1_2", "-cipher", suite, "-sigalgs", self.algorithm, "-ign_eof"]);
        command.args([
            "-verify_return_error",
            "-verify_hostname",
            site,
            "-no-CApath",
            "-no-CAstore",
            "-CAfile",
        ]);
        command.arg(target.authority);
        command
    }

    /// What is typed into the client.
    fn request(&self) -> String {
        match self.client {
            Client::Curl => String::new(),
            Client::OpenSsl { .. } => {
                format!("GET / HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.site.name)
            }
        }
    }

    /// What the client must say: verified, by this authority, with this version and signature; and the page.
    fn expectations(&self, target: &Target<'_>) -> Vec<String> {
        let authority = target.authority_name;
        let mut expected = match self.client {
            Client::Curl => vec![
                "SSL connection using TLSv1.3".to_owned(),
                "SSL certificate verify ok.".to_owned(),
                format!("issuer: CN={authority}"),
            ],
            Client::OpenSsl { suite, signature } => vec![
                format!("New, TLSv1.2, Cipher is {suite}"),
                format!("Peer signature type: {signature}\n"),
                "Verification: OK".to_owned(),
                format!("Verified peername: {}", self.site.name),
                format!("issuer=CN = {authority}"),
            ],
        };
        expected.extend(["200 OK".to_owned(), self.page()]);
        expected
    }

    /// A part of the page that the edge serves for the site.
    fn page(&self) -> String {
        format!("<h1>{}</h1>", self.site.name)
    }

    fn failure(&self, problem: &str, said: &str) -> Failure {
        let said = process::last_lines(said);
        Failure::new(format!(
            "{} with {} by {}: {problem}; it said:\n{said}",
            self.version(),
            self.signature,
            self.client()
        ))
    }
}
