//! Whole sets of keys: `dump`, `import` and `batch`.
//!
//! Invariant: memory is bounded by the pages and chunks in flight, never by the size of the file.
//! An import that stops names the line up to which everything is stored. A part of a dump is not
//! taken for the whole unless that is asked for.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, IsTerminal as _, Read as _, Seek as _, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use clap::Args;
use futures_util::{StreamExt as _, stream};
use indicatif::{ProgressBar, ProgressStyle};
use reqwest::header::CONTENT_TYPE;
use reqwest::{Body, Method};
use serde_json::{Value as Json, json};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio_util::io::ReaderStream;

use super::client::{Client, Error};
use super::connection::Connection;
use super::draft::Draft;
use super::exit::{Exit, in_words, note, output};
use super::list::{Listed, Pages};
use crate::backup::{END_BYTES_MAX, End, Entry};

/// Lines of an import that go into one request at most.
const CHUNK_LINES_MAX: usize = 1000;

/// An import's request is closed once its body has reached this, in bytes.
const CHUNK_BYTES_AIM: usize = 1 << 20;

/// Requests of an import under way at a time.
const CHUNKS_IN_FLIGHT: usize = 4;

/// Longest line of an import, in bytes: the largest value there can be, in base64, and its key.
const LINE_BYTES_MAX: usize = (1 << 30) / 3 * 4 + (1 << 20);

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

/// Consecutive lines of an import, as the body of one request.
#[derive(Debug)]
struct Chunk {
    /// The body: one operation a line.
    body: String,
    /// The number of each operation's line in the file.
    lines: Vec<u64>,
}

impl Import {
    pub(crate) async fn run(self) -> anyhow::Result<Exit> {
        let client = Client::new(&self.connection)?;
        if !self.partial {
            refuse_part(&self.file)?;
        }
        let mut chunks = Chunks::new(open(&self.file)?, self.partial);
        let progress = progress("keys");
        for _ in 1..self.from_line {
            chunks.skip()?;
        }
        // A slow source must not hold up the requests under way: it is read on a thread of its own.
        let (sender, mut receiver) = mpsc::channel(CHUNKS_IN_FLIGHT);
        tokio::task::spawn_blocking(move || {
            while let Some(chunk) = chunks.next().transpose()
                && sender.blocking_send(chunk).is_ok()
            {}
        });
        let chunks = stream::poll_fn(move |context| receiver.poll_recv(context));
        let answers = chunks.map(|chunk| async { send_chunk(&client, chunk?).await });
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
                Err(error) => {
                    progress.finish_and_clear();
                    let mend = format!(
                        "{stored} keys are stored, all before line {next_line}; \
                         go on with `aegiskv import --from-line {next_line}`"
                    );
                    return Err(anyhow::anyhow!("{}\n{mend}", in_words(&error)));
                }
            }
        }
        progress.finish_and_clear();
        note(format_args!("imported {stored} keys"));
        Ok(Exit::Done)
    }
}

/// Cuts a file into chunks.
struct Chunks<R> {
    reader: R,
    /// The number of the line read last.
    line: u64,
    /// Whatever is said of how many keys there are does not count.
    partial: bool,
    /// Keys since the beginning, or since the last end: dumps may stand one after the other.
    keys: u64,
    /// The last line was the end of a dump.
    is_whole: bool,
    /// What ends the import once the lines before it are given out.
    fault: Option<anyhow::Error>,
    ended: bool,
}

impl<R: BufRead> Chunks<R> {
    fn new(reader: R, partial: bool) -> Self {
        Self { reader, line: 0, partial, keys: 0, is_whole: false, fault: None, ended: false }
    }

    /// Skips a line, if there is another.
    fn skip(&mut self) -> anyhow::Result<()> {
        let mut head = Vec::new();
        let limit = END_BYTES_MAX as u64;
        let read = io::Read::take(&mut self.reader, limit).read_until(b'\n', &mut head);
        if read.context("cannot read the file")? == 0 {
            return Ok(());
        }
        if !head.ends_with(b"\n") {
            self.reader.skip_until(b'\n').context("cannot read the file")?;
        }
        self.line += 1;
        if End::parse(&head).is_some() {
            (self.keys, self.is_whole) = (0, true);
        } else if !head.trim_ascii().is_empty() {
            (self.keys, self.is_whole) = (self.keys + 1, false);
        }
        Ok(())
    }

