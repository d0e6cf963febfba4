//! Where the keys of the demo are: in a token, in a seed, or in a fake of a cloud.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::cloud::Fake;
use super::site::Site;
use super::story::Notes;
use crate::failure::Result;
use crate::interrupt::Interrupt;
use crate::system::{self, Package};
use crate::token::{Places, Token};
use crate::workspace::{self, Programs, root};
use crate::{file, process};

/// Label of the token.
const TOKEN: &str = "keystead-demo";

/// What the demo can be done with.
#[derive(Debug)]
pub(super) struct Backend {
    /// What `--backend` calls it; the plugin's name, too.
    pub(super) name: &'static str,
    /// What is shown.
    pub(super) title: &'static str,
    /// What the build step is called.
    pub(super) building: &'static str,
    /// Builds what it needs, beside what every demo does.
    pub(super) build: fn(&[&str]) -> Result<Programs>,
    /// The package of that, where Cargo builds it.
    pub(super) package: Option<&'static str>,
    /// What the machine must have, beside what every demo needs.
    pub(super) needs: &'static [Package],
    /// What the making of its keys is called.
    pub(super) making: &'static str,
    /// Makes them.
    pub(super) make: fn(&Place<'_>, &mut Notes) -> Result<Box<dyn Keys>>,
    /// What they are in, or follow from.
    pub(super) origin: &'static str,
    /// What opens them, and nobody must see.
    pub(super) secret: &'static str,
    /// What was shown.
    pub(super) end: &'static str,
}

/// Where keys are made, and with what.
pub(super) struct Place<'a> {
    pub(super) folder: &'a Path,
    pub(super) programs: &'a Programs,
    pub(super) interrupt: &'a Interrupt,
}

impl Backend {
    /// PKCS#11, with a token of SoftHSM2.
    pub(super) const PKCS11: Self = Self {
        name: "pkcs11",
        title: "A TLS handshake signed inside a token that never gives its keys away.",
        building: "Build the key server, its PKCS#11 plugin and the edge",
        build: Programs::build,
        package: Some("keystead-plugin-pkcs11"),
        needs: &[],
        making: "Make a token, and keys inside it",
        make: |place, notes| Ok(Box::new(make_token(&place.folder.join("token"), notes)?)),
        origin: "token",
        secret: "PIN",
        end: "Done: every signature was made in the token, and every client was satisfied.",
    };

    /// The example in C, with a sealed seed.
    pub(super) const C: Self = Self {
        name: "c",
        title: "A TLS handshake signed by a plugin in C, with a key that follows from a sealed seed.",
        building: "Build the key server and the edge",
        build: Programs::build,
        package: None,
        needs: system::FOR_C,
        making: "Build the plugin by its Makefile, and seal a seed",
        make: |place, notes| Ok(Box::new(Seed::make(&place.folder.join("plugin-c"), notes)?)),
        origin: "seed",
        secret: "passphrase",
        end: "Done: every signature was made by the plugin in C, and every client was satisfied.",
    };

    /// Azure Key Vault, or rather a fake of it.
    pub(super) const AZURE: Self = Self {
        name: "azure",
        title: "A TLS handshake signed by way of the plugin for Azure Key Vault, by a FAKE of that on this machine.",
        building: BUILDING_A_FAKE,
        build: |packages| build_with_component("keystead-plugin-azure", packages),
        package: Some("keystead-fakes"),
        needs: system::FOR_FAKES,
        making: "Start a fake of Azure Key Vault, and make keys in it",
        make: Fake::azure,
        origin: "fake vault",
        secret: "client secret",
        end: "Done: every signature was made by the fake of Azure Key Vault, and every client was satisfied.",
    };

    /// Google Cloud KMS, or rather a fake of it.
    pub(super) const GCP: Self = Self {
        name: "gcp",
        title: "A TLS handshake signed by way of the plugin for Google Cloud KMS, by a FAKE of that on this machine.",
        building: BUILDING_A_FAKE,
        build: |packages| build_with_component("keystead-plugin-gcp", packages),
        package: Some("keystead-fakes"),
        needs: system::FOR_FAKES,
        making: "Start a fake of Google Cloud KMS, and make keys in it",
        make: Fake::gcp,
        origin: "fake key ring",
        secret: "service account's key",
        end: "Done: every signature was made by the fake of Google Cloud KMS, and every client was satisfied.",
    };

    /// All of them.
    pub(super) const ALL: &[&Self] = &[&Self::PKCS11, &Self::C, &Self::AZURE, &Self::GCP];
}

const BUILDING_A_FAKE: &str =
    "Build the plugin as a component, the key server with its sandbox, the edge and the fake";

