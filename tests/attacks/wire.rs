//! What attackers send: bytes of HTTP/1, frames of HTTP/2.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

use crate::harness::TOKEN;

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const PRIORITY: u8 = 2;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;

pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// SETTINGS_INITIAL_WINDOW_SIZE.
const INITIAL_WINDOW: u16 = 4;

/// How often one that waits is heard of.
const SIGN_OF_LIFE: Duration = Duration::from_millis(200);

/// A frame, RFC 9113 §4.1.
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// A field line that enters no table, RFC 7541 §6.2.2.
pub(crate) fn field(name: &str, value: &str) -> Vec<u8> {
    let mut line = vec![0];
    for text in [name, value] {
        length(&mut line, text.len());
        line.extend(text.as_bytes());
    }
    line
}

/// An integer of a prefix of seven bits, RFC 7541 §5.1.
fn length(line: &mut Vec<u8>, mut n: usize) {
    if n < 127 {
        line.push(n as u8);
        return;
    }
    line.push(127);
    n -= 127;
    while n >= 128 {
        line.push((n % 128) as u8 | 128);
        n /= 128;
    }
    line.push(n as u8);
}

/// The field lines of a request.
pub(crate) fn head(method: &str, path: &str, token: Option<&str>) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in
        [(":method", method), (":scheme", "http"), (":path", path), (":authority", "127.0.0.1")]
    {
        block.extend(field(name, value));
    }
    if let Some(token) = token {
        block.extend(field("authorization", &format!("Bearer {token}")));
    }
    block
}

/// A request without a body, by a client with a token.
pub(crate) fn get(stream: u32, path: &str) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | END_STREAM, stream, &head("GET", path, Some(TOKEN)))
}

/// The numbers of a client's streams.
pub(crate) fn streams() -> impl Iterator<Item = u32> {
    (1..u32::MAX / 2).step_by(2)
}

/// A connection whose two directions go their own ways.
pub(crate) struct Peer {
    pub(crate) read: OwnedReadHalf,
    pub(crate) write: OwnedWriteHalf,
}

impl Peer {
    pub(crate) async fn open(addr: &str) -> io::Result<Self> {
        let stream = TcpStream::connect(addr).await?;
        stream.set_nodelay(true)?;
        let (read, write) = stream.into_split();
        Ok(Self { read, write })
    }

    /// HTTP/2, with so large a window for each answer.
    pub(crate) async fn h2(addr: &str, window: u32) -> io::Result<Self> {
        let mut peer = Self::open(addr).await?;
        peer.send(PREFACE).await?;
        let mut settings = INITIAL_WINDOW.to_be_bytes().to_vec();
        settings.extend(window.to_be_bytes());
        peer.send(frame(SETTINGS, 0, 0, &settings)).await?;
        Ok(peer)
    }

    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.write.write_all(bytes.as_ref()).await
    }

    /// Takes and drops whatever comes, until the end.
    pub(crate) async fn take_all(mut read: OwnedReadHalf) -> io::Result<()> {
        let mut scratch = vec![0; 64 << 10];
        while read.read(&mut scratch).await? > 0 {}
        Err(io::ErrorKind::UnexpectedEof.into())
    }

    /// Sends what `next` makes, one piece after the other, and takes whatever comes.
    pub(crate) async fn flood(mut self, mut next: impl FnMut(u32) -> Vec<u8>) -> io::Result<()> {
        let read = Self::take_all(self.read);
        let sent = async {
            for n in 0.. {
                let piece = next(n);
                self.write.write_all(&piece).await?;
                tokio::task::yield_now().await;
            }
            Ok(())
        };
        tokio::select! {
            done = sent => done,
            done = read => done,
        }
    }

    /// Reads nothing and says so much now and then, until it is cut off.
    pub(crate) async fn hold(mut self, sign_of_life: &[u8]) -> io::Result<()> {
        loop {
            tokio::time::sleep(SIGN_OF_LIFE).await;
            self.send(sign_of_life).await?;
        }
    }
}

/// A PING of HTTP/2.
pub(crate) fn ping() -> Vec<u8> {
    frame(PING, 0, 0, b"harmless")
}
