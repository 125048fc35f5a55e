//! The cases of a birth, one by one.

use super::world::World;
use super::{Action, Answer, Birth, Config, Error, Listed, Newborn, Silence, Waiting, Word};
use std::time::{Duration, Instant};

/// Who founded, by name.
fn founders(world: &World) -> Vec<&str> {
    world.founders.iter().map(|(node, _)| world.nodes[*node].name.as_str()).collect()
}

/// What a node last said that it waits for.
fn waits(world: &World, name: &str) -> String {
    world.node(name).waits.last().map(Waiting::to_string).unwrap_or_default()
}

fn open_word(giver: &str, founder: &str, attempt: u64) -> Word {
    Word {
        giver: giver.into(),
        founder: founder.into(),
        founder_addr: format!("{founder}:7701"),
        attempt,
        bootstrap: false,
        given_up: if giver == founder { attempt - 1 } else { 0 },
        decided: false,
    }
}

#[test]
fn a_node_that_lists_nobody_founds_alone_after_three_intervals() {
    let mut world = World::of(&[("a", "")]);
    world.start("a");
    world.run(2);
    assert!(world.founders.is_empty());
    world.run(2);
    assert_eq!(founders(&world), ["a"]);
}

#[test]
fn a_node_that_lists_only_itself_founds_alone() {
    let mut world = World::of(&[("a", "a")]);
    world.node_mut("a").addrs.push("seed.internal:7701".into());
    world.aliases.insert("seed.internal:7701".into(), 0);
    world.start("a");
    world.run(4);
    assert_eq!(founders(&world), ["a"]);
}

#[test]
fn three_that_list_each_other_are_one_cluster_soon_whatever_the_order() {
    for order in ["abc", "acb", "bac", "bca", "cab", "cba"] {
        for pause in [0, 1, 4] {
            let mut world = World::of(&[("a", "abc"), ("b", "abc"), ("c", "abc")]);
            for name in order.chars() {
                world.start(&name.to_string());
                world.run(pause);
            }
            world.run(6);
            assert_eq!(founders(&world), ["a"], "{order} {pause}");
            assert!(world.is_one(), "{order} {pause}");
        }
    }
}

#[test]
fn started_at_once_three_are_one_cluster_within_five_intervals_and_with_little_talk() {
    let mut world = World::of(&[("a", "bc"), ("b", "ac"), ("c", "ab")]);
    world.start("abc");
    world.run(5);
    assert!(world.is_one());
    assert_eq!(world.node("a").waits, [Waiting::Words(vec!["b".into(), "c".into()])]);
    assert_eq!(world.node("b").waits, [Waiting::Founder("a".into())]);
    assert_eq!(world.node("c").waits, [Waiting::Founder("a".into())]);
}

#[test]
fn a_seed_founds_and_the_others_join_it_one_by_one() {
    let mut world = World::of(&[("a", ""), ("b", "a"), ("c", "ab")]);
    world.start("a");
    world.run(4);
    assert_eq!(founders(&world), ["a"]);
    world.start("b");
    world.run(1);
    assert!(world.node("b").cluster.is_some(), "a member that answers is joined at once");
    world.start("c");
    world.run(1);
    assert!(world.is_one());
    assert_eq!(founders(&world), ["a"]);
}

#[test]
fn nodes_that_start_before_their_seed_wait_and_name_it() {
    let mut world = World::of(&[("a", ""), ("b", "a"), ("c", "ab")]);
    world.start("bc");
    world.run(30);
    assert!(world.founders.is_empty());
    for name in ["b", "c"] {
        assert!(waits(&world, name).contains("silent: a:7701 (no answer); start"));
        assert_eq!(world.node(name).waits.len(), 1, "said once");
    }
    world.start("a");
    world.run(6);
    assert_eq!(founders(&world), ["a"], "those who knock make it wait for their words");
    assert!(world.is_one());
}

