//! A copy whose process stood still, or was out of touch: what it was level with may be long past.
//!
//! Others may have ordered meanwhile, and what lies in this node's socket buffers was said before
//! it woke; what others sent into a cut comes seconds after it is mended. So nothing that comes unasked makes such a copy level again: a follower asks its primary
//! where the log ends, and the primary answers after a round that confirms its epoch; a primary
//! needs a round itself (`primary`). Either holds then all that was committed before it asked.

use super::message::Message;
use super::{Outputs, Role, Shard};
use crate::entry::{Position, Timestamp};
use crate::topology::{Copies, NodeId, Seat};

/// A copy that was level stays so while it lacks no more records than this.
const LEVEL_RECORDS: u64 = 10_000;

/// Whether a copy is not known to be old.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Level {
    /// In this run of the process it had all that its primary had, and has fallen little behind.
    Yes,
    /// It has been away, and asks how far the log goes.
    Asked {
        /// When it was last here.
        since: Timestamp,
    },
    /// Not before it holds the log to its end, and at least up to this number.
    From {
        /// The number.
        least: u64,
        /// When it was last here, if it has been away.
        since: Option<Timestamp>,
    },
}

impl Level {
    /// Of a copy that is behind, or was just loaded.
    pub(super) const NO: Self = Self::From { least: 0, since: None };

    /// After a primary whose log ended at `last` has said so, and this copy holds it up to `seq`.
    pub(super) fn at(self, seq: u64, last: u64) -> Self {
        match self {
            Self::Yes if seq + LEVEL_RECORDS < last => Self::NO,
            Self::From { least, .. } if seq >= least.max(last) => Self::Yes,
            Self::Asked { .. } if mutated!(UnaskedCounts) && seq >= last => Self::Yes,
            level => level,
        }
    }

    fn since(self) -> Option<Timestamp> {
        match self {
            Self::Yes => None,
            Self::Asked { since } => Some(since),
            Self::From { since, .. } => since,
        }
    }
}

impl Shard {
    /// This process stood still from `since` to `now`: others may have gone on without it.
    pub fn was_away(&mut self, (since, now): (Timestamp, Timestamp), out: &mut Outputs) {
        if mutated!(AwayUnnoticed) {
            return;
        }
        // Unlike the numbers of earlier runs too: an answer may have been on its way for long.
        self.read_index = now.0.max(self.read_index + 1);
        self.level = Level::Asked { since: self.away_since().unwrap_or(since) };
        self.unheard_ticks = 0;
        match self.role {
            Role::Leading(_) => self.doubt_leading(out),
            Role::Follower => self.ask_read_index(out),
            Role::Waiting | Role::Fencing { .. } | Role::Taking { .. } => {}
        }
    }

    /// A node was out of touch from one moment to the other, and is no more. If its copy leads, this
    /// one may lack what was ordered since; if this one leads, and lacked a majority without it,
    /// another may lead by now. `in_touch` tells of the other nodes.
    pub fn was_apart(
        &mut self,
        from: NodeId,
        in_touch: &dyn Fn(NodeId) -> bool,
        span: (Timestamp, Timestamp),
        out: &mut Outputs,
    ) {
        let Some(configuration) = &self.configuration else { return };
        let me = self.setting.me;
        let has = |seat: Seat| seat == me || seat.node != from && in_touch(seat.node);
        let hangs_on_it = match configuration.primary == me {
            true => !configuration.has_quorum(Copies::Majority, has),
            false => configuration.primary.node == from,
        };
        if hangs_on_it && configuration.names(me) {
            self.was_away(span, out);
        }
    }

    /// When this copy was last level, if it has been away and is not level yet.
    pub fn away_since(&self) -> Option<Timestamp> {
        self.level.since()
    }

    /// Asks the primary where its log ends.
    pub(super) fn ask_read_index(&self, out: &mut Outputs) {
        let Some(configuration) = &self.configuration else { return };
        if configuration.epoch == self.fence && configuration.names(self.setting.me) {
            let number = self.read_index;
            self.say(configuration.primary, self.fence, Message::ReadIndex { number }, out);
        }
    }

