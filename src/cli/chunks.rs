//! A file of keys, cut into the requests of an import.
//!
//! Invariant: a chunk holds consecutive lines. A part of a dump is not taken for the whole unless
//! that is asked for; in a file this is known before the first chunk is given out.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read as _, Seek as _, SeekFrom};
use std::path::Path;

use anyhow::{Context as _, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value as Json, json};

use crate::backup::{END_BYTES_MAX, End, Entry};

/// Lines of an import that go into one request at most.
const CHUNK_LINES_MAX: usize = 1000;

/// An import's request is closed once its body has reached this, in bytes.
const CHUNK_BYTES_AIM: usize = 1 << 20;

/// Longest line of an import, in bytes: the largest value there can be, in base64, and its key.
const LINE_BYTES_MAX: usize = (1 << 30) / 3 * 4 + (1 << 20);

/// Consecutive lines of an import, as the body of one request.
#[derive(Debug)]
pub(super) struct Chunk {
    /// The body: one operation a line.
    pub(super) body: String,
    /// The number of each operation's line in the file.
    pub(super) lines: Vec<u64>,
}

/// Cuts a file into chunks.
pub(super) struct Chunks<R> {
    reader: R,
    /// The number of the line read last.
    pub(super) line: u64,
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
    pub(super) fn new(reader: R, partial: bool) -> Self {
        Self { reader, line: 0, partial, keys: 0, is_whole: false, fault: None, ended: false }
    }

    /// Skips a line; whether there was one.
    ///
    /// # Errors
    /// The file cannot be read, or the line says that keys of the dump are not here.
    fn skip(&mut self) -> anyhow::Result<bool> {
        let mut head = Vec::new();
        let limit = END_BYTES_MAX as u64;
        let read = io::Read::take(&mut self.reader, limit).read_until(b'\n', &mut head);
        if read.context("cannot read the file")? == 0 {
            return Ok(false);
        }
        if !head.ends_with(b"\n") {
            self.reader.skip_until(b'\n').context("cannot read the file")?;
        }
        self.line += 1;
        match End::parse(&head) {
            Some(end) => self.end(end)?,
            None if head.trim_ascii().is_empty() => {}
            None => (self.keys, self.is_whole) = (self.keys + 1, false),
        }
        Ok(true)
    }

    /// Takes the end of a dump.
    fn end(&mut self, End { keys }: End) -> Result<(), Part> {
        if !self.partial && keys != self.keys {
            return Err(Part::Lacking { line: self.line, keys, here: self.keys });
        }
        (self.keys, self.is_whole) = (0, true);
        Ok(())
    }

    /// Goes to this line, counted from 1.
    ///
    /// # Errors
    /// As [`Self::skip`], or there is no such line.
    pub(super) fn go_to(&mut self, line: u64) -> anyhow::Result<()> {
        let mut is_there = true;
        while is_there && self.line + 1 < line {
            is_there = self.skip()?;
        }
        if is_there && line > 1 {
            is_there = !self.reader.fill_buf().context("cannot read the file")?.is_empty();
        }
        let lines = self.line;
        ensure!(is_there, "there is no line {line} to go on from: what is read has {lines} lines");
        Ok(())
    }

    /// The next chunk, or `None` at the end.
    ///
    /// # Errors
    /// A line is no entry, or the file cannot be read. The lines before it are given out first;
    /// nothing comes after it.
    pub(super) fn next(&mut self) -> anyhow::Result<Option<Chunk>> {
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
                ensure!(self.partial || self.is_whole, Part::Endless);
                return Ok(None);
            }
            self.line += 1;
            if let Some(end) = End::parse(&text) {
                self.end(end)?;
            } else if !text.trim_ascii().is_empty() {
                (self.keys, self.is_whole) = (self.keys + 1, false);
                let entry = Entry::parse(&text);
                return Ok(Some(entry.with_context(|| format!("line {}", self.line))?));
            }
        }
    }
}

/// What is not the whole of a dump.
#[derive(Debug, thiserror::Error)]
pub(super) enum Part {
    #[error(
        "the last line does not say how many keys there are: this is a part of a dump, or was not \
         made by `aegiskv dump`; --partial takes it as it is"
    )]
    Endless,
    #[error(
        "line {line}: there were {keys} keys in this dump, and {here} lines of it are here; \
         --partial takes them as they are"
    )]
    Lacking { line: u64, keys: u64, here: u64 },
}

/// Refuses a file that does not end as a dump does, or in which lines are missing, before any of it
/// is stored: it is read through once. Of what is no file the end is not known before it is read.
pub(super) fn refuse_part(path: &Path) -> anyhow::Result<()> {
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
    let shown = || path.display().to_string();
    ensure!(End::parse(last).is_some(), anyhow::Error::new(Part::Endless).context(shown()));
    file.rewind().with_context(cannot)?;
    let mut lines = Chunks::new(BufReader::new(file), false);
    while lines.skip().with_context(shown)? {}
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
        chunks.go_to(42).expect("there are more");
        assert_eq!(lines(chunks.next()), Some((42..1042).collect()));
        assert_eq!(lines(chunks.next()), Some(vec![1042]));
        assert_eq!(lines(chunks.next()), None);
    }

    /// The lines given out in all, and what was wrong with the text in the end.
    fn taken(text: &str, skipped: u64, partial: bool) -> (Vec<u64>, Option<String>) {
        let mut chunks = Chunks::new(text.as_bytes(), partial);
        (0..skipped).for_each(|_| assert!(chunks.skip().expect("the text can be read")));
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
}
