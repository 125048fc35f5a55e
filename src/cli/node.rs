//! The `node` commands: a node's part in its cluster, changed through the operations API.

use std::io::Write as _;
use std::path::PathBuf;

use anyhow::bail;
use clap::{Args, Subcommand};
use reqwest::Method;
use serde_json::Value as Json;

use super::client::{Client, escape};
use super::connection::Connection;
use super::exit::{Exit, output};
use super::lease::{Look, MayStop, Release};

/// Takes nodes out of service, for a while or for good
#[derive(Args, Debug)]
pub(crate) struct Node {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Makes the node at --ops-addr hand over its work and take no more, before it is stopped
    Drain {
        #[command(flatten)]
        connection: Connection,
    },
    /// Moves everything off a living node, so that it can be taken away for good
    Decommission {
        /// The node's id, as `aegiskv status` shows it
        id: String,
        #[command(flatten)]
        connection: Connection,
    },
    /// Calls a decommission off: the node keeps what it still holds, and is given copies again
    Recommission {
        /// The node's id, as `aegiskv status` shows it
        id: String,
        #[command(flatten)]
        connection: Connection,
    },
    /// Strikes a dead node off, so that its shards get new copies elsewhere
    Remove {
        /// The node's id, as `aegiskv status` shows it
        id: String,
        #[command(flatten)]
        connection: Connection,
    },
    /// Asks for leave to stop a node; code 1 if it is not safe, or somebody else has leave
    ///
    /// One node of the cluster at a time may be stopped. The lease is over once the node was stopped
    /// and has all its copies again, when it is given back, or when its time is over. Ask right before
    /// you stop the node; asking again renews it.
    MayStop(MayStop),
    /// Shows who has leave to stop which node
    Lease(Look),
    /// Gives leave to stop a node back
    Release(Release),
    /// Re-founds a cluster from this machine's data when most of its voters are gone for good
    ///
    /// The node must not run. It becomes the only member; what it lacks of what others had
    /// acknowledged is lost. Do this on one node, start it, and start others with empty
    /// directories.
    Recover {
        /// The data directory of the node that goes on
        #[arg(long, value_name = "DIR")]
        data_dir: PathBuf,
        /// The others are gone for good, and will not be started with the data they have
        #[arg(long)]
        others_are_gone: bool,
    },
}

impl Node {
    pub(crate) fn connection(&mut self) -> Option<&mut Connection> {
        match &mut self.command {
            Command::Drain { connection }
            | Command::Decommission { connection, .. }
            | Command::Recommission { connection, .. }
            | Command::Remove { connection, .. } => Some(connection),
            Command::MayStop(MayStop { connection, .. })
            | Command::Lease(Look { connection, .. })
            | Command::Release(Release { connection, .. }) => Some(connection),
            Command::Recover { .. } => None,
        }
    }

    pub(crate) async fn run(self) -> anyhow::Result<Exit> {
        match self.command {
            Command::Drain { connection } => ask(&connection, "/admin/drain").await,
            Command::Decommission { id, connection } => {
                ask(&connection, &of_node(&id, "decommission")).await
            }
            Command::Recommission { id, connection } => {
                ask(&connection, &of_node(&id, "recommission")).await
            }
            Command::Remove { id, connection } => ask(&connection, &of_node(&id, "remove")).await,
            Command::MayStop(may_stop) => may_stop.run().await,
            Command::Lease(look) => look.run().await,
            Command::Release(release) => release.run().await,
            Command::Recover { others_are_gone: false, .. } => bail!(
                "this strikes all other nodes off; if they are gone for good, say \
                 --others-are-gone"
            ),
            Command::Recover { data_dir, .. } => recover(data_dir).await,
        }
    }
}

/// The path of an action on a node.
fn of_node(id: &str, action: &str) -> String {
    format!("/admin/nodes/{}/{action}", escape(id.as_bytes()))
}

async fn recover(data_dir: PathBuf) -> anyhow::Result<Exit> {
    // It has a runtime of its own.
    let done = tokio::task::spawn_blocking(move || crate::server::recover(&data_dir)).await??;
    let mut out = output();
    writeln!(out, "{} is the only member now; start it", done.name)?;
    if !done.struck_off.is_empty() {
        writeln!(out, "struck off: {}", done.struck_off.join(", "))?;
    }
    writeln!(out, "the former topology is kept in {}", done.kept.display())?;
    out.flush()?;
    Ok(Exit::Done)
}

/// Asks the operations API for something, and prints its answer.
async fn ask(connection: &Connection, path: &str) -> anyhow::Result<Exit> {
    let client = Client::new(connection)?;
    let response = client.send(client.ops_request(Method::POST, path)?).await?;
    let body = client.body(response).await?;
    let mut out = output();
    match serde_json::from_slice::<Json>(&body) {
        Ok(json) => writeln!(out, "{json:#}")?,
        Err(_) if body.is_empty() => writeln!(out, "done")?,
        Err(_) => writeln!(out, "{}", String::from_utf8_lossy(body.trim_ascii_end()))?,
    }
    out.flush()?;
    Ok(Exit::Done)
}
