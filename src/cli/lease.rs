//! The `node` commands about the stop lease: leave to stop a node, taken, looked at, given back.

use std::fs;
use std::io::Write as _;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;
use nix::unistd::{Uid, User};
use reqwest::Method;
use serde_json::{Value as Json, json};

use super::client::{Client, Error, Query};
use super::connection::Connection;
use super::exit::{Exit, note, output};

const PATH: &str = "/admin/stop-lease";

/// Pause between two requests, while waiting for leave.
const PACE: Duration = Duration::from_secs(1);

/// The statuses of what may be otherwise a moment later: held, and not safe or not agreed on.
const NOT_NOW: [u16; 2] = [409, 503];

#[derive(Args, Debug)]
pub(super) struct MayStop {
    /// The node's id, as `aegiskv status` shows it
    id: String,

    /// Wait so long until it is safe, and nobody else holds the lease
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = humantime::parse_duration)]
    wait: Duration,

    // As help, since rustdoc takes brackets for a link.
    #[arg(
        long,
        value_name = "NAME",
        help = "Who asks; the same holder may ask again [default: user@host]"
    )]
    holder: Option<String>,

    /// How long the lease lasts, at most 24h
    #[arg(long, value_name = "TIME", default_value = "30m", value_parser = humantime::parse_duration)]
    ttl: Duration,

    /// Print the server's JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    pub(super) connection: Connection,
}

#[derive(Args, Debug)]
pub(super) struct Look {
    /// Print the server's JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    pub(super) connection: Connection,
}

#[derive(Args, Debug)]
pub(super) struct Release {
    /// The node's id, as `aegiskv status` shows it
    id: String,

    /// Give it back only if this one holds it
    #[arg(long, value_name = "NAME")]
    holder: Option<String>,

    /// Print the server's JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    pub(super) connection: Connection,
}

impl MayStop {
    pub(super) async fn run(self) -> anyhow::Result<Exit> {
        let client = Client::new(&self.connection)?;
        let holder = match &self.holder {
            Some(holder) => holder.clone(),
            None => user_at_host()?,
        };
        let ttl = humantime::format_duration(self.ttl).to_string();
        let body = json!({ "node_id": self.id, "holder": holder, "ttl": ttl }).to_string();
        let deadline = Instant::now() + self.wait;
        let mut told = String::new();
        loop {
            let error = match acquire(&client, &body).await {
                Ok(lease) => return show(self.json, &lease, || granted(&lease)),
                Err(error) => error,
            };
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || !may_change(&error) {
                return Err(error);
            }
            let why = error.to_string();
            if why != told {
                note(format_args!("aegiskv: {why}; waiting"));
                told = why;
            }
            tokio::time::sleep(PACE.min(left)).await;
        }
    }
}

async fn acquire(client: &Client, body: &str) -> anyhow::Result<Json> {
    let request = client.ops_request(Method::POST, PATH)?.body(body.to_owned());
    answer(client, client.send(request).await?).await
}

async fn answer(client: &Client, response: reqwest::Response) -> anyhow::Result<Json> {
    let body = client.body(response).await?;
    serde_json::from_slice(&body).context("the server's answer is not about the stop lease")
}

/// Whether asking again may have another answer. The node that is asked may be restarting.
fn may_change(error: &anyhow::Error) -> bool {
    match error.downcast_ref::<Error>() {
        Some(Error::Refused(problem)) => NOT_NOW.contains(&problem.status),
        Some(Error::Unreachable { .. } | Error::Slow { .. } | Error::Broken { .. }) => true,
        _ => false,
    }
}

impl Look {
    pub(super) async fn run(self) -> anyhow::Result<Exit> {
        let client = Client::new(&self.connection)?;
        let response = client.send(client.ops_request(Method::GET, PATH)?).await?;
        let body = answer(&client, response).await?;
        show(self.json, &body, || match &body["lease"] {
            Json::Null => "nobody has leave to stop a node".to_owned(),
            lease => held(lease),
        })
    }
}

impl Release {
    pub(super) async fn run(self) -> anyhow::Result<Exit> {
        let client = Client::new(&self.connection)?;
        let query = Query::default().with("node_id", &self.id);
        let query = query.with_some("holder", self.holder.as_deref());
        let path = format!("{PATH}{}", query.as_str());
        let response = client.send(client.ops_request(Method::DELETE, &path)?).await?;
        let body = answer(&client, response).await?;
        show(self.json, &body, || {
            let id = self.id.escape_debug();
            match body["released"].as_bool() {
                Some(true) => {
                    format!("{} holds leave to stop {id} no more", text(&body["lease"]["holder"]))
                }
                _ => format!("nobody had leave to stop {id}"),
            }
        })
    }
}

fn granted(lease: &Json) -> String {
    format!(
        "{} may be stopped until {} (lease {}, held by {})",
        text(&lease["node_id"]),
        text(&lease["until"]),
        lease["lease_id"],
        text(&lease["holder"])
    )
}

/// The lease that is held, in one line.
pub(super) fn held(lease: &Json) -> String {
    format!(
        "{} has leave to stop {} since {}, until {}",
        text(&lease["holder"]),
        text(&lease["node_id"]),
        text(&lease["since"]),
        text(&lease["until"])
    )
}

fn text(value: &Json) -> String {
    value.as_str().unwrap_or("-").escape_debug().to_string()
}

fn show(as_json: bool, body: &Json, words: impl FnOnce() -> String) -> anyhow::Result<Exit> {
    let mut out = output();
    if as_json {
        writeln!(out, "{body:#}")?;
    } else {
        writeln!(out, "{}", words())?;
    }
    out.flush()?;
    Ok(Exit::Done)
}

/// Who asks, where nobody says otherwise.
fn user_at_host() -> anyhow::Result<String> {
    let user = User::from_uid(Uid::current()).context("cannot look up this user's name")?;
    let user = user.map_or_else(|| Uid::current().to_string(), |user| user.name);
    let host = fs::read_to_string("/proc/sys/kernel/hostname");
    let host = host.context("cannot read this machine's name; say who asks with --holder")?;
    Ok(format!("{user}@{}", host.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_told_in_one_line() {
        let lease = json!({
            "lease_id": 7, "node_id": "kv2", "holder": "ops@\u{1b}host",
            "since": "2026-11-28T15:00:00Z", "until": "2026-11-28T15:30:00Z",
        });
        assert_eq!(
            granted(&lease),
            "kv2 may be stopped until 2026-11-28T15:30:00Z (lease 7, held by ops@\\u{1b}host)"
        );
        assert_eq!(
            held(&lease),
            "ops@\\u{1b}host has leave to stop kv2 since 2026-11-28T15:00:00Z, until \
             2026-11-28T15:30:00Z"
        );
    }

    #[test]
    fn who_asks_is_somebody_somewhere() {
        let holder = user_at_host().expect("this machine has a name");
        let (user, host) = holder.split_once('@').expect("user@host");
        assert!(!user.is_empty() && !host.is_empty() && !host.contains('\n'), "{holder}");
    }
}
