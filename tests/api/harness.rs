//! A node of one process's own, and a client that sends exactly what it is told.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aegiskv::api::tls::Material;
use aegiskv::api::{Holder, Server, Settings, Sites, Tokens};
use aegiskv::coordinator::Coordinator;
use aegiskv::disk::Os;
use aegiskv::metrics::{Metrics, Readings, TokenMetrics};
use aegiskv::replica::{Copies, Replica};
use aegiskv::replication::{self, Nobody, Replication, Shelf};
use aegiskv::shard::{Placement, Setting};
use aegiskv::store::{self, Budget, HashKeys};
use aegiskv::topology::{NodeId, Seat};
use aegiskv::wal::{self, Location, Mode, Recovery};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// Nothing here should take longer; a test that does has failed.
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct Node {
    pub(crate) server: Server,
    pub(crate) coordinator: Coordinator,
    pub(crate) address: String,
    metrics: Arc<Metrics>,
    stop: Option<oneshot::Sender<Instant>>,
    served: Option<JoinHandle<usize>>,
    _dir: tempfile::TempDir,
}

/// What a node of a test's own is made of.
pub(crate) struct Setup {
    pub(crate) settings: Settings,
    pub(crate) store: store::Config,
    pub(crate) mode: Mode,
    pub(crate) tls: Option<Material>,
    pub(crate) has_data: bool,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            settings: Settings::default(),
            store: store::Config::default(),
            mode: Mode::Off,
            tls: None,
            has_data: true,
        }
    }
}

pub(crate) async fn node() -> Node {
    start(Setup::default()).await
}

pub(crate) async fn node_with(settings: Settings) -> Node {
    start(Setup { settings, ..Setup::default() }).await
}

pub(crate) async fn start(mut setup: Setup) -> Node {
    setup.settings = named(setup.settings);
    let dir = tempfile::tempdir().unwrap();
    let metrics = Arc::new(Metrics::new());
    let coordinator = Coordinator::new(Arc::clone(&metrics));
    if setup.has_data {
        let replica = replica(&setup, dir.path().join("wal"), &metrics);
        replica.lead_alone().await.unwrap();
        let topology = replication::alone(&replica);
        let shelf = Shelf { disk: Arc::new(Os), dir: dir.path().to_owned(), cluster_id: 1 };
        let replication =
            Replication::new(Arc::new(replica), Arc::new(Nobody), shelf, Arc::clone(&metrics));
        coordinator.serve(replication, topology, 1);
    }
    let server = Server::new(coordinator.clone(), Arc::clone(&metrics), setup.settings, setup.tls);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (stop, stopped) = oneshot::channel();
    let served = tokio::spawn({
        let server = server.clone();
        async move { server.serve(listener, async { stopped.await.unwrap() }).await }
    });
    Node {
        server,
        coordinator,
        address,
        metrics,
        stop: Some(stop),
        served: Some(served),
        _dir: dir,
    }
}

/// Tokens that open everything.
pub(crate) fn tokens(tokens: &[&str]) -> Tokens {
    [Holder::new("auth_token", tokens, None, TokenMetrics::default())].into_iter().collect()
}

/// Lets requests name the node as they do here, unless the test is about that.
fn named(settings: Settings) -> Settings {
    if settings.sites != Sites::default() {
        return settings;
    }
    Settings { sites: Sites::new(["n", "node"].map(str::to_owned), []), ..settings }
}

fn replica(setup: &Setup, dir: PathBuf, metrics: &Arc<Metrics>) -> Replica {
    std::fs::create_dir(&dir).unwrap();
    let config = wal::Config {
        mode: setup.mode,
        location: Location { dir, cluster_id: 1, seed: 2 },
        segment_bytes_max: 64 << 20,
        on_fsync: Arc::new(|_| {}),
    };
    let wal = wal::Writer::start(Arc::new(Os), config, &Recovery::default()).unwrap();
    let budget = Arc::new(Budget::new(&setup.store));
    let setting = Setting {
        me: Seat { node: NodeId(1), life: 1 },
        region: 0,
        budget,
        keys: HashKeys::random(),
        source: 1,
        num_shards: 16,
    };
    let copies = Copies::new(Placement::new(3, 16), setting);
    Replica::new(copies, wal, Arc::clone(metrics))
}

