//! What goes over a connection.

use std::time::Instant;

use tokio::net::{TcpSocket, TcpStream};

use super::*;

#[tokio::test]
async fn frames_arrive_in_the_order_in_which_they_were_sent() {
    let (one, two) = pair(member(1), member(2)).await;
    for n in 0..10_000_u32 {
        assert!(one.send(2, u8::try_from(n % 7).unwrap(), &n.to_le_bytes()));
        if n % 1000 == 0 {
            tokio::task::yield_now().await;
        }
    }
    let frames = two.inbox.frames(10_000).await;
    for (n, (from, kind, body)) in frames.iter().enumerate() {
        assert_eq!((from.as_str(), usize::from(*kind)), ("node1", n % 7));
        assert_eq!(body.as_ref(), u32::try_from(n).unwrap().to_le_bytes());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_of_both_directions_pass_each_other_with_and_without_sealing() {
    for secrets in [&[][..], &["secret"]] {
        let one = member(1).secrets(secrets).start().await;
        let two = member(2).secrets(secrets).start().await;
        one.dial(&[(1, &one.addr()), (2, &two.addr())]);
        two.dial(&[(1, &one.addr()), (2, &two.addr())]);
        one.until_up(2).await;
        two.until_up(1).await;
        assert_eq!(one.link(1), None, "nobody dials itself");
        for n in 0..2_000_u32 {
            assert!(one.send(2, 1, &n.to_le_bytes()));
            assert!(two.send(1, 2, &n.to_le_bytes()));
        }
        let (there, back) = tokio::join!(two.inbox.frames(2_000), one.inbox.frames(2_000));
        assert_eq!(there[1_999], ("node1".to_owned(), 1, Bytes::from_static(&[207, 7, 0, 0])));
        assert_eq!(back[1_999], ("node2".to_owned(), 2, Bytes::from_static(&[207, 7, 0, 0])));
        assert_eq!(one.counts(), BTreeMap::new());
    }
}

#[tokio::test]
async fn answers_find_their_requests_whatever_the_order() {
    let (one, _two) = pair(member(1), member(2)).await;
    let late = async {
        let answer = one.call(2, LATE, b"late").await;
        (answer, Instant::now())
    };
    let quick = async {
        let answers = futures_util::future::join_all((0..500_u32).map(|n| {
            let one = &one;
            async move { one.call(2, ECHO, &n.to_le_bytes()).await }
        }))
        .await;
        (answers, Instant::now())
    };
    let ((late, late_at), (answers, quick_at)) = tokio::join!(late, quick);
    assert_eq!(late, Ok(Bytes::from_static(b"late")));
    for (n, answer) in answers.into_iter().enumerate() {
        assert_eq!(answer.unwrap().as_ref(), u32::try_from(n).unwrap().to_le_bytes());
    }
    assert!(quick_at < late_at, "a late answer holds up the others");
}

#[tokio::test]
async fn a_request_is_begun_after_the_frames_before_it() {
    let (one, _two) = pair(member(1), member(2)).await;
    for round in 1..=20_u32 {
        for _ in 0..50 {
            assert!(one.send(2, 9, b"frame"));
        }
        assert_eq!(one.call(2, COUNT, b"").await.unwrap(), (50 * round).to_string());
    }
}

#[tokio::test]
async fn a_request_without_an_answer_ends_at_its_deadline() {
    let (one, _two) = pair(member(1), member(2)).await;
    for kind in [NEVER, PANIC] {
        let call = one.transport.call(NodeId(2), kind, |_| {}, Duration::from_millis(50));
        assert_eq!(timeout(LONG, call).await.unwrap(), Err(CallError::TimedOut));
    }
    assert_eq!(one.call(2, ECHO, b"still here").await.unwrap(), "still here");
}

#[tokio::test]
async fn without_a_connection_nothing_is_sent() {
    let one = member(1).start().await;
    assert!(!one.send(2, 1, b"nowhere"));
    assert_eq!(one.call(2, ECHO, b"").await, Err(CallError::NotSent));
    // Port 1 of loopback: nobody listens there.
    one.dial(&[(2, "127.0.0.1:1")]);
    assert_eq!(one.until_down(2).await, Down::Refused);
    assert!(!one.send(2, 1, b"nowhere"));
    assert_eq!(one.call(2, ECHO, b"").await, Err(CallError::NotSent));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_up_to_the_largest_arrive_whole_and_larger_ones_are_dropped() {
    let (one, two) = pair(member(1), member(2)).await;
    let mut large = vec![0; 20 * 1024 * 1024];
    for (at, byte) in large.iter_mut().enumerate() {
        *byte = u8::try_from(at / 1000 % 251).unwrap();
    }
    assert!(one.send(2, 1, b"before"));
    assert!(one.send(2, 1, &large));
    assert!(one.send(2, 1, b"behind"));
    let answer = one.call(2, ECHO, &large).await.unwrap();
    assert!(answer == large);
    let frames = two.inbox.frames(3).await;
    assert!(frames[0].2 == b"before"[..] && frames[1].2 == large && frames[2].2 == b"behind"[..]);

    let largest = FRAME_BYTES_MAX - 6;
    assert!(!one.send(2, 1, &vec![0; largest + 1]));
    // It has the whole outbox to itself, and a ping may be on its way out.
    one.send_soon(2, 1, &vec![7; largest]).await;
    let frames = two.inbox.frames(4).await;
    assert_eq!(frames[3].2.len(), 67_108_858);
    assert!(one.link(2).unwrap().is_up());
}

#[tokio::test]
async fn frames_over_the_bound_are_dropped_and_the_rest_arrives() {
    let (one, two) = pair(member(1), member(2)).await;
    // Without an await nothing of it can be written meanwhile.
    let body = vec![5; 1024 * 1024 - 6];
    let sent = (0..100).filter(|_| one.send(2, 1, &body)).count();
    assert_eq!(sent, 64);
    assert_eq!(one.call(2, ECHO, b"no room").await, Err(CallError::NotSent));
    assert_eq!(two.inbox.frames(64).await.len(), 64);
    assert!(one.send(2, 1, &body));
    assert_eq!(two.inbox.frames(65).await.len(), 65);
}

#[tokio::test]
async fn requests_beyond_the_limit_wait_without_looking_like_silence() {
    let (one, two) = pair(impatient(1), member(2)).await;
    let went_down = async {
        let mut links = one.transport.links();
        let down = links.wait_for(|links| !links[&NodeId(2)].is_up()).await;
        down.expect("the transport lives");
    };
    let brief = Duration::from_millis(600);
    let many = futures_util::future::join_all(
        (0..1_100).map(|_| one.transport.call(NodeId(2), NEVER, |_| {}, brief)),
    );
    let one_more = async {
        tokio::time::sleep(brief / 2).await;
        one.transport.call(NodeId(2), ECHO, |_| {}, brief / 2).await
    };
    let answers = async { tokio::join!(many, one_more) };
    tokio::select! {
        () = went_down => panic!("a node that is busy is taken for silent"),
        (many, one_more) = answers => {
            assert!(many.iter().all(|answer| *answer == Err(CallError::TimedOut)));
            assert_eq!(one_more, Err(CallError::TimedOut), "1,024 are the limit");
        }
    }
    drop(two);
}

#[tokio::test]
async fn a_knock_tells_who_answers_and_who_asks() {
    let (one, seed, child) =
        (member(1).start().await, newborn("seed").start().await, newborn("child").start().await);
    for (asking, at, who, answer) in [
        (&child, &one, "node1", "child None"),
        (&child, &seed, "seed", "child None"),
        (&one, &child, "child", "node1 Some(1)"),
    ] {
        let (identity, body) = asking.knock(&at.addr(), WHO, b"").await.unwrap();
        assert_eq!((identity.name.as_str(), &body[..]), (who, answer.as_bytes()));
        assert_eq!(identity.peer_addr, at.addr());
    }
    let large = vec![3; 5 * 1024 * 1024];
    let (_, body) = child.knock(&one.addr(), ECHO, &large).await.unwrap();
    assert!(body == large);
}

#[tokio::test]
async fn a_knock_says_what_went_wrong() {
    let (one, two) = (member(1).start().await, member(2).start().await);
    let myself = one.knock(&one.addr(), WHO, b"").await;
    assert!(matches!(myself, Err(KnockError::Myself)), "{myself:?}");
    let unreachable = one.knock("127.0.0.1:1", WHO, b"").await;
    assert!(matches!(unreachable, Err(KnockError::Unreachable(_))), "{unreachable:?}");
    for nowhere in ["no.such.host.invalid:7701", "nonsense"] {
        let unresolved = one.knock(nowhere, WHO, b"").await;
        assert!(matches!(unresolved, Err(KnockError::Unresolved(_))), "{unresolved:?}");
    }
    let brief = Duration::from_millis(50);
    let late = one.transport.call_addr(&two.addr(), NEVER, b"", brief).await;
    assert!(matches!(late, Err(KnockError::TimedOut)), "{late:?}");
    assert_eq!((one.counts(), two.counts()), (BTreeMap::new(), BTreeMap::new()));
}

/// Whose connections are taken and who says nothing may hang; a host that is off takes none.
#[tokio::test]
async fn who_takes_a_connection_and_says_nothing_is_told_from_who_takes_none() {
    let one = member(1).start().await;
    let brief = Duration::from_millis(200);
    let listener = TcpSocket::new_v4().unwrap();
    listener.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let addr = listener.local_addr().unwrap();
    let _listener = listener.listen(1).unwrap();
    let silent = one.transport.call_addr(&addr.to_string(), WHO, b"", brief).await;
    assert!(matches!(silent, Err(KnockError::TimedOut)), "{silent:?}");
    // It takes no more: what comes in then is dropped, as by a host that is off.
    let mut waiting = Vec::new();
    while let Ok(taken) = timeout(brief, TcpStream::connect(addr)).await {
        waiting.push(taken);
    }
    let off = one.transport.call_addr(&addr.to_string(), WHO, b"", brief).await;
    assert!(matches!(off, Err(KnockError::Unreachable(_))), "{off:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_connection_carries_many_small_frames_a_second() {
    const FRAMES: usize = 100_000;
    let (one, two) = pair(member(1), member(2)).await;
    let start = Instant::now();
    let mut sent = 0;
    while sent < FRAMES {
        match one.send(2, 1, &[9; 100]) {
            true => sent += 1,
            false => tokio::task::yield_now().await,
        }
    }
    two.inbox.frames(FRAMES).await;
    let rate = FRAMES as f64 / start.elapsed().as_secs_f64();
    println!("{rate:.0} frames of 100 bytes a second, sealed, unoptimised");
    assert!(rate > 1_000.0, "{rate}");
}

#[tokio::test]
async fn with_a_secret_nobody_on_the_way_can_read_or_change_a_frame() {
    let (one, two) = (member(1).start().await, member(2).start().await);
    let proxy = Proxy::to(two.addr()).await;
    one.dial(&[(2, &proxy.addr)]);
    one.until_up(2).await;
    assert_eq!(one.call(2, ECHO, b"in confidence").await.unwrap(), "in confidence");
    let read =
        |text: &[u8]| proxy.wire.passed.lock().windows(text.len()).any(|window| window == text);
    assert!(read(b"node1"), "the introduction is open");
    assert!(!read(b"in confidence"));

    proxy.wire.spoils.store(true, Ordering::Relaxed);
    assert!(one.send(2, 1, b"spoiled"));
    one.until(2, |link| !link.is_up()).await;
    assert!(two.refused(Refusal::Garbage) + one.refused(Refusal::Garbage) > 0);
    assert!(two.inbox.frames.lock().is_empty());
}

/// Nobody listens there.
const NOWHERE: &str = "127.0.0.1:1";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_only_the_other_side_can_dial_its_connection_serves_both() {
    let (one, two) = (member(1).start().await, member(2).start().await);
    let us = two.transport.shared.standing().identity;
    two.transport.set_identity(Identity { peer_addr: NOWHERE.to_owned(), ..(*us).clone() });
    one.dial(&[(2, NOWHERE)]);
    assert_eq!(one.call(2, ECHO, b"a").await, Err(CallError::NotSent));
    two.dial(&[(1, &one.addr())]);
    two.until_up(1).await;
    // The side that dialled has its connection a moment before the other.
    one.send_soon(2, 7, &[0]).await;
    for n in 1..100_u8 {
        assert!(one.send(2, 7, &[n]));
    }
    assert_eq!(one.call(2, COUNT, b"").await, Ok(Bytes::from_static(b"100")), "in their order");
    let both = tokio::join!(one.call(2, LATE, b"there"), two.call(1, ECHO, b"back"));
    assert_eq!(both, (Ok(Bytes::from_static(b"there")), Ok(Bytes::from_static(b"back"))));
    assert!(one.link(2).is_some_and(|link| !link.is_up()), "its own is down all the same");
    assert_eq!((one.counts(), two.counts()), (BTreeMap::new(), BTreeMap::new()));
    let under_way = async { one.call(2, NEVER, b"").await };
    let ends = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        two.dial(&[]);
    };
    assert_eq!(tokio::join!(under_way, ends).0, Err(CallError::Lost));
    assert_eq!(one.call(2, ECHO, b"a").await, Err(CallError::NotSent));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_falls_silent_leaves_the_others_and_takes_over_again() {
    let (one, two) = (impatient(1).start().await, member(2).start().await);
    let proxy = Proxy::to(two.addr()).await;
    one.dial(&[(2, &proxy.addr)]);
    // By its own connection: there is no other yet.
    one.until_up(2).await;
    two.dial(&[(1, &one.addr())]);
    two.until_up(1).await;
    proxy.open.send_replace(false);
    assert_eq!(one.until_down(2).await, Down::Silent);
    assert_eq!(one.call(2, ECHO, b"a").await, Ok(Bytes::from_static(b"a")));
    proxy.open.send_replace(true);
    one.until_up(2).await;
    assert_eq!(one.call(2, ECHO, b"b").await, Ok(Bytes::from_static(b"b")));
}