    /// The next chunk, or `None` at the end.
    ///
    /// # Errors
    /// A line is no entry, or the file cannot be read. The lines before it are given out first;
    /// nothing comes after it.
    fn next(&mut self) -> anyhow::Result<Option<Chunk>> {
        let mut chunk = Chunk { body: String::new(), lines: Vec::new() };
        while !self.ended
            && chunk.lines.len() < CHUNK_LINES_MAX
            && chunk.body.len() < CHUNK_BYTES_AIM
        {
            match self.entry() {
                Ok(Some(entry)) => {
                    chunk.body.push_str(&operation(&entry).to_string());
                    chunk.body.push('\n');
                    chunk.lines.push(self.line);
                }
                Ok(None) => self.ended = true,
                Err(error) => {
                    self.ended = true;
                    self.fault = Some(error);
                }
            }
        }
        match self.fault.take() {
            Some(fault) if chunk.lines.is_empty() => Err(fault),
            fault => {
                self.fault = fault;
                Ok((!chunk.lines.is_empty()).then_some(chunk))
            }
        }
    }

    /// The next entry, or `None` at the end.
    fn entry(&mut self) -> anyhow::Result<Option<Entry>> {
        let mut text = Vec::new();
        loop {
            text.clear();
            let limit = u64::try_from(LINE_BYTES_MAX).unwrap_or(u64::MAX);
            let read = io::Read::take(&mut self.reader, limit).read_until(b'\n', &mut text);
            if read.context("cannot read the file")? == 0 {
                ensure!(self.partial || self.is_whole, PART);
                return Ok(None);
            }
            self.line += 1;
            if let Some(End { keys }) = End::parse(&text) {
                ensure!(
                    self.partial || keys == self.keys,
                    "line {}: there were {keys} keys in this dump, and {} lines of it are here; \
                     --partial takes them as they are",
                    self.line,
                    self.keys
                );
                (self.keys, self.is_whole) = (0, true);
            } else if !text.trim_ascii().is_empty() {
                (self.keys, self.is_whole) = (self.keys + 1, false);
                let entry = Entry::parse(&text);
                return Ok(Some(entry.with_context(|| format!("line {}", self.line))?));
            }
        }
    }
}

/// What is said of a file that has no end.
const PART: &str = "the last line does not say how many keys there are: this is a part of a dump, \
                    or was not made by `aegiskv dump`; --partial takes it as it is";

/// Refuses a file that does not end as a dump does, before any of it is stored. Of what is no file
/// the end is not known before it is read.
fn refuse_part(path: &Path) -> anyhow::Result<()> {
    let cannot = || format!("cannot read {}", path.display());
    if path.as_os_str() == "-" || !fs::metadata(path).with_context(cannot)?.is_file() {
        return Ok(());
    }
    let mut file = File::open(path).with_context(cannot)?;
    let length = file.metadata().with_context(cannot)?.len();
    // Blank lines may follow.
    let from = length.saturating_sub(4 * END_BYTES_MAX as u64);
    let mut tail = Vec::new();
    file.seek(SeekFrom::Start(from)).with_context(cannot)?;
    file.read_to_end(&mut tail).with_context(cannot)?;
    let last = tail.trim_ascii_end().rsplit(|byte| *byte == b'\n').next().unwrap_or_default();
    ensure!(End::parse(last).is_some(), "{}: {PART}", path.display());
    Ok(())
}

/// The batch operation that stores an entry.
fn operation(entry: &Entry) -> Json {
    let mut operation = json!({ "op": "put" });
    let mut put = |member: &str, bytes: &[u8]| match std::str::from_utf8(bytes) {
        Ok(text) => operation[member] = text.into(),
        Err(_) => operation[format!("{member}_base64")] = BASE64.encode(bytes).into(),
    };
    put("key", entry.key.as_bytes());
    put("value", &entry.value);
    if let Some(content_type) = &entry.content_type {
        operation["content_type"] = content_type.as_str().into();
    }
    if let Some(ttl) = entry.ttl {
        operation["ttl"] = format!("{}ms", ttl.as_millis()).into();
    }
    operation
}

