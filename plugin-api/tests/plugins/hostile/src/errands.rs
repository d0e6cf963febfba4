//! What the host does for plugins, asked for and logged.

use std::{cell::Cell, time::Duration};

use keystead_plugin_api::{Algorithm, Call, Code, Error, Host, Secret, http};

/// Gets a value once for two who ask, again after it was forgotten and after a failure; has the secret `key` used; and asks
/// for what isn't granted.
pub(crate) fn run(host: Host, call: &Call<'_>) -> Result<(), Error> {
    let got = Cell::new(0_u8);
    let token = |at_least: u64, outcome: Result<u64, Error>| {
        let value = host.cached(call, "token", Duration::from_secs(at_least), || {
            got.set(got.get() + 1);
            Ok((Secret::new(vec![got.get()]), Duration::from_secs(outcome?)))
        });
        value.map(|value| value.expose().to_vec())
    };
    let failed = token(1, Err(Error::new(Code::Throttled, "later"))).map_err(|error| error.code);
    let values = [token(1, Ok(60))?, token(30, Ok(60))?, token(90, Ok(120))?];
    host.forget("token", &Secret::new(vec![3]));
    let last = token(1, Ok(60))?;
    tracing::info!("errands: {failed:?}, then {values:?}, and {last:?} after it was forgotten");

    let mac = host.hmac_with("mac", b"Je", b"what do ya want for nothing?")?;
    let signature = host.sign_with("key", Algorithm::EcdsaSha256, b"message")?;
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    tracing::info!("errands: mac {}, signature {}", hex(mac.get(..4).unwrap_or_default()), hex(&signature));
    let unknown = host.sign_with("nobody", Algorithm::EcdsaSha256, b"message").map_err(|error| error.code);
    let fetched = host.fetch(call, &http::Request::new("GET", "https://kms.example/"));
    tracing::info!(
        "errands: {:?}; {}",
        unknown,
        fetched.err().map(|error| error.message).unwrap_or_default()
    );
    Ok(())
}