impl Node {
    pub(crate) async fn connect(&self) -> Client<TcpStream> {
        Client::over(TcpStream::connect(&self.address).await.unwrap())
    }

    /// One request on a connection of its own: `PUT /v1/kv/a`, further header lines, a body.
    pub(crate) async fn ask(&self, line: &str, headers: &[&str], body: impl AsRef<[u8]>) -> Reply {
        self.connect().await.ask(line, headers, body).await
    }

    pub(crate) async fn get(&self, target: &str) -> Reply {
        self.ask(&format!("GET {target}"), &[], "").await
    }

    /// Stores a value and returns its ETag.
    pub(crate) async fn put(&self, key: &str, value: impl AsRef<[u8]>) -> String {
        let reply = self.ask(&format!("PUT /v1/kv/{key}"), &[], value).await;
        assert!(reply.status == 201 || reply.status == 204, "{reply:?}");
        reply.header("etag").unwrap().to_owned()
    }

    /// Puts new settings in force.
    pub(crate) fn apply(&self, settings: Settings) {
        self.server.apply(named(settings));
    }

    /// One sample of `/metrics`.
    pub(crate) fn metric(&self, name: &str) -> f64 {
        let text = self.metrics.render(&Readings::default());
        let line =
            text.lines().find(|line| line.strip_prefix(name).is_some_and(|r| r.starts_with(' ')));
        line.unwrap().rsplit_once(' ').unwrap().1.parse().unwrap()
    }

    /// Begins to stop, with so much time; the connections that had to be cut off, in the end.
    pub(crate) fn stop(&mut self, within: Duration) -> JoinHandle<usize> {
        self.stop.take().unwrap().send(Instant::now() + within).unwrap();
        self.served.take().unwrap()
    }

