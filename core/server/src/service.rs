//! One request, from its body to its answer: policy, keyring, backend.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use keystead_plugin_host::{Algorithm, Class, Failure, Request as Call, tame};
use keystead_protocol::{ErrorCode, Opcode, Request, Response};

use crate::{
    config::Config,
    failures::About,
    keyring::{Holder, Missing},
    metrics::{Metrics, Shed, Waiting},
    policy,
    stores::Stores,
    tls::Peer,
};

/// Bytes of an answer of the usual, padded size.
pub(crate) const ANSWER: usize = 1040;

/// Pauses before a request that failed in a way that may pass is tried again with the same stores.
const PAUSES: [Duration; 2] = [Duration::from_millis(50), Duration::from_millis(250)];

/// How long a request for a key that nobody lists waits for stores that haven't been tried since the start: long enough
/// for those that are well.
const FIRST_TRIES: Duration = Duration::from_secs(2);

/// How often that happens at least, whatever `sign_retry_count` says.
const ROUNDS: u32 = 2;

/// Answers requests. Shared by all connections.
pub struct Service {
    stores: Arc<Stores>,
    metrics: Arc<Metrics>,
    terms: ArcSwap<Terms>,
}

/// What the configuration says of every request.
#[derive(Clone, Copy, Debug)]
struct Terms {
    deadline: Duration,
    sign_timeout: Option<Duration>,
    sign_retries: u32,
}

impl From<&Config> for Terms {
    fn from(config: &Config) -> Self {
        Self {
            deadline: config.limits.deadline,
            sign_timeout: config.sign_timeout,
            sign_retries: config.sign_retry_count,
        }
    }
}

impl Service {
    /// A service over stores.
    #[must_use]
    pub fn new(stores: Arc<Stores>, metrics: Arc<Metrics>, config: &Config) -> Self {
        Self { stores, metrics, terms: ArcSwap::from_pointee(Terms::from(config)) }
    }

    /// Goes by another configuration from the next request on.
    pub fn configure(&self, config: &Config) {
        self.terms.store(Arc::new(Terms::from(config)));
    }

    /// Counts a connection that isn't read until answers have left.
    pub(crate) fn waits(&self) {
        self.metrics.backpressure(Waiting::Requests);
    }

    /// Answers the body of one frame with a frame of the same id. A body that can't be read is answered with
    /// [`ErrorCode::FORMAT`].
    pub async fn answer(&self, peer: &Peer, id: u32, body: &[u8], arrived: Instant) -> Vec<u8> {
        let mut frame = Vec::with_capacity(ANSWER);
        let Ok(request) = Request::decode(body) else {
            encode(Response::Failure(ErrorCode::FORMAT), id, &mut frame);
            return frame;
        };
        self.metrics.request(request.opcode);
        let started = Instant::now();
        let outcome = self.perform(peer, &request, arrived).await;
        let (error, response) = match &outcome {
            Ok(Done::Result(result)) => (None, Response::Success(result)),
            Ok(Done::Pong) => (None, Response::Pong(request.payload)),
            Err(code) => (Some(*code), Response::Failure(*code)),
        };
        self.metrics.done(request.opcode, error, started, arrived);
        encode(response, id, &mut frame);
        frame
    }

    async fn perform(&self, peer: &Peer, request: &Request<'_>, arrived: Instant) -> Result<Done, ErrorCode> {
        match request.opcode {
            Opcode::PING => return Ok(Done::Pong),
            Opcode::RESPONSE | Opcode::PONG | Opcode::ERROR => return Err(ErrorCode::UNEXPECTED_OPCODE),
            Opcode::SEAL | Opcode::UNSEAL | Opcode::RPC => return Err(ErrorCode::INTERNAL),
            _ => {}
        }
        let algorithm = algorithm(request.opcode).ok_or(ErrorCode::BAD_OPCODE)?;
        let terms = **self.terms.load();
        let find = || self.metrics.lookup(|| self.stores.keyring().find(request.ski, request.digest));
        let mut found = find();
        if matches!(found, Err(Missing::Perhaps))
            && self.stores.were_tried(FIRST_TRIES.min(terms.deadline)).await
        {
            found = find();
        }
        let holders = found.map_err(|missing| self.miss(missing, request, peer))?;
        let work = Work { peer, request, id: request_id(request), algorithm, arrived, terms };
        match self.with_any(&holders, &work).await {
            Ok(result) => Ok(Done::Result(result)),
            Err((holder, failure)) => {
                if failure.class == Class::Shed {
                    self.metrics.shed(Shed::Queue);
                }
                let failures =
                    holder.map_or_else(|| self.stores.missing(), |holder| holder.store().failures());
                failures.note(&failure, About::request(request.ski, peer.name(), work.id.as_deref()));
                Err(on_the_wire(failure.class))
            }
        }
    }

