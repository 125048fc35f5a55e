//! The `status` command: members and shards, as `GET /cluster` on the operations port has them.

use std::io::{self, IsTerminal as _, Write};
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use comfy_table::{ContentArrangement, Table, presets};
use reqwest::Method;
use serde_json::Value as Json;

use super::client::{self, Client};
use super::connection::Connection;
use super::exit::{Exit, in_words, note, output};
use super::lease;

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
];

/// Fields whose column is left out where no member has one.
const OPTIONAL_FIELDS: &[&str] = &["zone", "region"];

/// What stands behind the name of the member that leads the topology.
const LEADER_MARK: &str = " (leader)";

/// Columns of the table that counts the shards.
const COUNT_COLUMNS: &[&str] =
    &["total", "healthy", "under_replicated", "catching_up", "moving", "unavailable"];

/// Columns of the table of unhealthy shards: heading, and the shard's field.
const SHARD_COLUMNS: &[(&str, &str)] = &[
    ("SHARD", "shard"),
    ("STATE", "state"),
    ("EPOCH", "epoch"),
    ("PRIMARY", "primary"),
    ("VOTERS", "voters"),
    ("LEARNERS", "learners"),
];

/// Most unhealthy shards that are listed one by one.
const SHARDS_SHOWN_MAX: usize = 20;

/// States of shards, the worst first.
const STATES: &[&str] = &["unavailable", "under_replicated", "catching_up", "moving"];

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
        let Some(pause) = self.watch else {
            let text = self.look(&client).await?;
            show(&text, false)?;
            return Ok(Exit::Done);
        };
        loop {
            match self.look(&client).await {
                Ok(text) => show(&text, io::stdout().is_terminal())?,
                // Whoever watches wants to see the node come back.
                Err(error) if error.is::<client::Error>() => {
                    note(format_args!("aegiskv: {}; trying again", in_words(&error)));
                }
                Err(error) => return Err(error),
            }
            tokio::time::sleep(pause).await;
        }
    }

    /// What there is to show now.
    async fn look(&self, client: &Client) -> anyhow::Result<String> {
        let cluster = ask(client, "/cluster").await?;
        if self.json {
            return Ok(format!("{cluster:#}\n"));
        }
        let mut text = tables(&cluster);
        if cluster["shards"]["healthy"] != cluster["shards"]["total"] {
            let shards = ask(client, "/cluster/shards").await?;
            text += &unhealthy(shards["shards"].as_array().map_or(&[], Vec::as_slice));
        }
        Ok(text)
    }
}

async fn ask(client: &Client, path: &str) -> anyhow::Result<Json> {
    let response = client.send(client.ops_request(Method::GET, path)?).await?;
    let body = client.body(response).await?;
    serde_json::from_slice(&body).context("the server's answer is no cluster state")
}

