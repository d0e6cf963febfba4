//! Keys in a fake of a cloud's key service: a program on this machine that answers under the service's own name.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::keys::{Keys, Place};
use super::site::Site;
use super::story::{Notes, Took};
use crate::daemon::Daemon;
use crate::failure::{Failure, Result};
use crate::file;
use crate::workspace::{self, Programs};

/// The fake of a cloud, running.
pub(super) struct Fake {
    /// What the fake and the plugin call it.
    cloud: &'static str,
    folder: PathBuf,
    program: Daemon,
    /// What nobody must see, line by line.
    secret: String,
}

impl Fake {
    pub(super) fn azure(place: &Place<'_>, notes: &mut Notes) -> Result<Box<dyn Keys>> {
        Self::start("azure", place, notes, |folder| file::read(&folder.join("client-secret")))
    }

    pub(super) fn gcp(place: &Place<'_>, notes: &mut Notes) -> Result<Box<dyn Keys>> {
        Self::start("gcp", place, notes, private_key)
    }

    fn start(
        cloud: &'static str,
        place: &Place<'_>,
        notes: &mut Notes,
        secret: fn(&Path) -> Result<String>,
    ) -> Result<Box<dyn Keys>> {
        let folder = file::make_folder(&place.folder.join(cloud))?;
        let mut command = Command::new(place.programs.path("keystead-fakes"));
        command.arg(cloud).arg("--folder").arg(&folder);
        let log = place.folder.join("fake.log");
        let mut program = Daemon::start("fake", command, &log)?;
        let line = || file::read(&log).ok()?.split_once('\n').map(|(line, _)| line.to_owned());
        notes.add(program.wait_for(place.interrupt, "it served", line)?);
        for site in Site::ALL {
            notes.add(format!("{:<8} made by the fake, which guards nothing", site.key.key_type));
        }
        let secret = secret(&folder)?;
        Ok(Box::new(Self { cloud, folder, program, secret }))
    }
}

/// The private key in the file of Google's service account.
fn private_key(folder: &Path) -> Result<String> {
    let account: serde_json::Value = serde_json::from_str(&file::read(&folder.join("service-account.json"))?)
        .map_err(|error| Failure::new(format!("the service account: {error}")))?;
    let key = account.get("private_key").and_then(serde_json::Value::as_str);
    key.map(str::to_owned).ok_or_else(|| Failure::new("the service account has no key"))
}

/// Whether a text has a line of a secret; the lines around a PEM's are none.
fn gives_away(text: &str, secret: &str) -> bool {
    let mut lines = secret.lines().filter(|line| !line.is_empty() && !line.starts_with("-----"));
    lines.any(|line| text.contains(line))
}

impl Keys for Fake {
    fn sites(&self) -> &'static [Site] {
        Site::ALL
    }

    fn write_public_key(&self, site: &Site, pem: &Path) -> Result<()> {
        file::write(pem, &file::read(&self.folder.join(format!("{}.pem", site.key.label)))?)
    }

    fn install_plugin(&self, _programs: &Programs, folder: &Path) -> Result<PathBuf> {
        workspace::install_component(self.cloud, folder)
    }

    fn store(&self) -> Result<String> {
        file::read(&self.folder.join("store.yaml"))
    }

    fn are_given_away_by(&self, text: &str) -> bool {
        gives_away(text, &self.secret)
    }

    fn have_ended(&mut self) -> bool {
        self.program.has_ended()
    }

    fn stop(self: Box<Self>, notes: &mut Notes) -> Result<()> {
        let took = self.program.stop()?;
        notes.add(format!("the fake, by SIGTERM: exit status 0 after {}", Took(took)));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_of_a_key_gives_it_away_and_its_frame_does_not() {
        let pem = "-----BEGIN PRIVATE KEY-----\nMIIE\nvgIB\n-----END PRIVATE KEY-----\n";
        assert!(gives_away("a log with vgIB in it", pem));
        assert!(!gives_away("-----BEGIN PRIVATE KEY-----", pem));
        assert!(gives_away("secret=abc~1", "abc~1"));
    }
}
