//! A component that tries whatever its sandbox must not allow, for the tests of the host. Its configuration says which key
//! does what; told nothing, a key is well-behaved.
//!
//! ```json
//! {"keys": [{"name": "www", "spki": "3059…", "signature": "3045…"}, {"name": "stuck", "sign": "spin"}]}
//! ```
//!
//! A guest has no good place for private keys, and this one needs none: it is told what to answer. It speaks the
//! contract's WIT by itself, without the kit that would keep its author from mistakes.
//!
//! For another machine than WebAssembly's there is nothing here.
#![cfg(target_family = "wasm")]
#![expect(clippy::unwrap_used, reason = "a guest that panics is one more that the host must bear")]

mod amplify;
mod deed;
mod sandbox;
mod traffic;

use std::sync::OnceLock;

use serde::{Deserialize, Deserializer};

use crate::{
    bindings::{
        exports::keystead::backend::plugin::{Advice, Call, Description, Error, Guest, Listing},
        keystead::backend::{host, types::Key},
    },
    deed::Deed,
};

mod bindings {
    wit_bindgen::generate!({ path: "../../../wit", world: "backend" });
    use super::Hostile;
    export!(Hostile);
}

struct Hostile;

/// The configuration.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Config {
    keys: Vec<Plan>,
    /// What opening does beside.
    open: Deed,
    /// What listing does beside.
    list: Deed,
    /// What each look after its health does.
    health: Deed,
}

/// A key as the configuration wants it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Plan {
    /// Its id and its label.
    name: String,
    #[serde(deserialize_with = "hex")]
    spki: Vec<u8>,
    /// What it answers when it is well-behaved.
    #[serde(deserialize_with = "hex")]
    signature: Vec<u8>,
    /// What signing does beside.
    #[serde(default)]
    sign: Deed,
}

impl Guest for Hostile {
    fn describe() -> Description {
        Description {
            name: "hostile".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            vendor: "the tests".to_owned(),
            lanes_max: None,
            schema: r#"{"type": "object"}"#.to_owned(),
        }
    }

    fn open() -> Result<(), Error> {
        config().open.run().map(drop)
    }

    fn advise() -> Advice {
        Advice { lanes: None }
    }

    fn keys(_call: Call) -> Result<Listing, Error> {
        let config = config();
        config.list.run()?;
        if let Deed::Claim(count, len) = config.list {
            return Ok(amplify::listing(count, len));
        }
        Ok(Listing { keys: config.keys.iter().map(Plan::listed).collect(), findings: Vec::new() })
    }

    fn sign(_call: Call, id: Vec<u8>, _algorithm: u32, _input: Vec<u8>) -> Result<Vec<u8>, Error> {
        let config = config();
        let plan = config.keys.iter().find(|plan| plan.name.as_bytes() == id).unwrap();
        Ok(plan.sign.run()?.unwrap_or_else(|| plan.signature.clone()))
    }

    fn decrypt(_call: Call, _id: Vec<u8>, _algorithm: u32, _input: Vec<u8>) -> Result<Vec<u8>, Error> {
        Err(tell(UNSUPPORTED, "not by this key"))
    }

    fn health(_call: Call) -> Result<u64, Error> {
        config().health.run()?;
        Ok(1)
    }
}

impl Plan {
    fn listed(&self) -> Key {
        Key {
            id: self.name.clone().into_bytes(),
            spki: self.spki.clone(),
            label: self.name.clone(),
            algorithms: vec![ECDSA_SHA256],
        }
    }
}

/// `ecdsa-sha256`, by its number in the contract.
const ECDSA_SHA256: u32 = 0x24;

/// Classes of errors, by their numbers in the contract.
const UNSUPPORTED: u32 = 2;
const DENIED: u32 = 4;
const INTERNAL: u32 = 9;

fn tell(code: u32, message: impl Into<String>) -> Error {
    Error { code, message: message.into(), vendor: None, retry_after_ms: None }
}

/// Read once in the life of an instance.
fn config() -> &'static Config {
    static CONFIG: OnceLock<Config> = OnceLock::new();
    CONFIG.get_or_init(|| serde_json::from_str(&host::config("").unwrap()).unwrap())
}

/// Bytes of their hexadecimal digits.
fn hex<'de, D: Deserializer<'de>>(decoder: D) -> Result<Vec<u8>, D::Error> {
    let digits = String::deserialize(decoder)?;
    let pairs = digits.as_bytes().chunks(2);
    Ok(pairs.map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap()).collect())
}
