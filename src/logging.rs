//! The log: to standard error, and to daily files where asked.
//!
//! Text lines carry no colour unless a terminal reads them; where the journal reads them they
//! carry its priority and leave the time to it. The level can be changed while the process runs.
//! This module never decides what is logged, and never makes anybody wait who logs: what a reader
//! does not take is dropped and counted, and it says no more than that.

use std::fmt;
use std::io::{self, IsTerminal, Write as _};
use std::path::PathBuf;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

mod queue;

use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Subscriber};
use tracing_appender::rolling::{InitError, RollingFileAppender, Rotation};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::{self, FormatEvent, FormatFields, Writer};
use tracing_subscriber::fmt::{FmtContext, MakeWriter};
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, reload};

use crate::complaint;
use queue::Queue;

/// Daily files that are kept; older ones are removed.
const FILES_KEPT: usize = 14;

/// How long a process that ends, or a thread that panics, tries to say why.
const LAST_WORDS_PATIENCE: Duration = Duration::from_secs(1);

/// Most directives in one level.
const DIRECTIVES_MAX: usize = 64;

/// What a log line looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// How to log.
#[derive(Clone, Debug)]
pub struct Config {
    /// As [`check_level`] takes it.
    pub level: String,
    /// What a line looks like.
    pub format: Format,
    /// Directory for daily files, made if it is missing; `None` logs to standard error alone.
    pub dir: Option<PathBuf>,
}

/// Why a level cannot be taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LevelError {
    /// A word that is no level.
    #[error("{word:?} is no level")]
    Unknown {
        /// The word, cut short where it is long.
        word: String,
    },
    /// A directive without a target, or nothing between two commas.
    #[error("a part of the level is empty")]
    Empty,
    /// Two levels for everything.
    #[error("two levels are given for everything")]
    Twice,
    /// Too many parts.
    #[error("the level has more than {DIRECTIVES_MAX} parts")]
    TooMany,
    /// The process is about to end, or logs to something else.
    #[error("logging has not been started here")]
    NotStarted,
}

