//! Whole sets of keys: `dump`, `import` and `batch`.
//!
//! Invariant: memory is bounded by the pages and chunks in flight, never by the size of the file.
//! An import that stops names the line up to which everything is stored. A part of a dump is not
//! taken for the whole unless that is asked for.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufRead, BufReader, IsTerminal as _, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use futures_util::{StreamExt as _, stream};
use indicatif::{ProgressBar, ProgressStyle};
use reqwest::header::CONTENT_TYPE;
use reqwest::{Body, Method};
use serde_json::Value as Json;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio_util::io::ReaderStream;

use super::chunks::{Chunk, Chunks, Part, refuse_part};
use super::client::{Client, Error};
use super::connection::Connection;
use super::draft::Draft;
use super::exit::{Exit, in_words, note, output};
use super::list::{Listed, Pages};
use crate::backup::End;

/// Requests of an import under way at a time.
const CHUNKS_IN_FLIGHT: usize = 4;

/// How often a refused chunk is sent again, when the server says that it may be.
const TRIES_MAX: u32 = 5;

/// Pause before the second try; it doubles with each.
const RETRY_PAUSE: Duration = Duration::from_millis(200);

/// The media type of one JSON object a line.
const NDJSON: &str = "application/x-ndjson";

/// Writes keys and values as NDJSON, one a line
///
/// Values that are not UTF-8 are written in base64. Times to live are written as what was left
/// (ttl_ms), and start anew at the import. Keys written or deleted meanwhile may or may not be
/// in the dump; every other key is in it at least once. The last line says how many there are.
/// A file appears when it is whole.
#[derive(Args, Debug)]
pub(crate) struct Dump {
    /// Where to write; it must not exist yet. `-` is standard output
    #[arg(default_value = "-")]
    file: PathBuf,

    /// Only keys that begin with this
    #[arg(long, default_value = "")]
    prefix: OsString,

    #[command(flatten)]
    pub(crate) connection: Connection,
}

impl Dump {
    pub(crate) async fn run(self) -> anyhow::Result<Exit> {
        let client = Client::new(&self.connection)?;
        let count = if self.file.as_os_str() == "-" {
            let mut out = output();
            let count = self.write(&client, &mut out).await?;
            out.flush()?;
            count
        } else {
            let mut draft = Draft::create(&self.file, 0o666)?;
            let count = tokio::select! {
                written = self.write(&client, &mut draft) => written?,
                told = told_to_end() => bail!("{} is not written: {}", self.file.display(), told?),
            };
            draft.finish()?;
            count
        };
        note(format_args!("dumped {count} keys"));
        Ok(Exit::Done)
    }

    /// Writes all lines; answers how many keys there were.
    async fn write(&self, client: &Client, out: &mut impl Write) -> anyhow::Result<u64> {
        let progress = progress("keys");
        let mut pages = Pages::new(client, self.prefix.as_bytes(), true);
        let mut keys = 0u64;
        while let Some(page) = pages.next::<Listed>(None).await? {
            for listed in page.keys {
                if let Some(entry) = listed.into_entry()? {
                    out.write_all(entry.to_line().as_bytes())?;
                    keys += 1;
                }
            }
            progress.set_position(keys);
        }
        out.write_all(End { keys }.to_line().as_bytes())?;
        progress.finish_and_clear();
        Ok(keys)
    }
}

/// Waits for SIGINT or SIGTERM; answers which it was, for people.
async fn told_to_end() -> io::Result<&'static str> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    Ok(tokio::select! {
        _ = interrupt.recv() => "interrupted",
        _ = terminate.recv() => "told to end",
    })
}

/// Stores the keys of a dump
///
/// Keys that exist are replaced; others are left alone. If it stops half way it says from which
/// line to go on. Running the same import twice does no harm. A file that does not end as a dump
/// does is refused, see --partial.
#[derive(Args, Debug)]
pub(crate) struct Import {
    /// What to read; `-` is standard input
    #[arg(default_value = "-")]
    file: PathBuf,

    /// Skip the lines before this one
    #[arg(long, value_name = "N", default_value_t = 1)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    from_line: u64,

    /// Take lines that were filtered, or made elsewhere, or what is left of a dump: whatever the
    /// last line says, or does not say, of how many there are
    #[arg(long)]
    partial: bool,

    #[command(flatten)]
    pub(crate) connection: Connection,
}

