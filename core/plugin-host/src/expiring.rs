//! Values that expire, shared by all that serve one store: access tokens. One caller gets a new one, the others wait.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::{sync::Notify, time::sleep_until};
use zeroize::Zeroizing;

use keystead_plugin_api::{Code, Error};

/// How long one caller may take to get a value, before the next tries.
const DUTY: Duration = Duration::from_secs(30);

/// How many names a store may have values for, and how long a name and a value may be, in bytes.
const NAMES_MAX: usize = 64;
const NAME_MAX: usize = 256;
const VALUE_MAX: usize = 64 << 10;

/// The longest life of a value.
const LIFE_MAX: Duration = Duration::from_secs(24 * 3600);

/// The values of one store.
#[derive(Default)]
pub(crate) struct Expiring {
    entries: Mutex<BTreeMap<String, Entry>>,
    changed: Notify,
}

#[derive(Default)]
struct Entry {
    value: Option<(Zeroizing<Vec<u8>>, Instant)>,
    /// Until when somebody has the duty to get a value.
    duty: Option<Instant>,
}

impl Expiring {
    /// The value of a name, if it lives for `at_least` from now; `None` gives the caller the duty to get a new one.
    /// Waits while another has it, until `deadline`.
    pub(crate) async fn get(
        &self,
        name: &str,
        at_least: Duration,
        deadline: Instant,
    ) -> Result<Option<Zeroizing<Vec<u8>>>, Error> {
        loop {
            let changed = self.changed.notified();
            let duty_ends = match self.look(name, at_least)? {
                Look::Lives(value) => return Ok(Some(value)),
                Look::Duty => return Ok(None),
                Look::Wait(until) => until,
            };
            tokio::select! {
                () = changed => {}
                () = sleep_until(duty_ends.into()) => {}
                () = sleep_until(deadline.into()) => {
                    return Err(Error::new(Code::Deadline, "a value that another call gets did not come in time"));
                }
            }
        }
    }

    fn look(&self, name: &str, at_least: Duration) -> Result<Look, Error> {
        let now = Instant::now();
        let mut entries = self.lock();
        if name.len() > NAME_MAX || (entries.len() >= NAMES_MAX && !entries.contains_key(name)) {
            let what =
                format!("a store has at most {NAMES_MAX} values that expire, of names of {NAME_MAX} bytes");
            return Err(Error::invalid(what));
        }
        let entry = entries.entry(name.to_owned()).or_default();
        match (&entry.value, entry.duty) {
            (Some((value, until)), _) if until.saturating_duration_since(now) > at_least => {
                Ok(Look::Lives(value.clone()))
            }
            (_, Some(until)) if until > now => Ok(Look::Wait(until)),
            _ => {
                entry.duty = Some(now + DUTY);
                Ok(Look::Duty)
            }
        }
    }

    /// Keeps a value; whoever waits gets it.
    pub(crate) fn put(&self, name: &str, value: Zeroizing<Vec<u8>>, lives: Duration) -> Result<(), Error> {
        if value.len() > VALUE_MAX {
            return Err(Error::invalid(format!("a value that expires has at most {VALUE_MAX} bytes")));
        }
        let until = Instant::now() + lives.min(LIFE_MAX);
        let kept =
            self.lock().get_mut(name).map(|entry| *entry = Entry { value: Some((value, until)), duty: None });
        self.changed.notify_waiters();
        kept.ok_or_else(|| Error::invalid("a value that expires is put by who was asked to get it"))
    }

    /// Hands the duty on.
    pub(crate) fn give_up(&self, name: &str) {
        if let Some(entry) = self.lock().get_mut(name) {
            entry.duty = None;
        }
        self.changed.notify_waiters();
    }

    /// Forgets a value, if it is still this one.
    pub(crate) fn forget(&self, name: &str, value: &[u8]) {
        if let Some(entry) = self.lock().get_mut(name) {
            entry.value = entry.value.take().filter(|(kept, _)| kept.as_slice() != value);
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

enum Look {
    Lives(Zeroizing<Vec<u8>>),
    Duty,
    Wait(Instant),
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    const SOON: Duration = Duration::from_secs(60);

    fn in_a_minute() -> Instant {
        Instant::now() + SOON
    }

    fn value(text: &str) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(text.as_bytes().to_vec())
    }

    #[tokio::test]
    async fn of_many_who_ask_one_gets_the_value_and_all_have_it() {
        let expiring = Arc::new(Expiring::default());
        assert!(expiring.get("token", Duration::ZERO, in_a_minute()).await.unwrap().is_none());
        let ask = || {
            let expiring = Arc::clone(&expiring);
            tokio::spawn(async move { expiring.get("token", Duration::ZERO, in_a_minute()).await.unwrap() })
        };
        let waiting: Vec<_> = (0..64).map(|_| ask()).collect();
        tokio::task::yield_now().await;
        expiring.put("token", value("t1"), SOON).unwrap();
        for waiting in waiting {
            assert_eq!(waiting.await.unwrap().unwrap().as_slice(), b"t1");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_gives_up_or_vanishes_hands_the_duty_on() {
        let expiring = Expiring::default();
        let deadline = Instant::now() + Duration::from_secs(600);
        let get = || expiring.get("token", Duration::ZERO, deadline);
        assert!(get().await.unwrap().is_none());
        expiring.give_up("token");
        assert!(get().await.unwrap().is_none(), "the next has the duty");
        let late = expiring.get("token", Duration::ZERO, Instant::now()).await;
        assert_eq!(late.unwrap_err().code, Code::Deadline);
    }

    #[tokio::test]
    async fn a_value_that_does_not_live_long_enough_or_was_refused_is_got_anew() {
        let expiring = Expiring::default();
        assert!(expiring.get("token", Duration::ZERO, in_a_minute()).await.unwrap().is_none());
        expiring.put("token", value("t1"), Duration::from_secs(10)).unwrap();
        assert!(expiring.get("token", Duration::from_secs(9), in_a_minute()).await.unwrap().is_some());
        assert!(expiring.get("token", SOON, in_a_minute()).await.unwrap().is_none(), "refreshed early");
        assert!(
            expiring.get("token", Duration::ZERO, in_a_minute()).await.unwrap().is_some(),
            "others use it meanwhile"
        );
        expiring.put("token", value("t2"), SOON).unwrap();
        expiring.forget("token", b"t1");
        assert!(expiring.get("token", Duration::ZERO, in_a_minute()).await.unwrap().is_some());
        expiring.forget("token", b"t2");
        assert!(expiring.get("token", Duration::ZERO, in_a_minute()).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn a_store_keeps_no_more_than_it_may() {
        let expiring = Expiring::default();
        for number in 0..NAMES_MAX {
            expiring.get(&number.to_string(), Duration::ZERO, in_a_minute()).await.unwrap();
        }
        assert_eq!(
            expiring.get("more", Duration::ZERO, in_a_minute()).await.unwrap_err().code,
            Code::InvalidInput
        );
        expiring.put("1", Zeroizing::new(vec![0; VALUE_MAX + 1]), SOON).unwrap_err();
        expiring.put("unasked", value("v"), SOON).unwrap_err();
    }
}
