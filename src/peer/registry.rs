//! Who is connected to this node, so that no two processes pass for one.
//!
//! Invariant: of all connections that are in it, those of one name or number are of one process.
//! A newcomer that would break it waits for a moment: if the holder speaks in that time, which a
//! living one does with every ping, the newcomer is refused; else the holder is replaced.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::hello::{Identity, Purpose};
use super::refusal::Objection;

/// A connection that was taken in.
#[derive(Debug)]
pub(super) struct Entry {
    identity: Arc<Identity>,
    instance: u64,
    heard: AtomicU64,
    /// Set when the connection is to end, because another takes its place.
    pub(super) replaced: CancellationToken,
    gone: CancellationToken,
}

impl Entry {
    /// Notes that something arrived.
    pub(super) fn heard(&self) {
        self.heard.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether it is another process than `instance` under the same name or number.
    fn rivals(&self, identity: &Identity, instance: u64) -> bool {
        self.instance != instance
            && (self.identity.name == identity.name || self.is_of_same_node(identity))
    }

    fn is_of_same_node(&self, identity: &Identity) -> bool {
        self.identity.node.is_some() && self.identity.node == identity.node
    }

    fn objection(&self) -> Objection {
        let holder = format!("the node at {}", self.identity.peer_addr);
        Objection::Duplicate { name: self.identity.name.clone(), holder }
    }
}

/// The connections that were taken in.
#[derive(Debug, Default)]
pub(super) struct Registry(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    next: u64,
    entries: BTreeMap<u64, Arc<Entry>>,
}

/// A place in the registry, until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    registry: Arc<Registry>,
    number: u64,
    entry: Arc<Entry>,
}

impl Place {
    pub(super) fn entry(&self) -> &Entry {
        &self.entry
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.registry.0.lock().entries.remove(&self.number);
        self.entry.gone.cancel();
    }
}

impl Registry {
    /// Takes in a connection that comes from a process `instance`; only a link gets a place.
    ///
    /// # Errors
    /// Another process of that name or number is connected, and speaks within `patience`.
    pub(super) async fn admit(
        self: &Arc<Self>,
        us: &Identity,
        them: &Arc<Identity>,
        instance: u64,
        purpose: Purpose,
        patience: Duration,
    ) -> Result<Option<Place>, Objection> {
        if us.name == them.name || (us.node.is_some() && us.node == them.node) {
            let holder = "this node".to_owned();
            return Err(Objection::Duplicate { name: us.name.clone(), holder });
        }
        loop {
            let rivals = match self.enter(them, instance, purpose) {
                Ok(place) => return Ok(place),
                Err(rivals) => rivals,
            };
            let before: Vec<u64> = rivals.iter().map(heard).collect();
            let all_gone = async {
                for (_, rival) in &rivals {
                    rival.gone.cancelled().await;
                }
            };
            // Either way, what counts is who is still there and has spoken.
            let _ = timeout(patience, all_gone).await;
            for ((number, rival), before) in rivals.iter().zip(before) {
                if !rival.gone.is_cancelled() && rival.heard.load(Ordering::Relaxed) != before {
                    return Err(rival.objection());
                }
                rival.replaced.cancel();
                self.0.lock().entries.remove(number);
            }
        }
    }

    /// Gives a link its place, and ends the connection in whose stead it comes. Gives back the
    /// rivals if there are any.
    fn enter(
        self: &Arc<Self>,
        them: &Arc<Identity>,
        instance: u64,
        purpose: Purpose,
    ) -> Result<Option<Place>, Vec<(u64, Arc<Entry>)>> {
        let mut table = self.0.lock();
        let rivals: Vec<_> = table
            .entries
            .iter()
            .filter(|(_, entry)| entry.rivals(them, instance))
            .map(|(number, entry)| (*number, Arc::clone(entry)))
            .collect();
        if !rivals.is_empty() {
            return Err(rivals);
        }
        if purpose == Purpose::Knock {
            return Ok(None);
        }
        for entry in table.entries.values().filter(|entry| entry.is_of_same_node(them)) {
            entry.replaced.cancel();
        }
        let number = table.next;
        table.next += 1;
        let entry = Arc::new(Entry {
            identity: Arc::clone(them),
            instance,
            heard: AtomicU64::new(0),
            replaced: CancellationToken::new(),
            gone: CancellationToken::new(),
        });
        table.entries.insert(number, Arc::clone(&entry));
        drop(table);
        Ok(Some(Place { registry: Arc::clone(self), number, entry }))
    }
}