impl Import {
    pub(crate) async fn run(self) -> anyhow::Result<Exit> {
        let client = Client::new(&self.connection)?;
        if !self.partial {
            refuse_part(&self.file)?;
        }
        let mut chunks = Chunks::new(open(&self.file)?, self.partial);
        let progress = progress("keys");
        chunks.go_to(self.from_line)?;
        // A slow source must not hold up the requests under way: it is read on a thread of its own.
        let (sender, mut receiver) = mpsc::channel(CHUNKS_IN_FLIGHT);
        tokio::task::spawn_blocking(move || {
            while let Some(chunk) = chunks.next().transpose()
                && sender.blocking_send(chunk).is_ok()
            {}
        });
        let chunks = stream::poll_fn(move |context| receiver.poll_recv(context));
        let answers = chunks.map(|chunk| async {
            let chunk = chunk.map_err(|error| Stopped { error, stored: 0, line: None })?;
            send_chunk(&client, chunk).await
        });
        // Answers come in the order of the lines, so all before the first failure is stored.
        let mut answers = std::pin::pin!(answers.buffered(CHUNKS_IN_FLIGHT));
        let mut stored = 0u64;
        let mut next_line = self.from_line;
        while let Some(answer) = answers.next().await {
            match answer {
                Ok((count, last_line)) => {
                    stored += count;
                    next_line = last_line + 1;
                    progress.set_position(stored);
                }
                Err(Stopped { error, stored: more, line }) => {
                    progress.finish_and_clear();
                    stored += more;
                    let mend = match line.unwrap_or(next_line) {
                        _ if error.is::<Part>() => format!("{stored} keys are stored"),
                        line => format!(
                            "{stored} keys are stored, all before line {line}; of the lines behind \
                             it some may be as well\n\
                             go on with `aegiskv import --from-line {line}`"
                        ),
                    };
                    return Err(anyhow::anyhow!("{}\n{mend}", in_words(&error)));
                }
            }
        }
        progress.finish_and_clear();
        note(format_args!("imported {stored} keys"));
        Ok(Exit::Done)
    }
}

/// What ends an import.
#[derive(Debug)]
struct Stopped {
    error: anyhow::Error,
    /// Keys of this chunk that are stored all the same, all before `line`.
    stored: u64,
    /// The line from which on it may not be, where that is known.
    line: Option<u64>,
}

/// Sends a chunk; says how many keys it stored and the number of its last line.
async fn send_chunk(client: &Client, chunk: Chunk) -> Result<(u64, u64), Stopped> {
    let first = chunk.lines.first().copied().unwrap_or_default();
    let last = chunk.lines.last().copied().unwrap_or_default();
    let mut pause = RETRY_PAUSE;
    for attempt in 1.. {
        match try_chunk(client, &chunk).await {
            Ok(count) => return Ok((count, last)),
            Err(fault) if fault.passing && attempt < TRIES_MAX => {
                tokio::time::sleep(pause).await;
                pause *= 2;
            }
            Err(fault) => {
                let what = match fault.line {
                    Some(line) => format!("line {line}"),
                    None => format!("lines {first} to {last}"),
                };
                let line = Some(fault.line.unwrap_or(first));
                return Err(Stopped {
                    error: fault.error.context(what),
                    stored: fault.stored,
                    line,
                });
            }
        }
    }
    unreachable!("the loop ends by returning")
}

/// Why a chunk is not stored.
struct Fault {
    error: anyhow::Error,
    /// The line at fault, if it is a single one.
    line: Option<u64>,
    /// Keys of the lines before it, all of them stored.
    stored: u64,
    /// Whether trying again may help.
    passing: bool,
}

async fn try_chunk(client: &Client, chunk: &Chunk) -> Result<u64, Fault> {
    let request = client
        .request(Method::POST, "/v1/batch")
        .header(CONTENT_TYPE, NDJSON)
        .body(chunk.body.clone());
    let whole = |error: Error| {
        let passing =
            matches!(&error, Error::Refused(problem) if matches!(problem.status, 429 | 503));
        Fault { error: error.into(), line: None, stored: 0, passing }
    };
    let response = client.send(request).await.map_err(whole)?;
    let body = client.body(response).await.map_err(whole)?;
    let mut count = 0;
    let mut results = body.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    for line in &chunk.lines {
        let at = |error: anyhow::Error, passing| Fault {
            error,
            line: Some(*line),
            stored: count,
            passing,
        };
        let result = results.next().and_then(|text| serde_json::from_slice::<Json>(text).ok());
        let Some(result) = result else {
            return Err(at(
                anyhow::anyhow!("the server's answer ends before this line's result"),
                false,
            ));
        };
        let status = result["status"].as_u64().unwrap_or_default();
        if !(200..300).contains(&status) {
            let error = anyhow::anyhow!("{}", reason(&result, status));
            return Err(at(error, matches!(status, 429 | 503)));
        }
        count += 1;
    }
    Ok(count)
}

