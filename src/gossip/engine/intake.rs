//! What comes in: opened, weighed, and only then believed.

use std::net::SocketAddr;
use std::time::Instant;

use foca::{Codec, Member};

use super::{Arrival, Engine, Held};
use crate::gossip::datagram::{Frame, Greeting, Header, read_body};
use crate::gossip::identity::Wire;
use crate::gossip::refusal::{Reason, Refusal};
use crate::gossip::session::{NODES_MAX, Worth};
use crate::topology::NodeId;

impl Engine {
    /// A datagram has come in.
    pub(in crate::gossip) fn received(&mut self, from: SocketAddr, datagram: &[u8], now: Instant) {
        if self.is_leaving {
            return;
        }
        if let Err(reason) = self.take_datagram(from, datagram, now) {
            self.refuse(reason, from, now);
        }
    }

    fn refuse(&mut self, reason: Reason, from: SocketAddr, now: Instant) {
        let refusal = Refusal { reason, from };
        self.complaints.log(refusal, now);
        (self.on_refusal)(refusal);
    }

    /// Opens a datagram and finds out what it is worth.
    fn take_datagram(
        &mut self,
        from: SocketAddr,
        datagram: &[u8],
        now: Instant,
    ) -> Result<(), Reason> {
        let header = Header::parse(datagram)?;
        if header.cluster_id != self.cluster_id {
            return Err(Reason::OtherCluster);
        }
        let Header { session, counter, .. } = header;
        if session == self.sessions.own() {
            // One of the seeds leads back here.
            return Ok(());
        }
        let body = match self.sessions.keys(session) {
            Some(keys) => keys.open(&header, datagram)?,
            None if !self.strangers.take(now) => return Err(Reason::Flood),
            None => self.keyring.keys(session).open(&header, datagram)?,
        };
        let (envelope, frame) = read_body(&body).map_err(|_| Reason::Malformed)?;
        if envelope.from == self.me.node {
            return Err(Reason::SameNode);
        }
        if envelope.to.is_some_and(|to| to != self.me.node) {
            // Meant for whoever had this address before.
            return Ok(());
        }
        let worth = self.sessions.judge(&envelope, session, counter, &self.keyring, now);
        let arrival = Arrival { from, envelope: &envelope, session, counter };
        match worth {
            Worth::Proven => self.take_frame(&arrival, frame, now),
            Worth::Unproven => self.take_unproven(&arrival, frame, now),
            Worth::Replay => Err(Reason::Replay),
            Worth::OldLife => Err(Reason::OldLife),
        }
    }

    /// A session that shows no token is told which, unless it proves itself by what it answers.
    fn take_unproven(
        &mut self,
        arrival: &Arrival<'_>,
        frame: Frame,
        now: Instant,
    ) -> Result<(), Reason> {
        if let Frame::Greet(greeting) = frame {
            let from = (arrival.session, arrival.counter);
            if self.sessions.judge_answer(arrival.envelope, from, &greeting, &self.keyring, now) {
                self.take_greeting(arrival, greeting, now)?;
            }
        }
        if self.answers.take(now) {
            self.answer(arrival);
        }
        Ok(())
    }

    /// A datagram that counts.
    fn take_frame(
        &mut self,
        arrival: &Arrival<'_>,
        frame: Frame,
        now: Instant,
    ) -> Result<(), Reason> {
        let node = arrival.envelope.from;
        match frame {
            Frame::Greet(greeting) => {
                let asks_who = greeting.at_least.is_none();
                let generation = (greeting.me.life, greeting.me.generation);
                self.take_greeting(arrival, greeting, now)?;
                let at_least = self.at_least(node, arrival.session);
                let is_behind =
                    at_least.is_some_and(|least| generation.0 == least.0 && generation.1 < least.1);
                if (asks_who || is_behind) && self.answers.take(now) {
                    self.answer(arrival);
                }
            }
            Frame::Swim(message) => {
                self.watch.heard(node, now);
                self.take_swim(node, &message, now)?;
            }
            Frame::Beat(others) => {
                self.watch.heard(node, now);
                self.watch.heard_by_others(&others, now);
            }
            Frame::Bye { generation } => {
                if let Some(id) = self.watch.left(node, generation, now) {
                    self.apply(Member::down(id), now);
                }
            }
        }
        if self.watch.id(node).is_none() && self.answers.take(now) {
            // Its greeting was lost: who is it?
            self.answer(arrival);
        }
        self.watch.judge(now);
        Ok(())
    }

    /// A greeting that is surely fresh.
    fn take_greeting(
        &mut self,
        arrival: &Arrival<'_>,
        greeting: Greeting,
        now: Instant,
    ) -> Result<(), Reason> {
        let node = arrival.envelope.from;
        let Greeting { me: id, answers, token, at_least } = greeting;
        if id.node != node || id.life != arrival.envelope.life {
            return Err(Reason::Malformed);
        }
        if let Some(token) = token {
            self.sessions.set_wanted(node, token);
        }
        if let Some((session, counter)) = answers
            && session == self.sessions.own()
        {
            self.seeds.answered(counter, node);
        }
        let is_news = self.watch.id(node).is_none_or(|known| id.is_after(known));
        if is_news {
            if self.is_full_for(std::iter::once(node)) {
                return Err(Reason::TooManyNodes);
            }
            self.apply(Member::alive(id.clone()), now);
            // It tells of all the members that it knows.
            if let Err(error) = self.foca.announce(id, &mut self.runtime) {
                tracing::debug!(%error, "foca could not announce this node");
            }
            self.pump(now);
        }
        self.watch.heard(node, now);
        if self.locate(node, now).is_none() {
            // Until its name is resolved.
            self.watch.set_addr(node, arrival.from);
        }
        if let Some((life, generation)) = at_least
            && life == self.me.life
            && generation > self.me.generation
        {
            self.renew(generation, now);
        }
        if let Some(Held { message: Some(message), .. }) = self.held.remove(&node) {
            self.send(node, Frame::Swim(message), now);
        }
        Ok(())
    }

    /// A message of foca's.
    fn take_swim(&mut self, node: NodeId, message: &[u8], now: Instant) -> Result<(), Reason> {
        let mut rest = message;
        let header = Wire.decode_header(&mut rest).map_err(|_| Reason::Malformed)?;
        if header.src.node != node {
            return Err(Reason::Malformed);
        }
        let is_near_full = self.foca.iter_membership_state().len() >= NODES_MAX;
        if is_near_full {
            let rest = rest.get(2..).unwrap_or_default();
            let members = std::iter::successors(Some((None, rest)), |(_, rest)| {
                let mut rest = *rest;
                let member = Wire.decode_member(&mut rest).ok()?;
                Some((Some(member.id().node), rest))
            });
            if self.is_full_for(members.filter_map(|(node, _)| node)) {
                return Err(Reason::TooManyNodes);
            }
        }
        match self.foca.handle_data(message, &mut self.runtime) {
            Ok(()) => {}
            Err(foca::Error::Decode(_) | foca::Error::MalformedPacket) => {
                return Err(Reason::Malformed);
            }
            Err(error) => tracing::debug!(%error, %node, "foca could not use a message"),
        }
        self.pump(now);
        Ok(())
    }

    /// Whether one of these nodes would be one more than are kept track of.
    fn is_full_for(&self, mut nodes: impl Iterator<Item = NodeId>) -> bool {
        let known = || self.foca.iter_membership_state();
        known().len() >= NODES_MAX
            && nodes.any(|node| !known().any(|member| member.id().node == node))
    }
}
