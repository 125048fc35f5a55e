//! The `bench` command: load on a node, and how fast it answers.
//!
//! Invariant: with a rate, an operation's time counts from when it was due, not from when a free
//! connection sent it, so that a server that stalls cannot hide it (Tene, "How NOT to Measure
//! Latency": no coordinated omission). Keys begin with a prefix of the bench's own, so that it
//! never touches anybody's data.

mod connection;
mod load;
mod report;

use std::io::{self, IsTerminal as _};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;
use futures_util::future::join_all;
use indicatif::{ProgressBar, ProgressStyle};
use tokio::sync::Semaphore;

use self::connection::Endpoint;
use self::load::{Counts, Phase, Plan};
use self::report::Tally;
use super::connection::Connection;
use super::exit::{Exit, Usage};
use super::token::fill_randomly;

/// How often the progress line is renewed.
const PROGRESS_PAUSE: Duration = Duration::from_secs(1);

/// Puts load on a node, and reports its throughput and latency
///
/// Without --rate every connection sends its next operation once the one before is answered.
/// With --rate operations become due at that rate whatever the server does, and latency counts
/// from when they were due. It writes keys that begin with --key-prefix, and leaves them behind:
/// give --ttl, or delete them with `aegiskv del --prefix`.
#[derive(Args, Debug)]
pub(crate) struct Bench {
    /// Connections, each with one operation under way
    #[arg(long, value_name = "N", default_value_t = 64)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=65_536))]
    clients: u32,

    /// How long to measure
    #[arg(long, value_name = "TIME", default_value = "10s")]
    #[arg(value_parser = humantime::parse_duration)]
    duration: Duration,

    /// How long to run before measuring
    #[arg(long, value_name = "TIME", default_value = "1s")]
    #[arg(value_parser = humantime::parse_duration)]
    warmup: Duration,

    /// GETs to PUTs
    #[arg(long, value_name = "GET:PUT", default_value = "9:1", value_parser = parse_ratio)]
    ratio: (u32, u32),

    /// Different keys
    #[arg(long, value_name = "N", default_value_t = 100_000)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    keys: u64,

    /// What the keys begin with
    #[arg(long, value_name = "TEXT", default_value = "bench:")]
    key_prefix: String,

    /// Bytes in a value
    #[arg(long, value_name = "BYTES", default_value_t = 100)]
    value_size: usize,

    /// Time to live of what is put: 500ms, 30s, 15m, 2h, 7d or seconds
    #[arg(long, value_name = "TIME")]
    ttl: Option<String>,

    /// Operations a second, due at even intervals whatever the server does
    #[arg(long, value_name = "OPS")]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    rate: Option<u64>,

    /// Do not put every key once before the start, so that GETs may miss
    #[arg(long)]
    no_load: bool,

    /// Threads that send (default: one for each core)
    #[arg(long, value_name = "N")]
    threads: Option<usize>,

    /// Print the result as JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    pub(crate) connection: Connection,
}

impl Bench {
    pub(crate) fn run(self) -> anyhow::Result<Exit> {
        if self.duration.is_zero() {
            return Err(Usage("--duration must be above 0s".to_owned()).into());
        }
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        if let Some(threads) = self.threads {
            builder.worker_threads(threads.max(1));
        }
        let runtime = builder.enable_all().build().context("cannot start the runtime")?;
        runtime.block_on(self.measure())
    }

    async fn measure(self) -> anyhow::Result<Exit> {
        let endpoint = Arc::new(Endpoint::new(&self.connection)?);
        endpoint.probe(&self.key_prefix).await?;
        let plan = Arc::new(self.plan()?);
        if !self.no_load && self.ratio.0 > 0 {
            let loaded = Phase::load();
            let tally = run_phase(&endpoint, &plan, loaded, self.clients, "loading keys").await?;
            if tally.errors() > 0 {
                let first = tally.first_error().unwrap_or("no reason given").to_owned();
                anyhow::bail!("cannot load the keys: {first}");
            }
        }
        let start = Instant::now();
        let phase = Phase::timed(start, self.warmup, self.duration, self.rate);
        let tally = run_phase(&endpoint, &plan, phase, self.clients, "measuring").await?;
        let report = tally.into_report(self.clients, self.rate);
        report.print(self.json)?;
        Ok(if report.is_failure() { Exit::Failed } else { Exit::Done })
    }

