//! A vault on the wire: requests with a token, which is got as the vault's challenge says, kept for all, refreshed
//! early, and got anew once where it is refused.

use std::time::Duration;

use keystead_plugin_api::{
    Call, Error, Host, Secret,
    http::{Request, Response},
};
use serde::de::DeserializeOwned;

use crate::{
    challenge::Challenge,
    config::Config,
    keys::{Item, Page, broken},
    place::Vault,
    refusal,
};

/// The version of the services' interface: the oldest that all clouds have and that is supported.
const API: &str = "api-version=7.4";

/// How long a token must live still to be sent if there is another, and to be left alone when there is time for one.
const SENT: Duration = Duration::from_secs(30);
const FRESH: Duration = Duration::from_secs(300);

/// How long a vault's challenge is believed. One that has changed shows by a token that is refused.
const CHALLENGE: Duration = Duration::from_secs(24 * 3600);

/// How long no other token is got for a vault that has refused a fresh one, or from where none was to be had.
const LATELY: Duration = Duration::from_secs(5);

/// How many pages a list may have, of 25 keys each.
const PAGES_MAX: usize = 2000;

/// What went wrong, and whether it is about the key that was asked for, or about the vault and who asks.
pub(crate) struct Trouble {
    pub(crate) error: Error,
    pub(crate) of_the_key: bool,
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        Self { error, of_the_key: false }
    }
}

impl From<Trouble> for Error {
    fn from(trouble: Trouble) -> Self {
        trouble.error
    }
}

/// One call's way to the services.
pub(crate) struct Service<'a> {
    pub(crate) host: Host,
    pub(crate) config: &'a Config,
    pub(crate) call: &'a Call<'a>,
}

