//! Lines of the log that somebody outside can cause: short, and only so many.
//!
//! Invariant: of each [`Kind`] so many lines come at once, then one a second; the next one that is
//! written says how many were not. What others choose, such as a path or a name, goes through
//! [`brief`]. Lines about what an operator was allowed to do never come here: none of those is left
//! out.
//!
//! **Caveats.** One process has one log, and so one count of its lines, however many nodes run in it.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Write};
use std::num::NonZeroU32;
use std::sync::LazyLock;

use governor::clock::{Clock, DefaultClock};
use governor::middleware::NoOpMiddleware;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};
use parking_lot::Mutex;

/// Lines of a kind that may come at once.
const AT_ONCE: NonZeroU32 = NonZeroU32::new(10).expect("10 is not 0");

/// The same where each line is about another member of the cluster.
const MEMBERS_AT_ONCE: NonZeroU32 = NonZeroU32::new(100).expect("100 is not 0");

/// Lines of a kind that may come in a second after that.
const PER_SECOND: NonZeroU32 = NonZeroU32::MIN;

/// Bytes of a name, a path or an address that a line shows.
const BRIEF_BYTES_MAX: usize = 120;

/// Bytes of an error that a line shows, advice included.
const ERROR_BYTES_MAX: usize = 600;

/// What a line is about. There are as many as the code names, whoever comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    from: &'static str,
    about: &'static str,
    at_once: NonZeroU32,
}

impl Kind {
    /// Lines that `from` can cause: `clients`, `nodes`, `datagrams`, `operations`, `libraries`.
    pub const fn new(from: &'static str, about: &'static str) -> Self {
        Self { from, about, at_once: AT_ONCE }
    }

    /// Lines of which each is about another member, so that more may come at once.
    pub const fn of_members(about: &'static str) -> Self {
        Self { from: "nodes", about, at_once: MEMBERS_AT_ONCE }
    }
}

/// Whether a line is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is, and says how many of its kind were not since the last one, if any.
    Say {
        /// How many.
        dropped: Option<u64>,
    },
    /// It is not, and was counted.
    Drop,
}

/// Judges a line that is about to be written.
pub fn judge(kind: Kind) -> Verdict {
    LINES.judge(kind)
}

/// How many lines were left out since this was asked last: whose, about what, how many.
pub fn take_dropped() -> Vec<(&'static str, &'static str, u64)> {
    LINES.take_dropped()
}

/// Writes a line, as [`tracing::event!`] would, unless too many of its kind came lately:
/// `complain!(WARN, Kind::new("clients", "accept"), %error, "cannot accept connections")`.
macro_rules! complain {
    ($level:ident, $kind:expr, $($line:tt)+) => {
        if ::tracing::enabled!(::tracing::Level::$level)
            && let $crate::complaint::Verdict::Say { dropped } = $crate::complaint::judge($kind)
        {
            ::tracing::event!(::tracing::Level::$level, dropped, $($line)+);
        }
    };
}
pub(crate) use complain;

/// What others chose, cut to what a line has room for; then its true length is said.
pub fn brief<T: Display>(text: T) -> Brief<T> {
    Brief { text, bytes_max: BRIEF_BYTES_MAX }
}

/// The same for an error, which has advice in it.
pub fn brief_error<T: Display>(error: T) -> Brief<T> {
    Brief { text: error, bytes_max: ERROR_BYTES_MAX }
}

/// As [`brief`] and [`brief_error`] make it.
#[derive(Clone, Copy, Debug)]
pub struct Brief<T> {
    text: T,
    bytes_max: usize,
}

impl<T: Display> Display for Brief<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut cut = Cut { to: f, room: self.bytes_max, bytes: 0 };
        write!(cut, "{}", self.text)?;
        match cut.bytes {
            bytes if bytes > self.bytes_max => write!(f, "… ({bytes} bytes)"),
            _ => Ok(()),
        }
    }
}

/// Passes on what there is room for, and counts the rest.
struct Cut<'a, 'f> {
    to: &'a mut fmt::Formatter<'f>,
    room: usize,
    bytes: usize,
}

impl Write for Cut<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.bytes += text.len();
        for c in text.chars() {
            let Some(room) = self.room.checked_sub(c.len_utf8()) else {
                self.room = 0;
                break;
            };
            self.room = room;
            // A line stays one, and a terminal unharmed.
            match c.is_control() {
                true => write!(self.to, "{}", c.escape_default())?,
                false => self.to.write_char(c)?,
            }
        }
        Ok(())
    }
}

static LINES: LazyLock<Lines<DefaultClock>> = LazyLock::new(Lines::default);

/// The lines of one log.
#[derive(Default)]
struct Lines<C: Clock + Clone> {
    clock: C,
    kinds: Mutex<BTreeMap<(&'static str, &'static str), OfKind<C>>>,
}

struct OfKind<C: Clock> {
    limiter: RateLimiter<NotKeyed, InMemoryState, C, NoOpMiddleware<C::Instant>>,
    /// Left out since one was written.
    untold: u64,
    /// Left out since somebody last asked.
    uncounted: u64,
}