/// Why logging cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The level is wrong.
    #[error("log_level: {0}")]
    Level(#[from] LevelError),
    /// The directory could not be made.
    #[error("log_dir: cannot make {}; make it, or let this user do so", dir.display())]
    Create {
        /// The directory.
        dir: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The first file could not be opened.
    #[error("log_dir: cannot open a log file in {}; let this user write there", dir.display())]
    Dir {
        /// The directory.
        dir: PathBuf,
        /// What the system said.
        source: InitError,
    },
    /// No thread could be had.
    #[error("cannot start a thread for the log")]
    Thread(#[source] io::Error),
    /// This process logs already.
    #[error("logging was started twice")]
    Twice,
}

/// Logging under way. Lines still on their way are written when it is dropped, so it lives as long
/// as the process.
#[derive(Debug)]
#[must_use = "dropping it ends logging"]
pub struct Logging {
    control: LevelControl,
    queues: Vec<Queue>,
}

/// Knows how many lines were dropped; cheap to clone.
#[derive(Clone, Debug)]
pub struct Drops(Vec<Queue>);

impl Drops {
    /// How many lines were dropped since this was asked last, by where they were to go: `stderr`,
    /// `file`.
    pub fn take(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.0.iter().map(|queue| (queue.to(), queue.take_dropped()))
    }
}

/// Changes the level while the process runs; cheap to clone.
#[derive(Clone, Debug)]
pub struct LevelControl(reload::Handle<Targets, Registry>);

impl LevelControl {
    /// Logs at `level` from now on.
    ///
    /// # Errors
    /// [`LevelError`]; the level then stays as it was.
    pub fn set_level(&self, level: &str) -> Result<(), LevelError> {
        self.0.reload(parse_level(level)?).map_err(|_| LevelError::NotStarted)
    }
}

impl Logging {
    /// The handle that changes the level.
    pub fn control(&self) -> LevelControl {
        self.control.clone()
    }

    /// The count of lines dropped.
    pub fn drops(&self) -> Drops {
        Drops(self.queues.clone())
    }

    /// As [`LevelControl::set_level`].
    ///
    /// # Errors
    /// [`LevelError`]; the level then stays as it was.
    pub fn set_level(&self, level: &str) -> Result<(), LevelError> {
        self.control.set_level(level)
    }
}

impl Drop for Logging {
    fn drop(&mut self) {
        self.queues.iter().for_each(Queue::end);
    }
}

/// Says something on standard error, and waits for its reader, but no longer than a second: for a
/// process that ends, whether anybody reads or not.
pub fn last_words(text: String) {
    let (said, is_said) = mpsc::channel();
    let say = move || {
        // Nobody can be told that nobody listens.
        let _ = writeln!(io::stderr(), "{text}");
        let _ = said.send(());
    };
    if thread::Builder::new().name("last-words".to_owned()).spawn(say).is_ok() {
        let _ = is_said.recv_timeout(LAST_WORDS_PATIENCE);
    }
}

/// As the standard library does it, but without waiting for a reader that stalls.
fn tell_panic(panic: &std::panic::PanicHookInfo<'_>) {
    let thread = thread::current();
    let name = thread.name().unwrap_or("without a name");
    let backtrace = std::backtrace::Backtrace::capture();
    last_words(match backtrace.status() {
        std::backtrace::BacktraceStatus::Captured => {
            format!("thread {name:?} {panic}\n{backtrace}")
        }
        _ => format!("thread {name:?} {panic}"),
    });
}

/// Starts logging for the whole process, panics included.
///
/// # Errors
/// [`StartError`]; nothing is logged then.
pub fn start(config: &Config) -> Result<Logging, StartError> {
    let stderr = Destination {
        colour: io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none(),
        journal: is_journal(),
    };
    let queue = Queue::start("stderr", io::stderr()).map_err(StartError::Thread)?;
    let (subscriber, mut logging) = assemble(config, queue.clone(), stderr)?;
    logging.queues.push(queue);
    subscriber.try_init().map_err(|_| StartError::Twice)?;
    std::panic::set_hook(Box::new(tell_panic));
    Ok(logging)
}

/// Whether `level` can be taken: `trace`, `debug`, `info`, `warn`, `error` or `off` for
/// everything, `target=level` for a part, several with commas.
///
/// # Errors
/// [`LevelError`], naming the part that is wrong.
pub fn check_level(level: &str) -> Result<(), LevelError> {
    parse_level(level).map(drop)
}

/// Libraries that are left out of the log unless they are named, or everything is asked for: what
/// they warn of, such as a node that cannot be reached, is told in this project's own words.
const QUIET: [&str; 2] = ["openraft", "foca"];

fn parse_level(text: &str) -> Result<Targets, LevelError> {
    if text.split(',').count() > DIRECTIVES_MAX {
        return Err(LevelError::TooMany);
    }
    let mut targets = Targets::new();
    let mut everything = None;
    for directive in text.split(',').map(str::trim) {
        match directive.split_once('=') {
            Some((target, level)) if !target.trim().is_empty() => {
                targets = targets.with_target(target.trim(), level_named(level.trim())?);
            }
            None if !directive.is_empty() => {
                if everything.replace(level_named(directive)?).is_some() {
                    return Err(LevelError::Twice);
                }
            }
            Some(_) | None => return Err(LevelError::Empty),
        }
    }
    let everything = everything.unwrap_or(LevelFilter::INFO);
    if everything <= LevelFilter::INFO {
        let named = |name: &str| text.split(',').any(|part| part.trim().starts_with(name));
        let quiet = QUIET.iter().filter(|name| !named(name));
        targets = targets.with_targets(quiet.map(|name| (*name, LevelFilter::OFF)));
    }
    Ok(targets.with_default(everything))
}

fn level_named(word: &str) -> Result<LevelFilter, LevelError> {
    Ok(match word.to_ascii_lowercase().as_str() {
        "trace" => LevelFilter::TRACE,
        "debug" => LevelFilter::DEBUG,
        "info" => LevelFilter::INFO,
        "warn" => LevelFilter::WARN,
        "error" => LevelFilter::ERROR,
        "off" => LevelFilter::OFF,
        _ => {
            return Err(LevelError::Unknown { word: word.chars().take(40).collect() });
        }
    })
}

/// Libraries that speak with strangers and warn of what these do, `log` being what the crate of that
/// name brings along: rustls. As often as any stranger's, and no more, their lines are written.
const HEARD_OF_STRANGERS: [&str; 3] = ["h2", "hyper", "log"];

/// Leaves out lines of libraries of which too many come at once.
struct LibrariesLines;

impl<S: Subscriber> Layer<S> for LibrariesLines {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        let metadata = event.metadata();
        // Less grave ones are written for whoever asked for them.
        if *metadata.level() > Level::WARN {
            return true;
        }
        let library = metadata.target().split("::").next();
        let Some(library) = HEARD_OF_STRANGERS.iter().find(|name| library == Some(**name)) else {
            return true;
        };
        match complaint::judge(complaint::Kind::new("libraries", library)) {
            complaint::Verdict::Say { dropped: None } => true,
            complaint::Verdict::Say { dropped: Some(dropped) } => {
                tracing::warn!(
                    dropped,
                    library,
                    "lines of a library were left out before the next"
                );
                true
            }
            complaint::Verdict::Drop => false,
        }
    }
}

/// Who reads standard error.
#[derive(Clone, Copy)]
struct Destination {
    colour: bool,
    journal: bool,
}

fn assemble<W>(
    config: &Config,
    stderr: W,
    reader: Destination,
) -> Result<(impl Subscriber + Send + Sync + use<W>, Logging), StartError>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let (filter, handle) = reload::Layer::new(parse_level(&config.level)?);
    let file = config.dir.as_ref().map(daily_files).transpose()?;
    let subscriber = tracing_subscriber::registry()
        .with(filter)
        .with(LibrariesLines)
        .with(lines(config.format, stderr, reader))
        .with(file.clone().map(|queue| lines(config.format, queue, FILE)));
    let queues = file.into_iter().collect();
    Ok((subscriber, Logging { control: LevelControl(handle), queues }))
}

