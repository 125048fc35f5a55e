//! Connections that come, fall silent, break and come again.

use std::time::Instant;

use super::*;

async fn through_proxy() -> (Node, Node, Proxy) {
    let (one, two) = (impatient(1).start().await, member(2).start().await);
    let proxy = Proxy::to(two.addr()).await;
    one.dial(&[(2, &proxy.addr)]);
    one.until_up(2).await;
    (one, two, proxy)
}

fn since(link: &Link) -> Instant {
    match link.state {
        State::Down { since, .. } => since,
        State::Up => panic!("the link is up"),
    }
}

#[tokio::test]
async fn silence_is_told_and_so_is_its_end_on_the_same_connection() {
    let (one, two, proxy) = through_proxy().await;
    proxy.open.send_replace(false);
    let start = Instant::now();
    assert_eq!(one.until_down(2).await, Down::Silent);
    assert!(start.elapsed() >= Duration::from_millis(150), "{:?}", start.elapsed());
    assert!(one.send(2, 1, b"kept until it is heard again"));
    proxy.open.send_replace(true);
    one.until_up(2).await;
    assert_eq!(two.inbox.frames(1).await[0].2, "kept until it is heard again");
}

#[tokio::test]
async fn a_connection_that_stays_silent_is_closed_and_its_calls_are_lost() {
    let (one, _two, proxy) = through_proxy().await;
    proxy.open.send_replace(false);
    let start = Instant::now();
    assert_eq!(one.call(2, ECHO, b"").await, Err(CallError::Lost));
    assert!(start.elapsed() >= Duration::from_millis(800), "{:?}", start.elapsed());
    assert!(!one.send(2, 1, b"too late"));
    let link = one.link(2).unwrap();
    assert!(matches!(link.state, State::Down { why: Down::Silent, .. }), "{link:?}");
    assert!(since(&link) < start + Duration::from_millis(800), "down since it fell silent");
}

#[tokio::test]
async fn a_reset_is_told_at_once() {
    let (one, two) = pair(member(1), member(2)).await;
    let addr = two.addr();
    let waiting = one.call(2, NEVER, b"");
    let breaking = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        drop(two);
        Instant::now()
    };
    let (lost, broken) = tokio::join!(waiting, breaking);
    assert_eq!(lost, Err(CallError::Lost));
    let down = one.until(2, |link| !link.is_up()).await;
    assert!(since(&down) < broken + Duration::from_secs(1), "much sooner than by silence");
    // Nobody listens there any more, and it was down all the time.
    let refused = |link: &Link| matches!(link.state, State::Down { why: Down::Refused, .. });
    assert_eq!(since(&one.until(2, refused).await), since(&down));
    assert_eq!(one.link(2).unwrap().life, Some(102));

    let mut again = member(2);
    again.listen = addr.parse().unwrap();
    again.identity.life = 7;
    let two = again.start().await;
    assert_eq!(one.until_up(2).await.life, Some(7));
    assert_eq!(one.call(2, ECHO, b"again").await.unwrap(), "again");
    drop(two);
}

#[tokio::test]
async fn who_was_down_and_dials_is_dialled_at_once() {
    let mut patient = member(1);
    patient.timing.redial_min = LONG;
    patient.timing.redial_max = LONG;
    let one = patient.start().await;
    let vacant = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    one.dial(&[(2, &vacant.to_string())]);
    assert_eq!(one.until_down(2).await, Down::Refused);
    let mut spec = member(2);
    spec.listen = vacant;
    let two = spec.start().await;
    two.dial(&[(1, &one.addr())]);
    let start = Instant::now();
    one.until_up(2).await;
    assert!(start.elapsed() < LONG / 4, "{:?}", start.elapsed());
}

#[tokio::test]
async fn a_peer_that_reads_nothing_holds_up_nobody_else() {
    let (one, two, proxy) = through_proxy().await;
    let three = member(3).start().await;
    one.dial(&[(2, &proxy.addr), (3, &three.addr())]);
    one.until_up(3).await;
    proxy.open.send_replace(false);
    let body = vec![1; 1024 * 1024];
    let queued = (0..200).filter(|_| one.send(2, 1, &body)).count();
    assert!(queued < 200, "the outbox is bounded");
    for n in 0..20_u8 {
        assert_eq!(one.call(3, ECHO, &[n]).await.unwrap().as_ref(), [n]);
    }
    assert_eq!(one.until_down(2).await, Down::Silent);
    drop(two);
}

#[tokio::test]
async fn delay_and_clock_offset_are_measured() {
    let (one, _two) = pair(member(1), member(2)).await;
    let link = one.until(2, |link| link.round_trip.is_some()).await;
    assert!(link.round_trip.unwrap() < Duration::from_secs(5));
    assert!(link.clock_offset_millis.unwrap().abs() < 5_000, "it is the same clock");
}

