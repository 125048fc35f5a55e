//! The `dev` command: a throw-away cluster on this machine, to try things out with.
//!
//! It owns its nodes, which are processes of this same program, and the temporary directory with
//! all their files. Invariant: neither outlives it. The kernel kills the nodes should this process
//! be killed; only the directory is left then.

mod node;
mod scratch;
mod words;

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::TcpListener;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL;
use clap::Args;
use nix::sys::signal::Signal as Kill;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::exit::{Exit, Usage, note, output};
use super::token::fill_randomly;
use node::Node;
use scratch::Scratch;

/// Most nodes in one such cluster.
const NODES_MAX: i64 = 9;

/// The ports of two nodes lie this far apart.
const PORT_STEP: u16 = 10;

/// What lies at which distance above a node's client port.
const PORTS: [(u16, &str); 3] = [(0, "clients"), (1, "other nodes"), (2, "operations")];

/// Longest wait until every node is ready.
const READY_TIMEOUT: Duration = Duration::from_secs(60);

/// Pause between two questions whether a node is ready.
const READY_PACE: Duration = Duration::from_millis(50);

/// How often it is said what is waited for.
const WAITING_PACE: Duration = Duration::from_secs(3);

/// Longest wait for nodes that were told to stop; then they are killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(15);

/// Pause before a node that ended by itself, or by somebody's hand, is started again.
const RESTART_AFTER: Duration = Duration::from_secs(10);

/// Bytes of randomness in the cluster's secret.
const SECRET_BYTES: usize = 32;

/// Starts a throw-away cluster on this machine, and says what to try with it
///
/// Its nodes are node1, node2 and so on; clients reach them on ports 7700, 7710 and so on, port + 1
/// is for the nodes among themselves, port + 2 for operations. A node that is killed is started
/// again after a while. All of it, data included, is gone when the command ends: by Ctrl-C,
/// SIGTERM, or otherwise.
#[derive(Args, Debug)]
pub(crate) struct Dev {
    /// How many nodes
    #[arg(long, value_name = "NUMBER", default_value_t = 3)]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=NODES_MAX))]
    nodes: u16,

    /// The first node's client port
    #[arg(long, value_name = "PORT", default_value_t = 7700)]
    #[arg(value_parser = clap::value_parser!(u16).range(1..))]
    port: u16,

    /// Show the nodes' logs here too, each line behind its node's name
    #[arg(long)]
    verbose: bool,
}

impl Dev {
    pub(crate) async fn run(self) -> anyhow::Result<Exit> {
        let ports = ports(self.nodes, self.port)?;
        // From here on a signal ends the command in order.
        let mut signals = Signals::listen()?;
        let scratch = Scratch::new()?;
        let mut secret = [0; SECRET_BYTES];
        fill_randomly(&mut secret)?;
        let secret = BASE64URL.encode(secret);
        let mut cluster = Cluster { nodes: Vec::new(), scratch };
        for (index, port) in ports.iter().enumerate() {
            let name = format!("node{}", index + 1);
            let node = Node::start(&cluster.scratch, name, *port, &ports, &secret, self.verbose)?;
            cluster.nodes.push(node);
        }
        note(format_args!(
            "{} nodes are starting; their logs are {}/*.log",
            ports.len(),
            cluster.scratch.dir().display()
        ));
        if !cluster.wait_ready(&mut signals).await? {
            return cluster.stop(&mut signals).await;
        }
        let mut out = output();
        out.write_all(words::what_to_try(&cluster.nodes, cluster.scratch.dir()).as_bytes())?;
        out.flush()?;
        drop(out);
        cluster.watch_over(&mut signals).await?;
        cluster.stop(&mut signals).await
    }
}

/// The nodes and their files. Dropped: the nodes are killed, then the files removed.
struct Cluster {
    nodes: Vec<Node>,
    scratch: Scratch,
}

impl Cluster {
    /// Waits until every node is ready; `false` if told to stop before that.
    async fn wait_ready(&mut self, signals: &mut Signals) -> anyhow::Result<bool> {
        let http = reqwest::Client::builder()
            .no_proxy()
            // Nothing here speaks TLS; reading the system's certificates would take its time.
            .tls_certs_only([])
            .timeout(Duration::from_secs(2))
            .build()
            .context("cannot set up the HTTP client")?;
        let began = Instant::now();
        let mut said = Instant::now();
        loop {
            let mut waiting = Vec::new();
            for node in &mut self.nodes {
                if let Some(status) = node.ended()? {
                    let name = &node.name;
                    bail!("{name} ended with {status} before it was ready:\n{}", node.log_tail());
                }
                if let Err(why) = node.ready(&http).await {
                    waiting.push(format!("{} ({why})", node.name));
                }
            }
            if waiting.is_empty() {
                return Ok(true);
            }
            let waiting = waiting.join(", ");
            if began.elapsed() > READY_TIMEOUT {
                let tails = self.nodes.iter().fold(String::new(), |mut text, node| {
                    let _ = write!(text, "\n--- {}\n{}", node.name, node.log_tail());
                    text
                });
                bail!("not ready within {READY_TIMEOUT:?}: {waiting}{tails}");
            }
            if said.elapsed() > WAITING_PACE {
                said = Instant::now();
                note(format_args!("waiting for {waiting}"));
            }
            tokio::select! {
                () = tokio::time::sleep(READY_PACE) => {}
                told = signals.next() => if matches!(told, Told::Stop) { return Ok(false) },
            }
        }
    }

