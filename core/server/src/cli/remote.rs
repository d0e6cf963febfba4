//! `ping` and `sign`: one operation against a running server, as the edge would do it.

use std::{
    fmt::Write,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use clap::Args;
use keystead::service;
use keystead_client::{Client, client_config};
use keystead_plugin_host::{Algorithm, Family, Input, PublicKey};
use keystead_protocol::{Opcode, Ski};
use rustls::pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, pem::PemObject};
use serde_json::json;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{Failed, Output, print, runtime};

/// Where the server is, and who asks.
#[derive(Args)]
pub(super) struct Remote {
    /// Address of the key server, HOST:PORT
    #[arg(long, value_name = "HOST:PORT", default_value = "localhost:2407")]
    server: String,
    /// Name in the server's certificate; by default the host of `--server`
    #[arg(long, value_name = "NAME")]
    server_name: Option<String>,
    /// Authorities that the server's certificate must chain to, PEM
    #[arg(long, value_name = "PATH")]
    ca: PathBuf,
    /// Certificate to show to the server, PEM
    #[arg(long, value_name = "PATH")]
    cert: PathBuf,
    /// Private key of that certificate, PEM
    #[arg(long, value_name = "PATH")]
    key: PathBuf,
    /// Seconds to wait for the answer
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    timeout: u64,
}

/// Arguments of `ping`.
#[derive(Args)]
pub(super) struct Ping {
    #[command(flatten)]
    remote: Remote,
    #[command(flatten)]
    output: Output,
}

/// Arguments of `sign`.
#[derive(Args)]
pub(super) struct Sign {
    #[command(flatten)]
    remote: Remote,
    #[command(flatten)]
    subject: Subject,
    #[command(flatten)]
    output: Output,
}

/// Which key is to sign, and how.
#[derive(Args)]
pub(super) struct Subject {
    /// Certificate, or public key, of the key that is to sign, PEM
    #[arg(long = "for", value_name = "PATH")]
    file: PathBuf,
    /// Algorithm, such as `rsa-pss-sha256`; by default one that TLS 1.3 uses with this type of key
    #[arg(long, value_name = "NAME", value_parser = algorithm)]
    algorithm: Option<Algorithm>,
}

/// A signature that is to be asked for.
pub(super) struct Wanted {
    pub(super) key: PublicKey,
    pub(super) ski: Ski,
    pub(super) algorithm: Algorithm,
    pub(super) opcode: Opcode,
    pub(super) input: Vec<u8>,
}

impl Ping {
    pub(super) fn run(self) -> Result<ExitCode, Failed> {
        let (answer, took) = self.remote.ask(async |client| client.ping(b"keystead").await)?;
        if answer != b"keystead" {
            return Err(Failed::new("the server's answer is not what was sent"));
        }
        let (server, millis) = (&self.remote.server, took.as_secs_f64() * 1e3);
        match self.output.json {
            true => print(&format!("{}\n", json!({ "server": server, "milliseconds": millis }))),
            false => print(&format!("{server} answered in {millis:.1} ms, connecting included\n")),
        }
    }
}

impl Sign {
    pub(super) fn run(self) -> Result<ExitCode, Failed> {
        let Wanted { key, ski, algorithm, opcode, input } = self.subject.wanted()?;
        let (signature, took) = self.remote.ask(async |client| client.sign(ski, opcode, &input).await)?;
        if !key.verifies(algorithm, &input, &signature) {
            return Err(Failed::new(format!("the signature by {algorithm} does not verify")));
        }
        self.tell(ski, algorithm, &signature, took)
    }

    fn tell(
        &self,
        ski: Ski,
        algorithm: Algorithm,
        signature: &[u8],
        took: Duration,
    ) -> Result<ExitCode, Failed> {
        let millis = took.as_secs_f64() * 1e3;
        if self.output.json {
            let signature = signature.iter().fold(String::new(), |mut hex, byte| {
                let _ = write!(hex, "{byte:02x}");
                hex
            });
            let answer = json!({
                "ski": ski.to_string(),
                "algorithm": algorithm.name(),
                "signature": signature,
                "verified": true,
                "milliseconds": millis,
            });
            return print(&format!("{answer}\n"));
        }
        print(&format!(
            "{ski} signed by {algorithm} in {millis:.1} ms, connecting included; {} bytes, and they verify\n",
            signature.len()
        ))
    }
}