#[test]
fn a_seed_that_is_knocked_at_while_it_listens_founds_with_the_word_of_who_knocks() {
    for (seed, other) in [("a", "b"), ("b", "a")] {
        let mut world = World::of(&[(seed, ""), (other, seed)]);
        world.start(seed);
        world.run(2);
        world.start(other);
        world.run(8);
        assert_eq!(founders(&world), ["a"], "the lower name, seed or not");
        assert!(world.is_one());
    }
}

#[test]
fn one_who_knocked_at_a_lone_seed_by_mistake_and_went_does_not_hold_it_up_for_ever() {
    let mut world = World::of(&[("a", ""), ("b", "a")]);
    world.start("ab");
    world.run(1);
    world.stop("b");
    world.run(4);
    assert!(world.founders.is_empty());
    world.run(3);
    assert_eq!(founders(&world), ["a"]);
}

#[test]
fn lists_that_lead_on_to_others_make_one_cluster() {
    for lists in [
        [("a", "b"), ("b", "c"), ("c", "")],
        [("c", "b"), ("b", "a"), ("a", "")],
        [("a", "b"), ("b", "ac"), ("c", "a")],
        [("a", "c"), ("b", "c"), ("c", "")],
        [("a", "b"), ("b", "c"), ("c", "a")],
    ] {
        let mut world = World::of(&lists);
        world.start("abc");
        world.run(9);
        assert_eq!(founders(&world), ["a"], "{lists:?}");
        assert!(world.is_one(), "{lists:?}");
    }
}

#[test]
fn a_node_named_only_in_the_list_of_another_is_waited_for() {
    let mut world = World::of(&[("a", "b"), ("b", "c"), ("c", "")]);
    world.start("ab");
    world.run(20);
    assert!(world.founders.is_empty());
    assert!(waits(&world, "a").contains("silent: c:7701"));
    world.start("c");
    world.run(6);
    assert!(world.is_one());
}

#[test]
fn a_silent_address_is_waited_for_and_bootstrap_does_without_it() {
    let mut world = World::of(&[("a", "abc"), ("b", "abc"), ("c", "abc")]);
    world.start("ab");
    world.run(20);
    assert!(world.founders.is_empty());
    world.stop("b");
    world.node_mut("b").bootstrap = true;
    world.start("b");
    world.run(6);
    assert_eq!(founders(&world), ["b"], "it goes before the lower name");
    assert!(world.node("a").cluster.is_some());
    world.start("c");
    world.run(2);
    assert!(world.is_one());
}

#[test]
fn bootstrap_joins_if_a_member_answers() {
    let mut world = World::of(&[("a", ""), ("b", "a")]);
    world.start("a");
    world.run(4);
    world.node_mut("b").bootstrap = true;
    world.start("b");
    world.run(2);
    assert_eq!(founders(&world), ["a"]);
    assert!(world.is_one());
}

#[test]
fn of_two_with_bootstrap_that_hear_each_other_one_founds() {
    let mut world = World::of(&[("a", "bc"), ("b", "ac"), ("c", "ab"), ("d", "abc")]);
    world.node_mut("c").bootstrap = true;
    world.node_mut("b").bootstrap = true;
    world.start("abcd");
    world.run(8);
    assert_eq!(founders(&world), ["b"]);
    assert!(world.is_one());
}

#[test]
fn a_founder_that_dies_with_the_words_of_others_is_waited_for_by_name_and_founds_on_return() {
    let mut world = World::of(&[("a", "abc"), ("b", "abc"), ("c", "abc")]);
    world.node_mut("b").word = Some(open_word("b", "a", 1));
    world.node_mut("a").word = Some(open_word("a", "a", 1));
    world.start("bc");
    world.run(20);
    assert!(world.founders.is_empty());
    assert!(waits(&world, "b").contains("a at a:7701 (no answer) was about to found it"));
    world.start("a");
    world.run(6);
    assert_eq!(founders(&world), ["a"]);
    assert!(world.is_one());
}

