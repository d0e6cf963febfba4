//! Throw-away certificate authorities, by the openssl tool.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::failure::Result;
use crate::{file, process};

/// An authority, and all it issued, in one folder.
pub(crate) struct Authority {
    folder: PathBuf,
    title: String,
}

/// A certificate with a private key in a file.
pub(crate) struct Identity {
    /// The certificate, PEM.
    pub(crate) certificate: PathBuf,
    /// Its private key, PEM.
    pub(crate) key: PathBuf,
}

/// What a certificate may be used for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Usage {
    /// As a TLS server, and as a client of others.
    Both,
    /// As a TLS client.
    Client,
    /// As a TLS server.
    Server,
}

impl Authority {
    /// Makes an authority in a folder that exists; `title` is its name in certificates.
    pub(crate) fn create(folder: &Path, title: impl Into<String>) -> Result<Self> {
        let authority = Self { folder: folder.to_owned(), title: title.into() };
        let extensions = "basicConstraints = critical, CA:TRUE\nkeyUsage = critical, keyCertSign, cRLSign";
        let request = authority.request("ca", authority.title(), extensions)?;
        authority.make(&mut self_signed(&request, &authority.key()), "ca")?;
        Ok(authority)
    }

    /// Its own certificate, `ca.pem`: what others are told to trust.
    pub(crate) fn certificate(&self) -> PathBuf {
        self.folder.join("ca.pem")
    }

    /// Its name in certificates.
    pub(crate) fn title(&self) -> &str {
        &self.title
    }

    /// Issues a certificate `{file}.pem` with a new private key `{file}-key.pem`.
    pub(crate) fn issue(&self, file: &str, name: &str, usage: Usage) -> Result<Identity> {
        let request = self.request(file, name, &leaf(name, usage))?;
        let key = self.folder.join(format!("{file}-key.pem"));
        let certificate = self.make(self.signed_by_this(&mut self_signed(&request, &key)), file)?;
        Ok(Identity { certificate, key })
    }

    /// Issues a server's certificate `{name}.pem` over a public key, whose private half it needn't see.
    pub(crate) fn certify(&self, name: &str, public_key: &Path) -> Result<PathBuf> {
        let request = self.request(name, name, &leaf(name, Usage::Server))?;
        let mut command = Command::new("openssl");
        command.args(["x509", "-new", "-days", "2", "-extensions", "extensions", "-extfile"]).arg(request);
        command.arg("-force_pubkey").arg(public_key).args(["-subj", &format!("/CN={name}")]);
        self.make(self.signed_by_this(&mut command), name)
    }

    /// Writes what a certificate shall say, in openssl's form.
    fn request(&self, file: &str, subject: &str, extensions: &str) -> Result<PathBuf> {
        let path = self.folder.join(format!("{file}.cnf"));
        let head = "[req]\nprompt = no\ndistinguished_name = subject\nx509_extensions = extensions\n";
        file::write(&path, &format!("{head}[subject]\nCN = {subject}\n[extensions]\n{extensions}\n"))?;
        Ok(path)
    }

    fn signed_by_this<'c>(&self, command: &'c mut Command) -> &'c mut Command {
        command.arg("-CA").arg(self.certificate()).arg("-CAkey").arg(self.key())
    }

    fn make(&self, command: &mut Command, file: &str) -> Result<PathBuf> {
        let path = self.folder.join(format!("{file}.pem"));
        process::output(command.arg("-out").arg(&path))?;
        Ok(path)
    }

    fn key(&self) -> PathBuf {
        self.folder.join("ca-key.pem")
    }
}

fn self_signed(request: &Path, key: &Path) -> Command {
    let mut command = Command::new("openssl");
    command.args(["req", "-x509", "-days", "2", "-noenc", "-newkey", "ec"]);
    command.args(["-pkeyopt", "ec_paramgen_curve:P-256", "-config"]).arg(request).arg("-keyout").arg(key);
    command
}

fn leaf(name: &str, usage: Usage) -> String {
    let purpose = match usage {
        Usage::Both => "serverAuth, clientAuth",
        Usage::Client => "clientAuth",
        Usage::Server => "serverAuth",
    };
    let mut extensions = format!(
        "basicConstraints = critical, CA:FALSE\nkeyUsage = critical, digitalSignature\n\
         extendedKeyUsage = {purpose}"
    );
    // Nothing else may stand there (RFC 5280, section 4.2.1.6).
    if is_host_name(name) {
        extensions.push_str(&format!("\nsubjectAltName = DNS:{name}"));
    }
    extensions
}

fn is_host_name(name: &str) -> bool {
    name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_host_name_becomes_an_alternative_name() {
        assert!(leaf("keys.demo.test", Usage::Both).ends_with("\nsubjectAltName = DNS:keys.demo.test"));
        assert!(!leaf("<img src=x>", Usage::Client).contains("subjectAltName"));
    }
}
