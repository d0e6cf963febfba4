//! What the demo tells the person who watches.

use std::fmt::Display;
use std::time::{Duration, Instant};

use crate::failure::Result;

/// A numbered account of steps, each with what came of it and how long it took.
pub(super) struct Story {
    start: Instant,
    steps: usize,
}

/// What came of a step, line by line; printed at once, so that one sees how far it is.
pub(super) struct Notes(());

impl Story {
    pub(super) fn begin(title: &str) -> Self {
        println!("{title}");
        Self { start: Instant::now(), steps: 0 }
    }

    /// Announces a step, does it, and says how long it took.
    pub(super) fn step<T>(&mut self, title: &str, work: impl FnOnce(&mut Notes) -> Result<T>) -> Result<T> {
        self.steps += 1;
        println!("\n{}. {title}", self.steps);
        let start = Instant::now();
        let result = work(&mut Notes(()));
        if result.is_ok() {
            println!("   ({})", Took(start.elapsed()));
        }
        result
    }

    /// Prints what is no step.
    pub(super) fn aside(&self, text: &str) {
        println!("\n{text}");
    }

    pub(super) fn end(self, text: &str) {
        println!("\n{text} ({})", Took(self.start.elapsed()));
    }
}

impl Notes {
    pub(super) fn add(&mut self, line: impl Display) {
        println!("   {line}");
    }
}

/// A duration in the unit that suits it.
pub(super) struct Took(pub(super) Duration);

impl Display for Took {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0 < Duration::from_secs(1) {
            return write!(f, "{} ms", self.0.as_millis());
        }
        write!(f, "{:.1} s", self.0.as_secs_f64())
    }
}