    /// Waits until so many connections are open.
    pub(crate) async fn until_connections(&self, count: usize) {
        let reached = async {
            while self.server.active_connections() != count {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        timeout(PATIENCE, reached).await.unwrap();
    }
}

/// A connection.
pub(crate) struct Client<S> {
    stream: S,
    unread: Vec<u8>,
}

#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Reply {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut all = self.headers.iter().filter(|(n, _)| n == name);
        let found = all.next().map(|(_, value)| value.as_str());
        assert!(all.next().is_none(), "{name} stands twice in {self:?}");
        found
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    /// Checks that this is a whole problem document of that status; its detail.
    pub(crate) fn problem(&self, status: u16) -> String {
        assert_eq!(self.status, status, "{}", String::from_utf8_lossy(&self.body));
        assert_eq!(self.header("content-type"), Some("application/problem+json"));
        self.assert_hardened();
        let problem = self.json();
        assert_eq!(problem["status"], status);
        assert!(problem["type"].as_str().unwrap().starts_with("urn:aegiskv:problem:"));
        assert!(!problem["title"].as_str().unwrap().is_empty());
        assert!(problem["retryable"].is_boolean());
        assert!(["not-applied", "unknown"].contains(&problem["outcome"].as_str().unwrap()));
        problem["detail"].as_str().unwrap().to_owned()
    }

    pub(crate) fn assert_hardened(&self) {
        assert_eq!(self.header("x-content-type-options"), Some("nosniff"), "{self:?}");
        assert_eq!(self.header("content-security-policy"), Some("sandbox"), "{self:?}");
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
    pub(crate) fn over(stream: S) -> Self {
        Self { stream, unread: Vec::new() }
    }

    pub(crate) async fn ask(
        &mut self,
        line: &str,
        headers: &[&str],
        body: impl AsRef<[u8]>,
    ) -> Reply {
        let body = body.as_ref();
        let mut request = format!("{line} HTTP/1.1\r\nhost: node\r\n");
        for header in headers {
            request.push_str(header);
            request.push_str("\r\n");
        }
        if !body.is_empty() {
            request.push_str(&format!("content-length: {}\r\n", body.len()));
        }
        request.push_str("\r\n");
        self.send(request).await;
        self.send(body).await;
        self.reply_to(line).await
    }

    /// Sends bytes as they are; that the peer takes no more is no failure here.
    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = timeout(PATIENCE, self.stream.write_all(bytes.as_ref())).await.unwrap();
        let _ = timeout(PATIENCE, self.stream.flush()).await.unwrap();
    }

    pub(crate) async fn reply(&mut self) -> Reply {
        self.reply_to("GET").await
    }

    pub(crate) async fn reply_to(&mut self, line: &str) -> Reply {
        let reply = timeout(PATIENCE, self.read_reply(line.starts_with("HEAD "))).await;
        reply.expect("an answer in time").expect("an answer")
    }

    /// The next answer, or nothing if the connection is closed first.
    pub(crate) async fn reply_or_close(&mut self) -> Option<Reply> {
        timeout(PATIENCE, self.read_reply(false)).await.expect("an answer or a close in time")
    }

    /// Waits until the server closes; nothing but that may come.
    pub(crate) async fn closed(&mut self) {
        assert!(self.reply_or_close().await.is_none());
    }

    async fn read_reply(&mut self, without_body: bool) -> Option<Reply> {
        let head = self.until(b"\r\n\r\n").await?;
        let head = String::from_utf8(head).unwrap();
        let mut lines = head.trim_end().lines();
        let status: u16 = lines.next()?.split(' ').nth(1)?.parse().unwrap();
        let headers: Vec<(String, String)> = lines
            .map(|line| line.split_once(':').unwrap())
            .map(|(name, value)| (name.to_lowercase(), value.trim().to_owned()))
            .collect();
        if status == 100 {
            return Box::pin(self.read_reply(without_body)).await;
        }
        let mut reply = Reply { status, headers, body: Vec::new() };
        if without_body || status == 204 || status == 304 {
            return Some(reply);
        }
        if reply.header("transfer-encoding") == Some("chunked") {
            loop {
                let size = self.chunk_size().await?;
                let mut chunk = self.exactly(size + 2).await?;
                chunk.truncate(size);
                reply.body.append(&mut chunk);
                if size == 0 {
                    return Some(reply);
                }
            }
        }
        let length = reply.header("content-length").map_or(0, |text| text.parse().unwrap());
        reply.body = self.exactly(length).await?;
        Some(reply)
    }

    async fn chunk_size(&mut self) -> Option<usize> {
        let line = self.until(b"\r\n").await?;
        Some(usize::from_str_radix(std::str::from_utf8(&line).unwrap().trim(), 16).unwrap())
    }

    /// One chunk of a streamed answer, as soon as it is there.
    pub(crate) async fn chunk(&mut self) -> Vec<u8> {
        let chunk = async {
            let size = self.chunk_size().await?;
            let mut chunk = self.exactly(size + 2).await?;
            chunk.truncate(size);
            Some(chunk)
        };
        timeout(PATIENCE, chunk).await.expect("a chunk in time").expect("a chunk")
    }

    /// An answer's head, its body left to come.
    pub(crate) async fn head(&mut self) -> String {
        let head = timeout(PATIENCE, self.until(b"\r\n\r\n")).await.expect("a head in time");
        String::from_utf8(head.expect("a head")).unwrap()
    }

    async fn until(&mut self, mark: &[u8]) -> Option<Vec<u8>> {
        loop {
            if let Some(at) = self.unread.windows(mark.len()).position(|w| w == mark) {
                return Some(self.unread.drain(..at + mark.len()).collect());
            }
            self.more().await?;
        }
    }

    async fn exactly(&mut self, count: usize) -> Option<Vec<u8>> {
        while self.unread.len() < count {
            self.more().await?;
        }
        Some(self.unread.drain(..count).collect())
    }

    async fn more(&mut self) -> Option<()> {
        match self.stream.read_buf(&mut self.unread).await {
            Ok(0) | Err(_) => None,
            Ok(_) => Some(()),
        }
    }
}
