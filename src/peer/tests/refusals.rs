//! Whom a node does not talk to, and what it says to them.

use std::path::{Path, PathBuf};

use super::super::hello::{HELLO_BYTES_MAX, MAGIC, VERSION, with_head};
use super::*;
use crate::topology::Roster;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

/// That the first, dialling the second, is refused for that; both count it, and both directions
/// stay closed.
async fn assert_refused(one: Spec, two: Spec, refusal: Refusal) {
    let (one, two) = (one.start().await, two.start().await);
    one.dial(&[(2, &two.addr())]);
    assert_eq!(one.until_down(2).await, Down::Rejected(refusal));
    assert!(!one.send(2, 1, b"never"));
    one.until_refused(refusal).await;
    two.until_refused(refusal).await;
    let (seen_here, seen_there) = (one.counts(), two.counts());
    assert_eq!(seen_here.into_keys().collect::<Vec<_>>(), [refusal]);
    assert_eq!(seen_there.into_keys().collect::<Vec<_>>(), [refusal]);
    let knock = one.knock(&two.addr(), ECHO, b"").await;
    assert!(matches!(knock, Err(KnockError::Rejected(why)) if why == refusal), "{knock:?}");
    assert!(two.inbox.frames.lock().is_empty());
}

#[tokio::test]
async fn a_wrong_or_missing_secret_is_refused_from_either_side() {
    for (ours, theirs) in [
        (&["one"][..], &["two"][..]),
        (&["one", "more"], &["two", "other"]),
        (&["one"], &[]),
        (&[], &["two"]),
    ] {
        let (one, two) = (member(1).secrets(ours), member(2).secrets(theirs));
        assert_refused(one, two, Refusal::Secret).await;
    }
}

#[tokio::test]
async fn during_a_rotation_nodes_with_one_common_secret_talk_and_stay_connected() {
    let one = member(1).secrets(&["new", "old"]).start().await;
    let two = member(2).secrets(&["old"]).start().await;
    one.dial(&[(2, &two.addr())]);
    two.dial(&[(1, &one.addr())]);
    one.until_up(2).await;
    two.until_up(1).await;
    one.transport.set_secrets(vec![b"new".to_vec()]);
    assert_eq!(one.call(2, ECHO, b"kept").await.unwrap(), "kept");
    let refused = one.knock(&two.addr(), ECHO, b"").await;
    assert!(matches!(refused, Err(KnockError::Rejected(Refusal::Secret))), "{refused:?}");
    two.transport.set_secrets(vec![b"new".to_vec(), b"old".to_vec()]);
    assert!(one.knock(&two.addr(), ECHO, b"").await.is_ok());
    assert!(one.link(2).unwrap().is_up() && two.link(1).unwrap().is_up());
}

#[tokio::test]
async fn another_cluster_is_refused() {
    let mut other = member(2);
    other.identity.cluster_id = Some(0xbad);
    assert_refused(member(1), other, Refusal::Cluster).await;
}

#[tokio::test]
async fn another_number_of_shards_is_refused() {
    let mut other = member(2);
    other.identity.num_shards = 17;
    assert_refused(member(1), other, Refusal::Shards).await;
}

#[tokio::test]
async fn a_second_node_of_the_same_name_is_refused_and_the_first_stays() {
    let (one, two) = pair(member(1), member(2)).await;
    let copy = member(1).start().await;
    copy.dial(&[(2, &two.addr())]);
    assert_eq!(copy.until_down(2).await, Down::Rejected(Refusal::Duplicate));
    two.until_refused(Refusal::Duplicate).await;
    let newborn = newborn("node1").start().await;
    let knock = newborn.knock(&two.addr(), ECHO, b"").await;
    assert!(matches!(knock, Err(KnockError::Rejected(Refusal::Duplicate))), "{knock:?}");
    let knock = newborn.knock(&one.addr(), ECHO, b"").await;
    assert!(matches!(knock, Err(KnockError::Rejected(Refusal::Duplicate))), "{knock:?}");
    assert!(one.link(2).unwrap().is_up());
    assert_eq!(one.call(2, ECHO, b"first").await.unwrap(), "first");
    drop(one);
    copy.until_up(2).await;
}

