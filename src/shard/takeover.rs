//! A new primary: it collects fences, takes the longest log over, and then leads.

use super::message::Message;
use super::{Outputs, Role, Shard};
use crate::entry::{Position, Timestamp};
use crate::topology::{Copies, Seat};

impl Shard {
    pub(super) fn ask_for_fences(&self, out: &mut Outputs) {
        let (Role::Fencing { fenced, .. }, Some(configuration)) = (&self.role, &self.configuration)
        else {
            return;
        };
        for seat in configuration.seats() {
            if seat != self.setting.me && !fenced.contains_key(&seat) {
                self.say(seat, configuration.epoch, Message::Fence, out);
            }
        }
    }

    pub(super) fn on_fenced(
        &mut self,
        from: Seat,
        last: Position,
        now: Timestamp,
        out: &mut Outputs,
    ) {
        if let Role::Fencing { fenced, .. } = &mut self.role {
            fenced.insert(from, last);
            self.after_fences(now, out);
        }
    }

    /// Goes on once a majority's fences stand: to take the longest log over, or to lead.
    pub(super) fn after_fences(&mut self, now: Timestamp, out: &mut Outputs) {
        let (Role::Fencing { fenced, .. }, Some(configuration)) = (&self.role, &self.configuration)
        else {
            return;
        };
        let me = self.setting.me;
        let own = self.vouched_last();
        // Its own fence, whoever else's stand: it must never lead this epoch a second time.
        if self.settled.fence < configuration.epoch {
            return;
        }
        let has = |seat| seat == me || fenced.contains_key(&seat);
        if !configuration.has_quorum(Copies::Majority, has) && !mutated!(FencesUncollected) {
            return;
        }
        let longest = fenced
            .iter()
            .filter(|(seat, _)| configuration.is_voter(**seat))
            .max_by_key(|(_, last)| **last)
            .map(|(seat, last)| (*seat, *last));
        match longest {
            Some((from, upto)) if upto > own => {
                self.role = Role::Taking { from, upto, ticks: 0 };
                self.ask_to_take(out);
            }
            // It has nothing that counts, and neither has anybody else: only an unclean recovery
            // can make what is here count.
            _ if !self.vouches() => {}
            _ => self.lead(now, out),
        }
    }

    pub(super) fn ask_to_take(&self, out: &mut Outputs) {
        if let Role::Taking { from, .. } = self.role {
            let history = self.log.history.clone();
            self.say(from, self.fence, Message::Take { history }, out);
        }
    }

    /// After something was taken: leads, if it was all.
    pub(super) fn after_taking(&mut self, now: Timestamp, out: &mut Outputs) {
        match self.role {
            Role::Taking { upto, .. } if self.last() >= upto => self.lead(now, out),
            Role::Taking { .. } => self.ask_to_take(out),
            _ => {}
        }
    }
}
