//! Where names lead: addresses as they were last resolved, and what is to be resolved anew.
//!
//! Pure: [`Names::take_questions`] says what to look up, and [`Names::answer`] is told. At most
//! one look-up of a name is under way, and the same name is asked for again after a pause only.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::complaint::{Kind, brief, brief_error, complain};

/// Most addresses that are kept of one name.
const ADDRESSES_MAX: usize = 16;

/// The same complaint about a name is logged once in this time.
const COMPLAINT_PAUSE: Duration = Duration::from_secs(60);

/// The names in use.
pub(super) struct Names {
    pause: Duration,
    names: BTreeMap<String, Name>,
    questions: Vec<String>,
}

#[derive(Default)]
struct Name {
    addresses: Vec<SocketAddr>,
    /// Which of the addresses is tried at present.
    turn: usize,
    asked: Option<Instant>,
    is_waiting: bool,
    complained: Option<Instant>,
}

impl Names {
    /// No name is known yet. The same one is resolved again after `pause` at the earliest.
    pub(super) fn new(pause: Duration) -> Self {
        Self { pause, names: BTreeMap::new(), questions: Vec::new() }
    }

    /// All addresses of a `host:port`, as far as known.
    pub(super) fn all(&self, name: &str) -> Vec<SocketAddr> {
        match name.parse() {
            Ok(address) => vec![address],
            Err(_) => self.names.get(name).map_or_else(Vec::new, |known| known.addresses.clone()),
        }
    }

    /// The address to use for a `host:port`, if one is known.
    pub(super) fn pick(&self, name: &str) -> Option<SocketAddr> {
        if let Ok(address) = name.parse() {
            return Some(address);
        }
        let known = self.names.get(name)?;
        let count = known.addresses.len();
        known.addresses.get(known.turn.checked_rem(count)?).copied()
    }

    /// Has a name resolved, or resolved again, unless it was just now.
    pub(super) fn refresh(&mut self, name: &str, now: Instant) {
        if name.parse::<SocketAddr>().is_ok() {
            return;
        }
        let known = self.names.entry(name.to_owned()).or_default();
        let is_due = known.asked.is_none_or(|asked| now >= asked + self.pause);
        if is_due && !known.is_waiting {
            known.is_waiting = true;
            known.asked = Some(now);
            self.questions.push(name.to_owned());
        }
    }

    /// The address in use does not answer: tries the name's next one, and resolves it again.
    pub(super) fn doubt(&mut self, name: &str, now: Instant) {
        let pause = self.pause;
        if let Some(known) = self.names.get_mut(name)
            && !known.is_waiting
            && known.asked.is_none_or(|asked| now >= asked + pause)
        {
            known.turn = known.turn.wrapping_add(1);
        }
        self.refresh(name, now);
    }

    /// What is to be looked up now.
    pub(super) fn take_questions(&mut self) -> Vec<String> {
        std::mem::take(&mut self.questions)
    }

    /// A look-up has ended. What was known stays where it failed.
    pub(super) fn answer(&mut self, name: &str, found: io::Result<Vec<SocketAddr>>, now: Instant) {
        let Some(known) = self.names.get_mut(name) else { return };
        known.is_waiting = false;
        match found {
            Ok(mut addresses) if !addresses.is_empty() => {
                addresses.sort_unstable();
                addresses.dedup();
                addresses.truncate(ADDRESSES_MAX);
                known.addresses = addresses;
            }
            Ok(_) => known.complain(name, &"no address", now),
            Err(error) => known.complain(name, &error, now),
        }
    }

    /// Forgets the names that are no longer in use.
    pub(super) fn retain(&mut self, is_used: impl Fn(&str) -> bool) {
        self.names.retain(|name, known| known.is_waiting || is_used(name));
    }
}

impl Name {
    fn complain(&mut self, name: &str, why: &dyn std::fmt::Display, now: Instant) {
        if self.complained.is_none_or(|at| now >= at + COMPLAINT_PAUSE) {
            self.complained = Some(now);
            let (kind, name, why) =
                (Kind::new("datagrams", "unresolved"), brief(name), brief_error(why));
            complain!(
                WARN,
                kind,
                "cannot resolve {name}: {why}; it is tried again and again. If it stays so, check \
                 the name in addrs, or the node's gossip_advertise_addr"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(host: u8) -> SocketAddr {
        ([10, 0, 0, host], 7701).into()
    }

    #[test]
    fn a_name_is_asked_for_once_at_a_time_and_again_after_a_pause() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let mut names = Names::new(second);
        names.refresh("a:7701", start);
        names.refresh("a:7701", start + 2 * second);
        assert_eq!(names.take_questions(), ["a:7701"]);
        names.answer("a:7701", Ok(vec![address(1)]), start + 2 * second);
        assert_eq!(names.pick("a:7701"), Some(address(1)));
        names.refresh("a:7701", start + 2 * second);
        assert_eq!(names.take_questions(), ["a:7701"]);
        names.answer("a:7701", Err(io::ErrorKind::TimedOut.into()), start + 2 * second);
        assert_eq!(names.pick("a:7701"), Some(address(1)), "a failed look-up changes nothing");
        names.refresh("a:7701", start + 2 * second);
        assert!(names.take_questions().is_empty());
    }

    #[test]
    fn an_address_needs_no_look_up() {
        let mut names = Names::new(Duration::ZERO);
        names.refresh("10.0.0.1:7701", Instant::now());
        assert!(names.take_questions().is_empty());
        assert_eq!(names.pick("10.0.0.1:7701"), Some(address(1)));
        assert_eq!(names.all("10.0.0.1:7701"), [address(1)]);
    }

    #[test]
    fn an_address_that_does_not_answer_gives_way_to_the_next() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let mut names = Names::new(second);
        names.refresh("a:1", start);
        names.answer("a:1", Ok(vec![address(2), address(1)]), start);
        assert_eq!(names.pick("a:1"), Some(address(1)));
        names.doubt("a:1", start);
        assert_eq!(names.pick("a:1"), Some(address(1)), "it had no time to answer");
        names.doubt("a:1", start + second);
        assert_eq!(names.pick("a:1"), Some(address(2)));
    }
}
