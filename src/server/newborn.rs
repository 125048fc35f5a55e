//! The birth of this node's cluster, or its way into one: [`Birth`]'s shell.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::birth::{Action, Answer, Birth, Newborn, Silence, Waiting, Word};
use crate::complaint::{self, brief, brief_error, complain};
use crate::disk::Disk;
use crate::peer::{Identity, KnockError, Transport};
use crate::topology::{Announcement, Cluster, NodeId};
use crate::wire::{self, Kind};

use super::peers::{Knock, KnockReply};

/// How long another node may take to let this one in.
const JOIN_PATIENCE: Duration = Duration::from_secs(10);

/// A node that is being born.
pub(super) struct Nursery {
    birth: Mutex<Birth>,
    disk: Arc<dyn Disk>,
    data_dir: PathBuf,
    heard: Notify,
    waiting: Mutex<Option<String>>,
}

/// What came of a birth.
#[derive(Debug)]
pub(super) enum Born {
    /// This node is to found the cluster.
    Founder,
    /// A cluster has let it in.
    Joined {
        /// Its number.
        node: NodeId,
        /// The cluster.
        cluster: Cluster,
    },
}

impl Nursery {
    pub(super) fn new(birth: Birth, disk: Arc<dyn Disk>, data_dir: PathBuf) -> Arc<Self> {
        let birth = Mutex::new(birth);
        Arc::new(Self { birth, disk, data_dir, heard: Notify::new(), waiting: Mutex::default() })
    }

    /// What it waits for, in words.
    pub(super) fn waiting(&self) -> Option<String> {
        self.waiting.lock().clone()
    }

    /// Somebody knocks.
    pub(super) fn knocked(&self, from: &Identity, knock: Knock) -> KnockReply {
        let now = Instant::now();
        let reply = match knock {
            Knock::Newborn(bytes) => {
                let newborn = match Newborn::decode(&bytes) {
                    Ok(newborn) => newborn,
                    Err(error) => {
                        let kind = complaint::Kind::new("nodes", "knock");
                        complain!(WARN, kind, from = %brief(&from.name), %error, "a knock is refused");
                        return KnockReply::NotNow;
                    }
                };
                // Held until the word is durable: nothing may be said before that.
                let mut birth = self.birth.lock();
                let (answer, word) = birth.on_knock(&newborn, now);
                if let Some(word) = word
                    && let Err(error) = word.keep(&*self.disk, &self.data_dir)
                {
                    let kind = complaint::Kind::new("nodes", "word");
                    complain!(ERROR, kind, %error, "this node's word cannot be kept, so none is given");
                    return KnockReply::NotNow;
                }
                KnockReply::Birth(answer.encode())
            }
            Knock::Member => {
                if let Some(cluster_id) = from.cluster_id {
                    let mut birth = self.birth.lock();
                    birth.on_member_seen(&from.peer_addr, cluster_id, true, now);
                }
                KnockReply::Noted
            }
            Knock::Join(_) | Knock::Whereabouts => KnockReply::NotNow,
        };
        self.heard.notify_one();
        reply
    }

    /// Goes through the birth, until a cluster is to be founded or has let this node in.
    pub(super) async fn run(
        self: &Arc<Self>,
        transport: &Arc<Transport>,
        about: &Announcement,
        interval: Duration,
    ) -> anyhow::Result<Born> {
        loop {
            let mut ask_in = None;
            let actions = {
                let mut birth = self.birth.lock();
                let actions = birth.step(Instant::now());
                for action in &actions {
                    if let Action::Keep(word) = action {
                        word.keep(&*self.disk, &self.data_dir)?;
                    }
                }
                actions
            };
            for action in actions {
                match action {
                    Action::Keep(_) => {}
                    Action::KnockAt(addr, newborn) => {
                        self.knock(transport, addr, &newborn, interval)
                    }
                    Action::Found { attempt } => {
                        tracing::info!(attempt, "{} founds the cluster", about.name);
                        return Ok(Born::Founder);
                    }
                    Action::Join { addr } => ask_in = Some(addr),
                    Action::Wait(waiting) => self.tell(&waiting),
                }
            }
            if let Some(addr) = ask_in
                && let Some(born) = self.ask_in(transport, addr, about).await
            {
                return Ok(born);
            }
            let _ = tokio::time::timeout(interval / 4, self.heard.notified()).await;
        }
    }

    /// The word has served; the file is of no use any more.
    pub(super) fn forget_word(&self) {
        if let Err(error) = Word::forget(&*self.disk, &self.data_dir) {
            tracing::warn!(%error, "a file that is of no use any more could not be removed");
        }
    }

    fn tell(&self, waiting: &Waiting) {
        tracing::info!("{waiting}");
        *self.waiting.lock() = Some(waiting.to_string());
    }

    fn knock(
        self: &Arc<Self>,
        transport: &Arc<Transport>,
        addr: String,
        newborn: &Newborn,
        interval: Duration,
    ) {
        let (this, transport, myself) = (self.clone(), transport.clone(), newborn.clone());
        let body = wire::to_vec(&Knock::Newborn(newborn.encode()));
        let patience = interval.max(Duration::from_millis(500)) * 2;
        tokio::spawn(async move {
            let answer = transport.call_addr(&addr, Kind::Knock as u8, &body, patience).await;
            let answer = match answer {
                Ok((_, body)) => match wire::get(&body) {
                    Ok(KnockReply::Birth(bytes)) => {
                        Answer::decode(&bytes).map_err(|_| Silence::NoAnswer)
                    }
                    _ => Err(Silence::NoAnswer),
                },
                // Its own address: it is heard by itself.
                Err(KnockError::Myself) => Ok(Answer::New(Box::new(myself))),
                Err(error) => Err(silence(&error)),
            };
            this.birth.lock().on_answer(&addr, answer, Instant::now());
            this.heard.notify_one();
        });
    }

    async fn ask_in(
        &self,
        transport: &Transport,
        addr: String,
        about: &Announcement,
    ) -> Option<Born> {
        let body = wire::to_vec(&Knock::Join(about.clone()));
        let answer = transport.call_addr(&addr, Kind::Knock as u8, &body, JOIN_PATIENCE).await;
        let silence = match answer {
            Ok((member, body)) => match wire::get(&body) {
                Ok(KnockReply::Joined { node, cluster }) => {
                    tracing::info!("{} joins the cluster of {}", about.name, member.name);
                    return Some(Born::Joined { node, cluster });
                }
                Ok(KnockReply::Refused(why)) => {
                    let (kind, name) =
                        (complaint::Kind::new("nodes", "not_let_in"), brief(&member.name));
                    let why = brief_error(why);
                    complain!(ERROR, kind, "{name} does not let this node in: {why}");
                    Silence::Refused
                }
                _ => Silence::NoAnswer,
            },
            Err(error) => silence(&error),
        };
        self.birth.lock().on_answer(&addr, Err(silence), Instant::now());
        None
    }
}

fn silence(error: &KnockError) -> Silence {
    match error {
        KnockError::Rejected(_) => Silence::Refused,
        KnockError::Unresolved(_) => Silence::Unresolved,
        _ => Silence::NoAnswer,
    }
}

/// A number that tells this process from any other.
pub(super) fn instance() -> anyhow::Result<u128> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).context("the system has no random numbers")?;
    Ok(u128::from_le_bytes(bytes))
}