    fn miss(&self, missing: Missing, request: &Request<'_>, peer: &Peer) -> ErrorCode {
        let why = match missing {
            Missing::Unknown => "no store has the key",
            Missing::Unnamed => "the request names no key",
            Missing::Perhaps => "no store has the key, but some have not listed theirs yet",
        };
        let failure = Failure::new(Class::NotFound, why);
        let about = About::request(request.ski, peer.name(), request_id(request).as_deref());
        self.stores.missing().note(&failure, about);
        match missing {
            Missing::Unknown => ErrorCode::KEY_NOT_FOUND,
            Missing::Unnamed | Missing::Perhaps => ErrorCode::INTERNAL,
        }
    }

    /// Tries the stores that hold the key, and again while that may help and there is time.
    async fn with_any<'h>(
        &self,
        holders: &'h [Holder],
        work: &Work<'_>,
    ) -> Result<Vec<u8>, (Option<&'h Holder>, Failure)> {
        let mut round = 0;
        loop {
            let (holder, failure) = match self.with_each(holders, work).await {
                Ok(result) => return Ok(result),
                Err(None) => return Err((holders.first(), disproven())),
                Err(Some(failed)) => failed,
            };
            let end = work.deadline(holder);
            let pause = work.pause(round, &failure).filter(|pause| Instant::now() + *pause < end);
            match pause {
                Some(pause) => tokio::time::sleep(pause).await,
                None => return Err((Some(holder), failure)),
            }
            round += 1;
        }
    }

    /// Tries the stores in turn, those that are well first: another may be allowed or awake where one isn't. Where one of
    /// the keys can do what is asked, the others aren't: of a key pair, a service may have a key for each padding. Of the
    /// failures, one that may pass counts most, then the first; there is none where no key may be used.
    async fn with_each<'h>(
        &self,
        holders: &'h [Holder],
        work: &Work<'_>,
    ) -> Result<Vec<u8>, Option<(&'h Holder, Failure)>> {
        let can = |holder: &Holder| holder.key().algorithms().contains(&work.algorithm);
        let one_can = holders.iter().any(|holder| !holder.is_disproven() && can(holder));
        let fit = |holder: &&Holder| !holder.is_disproven() && can(holder) == one_can;
        let trusted = || holders.iter().filter(fit);
        let preferred = trusted().filter(|holder| holder.store().is_preferred());
        let others = trusted().filter(|holder| !holder.store().is_preferred());
        let mut failed: Option<(&Holder, Failure)> = None;
        for holder in preferred.chain(others) {
            let failure = match self.with(holder, work).await {
                Ok(result) => return Ok(result),
                Err(failure) => failure,
            };
            let hopeless = failure.class == Class::InvalidInput;
            if failed.as_ref().is_none_or(|(_, before)| !may_pass(before) && may_pass(&failure)) {
                failed = Some((holder, failure));
            }
            if hopeless {
                break;
            }
        }
        Err(failed)
    }

    async fn with(&self, holder: &Holder, work: &Work<'_>) -> Result<Vec<u8>, Failure> {
        let permit = policy::decide(work.peer, holder.store(), work.algorithm).map_err(denied)?;
        let mut deadline = work.deadline(holder);
        if let Some(timeout) = work.terms.sign_timeout.filter(|_| is_hash_signature(work.algorithm)) {
            deadline = deadline.min(Instant::now() + timeout);
        }
        let call = Call { id: work.id.as_deref().unwrap_or_default(), deadline };
        holder.perform(permit, work.request.payload, call).await
    }
}

/// What came of a request.
enum Done {
    Pong,
    Result(Vec<u8>),
}

/// A request that has been understood.
struct Work<'a> {
    peer: &'a Peer,
    request: &'a Request<'a>,
    id: Option<String>,
    algorithm: Algorithm,
    arrived: Instant,
    terms: Terms,
}