    /// Starts again what ends, until told to stop.
    async fn watch_over(&mut self, signals: &mut Signals) -> anyhow::Result<()> {
        loop {
            let due = self.nodes.iter().filter_map(|node| node.due).min();
            let wait =
                due.map_or(Duration::MAX, |due| due.saturating_duration_since(Instant::now()));
            tokio::select! {
                told = signals.next() => if matches!(told, Told::Stop) { return Ok(()) },
                () = tokio::time::sleep(wait) => {}
            }
            let now = Instant::now();
            for node in self.nodes.iter_mut().filter(|node| node.due.is_some_and(|due| due <= now))
            {
                node.start_again()?;
                note(format_args!("{} is started again", node.name));
            }
            for index in 0..self.nodes.len() {
                let node = &mut self.nodes[index];
                let Some(status) = node.ended()? else { continue };
                node.due = Some(now + RESTART_AFTER);
                let name = node.name.clone();
                note(words::node_ended(&name, status, self.running().len()));
            }
        }
    }

    /// The names of the nodes that run.
    fn running(&self) -> Vec<&str> {
        self.nodes.iter().filter(|n| n.pid().is_some()).map(|n| n.name.as_str()).collect()
    }

    /// Stops what still runs: in order, and at once if told so again.
    async fn stop(mut self, signals: &mut Signals) -> anyhow::Result<Exit> {
        note("stopping the nodes; once more kills them");
        for node in &self.nodes {
            node.signal(Kill::SIGTERM);
        }
        let deadline = tokio::time::sleep(STOP_TIMEOUT);
        tokio::pin!(deadline);
        loop {
            for node in &mut self.nodes {
                node.ended()?;
            }
            let running = self.running().join(", ");
            if running.is_empty() {
                return Ok(Exit::Done);
            }
            tokio::select! {
                told = signals.next() => if matches!(told, Told::Stop) {
                    note(format_args!("killing {running}"));
                    return Ok(Exit::Done);
                },
                () = &mut deadline => {
                    note(format_args!("still running after {STOP_TIMEOUT:?}, killed: {running}"));
                    return Ok(Exit::Done);
                }
            }
        }
    }
}

/// The nodes' client ports, all of which nobody listens on, nor on those that belong to them.
fn ports(nodes: u16, first: u16) -> anyhow::Result<Vec<u16>> {
    let last_offset = PORTS.map(|(offset, _)| offset).into_iter().max().unwrap_or(0);
    let span = (nodes - 1) * PORT_STEP + last_offset;
    if first.checked_add(span).is_none() {
        let text = format!(
            "{nodes} nodes need ports up to --port + {span}; the highest there is is {}",
            u16::MAX
        );
        return Err(Usage(text).into());
    }
    let ports: Vec<u16> = (0..nodes).map(|index| first + index * PORT_STEP).collect();
    for port in &ports {
        for (offset, purpose) in PORTS {
            let port = port + offset;
            TcpListener::bind(("127.0.0.1", port)).with_context(|| {
                format!(
                    "cannot use port {port} for {purpose}: choose another first port with --port \
                     (make run: CLIENT_PORT=...)"
                )
            })?;
        }
    }
    Ok(ports)
}

/// What a signal tells the command.
enum Told {
    Stop,
    ChildEnded,
}

struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
    child: Signal,
}

impl Signals {
    fn listen() -> anyhow::Result<Self> {
        let listen = |kind| signal(kind).context("cannot listen for signals");
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hang_up: listen(SignalKind::hangup())?,
            child: listen(SignalKind::child())?,
        })
    }

    async fn next(&mut self) -> Told {
        tokio::select! {
            _ = self.interrupt.recv() => Told::Stop,
            _ = self.terminate.recv() => Told::Stop,
            _ = self.hang_up.recv() => Told::Stop,
            _ = self.child.recv() => Told::ChildEnded,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_lie_ten_ports_apart() {
        // The lowest of a run of ports that are free; whoever takes one meanwhile is rare.
        let free = |first: &u16| ports(3, *first).is_ok();
        let first = (20_000..30_000).step_by(37).find(free).expect("some are free");
        let expected = [first, first + 10, first + 20];
        assert_eq!(ports(3, first).expect("they were free"), expected);
    }

    #[test]
    fn a_port_that_is_taken_is_named_with_the_way_out() {
        let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = taken.local_addr().expect("it is bound").port();
        let error = ports(1, port - 2).or_else(|_| ports(1, port - 1)).expect_err("it is taken");
        let text = format!("{error:#}");
        assert!(text.contains("--port") && text.contains("in use"), "{text}");
    }

    #[test]
    fn ports_above_the_highest_are_a_usage_error() {
        let error = ports(3, 65_520).expect_err("65542 is no port");
        assert!(error.is::<Usage>(), "{error}");
    }
}
