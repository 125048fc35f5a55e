//! The `status` command: members and shards, as `GET /cluster` on the operations port has them.

use std::io::{self, IsTerminal as _, Write};
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use comfy_table::{ContentArrangement, Table, presets};
use reqwest::Method;
use serde_json::Value as Json;

use super::client::Client;
use super::connection::Connection;
use super::exit::{Exit, output};

/// Clears a terminal and goes to its first line (ECMA-48).
const CLEAR: &str = "\x1b[H\x1b[2J";

/// Columns of the members' table: heading, and the member's field.
const MEMBER_COLUMNS: &[(&str, &str)] = &[
    ("NODE", "node_id"),
    ("STATUS", "status"),
    ("CLIENTS", "client_addr"),
    ("GOSSIP", "gossip_addr"),
    ("ZONE", "zone"),
    ("REGION", "region"),
    ("VERSION", "version"),
    ("SHARDS", "shards"),
    ("PRIMARIES", "primaries"),
    ("LEADER", "leader"),
];

/// Columns of the shards' table.
const SHARD_COLUMNS: &[&str] =
    &["total", "healthy", "under_replicated", "catching_up", "moving", "unavailable"];

/// Shows the cluster's members and the state of its shards
#[derive(Args, Debug)]
pub(crate) struct Status {
    /// Print the server's JSON
    #[arg(long)]
    json: bool,

    /// Show it again and again, every 2 seconds or as often as given
    #[arg(long, value_name = "TIME", num_args = 0..=1, default_missing_value = "2s")]
    #[arg(require_equals = true, value_parser = humantime::parse_duration)]
    watch: Option<Duration>,

    #[command(flatten)]
    pub(crate) connection: Connection,
}

impl Status {
    pub(crate) async fn run(self) -> anyhow::Result<Exit> {
        let client = Client::new(&self.connection)?;
        loop {
            let response = client.send(client.ops_request(Method::GET, "/cluster")?).await?;
            let body = client.body(response).await?;
            let cluster: Json =
                serde_json::from_slice(&body).context("the server's answer is no cluster state")?;
            let mut out = output();
            if self.watch.is_some() && io::stdout().is_terminal() {
                write!(out, "{CLEAR}")?;
            }
            if self.json {
                writeln!(out, "{cluster:#}")?;
            } else {
                out.write_all(tables(&cluster).as_bytes())?;
            }
            out.flush()?;
            drop(out);
            match self.watch {
                Some(pause) => tokio::time::sleep(pause).await,
                None => return Ok(Exit::Done),
            }
        }
    }
}

fn tables(cluster: &Json) -> String {
    let mut members = table();
    members.set_header(MEMBER_COLUMNS.iter().map(|(heading, _)| *heading));
    for member in cluster["members"].as_array().into_iter().flatten() {
        members.add_row(MEMBER_COLUMNS.iter().map(|(_, field)| cell(&member[*field])));
    }
    let mut shards = table();
    shards.set_header(
        std::iter::once("SHARDS".to_owned())
            .chain(SHARD_COLUMNS.iter().map(|name| name.replace('_', " ").to_uppercase())),
    );
    shards.add_row(
        std::iter::once(String::new())
            .chain(SHARD_COLUMNS.iter().map(|name| cell(&cluster["shards"][*name]))),
    );
    format!(
        "cluster {}  epoch {}  leader {}\n\n{}\n\n{}\n",
        cell(&cluster["cluster_id"]),
        cell(&cluster["epoch"]),
        cell(&cluster["leader"]),
        tidy(&members),
        tidy(&shards)
    )
}

fn table() -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table
}

/// The table without the blanks at the ends of its lines.
fn tidy(table: &Table) -> String {
    table.to_string().lines().map(str::trim).collect::<Vec<_>>().join("\n")
}

fn cell(value: &Json) -> String {
    match value {
        Json::String(text) if text.is_empty() => "-".to_owned(),
        Json::String(text) => text.escape_debug().to_string(),
        Json::Bool(true) => "yes".to_owned(),
        Json::Bool(false) | Json::Null => "-".to_owned(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_and_shards_are_laid_out() {
        let cluster = serde_json::json!({
            "cluster_id": "c1", "epoch": 4, "leader": "kv1",
            "members": [{
                "node_id": "kv1", "status": "alive", "client_addr": "10.0.0.1:7700",
                "gossip_addr": "10.0.0.1:7701", "zone": "", "region": "eu", "version": "0.1.0",
                "shards": 256, "primaries": 256, "leader": true
            }],
            "shards": { "total": 256, "healthy": 256, "under_replicated": 0,
                        "catching_up": 0, "moving": 0, "unavailable": 0 }
        });
        let text = tables(&cluster);
        let words =
            |line: &str| -> Vec<String> { line.split_whitespace().map(str::to_owned).collect() };
        let lines: Vec<_> = text.lines().map(words).collect();
        assert_eq!(lines[0], ["cluster", "c1", "epoch", "4", "leader", "kv1"]);
        assert_eq!(
            lines[3],
            [
                "kv1",
                "alive",
                "10.0.0.1:7700",
                "10.0.0.1:7701",
                "-",
                "eu",
                "0.1.0",
                "256",
                "256",
                "yes"
            ]
        );
        assert_eq!(lines[6], ["256", "256", "0", "0", "0", "0"]);
    }
}
