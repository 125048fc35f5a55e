//! Connections are cut between some nodes while others see both: whatever a way exists for goes on,
//! and nobody who can be reached in some way is given up.

use std::time::Duration;

use crate::support::{Loss, Network, PATIENCE, Traffic, Trial, wants_all_cases};

/// Writes go on so soon after links were cut, or the node came back on which they depend.
const CUT_BUDGET: Duration = Duration::from_secs(3);

/// Where there are more nodes on the way.
const CHAIN_BUDGET: Duration = Duration::from_secs(6);

/// Until shards have been spread again over the nodes that can have them.
const SPREAD: Duration = Duration::from_secs(3);

/// A link's ends by what they are at the time: 0 is the leader of the topology.
struct Case {
    link: [usize; 2],
    ways: Ways,
    /// Whether an end of the link has only just come back, and leads nothing yet.
    before_balance: bool,
}

#[derive(Clone, Copy, Debug)]
enum Ways {
    Both,
    /// Nothing gets from the first to the second.
    Forth,
    /// Nothing gets from the second to the first.
    Back,
    /// The first cannot dial the second; what the second dials works.
    NoDialling,
}

impl Ways {
    fn losses(self, a: usize, b: usize) -> Vec<Loss> {
        match self {
            Self::Both => Loss::between(Traffic::Any, a, b).into(),
            Self::Forth => vec![Loss::of(Traffic::Any, a, b)],
            Self::Back => vec![Loss::of(Traffic::Any, b, a)],
            Self::NoDialling => vec![Loss::of(Traffic::Dialled, a, b)],
        }
    }
}

const fn case(link: [usize; 2], ways: Ways) -> Case {
    Case { link, ways, before_balance: false }
}

fn cases() -> Vec<Case> {
    let mut cases = vec![
        case([0, 1], Ways::Both),
        case([0, 1], Ways::Forth),
        Case { before_balance: true, ..case([0, 1], Ways::Both) },
        case([1, 2], Ways::Back),
    ];
    if wants_all_cases() {
        cases.extend([
            case([0, 1], Ways::Back),
            case([0, 1], Ways::NoDialling),
            case([1, 0], Ways::NoDialling),
            case([0, 2], Ways::Both),
            case([0, 2], Ways::Forth),
            case([0, 2], Ways::Back),
            case([1, 2], Ways::Both),
            case([1, 2], Ways::Forth),
            case([1, 2], Ways::NoDialling),
            Case { before_balance: true, ..case([1, 0], Ways::Forth) },
            Case { before_balance: true, ..case([2, 1], Ways::Both) },
        ]);
    }
    cases
}

/// A link is cut; then the third node, on which both ends depend, is restarted in order.
async fn cut(trial: &mut Trial, case: &Case) {
    let roles = trial.leader_first().await;
    let [a, b] = case.link.map(|role| roles[role]);
    let third = 3 - a - b;
    let when = if case.before_balance { ", which was restarted" } else { "" };
    let what = format!("{:?} from node{} to node{}{when}", case.ways, a + 1, b + 1);
    println!("{what}; node{} leads", roles[0] + 1);
    if case.before_balance {
        trial.cluster.nodes[b].stop(PATIENCE).await;
        trial.cluster.restart(b).await;
    }
    trial.cluster.network().lose(case.ways.losses(a, b));
    trial.assert_writable(&[0, 1, 2], &format!("{what}, at once"), CUT_BUDGET).await;
    trial.assert_ready(&[0, 1, 2], &what, Trial::PAST_GIVING_UP).await;
    trial.assert_all_vote(&what).await;
    trial.assert_writable(&[0, 1, 2], &format!("{what}, later"), CUT_BUDGET).await;
    trial.cluster.nodes[third].stop(PATIENCE).await;
    trial.cluster.restart(third).await;
    trial.assert_writable(&[0, 1, 2], &format!("{what}, third back"), CUT_BUDGET).await;
    tokio::time::sleep(SPREAD).await;
    trial.assert_writable(&[0, 1, 2], &format!("{what}, spread"), CUT_BUDGET).await;
    trial.assert_ready(&[0, 1, 2], &what, Duration::from_millis(1)).await;
    trial.cluster.network().mend();
    trial.cluster.wait_healthy(PATIENCE).await;
    trial.assert_all_vote(&what).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_link_carried_goes_by_way_of_the_third() {
    let Some(network) = Network::for_test("a link that is cut", 3) else { return };
    let mut trial = Trial::start(network, 3).await;
    for case in cases() {
        cut(&mut trial, &case).await;
    }
    trial.assert_all_there(&[0, 1, 2], "links were cut").await;
    trial.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chain_of_five_serves_every_key_from_end_to_end() {
    let Some(network) = Network::for_test("a chain of links", 5) else { return };
    let mut trial = Trial::start(network, 5).await;
    let far = (0..5).flat_map(|a| (a + 2..5).map(move |b| (a, b)));
    trial.cluster.network().lose(far.flat_map(|(a, b)| Loss::between(Traffic::Any, a, b)));
    let all = [0, 1, 2, 3, 4];
    trial.assert_writable(&all, "a chain", CHAIN_BUDGET).await;
    trial.assert_ready(&all, "a chain", Trial::PAST_GIVING_UP).await;
    trial.assert_all_vote("a chain").await;
    trial.load.disturb(4, || trial.cluster.nodes[4].kill());
    trial.assert_writable(&all[..4], "a chain that lost its end", CHAIN_BUDGET).await;
    trial.cluster.restart(4).await;
    trial.load.is_over(4);
    trial.assert_writable(&all, "a chain that got its end back", CHAIN_BUDGET).await;
    trial.cluster.network().mend();
    trial.end().await;
}
