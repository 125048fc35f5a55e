//! The client port, 7700.

use std::io;
use std::time::Duration;

use serde_json::json;
use tokio::io::AsyncReadExt;

use crate::harness::{self, Attack, Attacker, TOKEN, attack};
use crate::wire::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, PRIORITY, Peer, RST_STREAM, SETTINGS,
    WINDOW_UPDATE, field, frame, get, head, ping, streams,
};

/// Streams that an attacker opens at once: as many as he may.
const STREAMS: usize = 256;
const MIB: usize = 1 << 20;
/// What a large value has that attackers store and ask for.
const VALUE_BYTES: usize = 4 * MIB;
const WINDOW_MAX: u32 = (1 << 31) - 1;
/// SETTINGS_INITIAL_WINDOW_SIZE, as a frame's payload begins.
const INITIAL_WINDOW: [u8; 2] = [0, 4];

/// Tries them all on a node of their own.
fn try_all(attacks: &[Attack]) {
    harness::try_all(|victim| &victim.client, attacks);
}

#[test]
fn answers_that_are_never_taken_are_bounded() {
    try_all(&[
        attack("the document into no window", 200, |a| {
            Box::pin(into_no_window(a, "/openapi.json", None))
        }),
        attack("replaced values, HTTP/1", 4, |a| Box::pin(replaced_on_many_connections(a))),
        attack("a window taken back", 100, |a| Box::pin(window_taken_back(a))),
        attack("batches never taken", 50, |a| Box::pin(batch_never_taken(a, false))),
        attack("batches of lines never taken", 50, |a| Box::pin(batch_never_taken(a, true))),
        attack("batches into no window", 20, |a| Box::pin(batches_into_no_window(a))),
        attack("slow readers", 200, |a| Box::pin(slow_reader(a))),
    ]);
}

#[test]
fn requests_that_never_end_are_bounded() {
    try_all(&[
        attack("values without end, HTTP/1", 200, |a| Box::pin(value_without_end(a))),
        attack("values without end, HTTP/2", 200, |a| Box::pin(values_without_end(a))),
        attack("announced values, HTTP/1", 1500, |a| Box::pin(value_announced(a))),
        attack("heads without end, HTTP/1", 1500, |a| Box::pin(head_without_end(a))),
        attack("heads without end, HTTP/2", 1500, |a| Box::pin(continued_without_end(a))),
        attack("frames without end", 1500, |a| Box::pin(frame_without_end(a))),
        attack("lines without end", 100, |a| Box::pin(lines_without_end(a))),
    ]);
}

#[test]
#[ignore = "known fault: others wait 90 to 95 ms where 50 is the bound; memory stays below 120 MiB"]
fn small_answers_into_no_window_hold_up_nobody() {
    try_all(&[
        attack("401 into no window", 400, |a| Box::pin(into_no_window(a, "/v1/kv/attack", None))),
        attack("welcome into no window", 400, |a| Box::pin(into_no_window(a, "/", None))),
    ]);
}

#[test]
fn answers_into_no_window_hold_up_nobody() {
    try_all(&[
        attack("listing into no window", 200, |a| {
            Box::pin(into_no_window(a, "/v1/kv?limit=1000", Some(TOKEN)))
        }),
        attack("replaced values, HTTP/2", 4, |a| Box::pin(replaced_on_one_connection(a))),
        attack("a socket never read, HTTP/2", 50, |a| Box::pin(socket_never_read(a))),
    ]);
}

#[test]
fn heads_of_references_are_bounded() {
    try_all(&[attack("heads of references", 100, |a| Box::pin(head_of_references(a)))]);
}

