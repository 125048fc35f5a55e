//! A node under a limit of memory, somebody who uses it meanwhile, and the judgement.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::path::PathBuf;
use std::pin::Pin;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// Memory that a node under attack may occupy: it is killed beyond. A limit of its address space would
/// count what the allocator has given back and keeps the addresses of.
pub(crate) const MEMORY_BYTES_MAX: u64 = 512 << 20;
/// What every node here asks of its clients.
pub(crate) const TOKEN: &str = "a-token-that-bystanders-have-0123456789";

/// How long an attack goes on.
pub(crate) const ATTACK: Duration = Duration::from_secs(3);
/// How long the bystander is measured without one.
const CALM: Duration = Duration::from_secs(3);
/// Others' p99 that an attack may bring about, or three times what it was without one.
const P99_MAX: Duration = Duration::from_millis(50);
const P99_TIMES: u32 = 3;
/// Time for the memory to be back. The allocator keeps freed pages for a second.
const RECOVERY: Duration = Duration::from_secs(15);
/// A tenth more than before, and what a first use of code and allocator leaves.
const WARM_UP_BYTES: u64 = 8 << 20;

const START_TIMEOUT: Duration = Duration::from_secs(30);
/// Between two requests of a bystander.
const BYSTANDER_PAUSE: Duration = Duration::from_millis(2);
/// A bystander's request that takes so long has failed.
const BYSTANDER_PATIENCE: Duration = Duration::from_secs(10);

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// A node's process and its folder. Dropped: killed.
pub(crate) struct Victim {
    child: Child,
    dir: tempfile::TempDir,
    pub(crate) client: String,
    pub(crate) gossip: String,
    pub(crate) ops: String,
    _turn: Option<MutexGuard<'static, ()>>,
}

impl Victim {
    /// Starts a node under the limit and waits until it is ready. Other tests wait until it ends.
    pub(crate) fn start(settings: &Value) -> Self {
        let turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let mut victim = Self::spawn(settings, free_addresses(), Some(turn));
        victim.wait_until_ready();
        victim
    }