#[test]
fn a_founder_that_died_for_good_is_passed_over_by_bootstrap_alone() {
    let mut world = World::of(&[("a", "abc"), ("b", "abc"), ("c", "abc")]);
    world.node_mut("b").word = Some(open_word("b", "a", 1));
    world.node_mut("c").word = Some(open_word("c", "a", 1));
    world.node_mut("c").bootstrap = true;
    world.start("bc");
    world.run(8);
    assert_eq!(founders(&world), ["c"]);
    assert!(world.node("b").cluster.is_some());
}

#[test]
fn a_founder_whose_disk_was_wiped_asks_again_above_the_attempts_that_others_hold() {
    let mut world = World::of(&[("a", "abc"), ("b", "abc"), ("c", "abc")]);
    world.node_mut("b").word = Some(open_word("b", "a", 7));
    world.start("abc");
    world.run(6);
    assert_eq!(founders(&world), ["a"]);
    assert!(world.is_one());
}

#[test]
fn a_wiped_founder_that_is_no_longer_the_lowest_sets_free_the_words_that_it_forgot() {
    // b was about to found with c's word; then its disk was wiped, and a came.
    let mut world = World::of(&[("a", "abc"), ("b", "abc"), ("c", "abc")]);
    world.node_mut("c").word = Some(open_word("c", "b", 7));
    world.start("abc");
    world.run(8);
    assert_eq!(founders(&world), ["a"]);
    assert!(world.is_one());
}

#[test]
fn a_wiped_founder_that_hears_of_a_forgotten_attempt_late_sets_it_aside_or_goes_above_it() {
    let (now, later) = (Instant::now(), Instant::now() + Duration::from_secs(4));
    let holder = Newborn { word: Some(open_word("x", "c", 7)), ..newborn("x") };
    let mut given = lone(now, false);
    let asking = Newborn { word: Some(open_word("a", "a", 1)), ..newborn("a") };
    assert_eq!(given.on_knock(&asking, later).1, Some(open_word("c", "a", 1)));
    let word = given.on_knock(&holder, later).1;
    assert_eq!(word, Some(Word { given_up: 7, ..open_word("c", "a", 1) }));
    let mut own = Birth::new(config("c", false), Some(open_word("c", "c", 1)), now).unwrap();
    assert_eq!(own.on_knock(&holder, now).1, Some(open_word("c", "c", 8)));
}

#[test]
fn an_attempt_that_was_given_up_is_never_taken_up_again() {
    // c gave up its third attempt for d's; now d says that its own is over, and c is the lowest.
    let (now, later) = (Instant::now(), Instant::now() + Duration::from_secs(4));
    let word = Word { given_up: 3, ..open_word("c", "d", 1) };
    let mut birth = Birth::new(config("c", false), Some(word), now).unwrap();
    let over = Word { given_up: 1, ..open_word("d", "e", 1) };
    birth.on_knock(&Newborn { word: Some(over), ..newborn("d") }, later);
    assert!(birth.step(later).contains(&Action::Keep(open_word("c", "c", 4))));
}

#[test]
fn who_gives_its_word_away_says_that_its_own_attempts_are_over() {
    let (now, later) = (Instant::now(), Instant::now() + Duration::from_secs(4));
    let mut birth = Birth::new(config("c", false), Some(open_word("c", "c", 5)), now).unwrap();
    let asking = Newborn { word: Some(open_word("a", "a", 1)), ..newborn("a") };
    let word = Word { given_up: 5, ..open_word("c", "a", 1) };
    assert_eq!(birth.on_knock(&asking, later).1, Some(word));
}

#[test]
fn an_attempt_yields_to_a_lower_name_that_comes_before_it_is_decided() {
    // b is about to found with c's word, but not d's; a comes.
    let mut world = World::of(&[("a", "bcd"), ("b", "bcd"), ("c", "bcd"), ("d", "bcd")]);
    world.node_mut("b").word = Some(open_word("b", "b", 3));
    world.node_mut("c").word = Some(open_word("c", "b", 3));
    world.start("bc");
    world.run(8);
    assert!(world.founders.is_empty());
    world.start("ad");
    world.run(8);
    assert_eq!(founders(&world), ["a"]);
    assert!(world.is_one());
}

