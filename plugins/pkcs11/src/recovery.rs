//! Looking for lost tokens: one thread for each module, while it has any.
//!
//! It tries each lost token by itself first. Where that doesn't help, or can't since it was lost in spite of its login,
//! and no other token of the module is well, the module is initialised anew, once the last call that hangs in it has
//! returned.

use std::{
    sync::Arc,
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use crate::{module::Module, token::Token};

/// The first and the longest pause between two looks. The longest is what bounds how long a token that is back waits
/// to serve again.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// Starts the thread; says whether it runs.
pub(crate) fn start(module: &'static Module) -> bool {
    let thread = thread::Builder::new().name("pkcs11/recovery".to_owned());
    let started = thread.spawn(move || run(module));
    if let Err(error) = &started {
        tracing::error!("no thread for the recovery of lost tokens: {error}");
    }
    started.is_ok()
}

fn run(module: &'static Module) {
    while !module.rests(Token::is_lost) {
        thread::sleep(jittered(module.pause(PAUSES.0, PAUSES.1)));
        module.look(|| look(module));
    }
}

/// Looks for each lost token.
fn look(module: &'static Module) {
    let (suspect, lost): (Vec<_>, Vec<_>) = lost(module).into_iter().partition(|token| token.is_suspect());
    if suspect.is_empty() && lost.is_empty() || any(&lost, Token::come_back) {
        return; // none wants to be found any more, or one has been
    }
    let Some(life) = module.life_number() else { return }; // it could not even be initialised
    let well = |token: &Arc<Token>| !token.is_lost() && token.is_well();
    if module.enlisted().iter().any(well) {
        any(&suspect, Token::come_back); // all that can be done for them
    } else if module.renew(life) {
        any(&self::lost(module), Token::come_back);
    }
}

fn lost(module: &Module) -> Vec<Arc<Token>> {
    module.enlisted().into_iter().filter(|token| token.is_lost()).collect()
}

/// Whether it holds for any; asks all.
fn any(tokens: &[Arc<Token>], holds: impl Fn(&Token) -> bool) -> bool {
    tokens.iter().filter(|token| holds(token)).count() > 0
}

/// Three quarters to all of a pause, so that many servers don't ask one appliance in step.
fn jittered(pause: Duration) -> Duration {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let phase = now.subsec_micros() % 256;
    pause - pause * phase / 1024
}
