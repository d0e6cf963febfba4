//! Throw-away certificate authorities, by the openssl tool.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::failure::Result;
use crate::process;

/// An authority, and all it issued, in one folder.
pub(super) struct Authority {
    folder: PathBuf,
    name: &'static str,
}

/// A certificate with a private key in a file.
pub(super) struct Identity {
    /// The certificate, PEM.
    pub(super) certificate: PathBuf,
    /// Its private key, PEM.
    pub(super) key: PathBuf,
}

/// What a certificate may be used for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Usage {
    /// As a TLS client.
    Client,
    /// As a TLS server.
    Server,
}

impl Authority {
    /// Makes an authority.
    pub(super) fn create(folder: &Path, name: &'static str) -> Result<Self> {
        let authority = Self { folder: folder.to_owned(), name };
        let extensions = "basicConstraints = critical, CA:TRUE\nkeyUsage = critical, keyCertSign, cRLSign";
        let request = authority.request(name, &authority.title(), extensions)?;
        authority.make(&mut self_signed(&request, &authority.path("ca-key.pem")), "ca.pem")?;
        Ok(authority)
    }

    /// Its own certificate: what others are told to trust.
    pub(super) fn certificate(&self) -> PathBuf {
        self.path("ca.pem")
    }

    /// Its name in certificates.
    pub(super) fn title(&self) -> String {
        format!("Keystead demo authority of {}", self.name)
    }

    /// Issues a certificate with a new private key.
    pub(super) fn issue(&self, name: &str, usage: Usage) -> Result<Identity> {
        let request = self.request(name, name, &leaf(name, usage))?;
        let key = self.path(&format!("{name}-key.pem"));
        let mut command = self_signed(&request, &key);
        let certificate = self.make(self.signed_by_this(&mut command), &format!("{name}.pem"))?;
        Ok(Identity { certificate, key })
    }

    /// Issues a server's certificate over a public key, whose private half it needn't see.
    pub(super) fn certify(&self, name: &str, public_key: &Path) -> Result<PathBuf> {
        let request = self.request(name, name, &leaf(name, Usage::Server))?;
        let mut command = Command::new("openssl");
        command.args(["x509", "-new", "-days", "2", "-extensions", "extensions", "-extfile"]).arg(request);
        command.arg("-force_pubkey").arg(public_key).args(["-subj", &format!("/CN={name}")]);
        self.make(self.signed_by_this(&mut command), &format!("{name}.pem"))
    }

    /// Writes what a certificate shall say, in openssl's form.
    fn request(&self, file: &str, subject: &str, extensions: &str) -> Result<PathBuf> {
        let path = self.path(&format!("{file}.cnf"));
        let head = "[req]\nprompt = no\ndistinguished_name = subject\nx509_extensions = extensions\n";
        super::write(&path, &format!("{head}[subject]\nCN = {subject}\n[extensions]\n{extensions}\n"))?;
        Ok(path)
    }

    fn signed_by_this<'c>(&self, command: &'c mut Command) -> &'c mut Command {
        command.arg("-CA").arg(self.certificate()).arg("-CAkey").arg(self.path("ca-key.pem"))
    }

    fn make(&self, command: &mut Command, file: &str) -> Result<PathBuf> {
        let path = self.path(file);
        process::output(command.arg("-out").arg(&path))?;
        Ok(path)
    }

    fn path(&self, file: &str) -> PathBuf {
        self.folder.join(format!("{}-{file}", self.name))
    }
}

fn self_signed(request: &Path, key: &Path) -> Command {
    let mut command = Command::new("openssl");
    command.args([
        "req",
        "-x509",
        "-days",
        "2",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-noenc",
    ]);
    command.arg("-config").arg(request).arg("-keyout").arg(key);
    command
}

fn leaf(name: &str, usage: Usage) -> String {
    let purpose = match usage {
        Usage::Client => "clientAuth",
        Usage::Server => "serverAuth",
    };
    format!(
        "basicConstraints = critical, CA:FALSE\nkeyUsage = critical, digitalSignature\n\
         extendedKeyUsage = {purpose}\nsubjectAltName = DNS:{name}"
    )
}
