//! Raft's requests, sent through whatever carries bytes between nodes.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use openraft::error::{
    InstallSnapshotError, NetworkError, RPCError, RaftError, RemoteError, Timeout, Unreachable,
};
use openraft::network::{Backoff, RPCOption, RPCTypes, RaftNetwork, RaftNetworkFactory};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse,
    VoteRequest, VoteResponse,
};
use tokio::sync::watch;

use super::message::{self, Envelope, Refusal, Reply, Request};
use super::{Node, Types};
use crate::topology::{NodeId, Topology};

/// A node that could not be reached is tried again after this.
const RETRY_AFTER: Duration = Duration::from_millis(100);

/// Sends a message to a node and waits for the answer: to whom, where it is thought to be
/// (`host:port`), what, and for how long. What arrives goes to [`super::Consensus::handle`] there.
pub type Call = Arc<
    dyn Fn(NodeId, String, Vec<u8>, Duration) -> BoxFuture<'static, Result<Bytes, CallError>>
        + Send
        + Sync,
>;

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// There is no connection: the message did not leave.
    #[error("it is not connected")]
    NotSent,
    /// The connection broke: the message may have arrived.
    #[error("the connection broke")]
    Lost,
    /// Nothing came in time: the message may have arrived.
    #[error("it did not answer in time")]
    TimedOut,
}

/// Why a request came to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum AskError {
    /// There is no answer.
    #[error(transparent)]
    Call(#[from] CallError),
    /// The other node refuses.
    #[error("{0}")]
    Refused(Refusal),
    /// The answer cannot be read.
    #[error("its answer cannot be read: {0}")]
    Unreadable(Refusal),
    /// The answer answers something else.
    #[error("its answer makes no sense")]
    Unsound,
}

/// The way to the other nodes. Clones share it.
#[derive(Clone)]
pub(super) struct Peers {
    pub(super) me: NodeId,
    pub(super) call: Call,
    pub(super) topology: watch::Receiver<Arc<Topology>>,
}

impl Peers {
    /// Asks a node. `addr` is where Raft knows it; what the topology says comes first.
    pub(super) async fn ask(
        &self,
        to: NodeId,
        addr: &str,
        request: Request,
        timeout: Duration,
    ) -> Result<Reply, AskError> {
        let known = {
            let topology = self.topology.borrow();
            topology.members.get(&to).map(|member| member.about.peer_addr.clone())
        };
        let body = message::pack(&Envelope { from: self.me, to, request });
        let addr = known.unwrap_or_else(|| addr.to_owned());
        let answer = (self.call)(to, addr, body, timeout).await?;
        match message::unpack(&answer) {
            Ok(Reply::Refused(refusal)) => Err(AskError::Refused(refusal)),
            Ok(reply) => Ok(reply),
            Err(e) => Err(AskError::Unreadable(e)),
        }
    }
}

impl RaftNetworkFactory<Types> for Peers {
    type Network = Peer;

    async fn new_client(&mut self, target: NodeId, node: &Node) -> Peer {
        Peer { peers: self.clone(), target, addr: node.addr.clone() }
    }
}

/// The way to one node.
pub(super) struct Peer {
    peers: Peers,
    target: NodeId,
    addr: String,
}

impl Peer {
    async fn ask<E: std::error::Error>(
        &self,
        request: Request,
        action: RPCTypes,
        timeout: Duration,
    ) -> Result<Reply, RPCError<NodeId, Node, E>> {
        let reply = self.peers.ask(self.target, &self.addr, request, timeout).await;
        reply.map_err(|e| match e {
            AskError::Call(CallError::Lost) => RPCError::Network(NetworkError::new(&e)),
            AskError::Call(CallError::TimedOut) => {
                let (id, target) = (self.peers.me, self.target);
                RPCError::Timeout(Timeout { action, id, target, timeout })
            }
            e => RPCError::Unreachable(Unreachable::new(&e)),
        })
    }
}

fn unsound<E: std::error::Error>() -> RPCError<NodeId, Node, E> {
    RPCError::Unreachable(Unreachable::new(&AskError::Unsound))
}

impl RaftNetwork<Types> for Peer {
    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<NodeId>, RPCError<NodeId, Node, RaftError<NodeId>>> {
        let timeout = option.hard_ttl();
        match self.ask(Request::Append(rpc), RPCTypes::AppendEntries, timeout).await? {
            Reply::Append(response) => Ok(response),
            _ => Err(unsound()),
        }
    }

    async fn install_snapshot(
        &mut self,
        rpc: InstallSnapshotRequest<Types>,
        option: RPCOption,
    ) -> Result<
        InstallSnapshotResponse<NodeId>,
        RPCError<NodeId, Node, RaftError<NodeId, InstallSnapshotError>>,
    > {
        let timeout = option.hard_ttl();
        match self.ask(Request::Install(rpc), RPCTypes::InstallSnapshot, timeout).await? {
            Reply::Install(Ok(vote)) => Ok(InstallSnapshotResponse { vote }),
            Reply::Install(Err(e)) => {
                Err(RPCError::RemoteError(RemoteError::new(self.target, RaftError::APIError(e))))
            }
            _ => Err(unsound()),
        }
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<NodeId>,
        option: RPCOption,
    ) -> Result<VoteResponse<NodeId>, RPCError<NodeId, Node, RaftError<NodeId>>> {
        match self.ask(Request::Vote(rpc), RPCTypes::Vote, option.hard_ttl()).await? {
            Reply::Vote(response) => Ok(response),
            _ => Err(unsound()),
        }
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(std::iter::repeat(RETRY_AFTER))
    }
}