fn show(text: &str, clears: bool) -> anyhow::Result<()> {
    let mut out = output();
    if clears {
        write!(out, "{CLEAR}")?;
    }
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

/// The cluster, its members, and how many shards are in which state.
fn tables(cluster: &Json) -> String {
    let rows = cluster["members"].as_array().map_or(&[][..], Vec::as_slice);
    let is_there = |field: &str| rows.iter().any(|member| cell(&member[field]) != "-");
    let columns: Vec<_> = MEMBER_COLUMNS
        .iter()
        .filter(|(_, field)| !OPTIONAL_FIELDS.contains(field) || is_there(field))
        .collect();
    let mut members = table();
    members.set_header(columns.iter().map(|(heading, _)| *heading));
    for member in rows {
        members.add_row(columns.iter().map(|(_, field)| {
            let leads = *field == "node_id" && member["leader"] == true;
            cell(&member[*field]) + if leads { LEADER_MARK } else { "" }
        }));
    }
    let mut counts = table();
    counts.set_header(COUNT_COLUMNS.iter().map(|name| match *name {
        "total" => "SHARDS".to_owned(),
        name => name.replace('_', " ").to_uppercase(),
    }));
    counts.add_row(COUNT_COLUMNS.iter().map(|name| cell(&cluster["shards"][*name])));
    format!(
        "cluster {}  epoch {}  {}\n{}\n{}\n\n{}\n",
        cell(&cluster["cluster_id"]),
        cell(&cluster["epoch"]),
        leadership(cluster),
        news(cluster),
        tidy(&members),
        tidy(&counts)
    )
}

/// A line each for the stop lease and for what is still to be moved, if there is either.
fn news(cluster: &Json) -> String {
    let mut lines = String::new();
    if cluster["stop_lease"].is_object() {
        lines += &format!("{}\n", lease::held(&cluster["stop_lease"]));
    }
    let left = cluster["moves_left"].as_u64().filter(|left| *left > 0);
    if let Some(left) = left {
        let eta = cluster["settled_eta_seconds"].as_u64().map(Duration::from_secs);
        let eta = eta.map(|eta| format!(", in about {}", humantime::format_duration(eta)));
        lines +=
            &format!("{left} copies and primaries are still to move{}\n", eta.unwrap_or_default());
    }
    lines
}

/// Who leads the topology, or that nobody does.
fn leadership(cluster: &Json) -> String {
    match (&cluster["leader"], &cluster["leaderless_since"]) {
        (Json::Null, Json::String(since)) => format!(
            "no leader since {}: nobody leads the topology, and nodes that fail are not replaced",
            since.escape_debug()
        ),
        (leader, _) => format!("leader {}", cell(leader)),
    }
}

/// The shards that are not healthy, the worst first.
fn unhealthy(shards: &[Json]) -> String {
    let badness = |shard: &&Json| STATES.iter().position(|state| shard["state"] == *state);
    let mut rows: Vec<&Json> = shards.iter().filter(|shard| shard["state"] != "healthy").collect();
    if rows.is_empty() {
        // They have become healthy between two questions.
        return String::new();
    }
    rows.sort_by_key(|shard| badness(shard).unwrap_or(STATES.len()));
    let mut listed = table();
    listed.set_header(SHARD_COLUMNS.iter().map(|(heading, _)| *heading));
    for shard in rows.iter().take(SHARDS_SHOWN_MAX) {
        listed.add_row(SHARD_COLUMNS.iter().map(|(_, field)| cell(&shard[*field])));
    }
    let more = match rows.len().saturating_sub(SHARDS_SHOWN_MAX) {
        0 => String::new(),
        more => format!("... and {more} more; GET /cluster/shards has them all\n"),
    };
    format!("\n{}\n{more}", tidy(&listed))
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
        Json::Array(items) if items.is_empty() => "-".to_owned(),
        Json::Array(items) => items.iter().map(cell).collect::<Vec<_>>().join(" "),
        Json::Bool(true) => "yes".to_owned(),
        Json::Bool(false) | Json::Null => "-".to_owned(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn words(text: &str) -> Vec<Vec<&str>> {
        text.lines().map(|line| line.split_whitespace().collect()).collect()
    }

    fn member(node_id: &str, status: &str, region: &str, leader: bool) -> Json {
        json!({
            "node_id": node_id, "status": status, "client_addr": "10.0.0.1:7700",
            "gossip_addr": null, "zone": "", "region": region, "version": "0.1.0",
            "shards": 256, "primaries": 86, "leader": leader
        })
    }

    fn shard(number: u16, state: &str) -> Json {
        json!({
            "shard": number, "state": state, "epoch": 5, "primary": null,
            "voters": ["kv1", "kv2"], "learners": [], "positions": {}
        })
    }

    #[test]
    fn members_and_counts_of_shards_are_laid_out_and_the_leader_is_marked() {
        let cluster = json!({
            "cluster_id": "c1", "epoch": 4, "leader": "kv1",
            "members": [member("kv1", "alive", "eu", true), member("kv2", "dead", "", false)],
            "shards": { "total": 256, "healthy": 250, "under_replicated": 6,
                        "catching_up": 0, "moving": 0, "unavailable": 0 }
        });
        let text = tables(&cluster);
        let lines = words(&text);
        assert_eq!(lines[0], ["cluster", "c1", "epoch", "4", "leader", "kv1"]);
        assert_eq!(
            lines[2],
            ["NODE", "STATUS", "CLIENTS", "GOSSIP", "REGION", "VERSION", "SHARDS", "PRIMARIES"]
        );
        let address = "10.0.0.1:7700";
        assert_eq!(
            lines[3],
            ["kv1", "(leader)", "alive", address, "-", "eu", "0.1.0", "256", "86"]
        );
        assert_eq!(lines[4], ["kv2", "dead", address, "-", "-", "0.1.0", "256", "86"]);
        assert_eq!(lines[7], ["256", "250", "6", "0", "0", "0"]);
        assert!(text.lines().all(|line| line.trim_end() == line), "no blanks at the ends");
    }

    #[test]
    fn the_stop_lease_and_moves_to_come_are_told_if_there_are_any() {
        let mut cluster = json!({
            "cluster_id": "c1", "epoch": 4, "leader": "kv1", "members": [], "shards": {},
            "settled": false, "moves_left": 12, "settled_eta_seconds": 90,
            "stop_lease": {
                "node_id": "kv2", "holder": "ops@host",
                "since": "2026-11-28T15:00:00Z", "until": "2026-11-28T15:30:00Z",
            },
        });
        let told = tables(&cluster);
        assert!(told.starts_with(
            "cluster c1  epoch 4  leader kv1\n\
             ops@host has leave to stop kv2 since 2026-11-28T15:00:00Z, until 2026-11-28T15:30:00Z\n\
             12 copies and primaries are still to move, in about 1m 30s\n\n"
        ), "{told}");
        cluster["settled_eta_seconds"] = Json::Null;
        assert!(tables(&cluster).contains("still to move\n"));
        (cluster["moves_left"], cluster["stop_lease"]) = (json!(0), Json::Null);
        assert!(tables(&cluster).starts_with("cluster c1  epoch 4  leader kv1\n\nNODE"));
    }

    #[test]
    fn a_cluster_that_nobody_leads_says_so_and_since_when() {
        let mut cluster = json!({
            "cluster_id": "c1", "epoch": 4, "leader": null,
            "leaderless_since": "2026-11-27T15:00:00Z",
            "members": [member("kv1", "alive", "", false)], "shards": { "total": 256 }
        });
        let first = |cluster: &Json| tables(cluster).lines().next().map(str::to_owned);
        let told = "cluster c1  epoch 4  no leader since 2026-11-27T15:00:00Z: nobody leads the \
                    topology, and nodes that fail are not replaced";
        assert_eq!(first(&cluster).as_deref(), Some(told));
        assert!(!tables(&cluster).contains("(leader)"));
        // A node of an earlier version does not say since when.
        cluster["leaderless_since"] = Json::Null;
        assert_eq!(first(&cluster).as_deref(), Some("cluster c1  epoch 4  leader -"));
    }

    #[test]
    fn shards_in_trouble_are_listed_and_the_worst_come_first() {
        let shards = [shard(3, "catching_up"), shard(4, "healthy"), shard(9, "unavailable")];
        let text = unhealthy(&shards);
        let lines = words(&text);
        assert_eq!(lines[1], ["SHARD", "STATE", "EPOCH", "PRIMARY", "VOTERS", "LEARNERS"]);
        assert_eq!(lines[2], ["9", "unavailable", "5", "-", "kv1", "kv2", "-"]);
        assert_eq!(lines[3], ["3", "catching_up", "5", "-", "kv1", "kv2", "-"]);
        assert_eq!(lines.len(), 4);
        assert_eq!(unhealthy(&[shard(4, "healthy")]), "");
    }

    #[test]
    fn of_very_many_shards_in_trouble_the_rest_are_counted() {
        let shards: Vec<Json> = (0..256).map(|number| shard(number, "moving")).collect();
        let text = unhealthy(&shards);
        assert_eq!(text.lines().count(), 1 + 1 + 20 + 1);
        assert!(text.contains("and 236 more"), "{text}");
    }
}