fn heard((_, rival): &(u64, Arc<Entry>)) -> u64 {
    rival.heard.load(Ordering::Relaxed)
}

#[cfg(test)]
mod tests {
    use super::super::hello::tests::hello;
    use super::*;
    use crate::topology::NodeId;

    const PATIENCE: Duration = Duration::from_millis(30);

    fn who(name: &str, node: Option<u64>) -> Arc<Identity> {
        Arc::new(Identity { node: node.map(NodeId), ..hello(name).identity })
    }

    async fn admit(
        registry: &Arc<Registry>,
        them: &Arc<Identity>,
        instance: u64,
        purpose: Purpose,
    ) -> Result<Option<Place>, Objection> {
        let us = who("us", Some(1));
        registry.admit(&us, them, instance, purpose, PATIENCE).await
    }

    #[tokio::test]
    async fn a_process_that_comes_again_takes_its_old_connections_place() {
        let registry = Arc::default();
        let them = who("them", Some(2));
        let old = admit(&registry, &them, 7, Purpose::Link).await.unwrap().unwrap();
        old.entry().heard();
        let new = admit(&registry, &them, 7, Purpose::Link).await.unwrap().unwrap();
        assert!(old.entry().replaced.is_cancelled());
        assert!(!new.entry().replaced.is_cancelled());
    }

    #[tokio::test]
    async fn another_process_is_refused_while_the_first_one_speaks() {
        let registry = Arc::default();
        let them = who("them", Some(2));
        let place = admit(&registry, &them, 7, Purpose::Link).await.unwrap().unwrap();
        for (other, purpose) in [
            (who("them", Some(2)), Purpose::Link),
            (who("them", None), Purpose::Knock),
            (who("other", Some(2)), Purpose::Link),
        ] {
            let speaks = async {
                tokio::time::sleep(PATIENCE / 3).await;
                place.entry().heard();
            };
            let (refused, ()) = tokio::join!(admit(&registry, &other, 8, purpose), speaks);
            assert!(matches!(refused, Err(Objection::Duplicate { .. })), "{other:?}");
        }
        assert!(admit(&registry, &who("other", None), 8, Purpose::Knock).await.is_ok());
        assert!(!place.entry().replaced.is_cancelled());
    }

    #[tokio::test]
    async fn a_holder_that_is_silent_or_gone_is_replaced() {
        let registry = Arc::default();
        let them = who("them", Some(2));
        let silent = admit(&registry, &them, 7, Purpose::Link).await.unwrap().unwrap();
        let restarted = admit(&registry, &them, 8, Purpose::Link).await.unwrap().unwrap();
        assert!(silent.entry().replaced.is_cancelled());
        let goes = async {
            restarted.entry().heard();
            tokio::task::yield_now().await;
            drop(restarted);
        };
        let (admitted, ()) = tokio::join!(admit(&registry, &them, 9, Purpose::Link), goes);
        assert!(admitted.unwrap().is_some());
    }

    #[tokio::test]
    async fn nobody_else_may_have_this_nodes_own_name_or_number() {
        let registry = Arc::default();
        for them in [who("us", None), who("them", Some(1))] {
            let refused = admit(&registry, &them, 8, Purpose::Knock).await;
            assert!(matches!(refused, Err(Objection::Duplicate { .. })), "{them:?}");
        }
    }
}
