//! What all connections of one transport share.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, ArcSwapOption};
use parking_lot::Mutex;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::debug;

use super::dialler::{Dialler, Lane};
use super::hello::Identity;
use super::intake::AnyHandler;
use super::link::Board;
use super::refusal::{Objection, Refusal, Refusals};
use super::registry::Registry;
use super::secret::Secrets;
use super::strangers::Strangers;
use super::tls::Tls;
use crate::complaint::{brief, brief_error, complain};
use crate::topology::{NodeId, Roster};

/// Most connections from others that have introduced themselves, at a time.
pub(super) const ACCEPTED_MAX: usize = 1024;

/// How long an ending connection may take to write what is queued.
pub(super) const LAST_WORDS_MAX: Duration = Duration::from_millis(500);

/// The intervals of a transport. The defaults keep failover within its budget.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// Between two pings.
    pub ping: Duration,
    /// How long nothing may be heard until a link counts as down.
    pub silent_after: Duration,
    /// How long nothing may be heard, or written, until a connection is given up.
    pub close_after: Duration,
    /// How long resolving, and connecting to one address, may take.
    pub connect_max: Duration,
    /// How long an introduction may take.
    pub handshake_max: Duration,
    /// The first pause before dialling again; it doubles from there.
    pub redial_min: Duration,
    /// The longest pause before dialling again, and the shortest after a refusal.
    pub redial_max: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            ping: Duration::from_millis(200),
            silent_after: Duration::from_millis(1_200),
            close_after: Duration::from_secs(5),
            connect_max: Duration::from_secs(1),
            handshake_max: Duration::from_secs(3),
            redial_min: Duration::from_millis(50),
            redial_max: Duration::from_secs(1),
        }
    }
}

impl Timing {
    /// The longest step in which silence is counted: what is longer is this process's own pause.
    pub(super) fn step_max(&self) -> Duration {
        self.ping * 2
    }

    /// How long a second process of one name waits for a sign of the first.
    pub(super) fn patience(&self) -> Duration {
        self.ping * 3
    }
}

/// Who this node is, and until when: the token is cancelled when it is no more.
#[derive(Clone, Debug)]
pub(super) struct Standing {
    pub(super) identity: Arc<Identity>,
    pub(super) renewed: CancellationToken,
}

/// What all connections of one transport share.
pub(super) struct Shared {
    /// A random number of this process.
    pub(super) instance: u64,
    pub(super) timing: Timing,
    pub(super) secrets: ArcSwap<Secrets>,
    pub(super) tls: ArcSwapOption<Tls>,
    standing: Mutex<Standing>,
    /// Whom to keep a connection to. Changed under `diallers_change` alone.
    pub(super) diallers: ArcSwap<BTreeMap<NodeId, Arc<Dialler>>>,
    pub(super) diallers_change: Mutex<()>,
    /// Connections that came from others, by which they can be reached as well.
    pub(super) ways_back: Mutex<BTreeMap<NodeId, Arc<Lane>>>,
    /// Who is given what others send, as long as this node listens: tasks keep it, not this.
    pub(super) handler: Weak<dyn AnyHandler>,
    pub(super) roster: watch::Sender<Roster>,
    /// The member that says that this node was removed from the cluster.
    pub(super) removed_by: watch::Sender<Option<String>>,
    pub(super) links: Board,
    pub(super) refusals: Refusals,
    pub(super) registry: Arc<Registry>,
    pub(super) strangers: Arc<Strangers>,
    pub(super) accepted: Arc<Semaphore>,
    pub(super) tracker: TaskTracker,
    /// Set when nothing new is to begin.
    pub(super) stopping: CancellationToken,
    /// Set when everything is to end.
    pub(super) ended: CancellationToken,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("standing", &self.standing).finish_non_exhaustive()
    }
}

