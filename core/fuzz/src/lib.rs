//! Drives fuzz targets on stable Rust.
//!
//! A target is a function over arbitrary bytes that panics when a claim doesn't hold. A package of targets is a
//! [`Suite`]: they run over its saved corpus and a few mutations of that in its tests, and over many mutations by its
//! program:
//!
//! ```text
//! PACKAGE TARGET [--seconds N] [--seed N] [--failures FOLDER]
//! ```
//!
//! Exit status: 0 if every claim held, 1 with the offending input saved, 2 for a wrong command line.
//!
//! Any other fuzzer can drive the targets as well: a harness is one line.

#![forbid(unsafe_code)]

mod drive;
mod mutate;

use std::path::PathBuf;
use std::{fs, io};

use mutate::Mutator;

/// A function over arbitrary bytes.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    name: &'static str,
    run: fn(&[u8]),
}

impl Target {
    /// A target that runs `run`; it is called so on the command line, and so is its folder below `corpus/`.
    #[must_use]
    pub const fn new(name: &'static str, run: fn(&[u8])) -> Self {
        Self { name, run }
    }

    /// Runs the target on one input.
    ///
    /// # Panics
    ///
    /// If one of its claims doesn't hold for the input.
    pub fn run(self, input: &[u8]) {
        (self.run)(input);
    }
}

/// The fuzz targets of one package.
#[derive(Clone, Copy, Debug)]
pub struct Suite {
    package: &'static str,
    folder: &'static str,
    targets: &'static [Target],
}

impl Suite {
    /// The targets of a package, whose folder has their inputs in `corpus/`.
    #[must_use]
    pub const fn new(package: &'static str, folder: &'static str, targets: &'static [Target]) -> Self {
        Self { package, folder, targets }
    }

    /// The target of a name.
    #[must_use]
    pub fn named(self, name: &str) -> Option<Target> {
        self.targets.iter().copied().find(|target| target.name == name)
    }

    /// The saved inputs of a target, in the order of their file names.
    ///
    /// # Errors
    ///
    /// What reading the folder or a file in it reports.
    pub fn corpus(self, target: Target) -> io::Result<Vec<Vec<u8>>> {
        let folder = PathBuf::from(self.folder).join("corpus").join(target.name);
        let mut paths =
            fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
        paths.sort();
        paths.iter().map(fs::read).collect()
    }

    /// Runs every target over its corpus and a thousand mutations of it: what a package's tests call.
    ///
    /// # Panics
    ///
    /// If a claim doesn't hold, or there is no corpus to speak of.
    pub fn check(self) {
        for target in self.targets {
            let corpus = self.corpus(*target).unwrap_or_default();
            assert!(corpus.len() >= 3, "corpus of {}", target.name);
            corpus.iter().for_each(|input| target.run(input));
            let mut mutator = Mutator::new(corpus, 1);
            (0..1000).for_each(|_| target.run(&mutator.next_input()));
        }
    }
}