/// What is known of numbers after so many were given to members, of whom these are left.
fn roster(members: &[u64], next: u64) -> Roster {
    Roster { members: members.iter().copied().map(NodeId).collect(), next: NodeId(next) }
}

#[tokio::test]
async fn a_member_that_is_removed_is_told_so_once_what_it_asked_is_answered() {
    for secrets in [&["s"][..], &[]] {
        let one = member(1).secrets(secrets).start().await;
        let two = member(2).secrets(secrets).start().await;
        two.transport.set_roster(roster(&[1, 2], 3));
        one.dial(&[(2, &two.addr())]);
        one.until_up(2).await;
        assert_eq!(*one.transport.removed_by().borrow(), None);
        let (late, ()) = tokio::join!(one.call(2, LATE, b"asked as a member"), async {
            one.call(2, ECHO, b"").await.expect("the one before is under way now");
            two.transport.set_roster(roster(&[2], 3));
        });
        assert_eq!(late.unwrap(), "asked as a member");
        assert_eq!(one.until_down(2).await, Down::Rejected(Refusal::Removed));
        let by = one.transport.removed_by().borrow().clone().expect("it was told");
        assert!(by.starts_with("node2 ("), "{by}");
        two.until_refused(Refusal::Removed).await;
    }
}

#[tokio::test]
async fn a_node_that_comes_back_after_it_was_removed_is_told_so_and_not_listened_to() {
    let two = member(2).start().await;
    two.transport.set_roster(roster(&[2, 3], 4));
    let linked = member(1).start().await;
    linked.dial(&[(2, &two.addr())]);
    let mut told = linked.transport.removed_by();
    timeout(LONG, told.wait_for(Option::is_some)).await.expect("its link is told").unwrap();
    let knocking = member(1).start().await;
    let knock = knocking.knock(&two.addr(), ECHO, b"").await;
    assert!(matches!(knock, Err(KnockError::Rejected(Refusal::Removed))), "{knock:?}");
    assert_eq!(knocking.transport.removed_by().borrow().as_deref(), Some("node2"));
    assert!(two.inbox.frames.lock().is_empty());
    // One that this node has not seen given yet may be a newcomer's.
    let newcomer = member(4).start().await;
    newcomer.dial(&[(2, &two.addr())]);
    newcomer.until_up(2).await;
    assert_eq!(newcomer.call(2, ECHO, b"new").await.unwrap(), "new");
    assert_eq!(*newcomer.transport.removed_by().borrow(), None);
}

/// Whoever sits at a member's old address could say so.
#[tokio::test]
async fn who_has_not_proved_to_know_the_secret_cannot_tell_a_node_that_it_was_removed() {
    let one = member(1).start().await;
    let imposter = TcpListener::bind("127.0.0.1:0").await.unwrap();
    one.dial(&[(2, &imposter.local_addr().unwrap().to_string())]);
    let (mut stream, _) = imposter.accept().await.unwrap();
    stream.write_all(&with_head(VERSION, 4, &[Refusal::Removed.code()])).await.unwrap();
    assert_eq!(one.until_down(2).await, Down::Rejected(Refusal::Removed));
    assert_eq!(*one.transport.removed_by().borrow(), None);
}

#[tokio::test]
async fn a_node_that_answers_at_anothers_address_is_not_taken_for_it() {
    let (one, two) = (member(1).start().await, member(2).start().await);
    one.dial(&[(3, &two.addr())]);
    assert_eq!(one.until_down(3).await, Down::Rejected(Refusal::OtherNode));
    assert!(!one.send(3, 1, b"not for node2"));
}

/// What a node answers to bytes, until it closes.
async fn answer_to(node: &Node, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(node.addr()).await.unwrap();
    // It may close before all is written.
    let _ = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    let _ = timeout(LONG, stream.read_to_end(&mut answer)).await.expect("it closes");
    answer
}