impl Shared {
    pub(super) fn new(
        identity: Identity,
        secrets: Vec<Vec<u8>>,
        tls: Option<Tls>,
        timing: Timing,
        handler: Weak<dyn AnyHandler>,
    ) -> Self {
        let standing = Standing { identity: Arc::new(identity), renewed: CancellationToken::new() };
        Self {
            instance: super::random_u64(),
            timing,
            secrets: ArcSwap::from_pointee(Secrets::new(secrets)),
            tls: ArcSwapOption::from_pointee(tls),
            standing: Mutex::new(standing),
            diallers: ArcSwap::default(),
            diallers_change: Mutex::new(()),
            ways_back: Mutex::default(),
            handler,
            roster: watch::Sender::default(),
            removed_by: watch::Sender::default(),
            links: Board::default(),
            refusals: Refusals::default(),
            registry: Arc::default(),
            strangers: Arc::default(),
            accepted: Arc::new(Semaphore::new(ACCEPTED_MAX)),
            tracker: TaskTracker::new(),
            stopping: CancellationToken::new(),
            ended: CancellationToken::new(),
        }
    }

    pub(super) fn standing(&self) -> Standing {
        self.standing.lock().clone()
    }

    /// Takes on another identity; connections under the old one end.
    pub(super) fn renew(&self, identity: Identity) {
        let old = {
            let mut standing = self.standing.lock();
            if *standing.identity == identity {
                return;
            }
            let renewed = CancellationToken::new();
            let new = Standing { identity: Arc::new(identity), renewed };
            std::mem::replace(&mut *standing, new)
        };
        old.renewed.cancel();
    }

    /// Waits until a node is known to have been removed from the cluster; what to object then.
    pub(super) async fn removed(&self, node: Option<NodeId>) -> Objection {
        let mut roster = self.roster.subscribe();
        let is_removed = |roster: &Roster| node.is_some_and(|node| roster.has_removed(node));
        // Fails only without a sender, which is here.
        let told = roster.wait_for(is_removed).await.is_ok();
        match node {
            Some(node) if told => Objection::Removed(node),
            _ => std::future::pending().await,
        }
    }

    /// A farewell has come on a connection that was let in, so from a member: what it says.
    pub(super) fn farewell(&self, code: u8, peer: &str, whom: &str) -> Option<Refusal> {
        let refusal = Refusal::told(code)?;
        self.told(refusal, peer, whom);
        if refusal == Refusal::Removed {
            self.removed_by.send_replace(Some(whom.to_owned()));
        }
        Some(refusal)
    }

    /// Counts an objection of this node, and logs it unless that was just done. `peer` is what
    /// remains the same when it comes again, `whom` is for the eye.
    pub(super) fn object(&self, objection: &Objection, peer: &str, whom: &str) {
        let refusal = objection.refusal();
        match self.refusals.note(refusal, peer, Instant::now()) {
            // Every node that joins is dialled a moment too early.
            true if refusal == Refusal::NotMember => {
                let (kind, whom) = (refusal.kind(), brief(whom));
                complain!(DEBUG, kind, "no connection with {whom} yet: {objection}");
            }
            true => {
                let (kind, whom, why) = (refusal.kind(), brief(whom), brief_error(objection));
                complain!(WARN, kind, reason = refusal.name(), "no connection with {whom}: {why}");
            }
            false => {}
        }
    }

    /// The same for an objection of the other side.
    pub(super) fn told(&self, refusal: Refusal, peer: &str, whom: &str) {
        match self.refusals.note(refusal, peer, Instant::now()) {
            true if refusal == Refusal::NotMember => {
                let (kind, whom) = (refusal.kind(), brief(whom));
                complain!(DEBUG, kind, "not yet known to {whom}: {refusal}");
            }
            // Whoever watches for it says so, once.
            true if refusal == Refusal::Removed => debug!("{whom}: {refusal}"),
            true => {
                let (kind, whom) = (refusal.kind(), brief(whom));
                complain!(
                    WARN,
                    kind,
                    reason = refusal.name(),
                    "{whom} refuses this node: {refusal}"
                );
            }
            false => {}
        }
    }
}
