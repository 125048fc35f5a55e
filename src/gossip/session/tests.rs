use proptest::prelude::{prop, prop_assert_eq, proptest};
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::*;
use crate::gossip::Peer;
use crate::gossip::identity::Id;

const ME: NodeId = NodeId(1);
const OTHER: NodeId = NodeId(2);

struct Process {
    sessions: Sessions,
    keyring: Keyring,
    now: Instant,
}

impl Process {
    fn start(seed: u64) -> Self {
        let now = Instant::now();
        let sessions = Sessions::new(&mut StdRng::seed_from_u64(seed), now);
        Self { sessions, keyring: Keyring::new(1, &[]), now }
    }

    fn judge(&mut self, session: Session, counter: u64, life: u64, token: Option<u64>) -> Worth {
        let envelope = Envelope { from: OTHER, life, to: Some(ME), token };
        self.sessions.judge(&envelope, session, counter, &self.keyring, self.now)
    }

    fn answers(&mut self, session: Session, answers: (Session, u64)) -> bool {
        let envelope = Envelope { from: OTHER, life: 1, to: Some(ME), token: None };
        let peer = Peer { node: OTHER, name: "node2".to_owned(), life: 1, addr: "h:1".to_owned() };
        let me = Id::new(&peer, 1);
        let greeting = Greeting { me, answers: Some(answers), token: None, at_least: None };
        let from = (session, 1);
        self.sessions.judge_answer(&envelope, from, &greeting, &self.keyring, self.now)
    }
}

#[test]
fn a_session_is_taken_with_its_token_and_each_counter_once() {
    let mut process = Process::start(1);
    let session = Session(20);
    let token = process.sessions.token(OTHER, session);
    assert_eq!(process.judge(session, 5, 1, None), Worth::Unproven);
    assert_eq!(process.judge(session, 6, 1, Some(token + 1)), Worth::Unproven);
    assert_eq!(process.judge(session, 7, 1, Some(token)), Worth::Proven);
    assert_eq!(process.judge(session, 7, 1, Some(token)), Worth::Replay);
    assert_eq!(process.judge(session, 6, 1, Some(token)), Worth::Proven);
    assert_eq!(process.judge(session, 6, 1, Some(token)), Worth::Replay);
    assert_eq!(process.judge(session, 2_000, 1, Some(token)), Worth::Proven);
    assert_eq!(process.judge(session, 976, 1, Some(token)), Worth::Replay);
    assert_eq!(process.judge(session, 977, 1, Some(token)), Worth::Proven);
}

#[test]
fn a_restarted_sender_is_taken_and_its_earlier_run_is_not_heard_again() {
    let mut process = Process::start(1);
    let (before, after) = (Session(20), Session(21));
    let old_token = process.sessions.token(OTHER, before);
    assert_eq!(process.judge(before, 1, 1, Some(old_token)), Worth::Proven);
    let token = process.sessions.token(OTHER, after);
    assert_eq!(process.judge(after, 1, 1, None), Worth::Unproven);
    assert_eq!(process.judge(after, 2, 1, Some(token)), Worth::Proven);
    assert_eq!(process.judge(before, 2, 1, Some(old_token)), Worth::Replay);
    assert_eq!(process.judge(before, 1, 1, Some(old_token)), Worth::Replay);
    assert_ne!(process.sessions.token(OTHER, before), old_token);
    assert_eq!(process.judge(after, 3, 1, Some(token)), Worth::Proven);
}

#[test]
fn a_restarted_receiver_takes_nothing_recorded() {
    let session = Session(20);
    let token = Process::start(1).sessions.token(OTHER, session);
    let mut restarted = Process::start(2);
    assert_eq!(restarted.judge(session, 9, 1, Some(token)), Worth::Unproven);
}

#[test]
fn an_earlier_life_is_not_taken_over_a_later() {
    let mut process = Process::start(1);
    let (late, early) = (Session(20), Session(21));
    let token = process.sessions.token(OTHER, late);
    assert_eq!(process.judge(late, 1, 5, Some(token)), Worth::Proven);
    let token = process.sessions.token(OTHER, early);
    assert_eq!(process.judge(early, 1, 4, Some(token)), Worth::OldLife);
    assert_eq!(process.judge(early, 1, 4, None), Worth::OldLife);
    assert_eq!(process.judge(early, 1, 5, Some(token)), Worth::Proven);
}

#[test]
fn an_answer_proves_a_session_once_and_not_for_ever() {
    let mut process = Process::start(1);
    let own = process.sessions.own();
    let asked = process.sessions.next_counter();
    assert!(!process.answers(Session(20), (Session(99), asked)), "another process was answered");
    assert!(!process.answers(Session(20), (own, asked + 1)), "nothing was sent to be answered");
    assert!(process.answers(Session(20), (own, asked)));
    assert!(!process.answers(Session(21), (own, asked)), "one answer for two sessions");

    let asked = process.sessions.next_counter();
    for _ in 0..2 {
        process.now += Duration::from_secs(60);
        let now = process.now;
        process.sessions.tick(now);
    }
    assert!(!process.answers(Session(21), (own, asked)), "the answer took two minutes");
    let asked = process.sessions.next_counter();
    assert!(process.answers(Session(21), (own, asked)));
}

#[test]
fn sessions_of_any_number_of_nodes_take_bounded_room() {
    let mut process = Process::start(1);
    let mut first_token = 0;
    for node in 2..=NODES_MAX as u64 + 10 {
        process.now += Duration::from_millis(1);
        let (from, session) = (NodeId(node), Session(u128::from(node)));
        let token = process.sessions.token(from, session);
        if node == 2 {
            first_token = token;
        }
        let envelope = Envelope { from, life: 1, to: None, token: Some(token) };
        let (keyring, now) = (&process.keyring, process.now);
        let worth = process.sessions.judge(&envelope, session, 1, keyring, now);
        assert_eq!(worth, Worth::Proven);
    }
    assert_eq!((process.sessions.remotes.len(), process.sessions.nodes.len()), (1_024, 1_024));
    // A node that was forgotten has to greet again: what it showed before is worth nothing.
    assert_eq!(process.judge(Session(2), 1, 1, Some(first_token)), Worth::Unproven);
}

proptest! {
    /// Against a model that remembers everything.
    #[test]
    fn the_window_takes_each_counter_once(
        counters in prop::collection::vec(1_u64..4_000, 1..400),
    ) {
        let mut window = Window::starting_at(counters[0]);
        let mut seen = std::collections::BTreeSet::from([counters[0]]);
        for &counter in &counters[1..] {
            let highest = *seen.last().unwrap();
            let expected = counter + 1_024 > highest && !seen.contains(&counter);
            prop_assert_eq!(window.take(counter), expected, "{} after {}", counter, highest);
            if expected {
                seen.insert(counter);
            }
        }
    }
}
