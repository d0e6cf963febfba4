//! The two servers of the demo: the key server, and the edge that has it sign.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use super::handshake::{Handshake, Target};
use super::keys::{Backend, Keys};
use super::story::{Notes, Story, Took};
use super::{KEY_SERVER, Pki, metrics};
use crate::daemon::Daemon;
use crate::failure::{Failure, Result};
use crate::interrupt::Interrupt;
use crate::workspace::Programs;
use crate::{file, http, patience, ports};

/// How long the key server's counters may lag behind its answers.
const LAG: Duration = Duration::from_secs(5);

/// What the servers need.
pub(super) struct Setup {
    /// Where everything lies.
    pub(super) folder: PathBuf,
    pub(super) programs: Programs,
    pub(super) keys: Box<dyn Keys>,
    pub(super) pki: Pki,
    /// The directory with the plugin.
    pub(super) plugins: PathBuf,
    pub(super) backend: &'static Backend,
}

/// The servers, running.
pub(super) struct Servers {
    setup: Setup,
    key_server: Daemon,
    edge: Daemon,
    /// Where the key server serves the edge.
    keys: SocketAddr,
    /// Where the key server tells how it is.
    metrics: SocketAddr,
    /// Where the edge serves clients.
    sites: SocketAddr,
}

impl Servers {
    /// Starts the key server, and when it is ready the edge.
    pub(super) fn start(setup: Setup, interrupt: &Interrupt, story: &mut Story) -> Result<Self> {
        let [keys, metrics] = ports::free_addresses()?;
        let key_server = story.step("Start the key server", |notes| {
            let daemon = start_key_server(&setup, keys, metrics, interrupt)?;
            notes.add(format!("keystead run -c {}", setup.configuration().display()));
            notes.add(format!("serves keys on {keys} to whom the authority of machines knows"));
            notes.add(format!("ready, says http://{metrics}/readyz"));
            Ok(daemon)
        })?;
        let (edge, sites) = story.step("Start the edge, which has certificates but no keys", |notes| {
            let (daemon, sites) = start_edge(&setup, keys, interrupt)?;
            notes.add(format!(
                "serves {} on {sites}",
                setup.keys.sites().iter().map(|site| site.name).collect::<Vec<_>>().join(" and ")
            ));
            Ok((daemon, sites))
        })?;
        Ok(Self { setup, key_server, edge, keys, metrics, sites })
    }

    /// The handshakes with sites that have a key.
    pub(super) fn handshakes(&self) -> impl Iterator<Item = &'static Handshake> {
        let served = |name: &str| self.setup.keys.sites().iter().any(|site| site.name == name);
        Handshake::ALL.iter().filter(move |handshake| served(handshake.site.name))
    }

    /// Does a handshake; expects that the client is satisfied, and that the key server signed once for it.
    pub(super) fn shake(&self, handshake: &Handshake) -> Result<String> {
        let authority = self.setup.pki.sites.certificate();
        let before = metrics::requests(self.metrics)?;
        let start = Instant::now();
        handshake.perform(&self.target(&authority))?;
        let took = Took(start.elapsed());
        let opcode = self.signed_since(&before, handshake)?;
        Ok(format!(
            "{:<8} {}  {:<10}  {:<16} verified, page received; one {opcode} ({took})",
            handshake.client(),
            handshake.version(),
            handshake.signature,
            handshake.site.name,
        ))
    }

    /// Expects that what opens the keys is in no log, in no arguments of a process, and not in the metrics.
    pub(super) fn look_for_the_secret(&self, notes: &mut Notes) -> Result<()> {
        for (what, text) in [
            ("the key server's log", self.key_server.log()?),
            ("the key server's arguments", self.key_server.arguments()?),
            ("the edge's log", self.edge.log()?),
            ("the edge's arguments", self.edge.arguments()?),
            ("the key server's metrics", http::get(self.metrics, "/metrics")?.body),
        ] {
            if self.setup.keys.are_given_away_by(&text) {
                return Err(Failure::new(format!("the {} is in {what}", self.setup.backend.secret)));
            }
        }
        notes.add("not in the logs, not in the arguments of the servers, not in the metrics");
        Ok(())
    }

    /// Whether one of the servers runs no more.
    pub(super) fn have_ended(&mut self) -> bool {
        self.key_server.has_ended() || self.edge.has_ended() || self.setup.keys.have_ended()
    }

    /// Stops all in order, and expects a clean end.
    pub(super) fn stop(self, notes: &mut Notes) -> Result<()> {
        let took = self.edge.stop()?;
        notes.add(format!("the edge, by SIGTERM: exit status 0 after {}", Took(took)));
        let took = self.key_server.stop()?;
        notes.add(format!("the key server, by SIGTERM: exit status 0 after {}", Took(took)));
        self.setup.keys.stop(notes)
    }

    /// Commands for a person to try while everything runs.
    pub(super) fn things_to_try(&self) -> Result<String> {
        let (pki, port) = (&self.setup.pki, self.sites.port());
        let sites = pki.sites.certificate();
        let names = [self.setup.keys.sites().first(), self.setup.keys.sites().last()];
        let [first, last] = names.map(|site| site.map_or(KEY_SERVER, |site| site.name));
        let sites = sites.display();
        let keystead = self.setup.programs.path("keystead");
        let as_the_edge = format!(
            "--server {} --server-name {KEY_SERVER} --ca {} --cert {} --key {}",
            self.keys,
            pki.machines.certificate().display(),
            pki.edge.certificate.display(),
            pki.edge.key.display()
        );
        let chain = pki.chains.first().ok_or_else(|| Failure::new("no site has a certificate"))?;
        let commands = [
            format!("curl --cacert {sites} --resolve {last}:{port}:127.0.0.1 https://{last}:{port}/"),
            format!("openssl s_client -connect {} -servername {first} -CAfile {sites} -tls1_2", self.sites),
            format!("{} ping {as_the_edge}", keystead.display()),
            format!("{} sign {as_the_edge} --for {}", keystead.display(), chain.display()),
            format!("curl http://{}/metrics", self.metrics),
            format!("less {}", self.setup.folder.join("keystead.log").display()),
        ];
        Ok(format!("Everything runs. Try:\n\n  {}\n\nCtrl-C stops it.", commands.join("\n\n  ")))
    }

    fn target<'a>(&'a self, authority: &'a Path) -> Target<'a> {
        Target {
            edge: self.sites,
            authority,
            authority_name: self.setup.pki.sites.title(),
            folder: &self.setup.folder,
        }
    }

    /// The opcode that was asked for since `before`: one, and once.
    fn signed_since(&self, before: &BTreeMap<String, u64>, handshake: &Handshake) -> Result<String> {
        let signatures = patience::wait_for(LAG, || {
            let signatures = new_signatures(before, &metrics::requests(self.metrics)?);
            Ok((!signatures.is_empty()).then_some(signatures))
        })?;
        match signatures.unwrap_or_default().as_slice() {
            [(opcode, 1)] if opcode.starts_with(handshake.opcode) => Ok(opcode.clone()),
            other => {
                let expected = handshake.opcode;
                Err(Failure::new(format!(
                    "the key server was to do one {expected}…, but its metrics say {other:?}"
                )))
            }
        }
    }
}