    fn plan(&self) -> anyhow::Result<Plan> {
        let (gets, puts) = self.ratio;
        let mut value = vec![0; self.value_size];
        fill_randomly(&mut value)?;
        Plan::new(&self.key_prefix, self.keys, value.into(), self.ttl.as_deref(), gets, puts)
    }
}

/// Runs one phase on all connections, with a line of progress on a terminal.
async fn run_phase(
    endpoint: &Arc<Endpoint>,
    plan: &Arc<Plan>,
    phase: Phase,
    clients: u32,
    what: &'static str,
) -> anyhow::Result<Tally> {
    let phase = Arc::new(phase);
    let counts: Arc<[Counts]> = (0..clients).map(|_| Counts::default()).collect();
    let due = Arc::new(Semaphore::new(0));
    let pacer = phase.pacer(Arc::clone(&due));
    let progress = tokio::spawn(show_progress(Arc::clone(&counts), what));
    let tasks: Vec<_> = (0..clients)
        .map(|index| {
            let client = load::Client {
                index,
                clients,
                endpoint: Arc::clone(endpoint),
                plan: Arc::clone(plan),
                phase: Arc::clone(&phase),
                counts: Arc::clone(&counts),
                due: Arc::clone(&due),
            };
            tokio::spawn(client.run())
        })
        .collect();
    let mut tally = Tally::default();
    for result in join_all(tasks).await {
        tally.add(&result.context("a client of the bench broke down")?);
    }
    progress.abort();
    // The task's bar is cleared when it is dropped; wait until it is.
    let _ = progress.await;
    if let Some(pacer) = pacer {
        tally.unsent = pacer.join().ok().map_or(0, |sent| sent.saturating_sub(phase.taken()));
    }
    tally.elapsed = phase.measured();
    Ok(tally)
}

async fn show_progress(counts: Arc<[Counts]>, what: &'static str) {
    if !io::stderr().is_terminal() {
        return;
    }
    let style = ProgressStyle::with_template("{spinner} {msg}").expect("a constant template");
    let bar = ProgressBar::new_spinner().with_style(style);
    let bar = ClearedOnDrop(bar);
    let mut ticks = tokio::time::interval(PROGRESS_PAUSE);
    let (mut before, mut at) = (0, Instant::now());
    loop {
        ticks.tick().await;
        let sum = |field: fn(&Counts) -> &std::sync::atomic::AtomicU64| -> u64 {
            counts.iter().map(|counts| field(counts).load(Ordering::Relaxed)).sum()
        };
        let (done, errors) = (sum(|counts| &counts.done), sum(|counts| &counts.errors));
        let seconds = at.elapsed().as_secs_f64();
        let rate = if seconds > 0.0 { (done - before) as f64 / seconds } else { 0.0 };
        bar.0.set_message(format!("{what}: {done} operations, {rate:.0}/s, {errors} errors"));
        bar.0.tick();
        (before, at) = (done, Instant::now());
    }
}

struct ClearedOnDrop(ProgressBar);

impl Drop for ClearedOnDrop {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

fn parse_ratio(text: &str) -> Result<(u32, u32), &'static str> {
    let parse = || {
        let (gets, puts) = text.split_once(':')?;
        Some((gets.parse().ok()?, puts.parse().ok()?))
    };
    match parse() {
        Some((0, 0)) => Err("one of the two must be above 0"),
        Some((gets, puts)) if gets <= 1_000_000 && puts <= 1_000_000 => Ok((gets, puts)),
        Some(_) => Err("each is at most 1000000"),
        None => Err("write it as GETs:PUTs, as in 9:1"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_read_as_gets_to_puts() {
        assert_eq!(parse_ratio("9:1"), Ok((9, 1)));
        assert_eq!(parse_ratio("0:1"), Ok((0, 1)));
        for text in ["0:0", "9", "a:b", "-1:2", "9:1:1", "2000000:1"] {
            assert!(parse_ratio(text).is_err(), "{text}");
        }
    }
}