#[tokio::test]
async fn a_new_identity_is_introduced_to_everyone() {
    let (one, two) = pair(member(1), member(2)).await;
    let renamed = Identity { life: 555, ..member(1).identity };
    two.dial(&[(1, &one.addr())]);
    assert_eq!(two.until_up(1).await.life, Some(101));
    one.transport.set_identity(Identity { peer_addr: one.addr(), ..renamed });
    two.until(1, |link| link.is_up() && link.life == Some(555)).await;
    one.until_up(2).await;
    assert_eq!((one.counts(), two.counts()), (BTreeMap::new(), BTreeMap::new()));
}

#[tokio::test]
async fn a_newborn_links_once_it_is_a_member() {
    let (one, child) = (member(1).start().await, newborn("node2").start().await);
    child.dial(&[(1, &one.addr())]);
    one.dial(&[(2, &child.addr())]);
    assert_eq!(one.until_down(2).await, Down::Rejected(Refusal::NotMember));
    assert_eq!(child.link(1), None, "a newborn does not dial");
    child.transport.set_identity(Identity { peer_addr: child.addr(), ..member(2).identity });
    child.until_up(1).await;
    one.until_up(2).await;
}

#[tokio::test]
async fn a_removed_peer_is_hung_up_and_may_come_back() {
    let (one, two) = pair(member(1), member(2)).await;
    one.dial(&[]);
    assert!(!one.send(2, 1, b"gone"));
    let mut links = one.transport.links();
    timeout(LONG, links.wait_for(|links| links.is_empty())).await.unwrap().unwrap();
    one.dial(&[(2, &two.addr())]);
    one.until_up(2).await;
    assert_eq!(one.call(2, ECHO, b"back").await.unwrap(), "back");
}

#[tokio::test]
async fn a_peer_that_moved_is_found_at_its_new_address() {
    let (one, two) = pair(member(1), member(2)).await;
    drop(two);
    one.until(2, |link| !link.is_up()).await;
    let two = member(2).start().await;
    one.dial(&[(2, &two.addr())]);
    one.until_up(2).await;
}

#[tokio::test]
async fn a_stop_finishes_requests_under_way_and_frames_that_wait() {
    let (one, two) = pair(member(1), member(2)).await;
    let asking = one.call(2, LATE, b"finished");
    let stopping = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        two.transport.stop().await;
    };
    let (answer, ()) = tokio::join!(asking, stopping);
    assert_eq!(answer.unwrap(), "finished");

    let (one, two) = pair(member(1), member(2)).await;
    for n in 0..100_u8 {
        assert!(one.send(2, n, b"last words"));
    }
    one.transport.stop().await;
    assert!(!one.send(2, 1, b"too late"));
    assert_eq!(two.inbox.frames(100).await.len(), 100);
}

#[tokio::test]
async fn a_stop_does_not_wait_for_ever() {
    let (one, two) = pair(member(1), member(2)).await;
    let asking = one.call(2, NEVER, b"");
    let stopping = async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let start = Instant::now();
        two.transport.stop().await;
        start.elapsed()
    };
    let (answer, took) = tokio::join!(asking, stopping);
    assert_eq!(answer, Err(CallError::Lost));
    assert!(took < Duration::from_secs(5), "{took:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_comes_back_elsewhere_is_found_by_what_it_says_itself() {
    let (one, two) = pair(member(1), member(2)).await;
    let before = two.addr();
    two.transport.stop().await;
    let two = member(2).start().await;
    assert_ne!(two.addr(), before);
    two.dial(&[(1, &one.addr())]);
    one.until(2, |link| link.is_up()).await;
    let known = async {
        while one.transport.addresses(NodeId(2)) != [two.addr(), before.clone()] {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(timeout(LONG, known).await.is_ok(), "{:?}", one.transport.addresses(NodeId(2)));
    assert_eq!(one.call(2, ECHO, b"a").await, Ok(Bytes::from_static(b"a")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_another_node_or_an_older_life_says_is_not_where_a_node_is() {
    let (one, two) = pair(member(1), member(2)).await;
    let mut older = member(2);
    older.identity.life = 1;
    let mut namesake = member(2);
    namesake.identity.name = "node9".to_owned();
    two.transport.stop().await;
    for other in [older.start().await, namesake.start().await] {
        other.dial(&[(1, &one.addr())]);
        other.until_up(1).await;
        assert_eq!(one.transport.addresses(NodeId(2)), [two.addr()]);
        other.transport.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_where_another_node_is_gives_way_to_the_next() {
    let (one, two, three) =
        (member(1).start().await, member(2).start().await, member(3).start().await);
    one.dial(&[(2, &two.addr())]);
    one.until_up(2).await;
    one.transport.hear_address(NodeId(2), Source::Member, &three.addr());
    assert_eq!(one.transport.addresses(NodeId(2)), [three.addr(), two.addr()]);
    two.dial(&[]);
    // The connection breaks: it is looked for where it was said to be, and found where it was.
    let two = {
        let listen = two.transport.local_addr();
        two.transport.stop().await;
        let mut again = member(2);
        again.listen = listen;
        again.start().await
    };
    one.until(2, |link| link.is_up() && link.life == Some(102)).await;
    let known = async {
        while one.transport.addresses(NodeId(2)) != [two.addr()] {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(timeout(LONG, known).await.is_ok(), "{:?}", one.transport.addresses(NodeId(2)));
}