    /// The primary's answer: from there on this copy is level.
    pub(super) fn on_read_from(
        &mut self,
        from: Seat,
        number: u64,
        last: Position,
        out: &mut Outputs,
    ) {
        let Level::Asked { since } = self.level else { return };
        if number != self.read_index || !matches!(self.role, Role::Follower) {
            return;
        }
        self.level = Level::From { least: last.seq, since: Some(since) };
        if self.log.history.contains(last) {
            self.level = Level::Yes;
        } else if self.vouches() && !self.is_copying() {
            self.tell_behind(from, out);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{NOW, at, carry, configure, copies, put, three_voters, write};
    use super::super::{Envelope, Outputs, Part, RESEND_TICKS, Shard};
    use super::{Level, Message, NodeId, Timestamp};
    use crate::shard::Ttl;

    const LATER: Timestamp = Timestamp(NOW.0 + 8_000);

    /// The process of a node has stood still; what its copy says then.
    fn wakes(shard: &mut Shard) -> Outputs {
        let mut out = Outputs::default();
        shard.was_away((NOW, LATER), &mut out);
        out
    }

    /// What node 1 says to node 3 of a write that reaches nobody.
    fn says_unheard(shards: &mut [Shard], counter: u64) -> Vec<Envelope> {
        let mut out = Outputs::default();
        let request = put("k", Ttl::Unlimited, counter);
        shards[0].write(request, None, NOW, &mut out).expect("it leads");
        out.messages.retain(|envelope| envelope.to.node.0 == 3);
        out.messages
    }

    fn three() -> Vec<Shard> {
        let mut shards = copies();
        configure(&mut shards, &three_voters(1, 1), &[]);
        write(&mut shards, 1, put("k", Ttl::Unlimited, 0), NOW, &[]);
        shards
    }

    #[test]
    fn a_follower_that_was_away_is_level_by_an_answer_and_not_by_what_was_said_before() {
        let mut shards = three();
        assert!(shards[2].is_level());
        let old = says_unheard(&mut shards, 1);
        write(&mut shards, 1, put("k", Ttl::Unlimited, 2), NOW, &[3]);
        let asks = wakes(&mut shards[2]);
        assert_eq!((shards[2].is_level(), shards[2].away_since()), (false, Some(NOW)));
        // From the socket buffer: to the end of the log, as it was then.
        let mut acknowledges = Outputs::default();
        for envelope in old {
            shards[2].receive(envelope, LATER, &mut acknowledges);
        }
        assert_eq!((shards[2].last(), shards[2].is_level()), (at(1, 3), false));
        carry(&mut shards, asks, &[]);
        assert_eq!((shards[2].last(), shards[2].is_level()), (at(1, 4), true));
        assert_eq!(shards[2].away_since(), None);
    }

    #[test]
    fn an_answer_to_what_was_asked_before_another_absence_does_not_count() {
        let mut shards = three();
        let first = wakes(&mut shards[2]);
        write(&mut shards, 1, put("k", Ttl::Unlimited, 1), NOW, &[3]);
        let second = wakes(&mut shards[2]);
        assert_eq!(shards[2].away_since(), Some(NOW));
        carry(&mut shards, first, &[]);
        assert!(!shards[2].is_level());
        carry(&mut shards, second, &[]);
        assert!(shards[2].is_level());
    }

    #[test]
    fn a_primary_that_was_deposed_makes_nobody_level_and_the_next_one_is_asked() {
        let mut shards = three();
        let asks = wakes(&mut shards[2]);
        carry(&mut shards, asks, &[2]);
        assert!(shards[2].is_level(), "the two of them are a majority");
        let asks = wakes(&mut shards[2]);
        // Only node 2 knows yet that it is to lead.
        configure(&mut shards, &three_voters(2, 2), &[1, 3]);
        carry(&mut shards, asks, &[]);
        assert!(!shards[2].is_level());
        configure(&mut shards, &three_voters(2, 2), &[2]);
        for _ in 0..2 * RESEND_TICKS {
            let mut out = Outputs::default();
            shards.iter_mut().for_each(|shard| shard.tick(LATER, &mut out));
            carry(&mut shards, out, &[]);
        }
        assert_eq!(shards[1].part(), Part::Active);
        assert!(shards[2].is_level());
    }

    #[test]
    fn a_primary_that_was_away_is_level_once_a_round_confirms_it_or_leads_no_more() {
        let mut shards = three();
        let asks = wakes(&mut shards[0]);
        assert_eq!((shards[0].part(), shards[0].is_level()), (Part::Active, false));
        let messages = asks.messages.clone();
        carry(&mut shards, asks, &[]);
        assert!(shards[0].is_level());
        // An answer to an earlier round is none.
        let asks = wakes(&mut shards[0]);
        carry(&mut shards, Outputs { messages, ..Outputs::default() }, &[]);
        assert!(!shards[0].is_level());
        configure(&mut shards, &three_voters(2, 2), &[1]);
        carry(&mut shards, asks, &[]);
        assert_eq!((shards[0].part(), shards[0].is_level()), (Part::Follower, false));
    }

    #[test]
    fn what_hangs_on_a_node_that_was_out_of_touch_asks_and_nothing_else() {
        let asks = |shard: &mut Shard, from: u64, in_touch: &[u64]| {
            let mut out = Outputs::default();
            let in_touch = |node: NodeId| in_touch.contains(&node.0);
            shard.was_apart(NodeId(from), &in_touch, (NOW, LATER), &mut out);
            let asks = !shard.is_level();
            assert_eq!(asks, !out.messages.is_empty());
            shard.level = Level::Yes;
            asks
        };
        let mut shards = three();
        assert!(asks(&mut shards[2], 1, &[2]), "its primary");
        assert!(!asks(&mut shards[2], 2, &[1]), "another follower");
        assert!(!asks(&mut shards[0], 3, &[2]), "the primary had a majority all the time");
        assert!(asks(&mut shards[0], 3, &[]), "and here it had none");
    }

    #[test]
    fn a_primary_that_alone_votes_needs_nobody() {
        let mut shards = copies();
        let alone = crate::topology::Configuration::alone(1, super::super::tests::seat(1));
        configure(&mut shards, &std::sync::Arc::new(alone), &[]);
        wakes(&mut shards[0]);
        assert!(shards[0].is_level());
    }

    #[test]
    fn a_copy_that_has_fallen_far_behind_is_level_at_the_logs_end_alone() {
        assert_eq!(Level::Yes.at(5, 10_005), Level::Yes);
        assert_eq!(Level::Yes.at(5, 10_006), Level::NO);
        assert_eq!(Level::NO.at(10_005, 10_006), Level::NO);
        assert_eq!(Level::NO.at(10_006, 10_006), Level::Yes);
        let from = Level::From { least: 9, since: None };
        assert_eq!(from.at(8, 8), from, "it was said before the answer");
        assert_eq!(from.at(9, 8), Level::Yes);
        assert!(!matches!(Level::Asked { since: NOW }.at(9, 9), Level::Yes));
    }

    #[test]
    fn what_is_told_is_the_end_of_the_log() {
        let mut shards = three();
        let asks = wakes(&mut shards[2]);
        let [ask] = &asks.messages[..] else { panic!("{asks:?}") };
        assert_eq!(ask.message, Message::ReadIndex { number: LATER.0 });
    }
}