#[test]
fn floods_are_bounded() {
    try_all(&[
        attack("PRIORITY", 4, |a| Box::pin(flood(a, |_| frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 16])))),
        attack("WINDOW_UPDATE", 4, |a| {
            Box::pin(flood(a, |n| {
                frame(WINDOW_UPDATE, 0, if n == 0 { 0 } else { 1 }, &[0, 0, 0, 1])
            }))
        }),
        attack("RST_STREAM of streams just opened", 4, |a| {
            Box::pin(flood(a, |n| {
                let stream = 2 * n + 3;
                let mut both = get(stream, "/v1/kv/attack");
                both.extend(frame(RST_STREAM, 0, stream, &[0, 0, 0, 8]));
                both
            }))
        }),
        attack("RST_STREAM of one stream", 4, |a| {
            Box::pin(flood(a, |_| frame(RST_STREAM, 0, 1, &[0, 0, 0, 8])))
        }),
        attack("PING", 4, |a| Box::pin(flood(a, |_| ping()))),
        attack("SETTINGS", 4, |a| Box::pin(flood(a, |_| frame(SETTINGS, 0, 0, &[])))),
        attack("SETTINGS that change windows", 4, |a| {
            Box::pin(flood(a, |n| frame(SETTINGS, 0, 0, &[0, 4, 0, 0, n as u8, 1])))
        }),
        attack("empty DATA", 4, |a| Box::pin(flood(a, |_| frame(DATA, 0, 1, &[])))),
        attack("DATA of a byte", 4, |a| Box::pin(flood(a, |_| frame(DATA, 0, 1, b"x")))),
        attack("empty CONTINUATION", 4, |a| Box::pin(continuations(a))),
        attack("unknown frames", 4, |a| Box::pin(flood(a, |_| frame(0xbb, 0, 0, &[])))),
        attack("pipelined GET, never read", 50, |a| Box::pin(pipelined(a, "GET", false))),
        attack("pipelined HEAD, never read", 50, |a| Box::pin(pipelined(a, "HEAD", false))),
        attack("pipelined HEAD, read", 8, |a| Box::pin(pipelined(a, "HEAD", true))),
        attack("empty lines", 8, |a| Box::pin(empty_lines(a))),
    ]);
}

pub(crate) async fn into_no_window(a: Attacker, path: &str, token: Option<&str>) -> io::Result<()> {
    let mut peer = Peer::h2(&a.addr, 0).await?;
    let block = head("GET", path, token);
    for stream in streams().take(STREAMS) {
        peer.send(frame(HEADERS, END_HEADERS | END_STREAM, stream, &block)).await?;
    }
    peer.hold(&ping()).await
}

/// A request of HTTP/1 that announces so large a value under the attacker's own key.
fn put_own(a: &Attacker, bytes: usize) -> String {
    format!(
        "PUT /v1/kv/attack-{} HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer {TOKEN}\r\n\
         content-length: {bytes}\r\n\r\n",
        a.number
    )
}

/// Puts a large value under the attacker's own key, and waits for the answer.
async fn put(a: &Attacker, fill: usize) -> io::Result<()> {
    let mut peer = Peer::open(&a.addr).await?;
    peer.send(put_own(a, VALUE_BYTES)).await?;
    peer.send(vec![fill as u8; VALUE_BYTES]).await?;
    let mut answer = [0; 64];
    peer.read.read(&mut answer).await.map(|_| ())
}

/// A request of HTTP/1 for what [`put`] puts.
fn get_own(a: &Attacker) -> String {
    let own = format!("/v1/kv/attack-{}", a.number);
    format!("GET {own} HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer {TOKEN}\r\n\r\n")
}

async fn replaced_on_one_connection(a: Attacker) -> io::Result<()> {
    let mut peer = Peer::h2(&a.addr, 0).await?;
    for (n, stream) in streams().take(STREAMS).enumerate() {
        put(&a, n).await?;
        peer.send(get(stream, &format!("/v1/kv/attack-{}", a.number))).await?;
        peer.send(ping()).await?;
    }
    peer.hold(&ping()).await
}