#[tokio::test]
async fn another_protocol_version_is_refused_by_name_on_both_sides() {
    let one = member(1).start().await;
    for (theirs, refusal) in [(2, Refusal::ProtocolNewer), (0, Refusal::ProtocolOlder)] {
        let answer = answer_to(&one, &with_head(theirs, 1, b"whatever it says")).await;
        assert_eq!(answer, with_head(VERSION, 4, &[refusal.code()]));
        assert_eq!(one.refused(refusal), 1);
    }

    let later = TcpListener::bind("127.0.0.1:0").await.unwrap();
    one.dial(&[(2, &later.local_addr().unwrap().to_string())]);
    let (mut stream, _) = later.accept().await.unwrap();
    stream.write_all(&with_head(9, 77, b"")).await.unwrap();
    assert_eq!(one.until_down(2).await, Down::Rejected(Refusal::ProtocolNewer));
}

#[tokio::test]
async fn garbage_is_not_answered_and_harms_nobody() {
    let (one, two) = pair(member(1), member(2)).await;
    for garbage in [&b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"[..], &[0; 100_000], b"AEGISKX\nxxxxxxxxx"]
    {
        let before = two.refused(Refusal::Garbage);
        assert!(answer_to(&two, garbage).await.is_empty());
        assert_eq!(two.refused(Refusal::Garbage), before + 1);
    }
    let mut too_long = with_head(VERSION, 1, &[0; 16]);
    too_long[11..13].copy_from_slice(&u16::try_from(HELLO_BYTES_MAX).unwrap().to_le_bytes());
    assert!(answer_to(&two, &too_long).await.is_empty());
    assert_eq!(two.refused(Refusal::TooLong), 1);
    assert_eq!(one.call(2, ECHO, b"fine").await.unwrap(), "fine");
}

#[tokio::test]
async fn an_introduction_that_is_cut_short_or_takes_too_long_is_counted() {
    let mut hasty = member(1);
    hasty.timing.handshake_max = Duration::from_millis(50);
    let one = hasty.start().await;
    let mut stream = TcpStream::connect(one.addr()).await.unwrap();
    stream.write_all(&MAGIC).await.unwrap();
    drop(stream);
    one.until_refused(Refusal::Garbage).await;
    let mut slow = TcpStream::connect(one.addr()).await.unwrap();
    slow.write_all(&MAGIC).await.unwrap();
    let ended = timeout(LONG, slow.read(&mut [0; 1])).await.expect("it is cut off");
    assert!(matches!(ended, Ok(0) | Err(_)));
    assert_eq!(one.refused(Refusal::Timeout), 1);
    // Who only looks whether the port is open is nobody to complain about.
    drop(TcpStream::connect(one.addr()).await.unwrap());
    one.knock("127.0.0.1:1", ECHO, b"").await.unwrap_err();
    assert_eq!(one.refused(Refusal::Garbage), 1);
}

#[tokio::test]
async fn a_flood_of_strangers_keeps_no_place_from_a_friend() {
    let (one, two) = pair(member(1), member(2)).await;
    let mut flood = Vec::new();
    for _ in 0..300 {
        flood.push(TcpStream::connect(two.addr()).await.unwrap());
    }
    two.until_refused(Refusal::TooMany).await;
    assert!(one.knock(&two.addr(), ECHO, b"").await.is_ok());
    assert_eq!(one.call(2, ECHO, b"fine").await.unwrap(), "fine");
    drop(flood);
}

#[tokio::test]
async fn a_member_that_sends_no_frames_is_refused_and_told_so() {
    use super::super::hello::{Message, Purpose, read, tests::hello};

    for (bytes, refusal) in [
        (&[0, 0, 0, 5, 1, 1][..], Refusal::TooLong),
        (&[3, 0, 0, 0, 99, 1, 1], Refusal::Garbage),
        // A pong, which only the other side sends.
        (&[17, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], Refusal::Garbage),
    ] {
        let two = member(2).secrets(&[]).start().await;
        let mut stream = TcpStream::connect(two.addr()).await.unwrap();
        let mut hello = hello("node1");
        hello.identity = Identity { peer_addr: "here:1".to_owned(), ..member(1).identity };
        hello.purpose = Purpose::Link;
        stream.write_all(&Message::Hello(hello).encode()).await.unwrap();
        read(&mut stream).await.unwrap();
        stream.write_all(&Message::Proofs(Vec::new()).encode()).await.unwrap();
        assert_eq!(read(&mut stream).await.unwrap().0, Message::Welcome(None));
        stream.write_all(bytes).await.unwrap();
        let mut answer = Vec::new();
        timeout(LONG, stream.read_to_end(&mut answer)).await.expect("it closes").unwrap();
        assert_eq!(answer, [2, 0, 0, 0, 6, refusal.code()]);
        assert_eq!(two.refused(refusal), 1);
    }
}

/// An authority, and certificates that it signed.
struct Authority {
    dir: tempfile::TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let certificate = params.self_signed(&key).unwrap();
        std::fs::write(dir.path().join("ca.crt"), certificate.pem()).unwrap();
        Self { dir, issuer: Issuer::new(params, key) }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// What a node is given whose certificate this authority signed, and which trusts `trusted`.
    fn tls(&self, name: &str, trusted: &Path) -> Tls {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new([format!("{name}.elsewhere.example")]).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let (cert_file, key_file) = (self.file("node.crt"), self.file("node.key"));
        std::fs::write(&cert_file, certificate.pem()).unwrap();
        std::fs::write(&key_file, key.serialize_pem()).unwrap();
        Tls::load(&cert_file, &key_file, trusted, None).unwrap()
    }
}

fn with_tls(mut spec: Spec, tls: Tls) -> Spec {
    spec.tls = Some(tls);
    spec
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_tls_nodes_talk_whatever_their_certificates_names_are() {
    let authority = Authority::new();
    let ca = authority.file("ca.crt");
    for secrets in [&[][..], &["secret"]] {
        let one = with_tls(member(1).secrets(secrets), authority.tls("a", &ca));
        let two = with_tls(member(2).secrets(secrets), authority.tls("b", &ca));
        let (one, two) = pair(one, two).await;
        let large = vec![8; 3 * 1024 * 1024];
        assert!(one.call(2, ECHO, &large).await.unwrap() == large);
        assert!(one.send(2, 1, b"frame"));
        two.inbox.frames(1).await;
        assert!(one.knock(&two.addr(), ECHO, b"").await.is_ok());
        assert_eq!((one.counts(), two.counts()), (BTreeMap::new(), BTreeMap::new()));
    }
    let one = with_tls(member(1).secrets(&["x"]), authority.tls("a", &ca));
    let two = with_tls(member(2).secrets(&["y"]), authority.tls("b", &ca));
    assert_refused(one, two, Refusal::Secret).await;
}

#[tokio::test]
async fn a_certificate_of_another_authority_is_refused_from_either_side() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let ca = ours.file("ca.crt");
    let one = with_tls(member(1), ours.tls("a", &ca));
    let two = with_tls(member(2), theirs.tls("b", &theirs.file("ca.crt")));
    assert_refused(one, two, Refusal::Tls).await;
    // The dialled side alone does not trust, then the dialling side alone.
    let one = with_tls(member(1), theirs.tls("a", &ca));
    let two = with_tls(member(2), ours.tls("b", &ca));
    assert_refused(one, two, Refusal::Tls).await;
    let one = with_tls(member(1), ours.tls("a", &ca));
    let two = with_tls(member(2), theirs.tls("b", &ca));
    assert_refused(one, two, Refusal::Tls).await;
}

#[tokio::test]
async fn tls_on_one_side_alone_is_refused_by_name() {
    let authority = Authority::new();
    let ca = authority.file("ca.crt");
    let one = with_tls(member(1), authority.tls("a", &ca));
    assert_refused(one, member(2), Refusal::Tls).await;
    let two = with_tls(member(2), authority.tls("b", &ca));
    assert_refused(member(1), two, Refusal::Tls).await;
}