impl Service<'_> {
    /// Reads what is at a path of a vault's.
    pub(crate) fn get<T: DeserializeOwned>(
        &self,
        vault: &Vault,
        path: &str,
        doing: &str,
    ) -> Result<T, Trouble> {
        self.ask(vault, &Request::new("GET", url(vault, path)), doing)
    }

    /// Sends JSON to a path of a vault's.
    pub(crate) fn post<T: DeserializeOwned>(
        &self,
        vault: &Vault,
        path: &str,
        body: &serde_json::Value,
        doing: &str,
    ) -> Result<T, Trouble> {
        self.ask(vault, &Request::new("POST", url(vault, path)).json(body), doing)
    }

    /// Every item of a list. Only the vault's own links are followed: what follows one carries a token.
    pub(crate) fn list(&self, vault: &Vault, path: &str, doing: &str) -> Result<Vec<Item>, Trouble> {
        let mut items = Vec::new();
        let mut next = Some(format!("{}&maxresults=25", url(vault, path)));
        for _ in 0..PAGES_MAX {
            let link = next.ok_or_else(|| broken("a page whose next isn't its own"))?;
            let page: Page = self.ask(vault, &Request::new("GET", link), doing)?;
            items.extend(page.value);
            next = match page.next.filter(|link| !link.is_empty()) {
                None => return Ok(items),
                Some(link) => vault.own(&link),
            };
        }
        Err(broken("a list without an end").into())
    }

    /// Gets a token for a vault before the old one ends. As long as that lives, it is no matter where this fails.
    pub(crate) fn refresh(&self, vault: &Vault) -> Result<(), Error> {
        let challenge = self.challenge(vault)?;
        let Err(error) = self.fresh(&challenge, FRESH) else { return Ok(()) };
        self.old(&challenge, &error)?;
        tracing::warn!("no new token, while the old one still lives: {error}");
        Ok(())
    }

    fn ask<T: DeserializeOwned>(&self, vault: &Vault, request: &Request, doing: &str) -> Result<T, Trouble> {
        let (mut token, mut response) = self.send(vault, request)?;
        if response.status == 401 && !self.refused_lately(vault) {
            self.forget(vault, &token)?;
            (token, response) = self.send(vault, request)?;
            if response.status == 401 {
                self.note_refusal(vault);
            }
        }
        if response.status == 200 {
            return response.object().map_err(|mut error| {
                error.message = format!("{doing}: {}", error.message);
                error.into()
            });
        }
        if let Some(token) = str::from_utf8(token.expose()).ok().filter(|token| !token.is_empty()) {
            let said = String::from_utf8_lossy(&response.body);
            response.body = said.replace(token, "…").into_bytes(); // whoever repeats it, it goes no further
        }
        Err(Trouble {
            error: refusal::by_vault(doing, &response),
            of_the_key: refusal::is_of_the_key(&response),
        })
    }

    /// Forgets a token that was refused, and the challenge that it was got by: the vault may have moved.
    fn forget(&self, vault: &Vault, token: &Secret) -> Result<(), Error> {
        let challenge = self.challenge(vault)?.written();
        self.host.forget(&challenge, token);
        self.host.forget(&kept_for(vault), &Secret::new(challenge.into_bytes()));
        Ok(())
    }

    /// Whether a vault has just refused a fresh token. A new one for each request then helps nobody, and whoever makes
    /// them would throttle.
    fn refused_lately(&self, vault: &Vault) -> bool {
        self.host.kept(self.call, &refused_by(vault)).is_some()
    }

    fn note_refusal(&self, vault: &Vault) {
        let lately = Secret::new(b"lately".to_vec());
        let _ = self.host.keep(self.call, &refused_by(vault), lately, LATELY); // what isn't kept isn't missed
    }

    /// Sends a request with a token.
    fn send(&self, vault: &Vault, request: &Request) -> Result<(Secret, Response), Error> {
        let challenge = self.challenge(vault)?;
        let token = self.token(&challenge)?;
        let bearer = format!("Bearer {}", str::from_utf8(token.expose()).unwrap_or_default());
        let response = self.host.fetch(self.call, &request.clone().header("authorization", bearer))?;
        Ok((token, response))
    }

    /// What a vault wants: asked for once, by a request without a token.
    fn challenge(&self, vault: &Vault) -> Result<Challenge, Error> {
        let ask = || {
            let request = Request::new("GET", format!("{}&maxresults=1", url(vault, "/keys")));
            let response = self.host.fetch(self.call, &request)?;
            match (response.status, response.header("www-authenticate")) {
                (401, Some(header)) => {
                    let challenge = Challenge::parse(vault, header)?;
                    Ok((Secret::new(challenge.written().into_bytes()), CHALLENGE))
                }
                (200..300 | 401, _) => Err(broken("without a challenge to a request without a token")),
                _ => Err(refusal::by_vault(
                    &format!("asking {} where its tokens are made", vault.url()),
                    &response,
                )),
            }
        };
        let kept = self.host.cached(self.call, &kept_for(vault), Duration::ZERO, ask)?;
        Challenge::read(kept.expose()).ok_or_else(|| broken("no challenge"))
    }

    /// A token; the last seconds of an old one, where there is no other.
    fn token(&self, challenge: &Challenge) -> Result<Secret, Error> {
        self.fresh(challenge, SENT).or_else(|error| self.old(challenge, &error))
    }

    fn fresh(&self, challenge: &Challenge, at_least: Duration) -> Result<Secret, Error> {
        let get = || self.config.credential.token(self.host, self.call, challenge);
        self.host.cached_or_failed(self.call, &challenge.written(), at_least, LATELY, get)
    }

    fn old(&self, challenge: &Challenge, error: &Error) -> Result<Secret, Error> {
        self.host.cached(self.call, &challenge.written(), Duration::ZERO, || Err(error.clone()))
    }
}

fn url(vault: &Vault, path: &str) -> String {
    format!("{}{path}?{API}", vault.url())
}

/// The name that a vault's challenge is kept under.
fn kept_for(vault: &Vault) -> String {
    format!("challenge {}", vault.url())
}

/// The name that a vault's refusal is kept under.
fn refused_by(vault: &Vault) -> String {
    format!("refused {}", vault.url())
}
