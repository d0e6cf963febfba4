//! Who is connected: how many connections a client certificate has, and who has to go when what is trusted changes.

use std::{
    collections::HashMap,
    fmt::Write,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rustls::pki_types::CertificateDer;
use tokio::sync::watch;

use crate::{
    status::{self, Connections, PeerStatus},
    tls::Peer,
};

/// How many peers are listed: the status and the metrics stay bounded, whoever connects.
const LISTED: usize = 100;

/// The client certificates that have open connections.
#[derive(Default)]
pub struct Peers {
    by_fingerprint: Mutex<HashMap<[u8; 32], Entry>>,
}

struct Entry {
    peer: Arc<Peer>,
    chain: Arc<[CertificateDer<'static>]>,
    connections: usize,
    dismissed: watch::Sender<bool>,
}

/// One connection of a peer, for as long as it lives.
pub struct Member {
    peers: Arc<Peers>,
    peer: Arc<Peer>,
    dismissed: watch::Receiver<bool>,
}

impl Peers {
    /// Takes in one more connection of a peer; `None` where its certificate has `limit` of them already.
    #[must_use]
    pub fn admit(
        self: &Arc<Self>,
        peer: Peer,
        chain: Vec<CertificateDer<'static>>,
        limit: usize,
    ) -> Option<Member> {
        let mut peers = self.lock();
        let entry = peers.entry(peer.fingerprint).or_insert_with(|| Entry {
            peer: Arc::new(peer),
            chain: chain.into(),
            connections: 0,
            dismissed: watch::Sender::new(false),
        });
        if entry.connections >= limit {
            return None;
        }
        entry.connections += 1;
        Some(Member {
            peers: Arc::clone(self),
            peer: Arc::clone(&entry.peer),
            dismissed: entry.dismissed.subscribe(),
        })
    }

    /// Tells the connections of every peer that isn't trusted any more to end; answers who that is, and why.
    pub fn dismiss(
        &self,
        trust: impl Fn(&[CertificateDer<'_>]) -> Result<(), rustls::Error>,
    ) -> Vec<(Arc<Peer>, rustls::Error)> {
        // Verified without the lock, for which every connection that begins or ends would wait.
        let known: Vec<_> =
            self.lock().values().map(|entry| (Arc::clone(&entry.peer), Arc::clone(&entry.chain))).collect();
        let refused = known.into_iter().filter_map(|(peer, chain)| Some((peer, trust(&chain).err()?)));
        let refused: Vec<_> = refused.collect();
        let mut peers = self.lock();
        for (peer, _) in &refused {
            // What a dismissed peer still has open goes by its old entry; if it is trusted again one day, by a new one.
            let is_same = peers.get(&peer.fingerprint).is_some_and(|entry| Arc::ptr_eq(&entry.peer, peer));
            if is_same && let Some(entry) = peers.remove(&peer.fingerprint) {
                entry.dismissed.send_replace(true);
            }
        }
        refused
    }

    /// Who is connected, those with the most connections first.
    #[must_use]
    pub fn status(&self) -> Connections {
        let peers = self.lock();
        let mut list: Vec<_> = peers.values().map(|entry| (&entry.peer, entry.connections)).collect();
        list.sort_unstable_by(|(one, many), (other, more)| {
            more.cmp(many).then_with(|| one.fingerprint.cmp(&other.fingerprint))
        });
        Connections {
            peers: list
                .iter()
                .take(LISTED)
                .map(|(peer, connections)| peer_status(peer, *connections))
                .collect(),
            more_peers: list.len().saturating_sub(LISTED) as u64,
            ..Connections::default()
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<[u8; 32], Entry>> {
        self.by_fingerprint.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Member {
    /// Whose connection it is.
    #[must_use]
    pub fn peer(&self) -> &Arc<Peer> {
        &self.peer
    }

    /// Becomes true when the connection is to end.
    #[must_use]
    pub fn dismissed(&self) -> watch::Receiver<bool> {
        self.dismissed.clone()
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let mut peers = self.peers.lock();
        let Some(entry) = peers.get_mut(&self.peer.fingerprint) else { return };
        if !Arc::ptr_eq(&entry.peer, &self.peer) {
            return; // it was dismissed, and its peer came back
        }
        entry.connections -= 1;
        if entry.connections == 0 {
            peers.remove(&self.peer.fingerprint);
        }
    }
}

fn peer_status(peer: &Peer, connections: usize) -> PeerStatus {
    PeerStatus {
        name: peer.name().to_owned(),
        subject: peer.subject.clone(),
        fingerprint: peer.fingerprint.iter().fold(String::new(), |mut hex, byte| {
            let _ = write!(hex, "{byte:02x}");
            hex
        }),
        connections: connections as u64,
        expires: status::seconds(peer.expires),
        serial: peer.serial.clone(),
        hostnames: peer.names.join(","),
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    fn peer(number: u8) -> Peer {
        Peer {
            subject: format!("CN=edge-{number}"),
            names: Vec::new(),
            serial: number.to_string(),
            fingerprint: [number; 32],
            expires: SystemTime::now(),
        }
    }

    fn chain(number: u8) -> Vec<CertificateDer<'static>> {
        vec![CertificateDer::from(vec![number])]
    }

    #[test]
    fn a_peer_has_no_more_connections_than_it_may_and_a_closed_one_makes_room() {
        let peers = Arc::new(Peers::default());
        let first = peers.admit(peer(1), chain(1), 2);
        let _second = peers.admit(peer(1), chain(1), 2).unwrap();
        assert!(peers.admit(peer(1), chain(1), 2).is_none());
        assert!(peers.admit(peer(2), chain(2), 2).is_some(), "another has its own");
        drop(first);
        assert!(peers.admit(peer(1), chain(1), 2).is_some());
    }

    #[test]
    fn who_is_not_trusted_any_more_is_told_and_nobody_else() {
        let peers = Arc::new(Peers::default());
        let (old, other) =
            (peers.admit(peer(1), chain(1), 9).unwrap(), peers.admit(peer(2), chain(2), 9).unwrap());
        let trust = |chain: &[CertificateDer<'_>]| match chain {
            [leaf] if **leaf == [1] => Err(rustls::Error::DecryptError),
            _ => Ok(()),
        };
        let dismissed = peers.dismiss(trust);
        assert_eq!(dismissed.iter().map(|(peer, _)| peer.name()).collect::<Vec<_>>(), ["CN=edge-1"]);
        assert!(*old.dismissed().borrow() && !*other.dismissed().borrow());
        let back = peers.admit(peer(1), chain(1), 9).unwrap();
        assert!(!*back.dismissed().borrow(), "who is trusted again isn't told for the past");
        drop(old);
        assert_eq!(peers.status().peers.len(), 2, "the end of the old connection is not the end of the new");
    }

    #[test]
    fn the_list_of_peers_is_bounded() {
        let peers = Arc::new(Peers::default());
        let members: Vec<_> = (0..=100).map(|number| peers.admit(peer(number), chain(number), 9)).collect();
        let status = peers.status();
        assert_eq!((status.peers.len(), status.more_peers), (LISTED, 1));
        drop(members);
        assert!(peers.status().peers.is_empty());
    }
}