fn build_with_component(component: &str, packages: &[&str]) -> Result<Programs> {
    system::ensure_wasm_target()?;
    workspace::build_component(component)?;
    Programs::build_with_sandbox(packages)
}

/// The keys, as the rest of the demo needs them.
pub(super) trait Keys {
    /// The sites that have one.
    fn sites(&self) -> &'static [Site];

    /// Writes the public half of a site's key into a file, PEM.
    fn write_public_key(&self, site: &Site, pem: &Path) -> Result<()>;

    /// Copies the plugin into a folder, and gives where it is then.
    fn install_plugin(&self, programs: &Programs, folder: &Path) -> Result<PathBuf>;

    /// The options of their store in the key server's configuration: `config`, `secrets` and the like.
    fn store(&self) -> Result<String>;

    /// Whether a text shows the secret that opens them.
    fn are_given_away_by(&self, text: &str) -> bool;

    /// Whether something of them that should run does no more.
    fn have_ended(&mut self) -> bool {
        false
    }

    /// Stops what of them runs, and expects a clean end.
    fn stop(self: Box<Self>, _notes: &mut Notes) -> Result<()> {
        Ok(())
    }
}

fn make_token(folder: &Path, notes: &mut Notes) -> Result<Token> {
    let folder = file::make_folder(folder)?;
    let tokens = file::make_folder(&folder.join("tokens"))?;
    let [configuration, pin] = ["softhsm2.conf", "pin"].map(|name| folder.join(name));
    let token = Token::create(TOKEN, Places { tokens, configuration, pin })?;
    notes.add(format!("SoftHSM2 token `{TOKEN}` in {}", folder.display()));
    for site in Site::ALL {
        notes.add(format!("{:<8} made inside: {}", site.key.key_type, token.generate(&site.key)?));
    }
    Ok(token)
}

impl Keys for Token {
    fn sites(&self) -> &'static [Site] {
        Site::ALL
    }

    fn write_public_key(&self, site: &Site, pem: &Path) -> Result<()> {
        Self::write_public_key(self, &site.key, pem)
    }

    fn install_plugin(&self, programs: &Programs, folder: &Path) -> Result<PathBuf> {
        programs.install_plugin("pkcs11", folder)
    }

    fn store(&self) -> Result<String> {
        let uri = |site: &Site| format!("    - pkcs11:token={TOKEN};object={}\n", site.key.label);
        let uris: String = Site::ALL.iter().map(uri).collect();
        Ok(format!(
            "  config:\n    module: {}\n    uris:\n{uris}  secrets:\n    pin: {{file: {}}}\n  env: {{{}}}\n",
            self.module().display(),
            self.pin_file().display(),
            self.variable(),
        ))
    }

    fn are_given_away_by(&self, text: &str) -> bool {
        self.is_given_away_by(text)
    }
}

/// What the Makefile of `examples/plugin-c` makes: the plugin, its tool, a seed and its passphrase.
struct Seed {
    folder: PathBuf,
    passphrase: String,
}

impl Seed {
    fn make(folder: &Path, notes: &mut Notes) -> Result<Self> {
        let folder = file::make_folder(folder)?;
        let mut make = Command::new("make");
        make.arg("--silent").arg("-C").arg(root().join("examples/plugin-c"));
        process::output(make.arg(format!("BUILD={}", folder.display())).args(["all", "seed"]))?;
        notes.add(format!("make -C examples/plugin-c BUILD={} all seed", folder.display()));
        let passphrase = file::read(&folder.join("passphrase"))?.trim_end().to_owned();
        Ok(Self { folder, passphrase })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }
}

impl Keys for Seed {
    fn sites(&self) -> &'static [Site] {
        const { &[Site::ECDSA] }
    }

    fn write_public_key(&self, site: &Site, pem: &Path) -> Result<()> {
        let mut tool = Command::new(self.path("public-keys"));
        tool.arg(self.path("seed.pem")).arg(self.path("passphrase")).arg(site.key.label);
        file::write(pem, &process::output(&mut tool)?.stdout)
    }

    fn install_plugin(&self, _programs: &Programs, folder: &Path) -> Result<PathBuf> {
        let library = "libkeystead_plugin_c.so";
        file::install_plugin(&self.path(library), &folder.join(library))
    }

    fn store(&self) -> Result<String> {
        let [seed, passphrase] = ["seed.pem", "passphrase"].map(|name| self.path(name));
        let names: Vec<_> = self.sites().iter().map(|site| site.key.label).collect();
        Ok(format!(
            "  config:\n    seed: {}\n    keys: [{}]\n  secrets:\n    passphrase: {{file: {}}}\n  isolation: process\n",
            seed.display(),
            names.join(", "),
            passphrase.display(),
        ))
    }

    fn are_given_away_by(&self, text: &str) -> bool {
        text.contains(&self.passphrase)
    }
}