async fn replaced_on_many_connections(a: Attacker) -> io::Result<()> {
    let mut held = Vec::new();
    for n in 0..STREAMS {
        put(&a, n).await?;
        let mut peer = Peer::open(&a.addr).await?;
        peer.send(get_own(&a)).await?;
        held.push(peer);
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    Ok(())
}

/// Answers get room, and lose it before they have used it.
async fn window_taken_back(a: Attacker) -> io::Result<()> {
    if a.number == 0 {
        put(&a, 0).await?;
    }
    let mut peer = Peer::h2(&a.addr, 1 << 20).await?;
    peer.send(frame(WINDOW_UPDATE, 0, 0, &(WINDOW_MAX - 65_535).to_be_bytes())).await?;
    for stream in streams().take(STREAMS) {
        peer.send(get(stream, "/v1/kv/attack-0")).await?;
        if stream % 16 == 1 {
            let none = [&INITIAL_WINDOW[..], &[0; 4]].concat();
            peer.send(frame(SETTINGS, 0, 0, &none)).await?;
            let some = [&INITIAL_WINDOW[..], &[0, 16, 0, 0]].concat();
            peer.send(frame(SETTINGS, 0, 0, &some)).await?;
        }
    }
    let none = [&INITIAL_WINDOW[..], &[0; 4]].concat();
    peer.send(frame(SETTINGS, 0, 0, &none)).await?;
    peer.hold(&ping()).await
}

async fn socket_never_read(a: Attacker) -> io::Result<()> {
    let mut peer = Peer::h2(&a.addr, WINDOW_MAX).await?;
    peer.send(frame(WINDOW_UPDATE, 0, 0, &(WINDOW_MAX - 65_535).to_be_bytes())).await?;
    for stream in streams() {
        peer.send(get(stream, "/openapi.json")).await?;
    }
    Ok(())
}

/// Many reads of one large value, as a document or as lines.
fn batch(a: &Attacker, lines: bool) -> (&'static str, String) {
    let op = json!({ "op": "get", "key": format!("attack-{}", a.number) }).to_string();
    match lines {
        true => ("application/x-ndjson", format!("{op}\n").repeat(5000)),
        false => ("application/json", format!("{{\"ops\":[{}]}}", [&*op; 5000].join(","))),
    }
}

async fn batch_never_taken(a: Attacker, lines: bool) -> io::Result<()> {
    put(&a, 0).await?;
    let (media_type, body) = batch(&a, lines);
    let mut peer = Peer::open(&a.addr).await?;
    peer.send(format!(
        "POST /v1/batch HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer {TOKEN}\r\n\
         content-type: {media_type}\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    ))
    .await?;
    // The socket's buffers take some; then nothing moves until it is cut off.
    tokio::time::sleep(Duration::from_secs(3)).await;
    drop(peer);
    Ok(())
}

async fn batches_into_no_window(a: Attacker) -> io::Result<()> {
    put(&a, 0).await?;
    let (media_type, body) = batch(&a, true);
    let mut block = head("POST", "/v1/batch", Some(TOKEN));
    block.extend(field("content-type", media_type));
    let mut peer = Peer::h2(&a.addr, 0).await?;
    for stream in streams().take(STREAMS) {
        peer.send(frame(HEADERS, END_HEADERS, stream, &block)).await?;
        peer.send(frame(DATA, 0, stream, &body.as_bytes()[..8000])).await?;
    }
    peer.hold(&ping()).await
}

async fn slow_reader(a: Attacker) -> io::Result<()> {
    put(&a, 0).await?;
    let mut peer = Peer::open(&a.addr).await?;
    peer.send(get_own(&a)).await?;
    let mut piece = [0; 1024];
    loop {
        if peer.read.read(&mut piece).await? == 0 {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn value_without_end(a: Attacker) -> io::Result<()> {
    let mut peer = Peer::open(&a.addr).await?;
    peer.send(put_own(&a, 8 * MIB)).await?;
    for _ in 0..8 * 16 - 1 {
        peer.send([b'x'; MIB / 16]).await?;
    }
    peer.hold(b"x").await
}

async fn value_announced(a: Attacker) -> io::Result<()> {
    let mut peer = Peer::open(&a.addr).await?;
    peer.send(put_own(&a, 8 * MIB)).await?;
    peer.hold(b"x").await
}

async fn values_without_end(a: Attacker) -> io::Result<()> {
    let mut peer = Peer::h2(&a.addr, 0).await?;
    let block = head("PUT", &format!("/v1/kv/attack-{}", a.number), Some(TOKEN));
    // As much as the first windows take.
    for stream in streams().take(4) {
        peer.send(frame(HEADERS, END_HEADERS, stream, &block)).await?;
        for _ in 0..60 {
            peer.send(frame(DATA, 0, stream, &[b'x'; 16 << 10])).await?;
        }
    }
    peer.hold(&ping()).await
}

async fn head_without_end(a: Attacker) -> io::Result<()> {
    let mut peer = Peer::open(&a.addr).await?;
    peer.send("GET / HTTP/1.1\r\nhost: 127.0.0.1\r\nx: ").await?;
    for _ in 0..250 {
        peer.send([b'x'; 1000]).await?;
    }
    peer.hold(b"x").await
}

async fn continued_without_end(a: Attacker) -> io::Result<()> {
    let mut peer = Peer::h2(&a.addr, 0).await?;
    peer.send(frame(HEADERS, 0, 1, &head("GET", "/", None))).await?;
    for _ in 0..3 {
        peer.send(frame(CONTINUATION, 0, 1, &field("x", &"x".repeat(15_000)))).await?;
    }
    // Another frame would be a breach of the protocol.
    tokio::time::sleep(Duration::from_secs(60)).await;
    Ok(())
}

async fn frame_without_end(a: Attacker) -> io::Result<()> {
    let mut peer = Peer::h2(&a.addr, 0).await?;
    let whole = frame(HEADERS, END_HEADERS, 1, &[0; 16 << 10]);
    peer.send(&whole[..16_000]).await?;
    peer.hold(b"").await
}

/// A byte for each of many fields.
pub(crate) async fn head_of_references(a: Attacker) -> io::Result<()> {
    let mut peer = Peer::h2(&a.addr, 0).await?;
    let mut block = head("GET", "/", None);
    // The static table's 16: accept-encoding: gzip, deflate.
    block.extend([0x80 | 16; 1000]);
    for stream in streams().take(STREAMS) {
        peer.send(frame(HEADERS, END_HEADERS | END_STREAM, stream, &block)).await?;
    }
    peer.hold(&ping()).await
}

async fn lines_without_end(a: Attacker) -> io::Result<()> {
    let mut peer = Peer::open(&a.addr).await?;
    peer.send(format!(
        "POST /v1/batch HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer {TOKEN}\r\n\
         content-type: application/x-ndjson\r\ntransfer-encoding: chunked\r\n\r\n"
    ))
    .await?;
    for _ in 0..16 * 16 {
        peer.send(format!("{:x}\r\n", MIB / 16)).await?;
        peer.send([b'x'; MIB / 16]).await?;
        peer.send("\r\n").await?;
    }
    peer.hold(b"").await
}

/// Frames behind a request that stays open.
async fn flood(a: Attacker, next: fn(u32) -> Vec<u8>) -> io::Result<()> {
    let mut peer = Peer::h2(&a.addr, 0).await?;
    let block = head("POST", "/v1/batch", Some(TOKEN));
    let lines = field("content-type", "application/x-ndjson");
    peer.send(frame(HEADERS, END_HEADERS, 1, &[block, lines].concat())).await?;
    peer.flood(|n| (64 * n..64 * (n + 1)).flat_map(next).collect()).await
}

pub(crate) async fn continuations(a: Attacker) -> io::Result<()> {
    let mut peer = Peer::h2(&a.addr, 0).await?;
    peer.send(frame(HEADERS, 0, 1, &head("GET", "/", None))).await?;
    peer.flood(|_| frame(CONTINUATION, 0, 1, &[]).repeat(64)).await
}

async fn pipelined(a: Attacker, method: &str, reads: bool) -> io::Result<()> {
    let mut peer = Peer::open(&a.addr).await?;
    let request = format!(
        "{method} /v1/kv/attack HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer {TOKEN}\r\n\r\n"
    );
    let many = request.repeat(100).into_bytes();
    if reads {
        return peer.flood(|_| many.clone()).await;
    }
    loop {
        peer.send(&many).await?;
    }
}

async fn empty_lines(a: Attacker) -> io::Result<()> {
    Peer::open(&a.addr).await?.flood(|_| b"\r\n".repeat(4096)).await
}