impl Setup {
    fn configuration(&self) -> PathBuf {
        self.folder.join("keystead.yaml")
    }
}

fn start_key_server(
    setup: &Setup,
    keys: SocketAddr,
    metrics: SocketAddr,
    interrupt: &Interrupt,
) -> Result<Daemon> {
    file::write(&setup.configuration(), &configuration(setup, keys, metrics)?)?;
    let mut command = Command::new(setup.programs.path("keystead"));
    command.arg("run").arg("-c").arg(setup.configuration());
    let mut daemon = Daemon::start("key server", command, &setup.folder.join("keystead.log"))?;
    daemon.wait_for(interrupt, "it was ready", || http::is_ready(metrics).then_some(()))?;
    Ok(daemon)
}

fn configuration(setup: &Setup, keys: SocketAddr, metrics: SocketAddr) -> Result<String> {
    Ok(format!(
        "listen: \"{keys}\"\n\
         metrics_listen: \"{metrics}\"\n\
         auth_cert: {}\n\
         auth_key: {}\n\
         client_ca: {}\n\
         plugins:\n  path: [{}]\n\
         private_key_stores:\n\
         - name: demo\n  \
           plugin: {}\n\
         {}",
        setup.pki.key_server.certificate.display(),
        setup.pki.key_server.key.display(),
        setup.pki.machines.certificate().display(),
        setup.plugins.display(),
        setup.backend.name,
        setup.keys.store()?,
    ))
}

fn start_edge(setup: &Setup, keys: SocketAddr, interrupt: &Interrupt) -> Result<(Daemon, SocketAddr)> {
    let mut command = Command::new(setup.programs.path("keystead-edge"));
    command.args(["--listen", "127.0.0.1:0", "--server", &keys.to_string(), "--server-name", KEY_SERVER]);
    command.arg("--ca").arg(setup.pki.machines.certificate());
    command.arg("--cert").arg(&setup.pki.edge.certificate).arg("--key").arg(&setup.pki.edge.key);
    for chain in &setup.pki.chains {
        command.arg("--site").arg(chain);
    }
    let log = setup.folder.join("edge.log");
    let mut daemon = Daemon::start("edge", command, &log)?;
    let address = || file::read(&log).ok().and_then(|log| listening(&log));
    let sites = daemon.wait_for(interrupt, "it listened", address)?;
    Ok((daemon, sites))
}

/// The address behind `listening on`, once its line is complete.
fn listening(log: &str) -> Option<SocketAddr> {
    let (_, rest) = log.split_once("listening on ")?;
    rest.split_once('\n')?.0.split_whitespace().next()?.parse().ok()
}

/// The opcodes of signatures that were asked for meanwhile, and how often.
fn new_signatures(before: &BTreeMap<String, u64>, after: &BTreeMap<String, u64>) -> Vec<(String, u64)> {
    let grown = |(opcode, count): (&String, &u64)| {
        let more = count.saturating_sub(before.get(opcode).copied().unwrap_or(0));
        (more > 0 && opcode.contains("Sign")).then(|| (opcode.clone(), more))
    };
    after.iter().filter_map(grown).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(pairs: &[(&str, u64)]) -> BTreeMap<String, u64> {
        pairs.iter().map(|(opcode, count)| ((*opcode).to_owned(), *count)).collect()
    }

    #[test]
    fn only_signatures_made_meanwhile_count() {
        let before = counts(&[("OpPing", 1), ("OpRSASignSHA256", 4)]);
        let after = counts(&[("OpPing", 9), ("OpRSASignSHA256", 4), ("OpECDSASignSHA256", 1)]);
        assert_eq!(new_signatures(&before, &after), [("OpECDSASignSHA256".to_owned(), 1)]);
    }

    #[test]
    fn waits_for_the_whole_line_of_an_address() {
        assert_eq!(listening("INFO listening on 127.0.0.1:44"), None);
        assert_eq!(
            listening("x\nlistening on 127.0.0.1:443\n"),
            Some(SocketAddr::from(([127, 0, 0, 1], 443)))
        );
    }
}
