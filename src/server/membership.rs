//! What an operator does to members: sends them away, calls that off, strikes them off.

use crate::ops::ActionError;
use crate::topology::{Command, Member, Outcome, Standing};

use super::cluster::{COMMAND_PATIENCE, Cluster};

impl Cluster {
    /// Has a member's copies moved away, for it to leave afterwards.
    pub(super) async fn decommission(&self, name: &str) -> Result<(), ActionError> {
        let member = self.member(name)?;
        if self.topology_now().members.len() <= 1 {
            return Err(ActionError::Conflict(
                "it is the only member of its cluster, there is no other node to take its shards",
            ));
        }
        let standing = Standing::Decommissioning;
        self.decide(Command::Stand { node: member.node, standing }, "decommissioning").await
    }

    /// Calls a decommission off.
    pub(super) async fn recommission(&self, name: &str) -> Result<(), ActionError> {
        let member = self.member(name)?;
        if member.standing != Standing::Decommissioning {
            return Err(ActionError::Conflict("the node is not being decommissioned"));
        }
        let standing = Standing::Member;
        self.decide(Command::Stand { node: member.node, standing }, "recommissioning").await
    }

    /// Ends the membership of a node that is dead, or that was decommissioned.
    pub(super) async fn remove(&self, name: &str) -> Result<(), ActionError> {
        let member = self.member(name)?;
        if self.topology_now().members.len() <= 1 {
            return Err(ActionError::Conflict(
                "it is the only member of its cluster, and it is alive",
            ));
        }
        if self.is_living(&member) && member.standing != Standing::Decommissioning {
            return Err(ActionError::Conflict(
                "the node is alive: decommission it first, or stop it",
            ));
        }
        self.decide(Command::Remove(member.node), "removing the node").await
    }

    fn member(&self, name: &str) -> Result<Member, ActionError> {
        let topology = self.topology_now();
        topology.member_named(name).cloned().ok_or(ActionError::Unknown { what: "member" })
    }

    async fn decide(&self, command: Command, what: &'static str) -> Result<(), ActionError> {
        let failed =
            |source: Box<dyn std::error::Error + Send + Sync>| ActionError::Failed { what, source };
        match self.consensus().propose(command, COMMAND_PATIENCE).await {
            Ok(Outcome::Rejected(rejection)) => Err(failed(rejection.into())),
            Ok(_) => Ok(()),
            Err(error) => Err(failed(error.into())),
        }
    }
}