/// Sends a chunk; says how many keys it stored and the number of its last line.
async fn send_chunk(client: &Client, chunk: Chunk) -> anyhow::Result<(u64, u64)> {
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
                return Err(fault.error.context(what));
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
        Fault { error: error.into(), line: None, passing }
    };
    let response = client.send(request).await.map_err(whole)?;
    let body = client.body(response).await.map_err(whole)?;
    let mut count = 0;
    let mut results = body.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    for line in &chunk.lines {
        let at = |error: anyhow::Error, passing| Fault { error, line: Some(*line), passing };
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

    fn lines(chunk: anyhow::Result<Option<Chunk>>) -> Option<Vec<u64>> {
        chunk.expect("the chunk is sound").map(|chunk| chunk.lines)
    }

    #[test]
    fn a_bad_line_is_named_after_the_good_ones_before_it_are_given_out() {
        let text =
            "{\"key\":\"a\",\"value\":\"1\"}\n\n{\"key\":\"b\",\"value\":\"2\"}\nrubbish\n{}\n";
        let mut chunks = Chunks::new(text.as_bytes(), false);
        assert_eq!(lines(chunks.next()), Some(vec![1, 3]));
        let error = chunks.next().expect_err("line 4 is rubbish");
        assert!(format!("{error:#}").starts_with("line 4: not a line of a dump"), "{error:#}");
        assert_eq!(lines(chunks.next()), None);
    }

    #[test]
    fn chunks_are_bounded_in_lines() {
        let text = "{\"key\":\"a\",\"value\":\"1\"}\n".repeat(1042);
        let mut chunks = Chunks::new(text.as_bytes(), true);
        (0..41).for_each(|_| chunks.skip().expect("there are more"));
        assert_eq!(lines(chunks.next()), Some((42..1042).collect()));
        assert_eq!(lines(chunks.next()), Some(vec![1042]));
        assert_eq!(lines(chunks.next()), None);
    }

    /// The lines given out in all, and what was wrong with the text in the end.
    fn taken(text: &str, skipped: u64, partial: bool) -> (Vec<u64>, Option<String>) {
        let mut chunks = Chunks::new(text.as_bytes(), partial);
        (0..skipped).for_each(|_| chunks.skip().expect("the text can be read"));
        let mut all = Vec::new();
        loop {
            match chunks.next() {
                Ok(Some(chunk)) => all.extend(chunk.lines),
                Ok(None) => return (all, None),
                Err(error) => return (all, Some(error.to_string())),
            }
        }
    }

    #[test]
    fn a_part_of_a_dump_is_told_from_the_whole() {
        let a = "{\"key\":\"a\",\"value\":\"1\"}\n";
        let end = |keys| format!("{{\"dumped_keys\":{keys}}}\n");
        let part = |fault: Option<String>| fault.is_some_and(|text| text.contains("--partial"));
        let whole = format!("{a}{a}{}", end(2));
        assert_eq!(taken(&whole, 0, false), (vec![1, 2], None));
        assert_eq!(taken(&format!("{}\n\n", whole.trim_end()), 0, false), (vec![1, 2], None));
        assert_eq!(taken(&format!("{whole}{a}{}", end(1)), 0, false), (vec![1, 2, 4], None));
        assert_eq!(taken(&end(0), 0, false), (vec![], None));
        // What was skipped counts along.
        assert_eq!(taken(&whole, 1, false), (vec![2], None));
        assert_eq!(taken(&whole, 3, false), (vec![], None));
        assert_eq!(taken(&format!("{whole}{a}{}", end(1)), 3, false), (vec![4], None));

        let parts = [String::new(), "\n".to_owned(), format!("{a}{a}"), format!("{whole}{a}")];
        for text in parts.iter().chain(&[format!("{a}{}", end(2)), format!("{a}{a}{a}{}", end(2))])
        {
            assert!(part(taken(text, 0, false).1), "{text}");
            assert_eq!(taken(text, 0, true).1, None, "{text}");
        }
    }

    #[test]
    fn an_entry_becomes_a_put() {
        let line = br#"{"key_base64":"/w==","value":"v","content_type":"text/plain","ttl_ms":5,"version":"7"}"#;
        let entry = Entry::parse(line).expect("the test's line is right");
        assert_eq!(
            operation(&entry).to_string(),
            r#"{"content_type":"text/plain","key_base64":"/w==","op":"put","ttl":"5ms","value":"v"}"#
        );
    }

    #[test]
    fn absent_keys_are_no_failures_of_a_batch() {
        assert!(!is_failure(br#"{"status":404}"#));
        assert!(!is_failure(br#"{"status":201,"version":"1"}"#));
        assert!(is_failure(br#"{"status":412}"#));
        assert!(is_failure(b"half a li"));
    }
}