    /// Three that are one cluster.
    pub(crate) fn start_three(settings: &Value) -> Vec<Self> {
        let mut turn = Some(ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner));
        let places = [0; 3].map(|_| free_addresses());
        let addrs = places.each_ref().map(|[_, gossip, _]| gossip.clone());
        let spawn = |(n, place)| {
            let mut settings = settings.clone();
            settings["node_id"] = json!(format!("victim-{n}"));
            settings["addrs"] = json!(addrs);
            settings["gossip_secret"] = json!("a secret of three victims, 0123456789");
            settings["num_shards"] = json!(16);
            // The last of them ends last.
            let turn = if n == 2 { turn.take() } else { None };
            Self::spawn(&settings, place, turn)
        };
        let mut victims: Vec<Self> = places.into_iter().enumerate().map(spawn).collect();
        victims.iter_mut().for_each(Self::wait_until_ready);
        victims
    }

    fn spawn(
        settings: &Value,
        [client, gossip, ops]: [String; 3],
        turn: Option<MutexGuard<'static, ()>>,
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = json!({
            "node_id": "victim",
            "bind_addr": client,
            "gossip_bind_addr": gossip,
            "health_addr": ops,
            "data_dir": dir.path().join("data"),
            "auth_token": TOKEN,
            "max_memory_mb": 64,
            "max_conns": 2000,
            "wal_mode": "off",
            "gossip_interval": "10ms",
        });
        for (key, value) in settings.as_object().unwrap() {
            config[key] = value.clone();
        }
        let path = dir.path().join("config.json");
        fs::write(&path, serde_json::to_vec_pretty(&config).unwrap()).unwrap();
        let log = fs::File::create(dir.path().join("stderr")).unwrap();
        // What is published is what strangers meet; a debug build is many times slower.
        let program = std::env::var_os("AEGIS_TEST_PROGRAM");
        let program = program.unwrap_or_else(|| env!("CARGO_BIN_EXE_aegiskv").into());
        let child = Command::new(program)
            .env_remove("AEGIS_TEST_PROGRAM")
            .env_remove("AEGIS_ATTACK")
            .arg("-config")
            .arg(&path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        Self { child, dir, client, gossip, ops, _turn: turn }
    }

    fn wait_until_ready(&mut self) {
        let began = Instant::now();
        while !matches!(exchange(&self.ops, "GET /ready", ""), Ok(200)) {
            assert!(self.is_alive(), "it ended:\n{}", self.log());
            assert!(began.elapsed() < START_TIMEOUT, "not ready in time:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Sends its process a signal.
    pub(crate) fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-s", signal, &pid]).status().unwrap().success());
    }

    pub(crate) fn is_alive(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// The end of its log.
    pub(crate) fn log(&self) -> String {
        let log = fs::read_to_string(self.stderr()).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    pub(crate) fn stderr(&self) -> PathBuf {
        self.dir.path().join("stderr")
    }

    /// Bytes of memory that it occupies now.
    pub(crate) fn rss(&self) -> u64 {
        self.status("VmRSS")
    }

    /// The most that it ever occupied.
    pub(crate) fn rss_peak(&self) -> u64 {
        self.status("VmHWM")
    }

    fn status(&self, field: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        let kib = line.and_then(|text| text.trim().strip_suffix(" kB"));
        kib.map_or(0, |text| text.trim().parse::<u64>().unwrap() << 10)
    }

    /// Processor time that it has used.
    pub(crate) fn cpu(&self) -> Duration {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        // utime and stime, in hundredths of a second.
        let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        Duration::from_millis(ticks * 10)
    }

    /// The samples of its metrics by their names with labels.
    pub(crate) fn metrics(&self) -> BTreeMap<String, f64> {
        let text = fetch(&self.ops, "GET /metrics", "").unwrap().1;
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        samples
            .filter_map(|line| line.rsplit_once(' '))
            .filter_map(|(name, value)| Some((name.to_owned(), value.parse().ok()?)))
            .collect()
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_addresses() -> [String; 3] {
    let listeners = [0; 3].map(|_| TcpListener::bind("127.0.0.1:0").unwrap());
    listeners.map(|l| l.local_addr().unwrap().to_string())
}

/// One request on a connection of its own; the answer's status.
pub(crate) fn exchange(addr: &str, line: &str, body: &str) -> std::io::Result<u16> {
    Ok(fetch(addr, line, body)?.0)
}

/// One request on a connection of its own; the answer's status and body.
pub(crate) fn fetch(addr: &str, line: &str, body: &str) -> std::io::Result<(u16, String)> {
    let mut connection = Connection::open(addr)?;
    connection.ask(line, body)
}

/// An HTTP/1 connection that waits for each answer.
struct Connection {
    stream: std::net::TcpStream,
    unread: Vec<u8>,
}

impl Connection {
    fn open(addr: &str) -> std::io::Result<Self> {
        let stream = std::net::TcpStream::connect(addr)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(BYSTANDER_PATIENCE))?;
        stream.set_write_timeout(Some(BYSTANDER_PATIENCE))?;
        Ok(Self { stream, unread: Vec::new() })
    }

    fn ask(&mut self, line: &str, body: &str) -> std::io::Result<(u16, String)> {
        let request = format!(
            "{line} HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer {TOKEN}\r\n\
             content-length: {}\r\n\r\n{body}",
            body.len()
        );
        self.stream.write_all(request.as_bytes())?;
        let head_end = loop {
            if let Some(at) = self.unread.windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
            self.more()?;
        };
        let head = String::from_utf8_lossy(&self.unread[..head_end]).to_ascii_lowercase();
        let broken = || std::io::Error::other(format!("no head: {head}"));
        let status = head.split(' ').nth(1).and_then(|text| text.parse().ok());
        let status = status.ok_or_else(broken)?;
        let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
        let end = head_end + length.map_or(0, |text| text.trim().parse().unwrap());
        while self.unread.len() < end {
            self.more()?;
        }
        let body = String::from_utf8_lossy(&self.unread[head_end..end]).into_owned();
        self.unread.drain(..end);
        Ok((status, body))
    }

    fn more(&mut self) -> std::io::Result<()> {
        let mut piece = [0; 16 << 10];
        match self.stream.read(&mut piece)? {
            0 => Err(std::io::ErrorKind::UnexpectedEof.into()),
            n => {
                self.unread.extend_from_slice(&piece[..n]);
                Ok(())
            }
        }
    }
}

/// What a bystander saw in a span of time.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    took: Vec<Duration>,
    failures: Vec<String>,
}

impl Seen {
    fn quantile(&self, share: f64) -> Duration {
        let mut took = self.took.clone();
        took.sort();
        let at = (took.len() as f64 * share) as usize;
        took.get(at.min(took.len().saturating_sub(1))).copied().unwrap_or(Duration::MAX)
    }

    pub(crate) fn p99(&self) -> Duration {
        self.quantile(0.99)
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (p50, p99) = (self.quantile(0.5), self.p99());
        write!(f, "{} requests, p50 {p50:.1?}, p99 {p99:.1?}", self.took.len())?;
        match self.failures.first() {
            None => Ok(()),
            Some(first) => write!(f, ", {} failed: {first}", self.failures.len()),
        }
    }
}

/// Somebody who asks one thing after the other, over one connection that is kept.
pub(crate) struct Bystander {
    seen: Arc<Mutex<Seen>>,
    gone: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Bystander {
    /// Asks for these (request line, body) in turn; each status must be one of 2xx, or 404 for a
    /// key.
    pub(crate) fn start(addr: &str, requests: Vec<(String, String)>) -> Self {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let gone = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let (addr, seen, gone) = (addr.to_owned(), Arc::clone(&seen), Arc::clone(&gone));
            move || {
                let mut connection = Connection::open(&addr);
                for (line, body) in requests.iter().cycle() {
                    if gone.load(Ordering::Relaxed) {
                        return;
                    }
                    let began = Instant::now();
                    let asked = match &mut connection {
                        Ok(connection) => connection.ask(line, body),
                        Err(error) => Err(error.kind().into()),
                    };
                    let took = began.elapsed();
                    let failure = match asked {
                        Ok((200..300, _)) => None,
                        // Evicted for what attackers store: a cache does that.
                        Ok((404, _)) if line.starts_with("GET /v1/kv/") => None,
                        Ok((status, body)) => Some(format!("{line}: {status}: {body}")),
                        Err(error) => {
                            connection = Connection::open(&addr);
                            Some(format!("{line}: {error} after {took:?}"))
                        }
                    };
                    let mut seen = seen.lock().unwrap();
                    seen.took.push(took);
                    seen.failures.extend(failure);
                    drop(seen);
                    std::thread::sleep(BYSTANDER_PAUSE);
                }
            }
        });
        Self { seen, gone, thread: Some(thread) }
    }

    /// One that puts and gets on the client port.
    pub(crate) fn of_clients(victim: &Victim) -> Self {
        let key = "/v1/kv/bystander";
        let requests = vec![
            (format!("PUT {key}"), "of a hundred bytes or so ".repeat(4)),
            (format!("GET {key}"), String::new()),
        ];
        Self::start(&victim.client, requests)
    }

    /// What it saw since this was asked last.
    pub(crate) fn take(&self) -> Seen {
        std::mem::take(&mut *self.seen.lock().unwrap())
    }
}

impl Drop for Bystander {
    fn drop(&mut self) {
        self.gone.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

pub(crate) type Doing = Pin<Box<dyn Future<Output = std::io::Result<()>>>>;

/// What so many connections do at once. One that is closed is opened anew.
pub(crate) struct Attack {
    pub(crate) name: &'static str,
    pub(crate) connections: usize,
    pub(crate) each: fn(Attacker) -> Doing,
}

pub(crate) fn attack(
    name: &'static str,
    connections: usize,
    each: fn(Attacker) -> Doing,
) -> Attack {
    Attack { name, connections, each }
}

/// One connection's part in an attack.
#[derive(Clone, Debug)]
pub(crate) struct Attacker {
    pub(crate) addr: String,
    /// Its number in the attack, from 0.
    pub(crate) number: usize,
}

/// Between two attempts of one attacker.
const ATTACKER_PAUSE: Duration = Duration::from_millis(5);

/// Runs an attack for as long as attacks go on, on one thread: the node has the rest of the machine.
pub(crate) fn carry_out(victim: &mut Victim, addr: &str, attack: &Attack) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async {
        for number in 0..attack.connections {
            let (each, attacker) = (attack.each, Attacker { addr: addr.to_owned(), number });
            tokio::task::spawn_local(async move {
                loop {
                    // That it was cut off is what the node is for.
                    let _ = each(attacker.clone()).await;
                    tokio::time::sleep(ATTACKER_PAUSE).await;
                }
            });
        }
        let began = Instant::now();
        while began.elapsed() < ATTACK {
            // As the kernel would in a control group of so much memory.
            if victim.rss() > MEMORY_BYTES_MAX {
                let _ = victim.child.kill();
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    // Dropped with all its connections.
}

/// Carries out attacks one after the other on one node's port; panics with all that went wrong.
pub(crate) fn withstands(
    victim: &mut Victim,
    addr: &str,
    bystander: &Bystander,
    attacks: &[Attack],
) {
    std::thread::sleep(Duration::from_millis(500));
    bystander.take();
    std::thread::sleep(CALM);
    let calm = bystander.take();
    let before = victim.rss();
    println!("without an attack: {calm}; {} MiB", before >> 20);
    assert!(calm.failures.is_empty(), "{calm}");
    let p99_max = P99_MAX.max(calm.p99() * P99_TIMES);
    let mut complaints = Vec::new();
    let only = std::env::var("AEGIS_ATTACK").unwrap_or_default();
    for attack in attacks.iter().filter(|attack| attack.name.contains(&only)) {
        let cpu = victim.cpu();
        let began = Instant::now();
        carry_out(victim, addr, attack);
        let meanwhile = bystander.take();
        assert!(victim.is_alive(), "{}: the node ended:\n{}", attack.name, victim.log());
        let busy = (victim.cpu() - cpu).as_secs_f64() / began.elapsed().as_secs_f64();
        let at_its_end = victim.rss();
        let (took, after) = recovered(victim, before);
        println!(
            "{}: {meanwhile}; {busy:.1} cores; {} MiB, peak {}, {} after {took:.1?}",
            attack.name,
            at_its_end >> 20,
            victim.rss_peak() >> 20,
            after >> 20,
        );
        let mut check = |holds: bool, what: &str| {
            if !holds {
                complaints.push(format!("{}: {what}", attack.name));
            }
        };
        check(meanwhile.failures.is_empty(), &format!("others were not served: {meanwhile}"));
        check(meanwhile.p99() <= p99_max, &format!("others waited: {meanwhile}, not {p99_max:?}"));
        check(after <= bound(before), &format!("{after} bytes of memory, {before} before"));
        bystander.take();
    }
    let peak = victim.rss_peak();
    if peak > MEMORY_BYTES_MAX {
        complaints.push(format!("{peak} bytes of memory at the worst"));
    }
    assert!(complaints.is_empty(), "{}\n{}", complaints.join("\n"), victim.log());
}

/// Tries them all on a node of their own, at the port that `addr` names.
pub(crate) fn try_all(addr: fn(&Victim) -> &str, attacks: &[Attack]) {
    let mut victim = Victim::start(&serde_json::json!({}));
    let bystander = Bystander::of_clients(&victim);
    let addr = addr(&victim).to_owned();
    withstands(&mut victim, &addr, &bystander, attacks);
}

fn bound(before: u64) -> u64 {
    before + before / 10 + WARM_UP_BYTES
}

/// Waits until the memory is what it was; how long that took, and what it came to.
fn recovered(victim: &Victim, before: u64) -> (Duration, u64) {
    let began = Instant::now();
    // What an attacker stored is data like any other.
    let remove = || exchange(&victim.client, "DELETE /v1/kv?prefix=attack", "");
    // As many connections as it serves may be about to close.
    while !matches!(remove(), Ok(200..300)) && began.elapsed() < RECOVERY {
        std::thread::sleep(Duration::from_millis(50));
    }
    loop {
        let (took, now) = (began.elapsed(), victim.rss());
        if now <= bound(before) || took > RECOVERY {
            return (took, now);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}