/// A file is read by people and programs, later.
const FILE: Destination = Destination { colour: false, journal: false };

fn lines<S, W>(format: Format, writer: W, reader: Destination) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'s> LookupSpan<'s>,
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let layer = tracing_subscriber::fmt::layer().with_writer(writer);
    match format {
        Format::Json => layer.json().flatten_event(true).boxed(),
        Format::Text if reader.journal => {
            let inner = format::format().without_time().with_level(false).with_ansi(false);
            layer.with_ansi(false).event_format(JournalLines { inner }).boxed()
        }
        Format::Text => layer.with_ansi(reader.colour).boxed(),
    }
}

fn daily_files(dir: &PathBuf) -> Result<Queue, StartError> {
    // The appender makes it too, but complains on standard error before.
    std::fs::create_dir_all(dir)
        .map_err(|source| StartError::Create { dir: dir.clone(), source })?;
    let appender = RollingFileAppender::builder()
        .rotation(Rotation::DAILY)
        .filename_prefix("aegiskv")
        .filename_suffix("log")
        .max_log_files(FILES_KEPT)
        .build(dir)
        .map_err(|source| StartError::Dir { dir: dir.clone(), source })?;
    Queue::start("file", appender).map_err(StartError::Thread)
}

/// Whether the journal reads standard error: systemd names the device and inode of the stream it
/// opened, as described in systemd.exec(5).
fn is_journal() -> bool {
    let Some(stream) = std::env::var_os("JOURNAL_STREAM") else {
        return false;
    };
    let Ok(stat) = nix::sys::stat::fstat(io::stderr()) else {
        return false;
    };
    stream.to_str() == Some(format!("{}:{}", stat.st_dev, stat.st_ino).as_str())
}

/// Lines with the priority prefix of sd-daemon(3), which the journal takes off again.
struct JournalLines<F> {
    inner: F,
}