impl<C: Clock + Clone> OfKind<C> {
    fn new(at_once: NonZeroU32, clock: C) -> Self {
        let quota = Quota::per_second(PER_SECOND).allow_burst(at_once);
        Self { limiter: RateLimiter::direct_with_clock(quota, clock), untold: 0, uncounted: 0 }
    }
}

impl<C: Clock + Clone> Lines<C> {
    fn judge(&self, kind: Kind) -> Verdict {
        let mut kinds = self.kinds.lock();
        let of_kind = kinds
            .entry((kind.from, kind.about))
            .or_insert_with(|| OfKind::new(kind.at_once, self.clock.clone()));
        if of_kind.limiter.check().is_ok() {
            let untold = std::mem::take(&mut of_kind.untold);
            return Verdict::Say { dropped: (untold > 0).then_some(untold) };
        }
        of_kind.untold += 1;
        of_kind.uncounted += 1;
        Verdict::Drop
    }

    fn take_dropped(&self) -> Vec<(&'static str, &'static str, u64)> {
        let mut kinds = self.kinds.lock();
        let counts = kinds
            .iter_mut()
            .map(|(&(from, about), of_kind)| (from, about, std::mem::take(&mut of_kind.uncounted)));
        counts.filter(|(.., lines)| *lines > 0).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Arc;
    use std::time::Duration;

    use governor::clock::FakeRelativeClock;

    use super::*;

    const SAY: Verdict = Verdict::Say { dropped: None };
    const GARBAGE: Kind = Kind::new("nodes", "garbage");

    #[test]
    fn ten_lines_come_at_once_then_one_a_second_which_says_what_was_dropped() {
        let lines = Lines::<FakeRelativeClock>::default();
        for _ in 0..10 {
            assert_eq!(lines.judge(GARBAGE), SAY);
        }
        for _ in 0..7 {
            assert_eq!(lines.judge(GARBAGE), Verdict::Drop);
        }
        lines.clock.advance(Duration::from_millis(999));
        assert_eq!(lines.judge(GARBAGE), Verdict::Drop);
        lines.clock.advance(Duration::from_millis(1));
        assert_eq!(lines.judge(GARBAGE), Verdict::Say { dropped: Some(8) });
        assert_eq!(lines.judge(GARBAGE), Verdict::Drop);
        lines.clock.advance(Duration::from_secs(1));
        assert_eq!(lines.judge(GARBAGE), Verdict::Say { dropped: Some(1) });
        lines.clock.advance(Duration::from_secs(1));
        assert_eq!(lines.judge(GARBAGE), SAY);
    }

    #[test]
    fn one_kind_takes_nothing_from_another_and_each_is_counted() {
        let lines = Lines::<FakeRelativeClock>::default();
        for _ in 0..1_000 {
            lines.judge(GARBAGE);
        }
        assert_eq!(lines.judge(Kind::new("nodes", "secret")), SAY);
        assert_eq!(lines.judge(Kind::new("datagrams", "garbage")), SAY);
        let members = (0..1_000).filter(|_| lines.judge(Kind::of_members("up")) == SAY).count();
        assert_eq!(members, 100);
        assert_eq!(lines.take_dropped(), [("nodes", "garbage", 990), ("nodes", "up", 900)]);
        assert_eq!(lines.take_dropped(), []);
    }

    #[test]
    fn what_others_choose_is_cut_and_its_length_said() {
        assert_eq!(brief("/admin/reload").to_string(), "/admin/reload");
        let exact = "x".repeat(120);
        assert_eq!(brief(&exact).to_string(), exact);
        let long = "x".repeat(16_000);
        assert_eq!(brief(&long).to_string(), format!("{exact}… (16000 bytes)"));
        // Not in the middle of a character, and nothing after the cut.
        assert_eq!(
            brief(format!("{}ääb", "x".repeat(119))).to_string(),
            format!("{}… (124 bytes)", "x".repeat(119))
        );
        assert_eq!(brief_error("x".repeat(601)).to_string().len(), 600 + "… (601 bytes)".len());
        assert_eq!(brief("a\nb\u{1b}[31m").to_string(), "a\\nb\\u{1b}[31m");
    }

    #[derive(Clone, Default)]
    struct Captured(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Captured {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_line_says_how_many_were_dropped_before_it_and_a_level_that_is_off_counts_none() {
        let captured = Captured::default();
        let writer = captured.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_writer(move || writer.clone())
            .with_ansi(false)
            .with_max_level(tracing::Level::INFO)
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            for _ in 0..100 {
                complain!(DEBUG, Kind::new("test", "quiet"), "unheard");
            }
            for n in 0..20 {
                complain!(WARN, Kind::new("test", "loud"), n, "refused {}", brief("you"));
            }
            std::thread::sleep(Duration::from_millis(1_100));
            complain!(WARN, Kind::new("test", "loud"), "again");
        });
        let text = String::from_utf8(captured.0.lock().clone()).unwrap();
        assert_eq!(text.lines().count(), 11, "{text}");
        assert!(text.contains("refused you n=0\n"), "{text}");
        assert!(text.lines().last().unwrap().ends_with("again dropped=10"), "{text}");
        let of_test: Vec<_> =
            take_dropped().into_iter().filter(|(from, ..)| *from == "test").collect();
        assert_eq!(of_test, [("test", "loud", 10)]);
    }
}