#[test]
fn a_word_is_not_given_twice_though_its_founder_is_silent() {
    // b has c's word, and waits for d's. Then the net is cut between them and c, where a comes.
    let mut world = World::of(&[("a", "c"), ("b", "cd"), ("c", ""), ("d", "")]);
    world.node_mut("b").word = Some(open_word("b", "b", 1));
    world.node_mut("c").word = Some(open_word("c", "b", 1));
    world.start("bc");
    world.run(4);
    for (one, other) in [(0, 1), (0, 3), (1, 2), (2, 3)] {
        world.cuts.extend([(one, other), (other, one)]);
    }
    world.start("a");
    world.run(10);
    assert!(world.founders.is_empty(), "c's word is with b");
    assert!(waits(&world, "c").contains("b at b:7701 (no answer) was about to found it"));
    world.start("d");
    world.run(10);
    assert_eq!(founders(&world), ["b"], "c's word for this attempt still holds");
    world.cuts.clear();
    world.run(3);
    assert!(world.is_one());
}

#[test]
fn who_decided_to_found_and_died_over_it_founds_when_it_is_back() {
    let mut world = World::of(&[("a", "ab"), ("b", "ab")]);
    world.node_mut("a").word = Some(Word { decided: true, ..open_word("a", "a", 2) });
    world.node_mut("b").word = Some(open_word("b", "a", 2));
    world.start("a");
    world.run(4);
    assert_eq!(founders(&world), ["a"]);
    world.start("b");
    world.run(2);
    assert!(world.is_one());
}

#[test]
fn a_wiped_seed_with_an_empty_list_finds_its_cluster_again() {
    let mut world = World::of(&[("a", ""), ("b", "a"), ("c", "a")]);
    world.start("abc");
    world.run(8);
    assert!(world.is_one());
    world.stop("a");
    world.wipe("a");
    world.start("a");
    world.run(2);
    assert!(world.is_one(), "its members reach it while it listens");
    assert_eq!(founders(&world).len(), 1);
}

#[test]
fn who_has_met_a_member_never_founds_though_the_member_falls_silent() {
    let now = Instant::now();
    let later = |intervals: u64| now + Duration::from_secs(intervals);
    let mut birth = lone(now, true);
    birth.on_member_seen("b:7701", 9, true, now);
    assert!(birth.step(now).contains(&Action::Join { addr: "b:7701".into() }));
    birth.on_answer("b:7701", Err(Silence::NoAnswer), later(1));
    let actions = birth.step(later(100));
    assert!(matches!(&actions[..], [Action::Wait(Waiting::MembersSilent(_)), Action::KnockAt(..)]));
    let member = Answer::Member { cluster_id: 9, knows_you: false };
    birth.on_answer("b:7701", Ok(member), later(101));
    assert!(birth.step(later(101)).contains(&Action::Join { addr: "b:7701".into() }));
}

#[test]
fn between_two_clusters_a_node_joins_the_one_that_knows_it_or_neither() {
    let mut world = World::of(&[("a", ""), ("b", ""), ("c", "ab")]);
    world.start("ab");
    world.run(4);
    let (a, b) = (world.node("a").cluster, world.node("b").cluster);
    assert_ne!(a, b);
    // Both answers are there before c decides.
    let now = Instant::now();
    let mut birth = lone(now, false);
    birth.on_member_seen("a:7701", 1, false, now);
    birth.on_member_seen("b:7701", 2, false, now);
    let torn = Waiting::Clusters(vec![("a:7701".into(), 1), ("b:7701".into(), 2)]);
    assert_eq!(birth.step(now)[0], Action::Wait(torn));
    birth.on_member_seen("b:7701", 2, true, now);
    assert_eq!(birth.step(now)[0], Action::Join { addr: "b:7701".into() });
}