impl Subject {
    pub(super) fn wanted(&self) -> Result<Wanted, Failed> {
        let spki = public_key(&self.file)?;
        let key = PublicKey::parse(&spki)
            .ok_or_else(|| Failed::new(format!("{}: not an RSA, EC or Ed25519 key", self.file.display())))?;
        let ski = Ski::from_spki(&spki).map_err(Failed::new)?;
        let algorithm = self.algorithm.unwrap_or_else(|| usual(key.family(), key.bits()));
        let opcode = opcode(algorithm).ok_or_else(|| Failed::new("this algorithm has no opcode"))?;
        let input = random_input(algorithm)?;
        Ok(Wanted { key, ski, algorithm, opcode, input })
    }
}

impl Remote {
    /// A client that has not connected yet.
    pub(super) fn client(&self) -> Result<Client, Failed> {
        let tls = client_config(&self.ca, &self.cert, &self.key).map_err(Failed::new)?;
        let client = Client::builder([self.server.as_str()], self.name()?, Arc::new(tls));
        client.deadline(Duration::from_secs(self.timeout)).build().map_err(Failed::new)
    }

    /// Connects, asks, and times both together.
    fn ask<T>(
        &self,
        ask: impl AsyncFnOnce(&Client) -> Result<T, keystead_client::Error>,
    ) -> Result<(T, Duration), Failed> {
        let client = self.client()?;
        let runtime = runtime()?;
        runtime.block_on(async {
            let started = Instant::now();
            let answer = ask(&client).await.map_err(|error| Failed::new(chain(&error)))?;
            Ok((answer, started.elapsed()))
        })
    }

    fn name(&self) -> Result<ServerName<'static>, Failed> {
        let host = self.server.rsplit_once(':').map_or(self.server.as_str(), |(host, _)| host);
        let name = self.server_name.as_deref().unwrap_or(host.trim_matches(['[', ']']));
        ServerName::try_from(name.to_owned())
            .map_err(|_| Failed::new(format!("`{name}` can't be a server's name")))
    }
}

/// An error with its causes, once each.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.contains(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        cause = error.source();
    }
    text
}

fn public_key(file: &Path) -> Result<Vec<u8>, Failed> {
    let wrong = |what: &dyn std::fmt::Display| Failed::new(format!("{}: {what}", file.display()));
    if let Ok(key) = SubjectPublicKeyInfoDer::from_pem_file(file) {
        return Ok(key.to_vec());
    }
    let certificate = CertificateDer::from_pem_file(file).map_err(|error| wrong(&error))?;
    let (_, parsed) = X509Certificate::from_der(&certificate).map_err(|error| wrong(&error))?;
    Ok(parsed.public_key().raw.to_vec())
}

/// What TLS 1.3 uses with this type of key.
pub(super) fn usual(family: Family, bits: u32) -> Algorithm {
    match (family, bits) {
        (Family::Rsa, _) => Algorithm::RsaPssSha256,
        (Family::Ecdsa, 384) => Algorithm::EcdsaSha384,
        (Family::Ecdsa, 521) => Algorithm::EcdsaSha512,
        (Family::Ecdsa, _) => Algorithm::EcdsaSha256,
        _ => Algorithm::Ed25519,
    }
}

fn opcode(algorithm: Algorithm) -> Option<Opcode> {
    (0..=u8::MAX).map(Opcode).find(|opcode| service::algorithm(*opcode) == Some(algorithm))
}

/// Random bytes of the length of a digest: what is shown is that the key signs.
pub(super) fn random_input(algorithm: Algorithm) -> Result<Vec<u8>, Failed> {
    let mut input = match algorithm.input() {
        Input::Digest(len) => vec![0; len],
        Input::Message => vec![0; 32],
        _ => return Err(Failed::new(format!("{algorithm} is not a signature"))),
    };
    aws_lc_rs::rand::fill(&mut input).map_err(|_| Failed::new("the system gives no random bytes"))?;
    Ok(input)
}

pub(super) fn algorithm(name: &str) -> Result<Algorithm, String> {
    Algorithm::ALL.iter().copied().find(|algorithm| algorithm.name() == name).ok_or_else(|| {
        let names: Vec<_> = Algorithm::ALL.iter().map(|algorithm| algorithm.name()).collect();
        format!("expected one of {}", names.join(", "))
    })
}