/// What the server says about an operation that failed.
fn reason(result: &Json, status: u64) -> String {
    match ["detail", "title"].iter().find_map(|member| result[*member].as_str()) {
        Some(text) => format!("{text} ({status})"),
        None => format!("the server answered {status}"),
    }
}

/// Carries out operations from NDJSON, one a line, and prints a result a line
///
/// A line is {"op":"put","key":"a","value":"1","ttl":"30s"}, {"op":"get","key":"b"},
/// {"op":"delete","key":"c"}, or the like with incr or touch; key_base64 and value_base64 hold
/// bytes, if_match and if_none_match conditions. Results come as the lines are read. The code is 1 if any operation failed; a key
/// that is not there is no failure.
#[derive(Args, Debug)]
pub(crate) struct Batch {
    /// What to read; `-` is standard input
    #[arg(default_value = "-")]
    file: PathBuf,

    #[command(flatten)]
    pub(crate) connection: Connection,
}

impl Batch {
    pub(crate) async fn run(self) -> anyhow::Result<Exit> {
        let client = Client::new(&self.connection)?;
        let body = if self.file.as_os_str() == "-" {
            Body::wrap_stream(ReaderStream::new(tokio::io::stdin()))
        } else {
            let file = tokio::fs::File::open(&self.file).await;
            let file = file.with_context(|| format!("cannot read {}", self.file.display()))?;
            Body::wrap_stream(ReaderStream::new(file))
        };
        let request =
            client.request(Method::POST, "/v1/batch").header(CONTENT_TYPE, NDJSON).body(body);
        let mut response = client.send(request).await?;
        let mut out = output();
        let mut failed = 0u64;
        let mut line = Vec::new();
        loop {
            let chunk = response.chunk().await;
            let chunk = chunk.map_err(|error| client.explain(&self.connection.addr, error))?;
            let ended = chunk.is_none();
            line.extend_from_slice(&chunk.unwrap_or_default());
            while let Some(end) = line.iter().position(|byte| *byte == b'\n') {
                failed += u64::from(is_failure(&line[..end]));
                out.write_all(&line[..=end])?;
                line.drain(..=end);
            }
            if ended && !line.is_empty() {
                failed += u64::from(is_failure(&line));
                out.write_all(&line)?;
                out.write_all(b"\n")?;
            }
            out.flush()?;
            if ended {
                break;
            }
        }
        if failed > 0 {
            note(format_args!("aegiskv: {failed} operations failed"));
            return Ok(Exit::Failed);
        }
        Ok(Exit::Done)
    }
}

fn is_failure(result: &[u8]) -> bool {
    let result = serde_json::from_slice::<Json>(result).unwrap_or_default();
    let status = result["status"].as_u64().unwrap_or_default();
    status != 404 && !(200..400).contains(&status)
}

fn open(path: &PathBuf) -> anyhow::Result<Box<dyn BufRead + Send>> {
    if path.as_os_str() == "-" {
        return Ok(Box::new(BufReader::new(io::stdin())));
    }
    let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(Box::new(BufReader::new(file)))
}

/// A count on standard error while it is a terminal; else nothing.
fn progress(unit: &'static str) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let template = format!("{{spinner}} {{human_pos}} {unit}, {{per_sec}}, {{elapsed}}");
    let style = ProgressStyle::with_template(&template).expect("the template is a constant");
    let bar = ProgressBar::new_spinner().with_style(style);
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absent_keys_are_no_failures_of_a_batch() {
        assert!(!is_failure(br#"{"status":404}"#));
        assert!(!is_failure(br#"{"status":201,"version":"1"}"#));
        assert!(is_failure(br#"{"status":412}"#));
        assert!(is_failure(b"half a li"));
    }
}