impl<S, N, F> FormatEvent<S, N> for JournalLines<F>
where
    S: Subscriber + for<'s> LookupSpan<'s>,
    N: for<'w> FormatFields<'w> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let priority = match *event.metadata().level() {
            Level::ERROR => 3,
            Level::WARN => 4,
            Level::INFO => 6,
            _ => 7,
        };
        write!(writer, "<{priority}>")?;
        self.inner.format_event(context, writer, event)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Captured(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Captured {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Captured {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    const PIPE: Destination = Destination { colour: false, journal: false };

    fn config(level: &str, format: Format) -> Config {
        Config { level: level.to_owned(), format, dir: None }
    }

    fn logged(config: &Config, reader: Destination, log: impl FnOnce(&Logging)) -> String {
        let captured = Captured::default();
        let writer = captured.clone();
        let (subscriber, logging) = assemble(config, move || writer.clone(), reader).unwrap();
        tracing::subscriber::with_default(subscriber, || log(&logging));
        captured.text()
    }

    #[test]
    fn levels_are_taken_for_everything_and_for_parts() {
        for good in ["info", "WARN", "off", "info,aegiskv::wal=debug", "aegiskv=trace , error"] {
            assert_eq!(check_level(good), Ok(()), "{good}");
        }
        let unknown = |word: &str| Err(LevelError::Unknown { word: word.to_owned() });
        assert_eq!(check_level("inof"), unknown("inof"));
        assert_eq!(check_level("aegiskv=loud"), unknown("loud"));
        assert_eq!(check_level(""), Err(LevelError::Empty));
        assert_eq!(check_level("=info"), Err(LevelError::Empty));
        assert_eq!(check_level("info,warn"), Err(LevelError::Twice));
        assert_eq!(check_level(&"a=info,".repeat(64)), Err(LevelError::TooMany));
    }

    #[test]
    fn a_library_that_warns_of_each_thing_that_a_stranger_sends_is_cut_short() {
        let text = logged(&config("debug", Format::Text), PIPE, |_| {
            for n in 0..1_000 {
                tracing::warn!(target: "h2::proto::ping_pong", n, "recv PING ack");
                tracing::debug!(target: "h2::proto::streams", n, "asked for");
            }
        });
        assert_eq!(text.matches("recv PING ack").count(), 10, "{text}");
        assert_eq!(text.matches("asked for").count(), 1_000);
    }

    #[test]
    fn the_level_changes_while_logging() {
        let text = logged(&config("info", Format::Text), PIPE, |logging| {
            tracing::debug!("before");
            logging.set_level("warn,aegiskv::logging=debug").unwrap();
            tracing::debug!("after");
            tracing::info!(target: "elsewhere", "hidden");
            assert!(logging.set_level("lous").is_err());
            tracing::debug!("still");
        });
        assert!(!text.contains("before") && !text.contains("hidden"), "{text}");
        assert!(text.contains("after") && text.contains("still"), "{text}");
    }

    #[test]
    fn text_has_no_colour_away_from_a_terminal() {
        let text = logged(&config("info", Format::Text), PIPE, |_| tracing::info!(n = 1, "hello"));
        assert!(!text.contains('\u{1b}'), "{text}");
        assert!(text.ends_with("INFO aegiskv::logging::tests: hello n=1\n"), "{text}");
    }

    #[test]
    fn the_journal_gets_priorities_and_no_time() {
        let journal = Destination { colour: false, journal: true };
        let text = logged(&config("info", Format::Text), journal, |_| {
            tracing::error!("torn");
            tracing::info!("well");
        });
        assert_eq!(text, "<3>aegiskv::logging::tests: torn\n<6>aegiskv::logging::tests: well\n");
    }

    #[test]
    fn json_is_one_object_a_line() {
        let text = logged(&config("info", Format::Json), PIPE, |_| tracing::warn!(n = 7, "full"));
        let line: serde_json::Value = serde_json::from_str(text.trim_end()).unwrap();
        assert_eq!(line["level"], "WARN");
        assert_eq!(line["message"], "full");
        assert_eq!(line["n"], 7);
    }

    #[test]
    fn lines_reach_the_days_file_by_the_time_logging_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let logs = dir.path().join("made/here");
        let config = Config { dir: Some(logs.clone()), ..config("info", Format::Text) };
        let text = logged(&config, PIPE, |_| tracing::info!("to both"));
        assert!(text.contains("to both"));
        let files: Vec<_> = std::fs::read_dir(&logs).unwrap().map(|f| f.unwrap().path()).collect();
        let [file] = files.as_slice() else { panic!("one file expected: {files:?}") };
        let name = file.file_name().unwrap().to_str().unwrap();
        assert!(name.starts_with("aegiskv.20") && name.ends_with(".log"), "{name}");
        assert_eq!(name.len(), "aegiskv.2026-01-01.log".len());
        assert!(std::fs::read_to_string(file).unwrap().contains("to both"));
    }

    #[test]
    fn a_directory_that_cannot_be_had_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let taken = dir.path().join("file");
        std::fs::write(&taken, "").unwrap();
        let config = Config { dir: Some(taken.clone()), ..config("info", Format::Text) };
        let Err(error) = assemble(&config, io::sink, PIPE).map(drop) else {
            panic!("a file is no directory")
        };
        assert!(error.to_string().contains(taken.to_str().unwrap()), "{error}");
    }
}