#[test]
fn two_nodes_of_one_name_found_nothing_and_say_where_they_are() {
    let mut world = World::new(1);
    let one = world.add("a", vec!["other:7701".into()]);
    let other = world.add("a", vec!["a:7701".into()]);
    world.nodes[other].addr = "other:7701".into();
    world.start_node(one);
    world.start_node(other);
    world.run(20);
    assert!(world.founders.is_empty());
    assert!(waits(&world, "a").contains("two nodes are called a, at a:7701 and at other:7701"));
    world.stop_node(other);
    world.nodes[other].name = "b".into();
    world.start_node(other);
    world.run(10);
    assert!(world.is_one());
}

#[test]
fn two_others_of_one_name_are_noticed_too() {
    let mut world = World::new(1);
    let a = world.add("a", vec!["b:7701".into(), "other:7701".into()]);
    let one = world.add("b", Vec::new());
    let other = world.add("b", Vec::new());
    world.nodes[other].addr = "other:7701".into();
    for node in [a, one, other] {
        world.start_node(node);
    }
    world.run(10);
    assert!(world.founders.is_empty());
    assert!(waits(&world, "a").contains("two nodes are called b"));
}

#[test]
fn a_node_that_can_knock_but_not_be_reached_gives_its_word_by_knocking() {
    let mut world = World::of(&[("a", ""), ("b", "a")]);
    world.node_mut("b").addr = "behind-nat:7701".into();
    world.unreachable.insert("behind-nat:7701".into());
    world.start("ab");
    world.run(8);
    assert_eq!(founders(&world), ["a"]);
    assert!(world.is_one());
}

#[test]
fn more_nodes_than_can_be_born_together_found_nothing() {
    let now = Instant::now();
    let mut birth = lone(now, false);
    for i in 0..70 {
        birth.on_knock(&newborn(&format!("n{i:02}")), now + Duration::from_secs(2));
    }
    let actions = birth.step(now + Duration::from_secs(4));
    assert!(actions.contains(&Action::Wait(Waiting::Crowd(64))));
    assert!(!actions.iter().any(|action| matches!(action, Action::Found { .. })));
}

#[test]
fn a_word_is_kept_before_it_is_told_and_not_while_listening() {
    let now = Instant::now();
    let mut birth = lone(now, false);
    let asking = Newborn { word: Some(open_word("a", "a", 1)), ..newborn("a") };
    assert!(birth.on_knock(&asking, now).1.is_none(), "a cluster may yet turn up");
    let (answer, word) = birth.on_knock(&asking, now + Duration::from_secs(3));
    assert_eq!(word, Some(open_word("c", "a", 1)));
    assert!(matches!(answer, Answer::New(says) if says.word == word));
    let (_, again) = birth.on_knock(&asking, now + Duration::from_secs(3));
    assert_eq!(again, None, "it is on disk already");
}

#[test]
fn what_could_not_be_sent_is_refused_at_the_start() {
    let config = |addrs: Vec<String>| Config { addrs, ..config("c", false) };
    let new = |addrs| Birth::new(config(addrs), None, Instant::now()).map(|_| ());
    assert_eq!(new(vec!["a:1".into(); 65]), Err(Error::TooManyAddresses(65)));
    assert_eq!(new(vec![String::new()]), Err(Error::Text(String::new())));
    assert_eq!(new(vec!["a:1".into(); 64]), Ok(()));
}

fn config(name: &str, bootstrap: bool) -> Config {
    Config {
        name: name.into(),
        instance: 1,
        peer_addr: format!("{name}:7701"),
        addrs: Vec::new(),
        bootstrap,
        interval: Duration::from_secs(1),
    }
}

/// A node `c` that lists nobody.
fn lone(now: Instant, bootstrap: bool) -> Birth {
    Birth::new(config("c", bootstrap), None, now).expect("short texts")
}

fn newborn(name: &str) -> Newborn {
    Newborn {
        name: name.into(),
        instance: 2,
        peer_addr: format!("{name}:7701"),
        bootstrap: false,
        listed: vec![Listed { addr: "c:7701".into(), found: None }],
        hears: Vec::new(),
        word: None,
    }
}
