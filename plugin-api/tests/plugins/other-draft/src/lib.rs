//! A plugin that was built for the next draft of the contract.

use std::time::Duration;

use keystead_plugin_api::{
    Algorithm, Backend, Call, Description, Error, Health, Host, Isolation, Listing, Output,
    abi::{BackendTable, DRAFT},
    kit,
};

keystead_plugin_api::export_table!(BackendTable { draft: DRAFT + 1, ..kit::table::<Tomorrow>() });

/// What no host gets to see.
struct Tomorrow;

impl Backend for Tomorrow {
    const DESCRIPTION: Description = Description {
        name: "other-draft",
        version: env!("CARGO_PKG_VERSION"),
        vendor: "the tests",
        isolation: Isolation::Inline,
        lanes_max: None,
        schema: r#"{"type": "object"}"#,
    };

    fn open(_host: Host) -> Result<Self, Error> {
        Ok(Self)
    }

    fn keys(&self, _call: &Call<'_>) -> Result<Listing, Error> {
        Ok(Listing::default())
    }

    fn sign(
        &self,
        _call: &Call<'_>,
        _key: &[u8],
        _algorithm: Algorithm,
        _input: &[u8],
        _out: &mut Output<'_>,
    ) -> Result<(), Error> {
        Err(Error::unknown_key())
    }

    fn decrypt(
        &self,
        _call: &Call<'_>,
        _key: &[u8],
        _algorithm: Algorithm,
        _input: &[u8],
        _out: &mut Output<'_>,
    ) -> Result<(), Error> {
        Err(Error::unknown_key())
    }

    fn health(&self, _call: &Call<'_>) -> Result<Health, Error> {
        Ok(Health::default())
    }

    fn close(&self, _grace: Duration) {}
}