impl Work<'_> {
    /// When nobody waits for a store's answer any more.
    fn deadline(&self, holder: &Holder) -> Instant {
        self.arrived + holder.store().deadline().unwrap_or(Duration::MAX).min(self.terms.deadline)
    }

    /// How long to wait before the next round; `None` where there is none. A deadline that passed is tried again only
    /// where `sign_timeout` made it short of the request's own.
    fn pause(&self, round: u32, failure: &Failure) -> Option<Duration> {
        let retries = if is_hash_signature(self.algorithm) { self.terms.sign_retries } else { 0 };
        let (rounds, pause) = match failure.class {
            Class::Deadline => (retries, Duration::ZERO),
            class if class.is_transient() => {
                let pause = PAUSES.get(round as usize).or(PAUSES.last()).copied().unwrap_or_default();
                (retries.max(ROUNDS), failure.retry_after.unwrap_or(pause))
            }
            _ => return None,
        };
        (round < rounds).then_some(pause)
    }
}

/// What an opcode asks for; `None` where that is nothing this server knows.
#[must_use]
pub fn algorithm(opcode: Opcode) -> Option<Algorithm> {
    Some(match opcode {
        Opcode::RSA_DECRYPT => Algorithm::RsaRaw,
        Opcode::RSA_SIGN_MD5SHA1 => Algorithm::RsaPkcs1Md5Sha1,
        Opcode::RSA_SIGN_SHA1 => Algorithm::RsaPkcs1Sha1,
        Opcode::RSA_SIGN_SHA224 => Algorithm::RsaPkcs1Sha224,
        Opcode::RSA_SIGN_SHA256 => Algorithm::RsaPkcs1Sha256,
        Opcode::RSA_SIGN_SHA384 => Algorithm::RsaPkcs1Sha384,
        Opcode::RSA_SIGN_SHA512 => Algorithm::RsaPkcs1Sha512,
        Opcode::RSA_PSS_SIGN_SHA256 => Algorithm::RsaPssSha256,
        Opcode::RSA_PSS_SIGN_SHA384 => Algorithm::RsaPssSha384,
        Opcode::RSA_PSS_SIGN_SHA512 => Algorithm::RsaPssSha512,
        Opcode::ECDSA_SIGN_MD5SHA1 => Algorithm::EcdsaMd5Sha1,
        Opcode::ECDSA_SIGN_SHA1 => Algorithm::EcdsaSha1,
        Opcode::ECDSA_SIGN_SHA224 => Algorithm::EcdsaSha224,
        Opcode::ECDSA_SIGN_SHA256 => Algorithm::EcdsaSha256,
        Opcode::ECDSA_SIGN_SHA384 => Algorithm::EcdsaSha384,
        Opcode::ECDSA_SIGN_SHA512 => Algorithm::EcdsaSha512,
        Opcode::ED25519_SIGN => Algorithm::Ed25519,
        _ => return None,
    })
}

/// The one table from what went wrong to what the edge is told.
fn on_the_wire(class: Class) -> ErrorCode {
    match class {
        Class::NotFound => ErrorCode::KEY_NOT_FOUND,
        Class::Shed | Class::Internal => ErrorCode::INTERNAL,
        _ => ErrorCode::CRYPTOGRAPHY,
    }
}

/// What `sign_timeout` and `sign_retry_count` of the reference apply to.
fn is_hash_signature(algorithm: Algorithm) -> bool {
    !matches!(algorithm, Algorithm::Ed25519 | Algorithm::RsaRaw)
}

fn may_pass(failure: &Failure) -> bool {
    failure.class.is_transient() || failure.class == Class::Deadline
}

fn denied(reason: String) -> Failure {
    Failure::new(Class::Denied, reason)
}

fn disproven() -> Failure {
    Failure::new(Class::Internal, "the key did not prove to be what it says it is")
}

/// The request's own id, from its context (a JSON object); bad JSON is as none.
fn request_id(request: &Request<'_>) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Context {
        request_id: String,
    }
    let context: Context = serde_json::from_slice(request.context?).ok()?;
    Some(tame(context.request_id.as_bytes(), 64))
}

fn encode(response: Response<'_>, id: u32, frame: &mut Vec<u8>) {
    if response.encode(id, frame).is_err() {
        // No backend's result is that long: the host's buffers are smaller.
        let _ = Response::Failure(ErrorCode::INTERNAL).encode(id, frame);
    }
}
