//! The task around the engine: its socket, its clock, its look-ups.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::net::UdpSocket;
use tokio::sync::watch as published;
use tokio::task::JoinSet;
use tokio::time::{self, Instant};

use super::datagram::DATAGRAM_BYTES_MAX;
use super::engine::{Engine, Setup};
use super::watch::Timeouts;
use super::{Config, Members, Resolver};
use crate::entry::Timestamp;

/// Datagrams that are taken in one go before the clock is looked at again.
const BURST: usize = 64;

/// Longest look-up of a name.
const LOOKUP_MAX: Duration = Duration::from_secs(5);

/// How often goodbye is said, and the longest pause in between.
const GOODBYES: u32 = 3;
const GOODBYE_PAUSE_MAX: Duration = Duration::from_millis(50);

/// Pause after the socket failed, so that an error that stays does not keep a core busy.
const SOCKET_PAUSE: Duration = Duration::from_millis(100);

/// What may be changed while gossip runs.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Settings {
    pub(super) seeds: Vec<String>,
    pub(super) secrets: Vec<Vec<u8>>,
    pub(super) timeouts: Timeouts,
    pub(super) ending: Ending,
}

/// Whether and how to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// Not yet.
    None,
    /// With a word to the others.
    Leave,
    /// Without.
    Stop,
}

impl Settings {
    /// Those that gossip starts with.
    pub(super) fn of(config: &Config) -> Self {
        let timeouts = Timeouts { suspect: config.suspect_timeout, dead: config.dead_timeout };
        let secrets = config.secrets.clone();
        Self { seeds: Vec::new(), secrets, timeouts, ending: Ending::None }
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the secrets.
        f.debug_struct("Settings")
            .field("seeds", &self.seeds)
            .field("timeouts", &self.timeouts)
            .field("ending", &self.ending)
            .finish_non_exhaustive()
    }
}

/// Gossips until told to end, or until nobody could tell any more.
pub(super) async fn run(
    config: Config,
    mut settings: published::Receiver<Settings>,
    publish: published::Sender<Members>,
) {
    let interval = config.interval;
    let mut in_force = Settings::of(&config);
    let mut shell = Shell::new(config, publish);
    loop {
        let new = settings.borrow_and_update().clone();
        match new.ending {
            Ending::None => {}
            Ending::Leave => return shell.leave(interval).await,
            Ending::Stop => return,
        }
        shell.adopt(&in_force, &new);
        in_force = new;
        if shell.serve_until(&mut settings).await.is_err() {
            return;
        }
    }
}

type Lookup = (String, io::Result<Vec<SocketAddr>>);

struct Shell {
    engine: Engine,
    socket: UdpSocket,
    /// Whether the socket is of IPv6, and reaches IPv4 by mapped addresses.
    is_v6: bool,
    resolver: Resolver,
    lookups: JoinSet<Lookup>,
    publish: published::Sender<Members>,
}

impl Shell {
    fn new(config: Config, publish: published::Sender<Members>) -> Self {
        let setup = Setup {
            cluster_id: config.cluster_id,
            secrets: config.secrets,
            me: config.me,
            interval: config.interval,
            timeouts: Timeouts { suspect: config.suspect_timeout, dead: config.dead_timeout },
            on_refusal: config.on_refusal,
            generation: Timestamp::now().0,
        };
        let mut seed = [0; 32];
        aws_lc_rs::rand::fill(&mut seed).expect("the system gives random bytes");
        let rng = StdRng::from_seed(seed);
        Self {
            engine: Engine::new(setup, rng, now()),
            is_v6: config.socket.local_addr().is_ok_and(|address| address.is_ipv6()),
            socket: config.socket,
            resolver: config.resolver,
            lookups: JoinSet::new(),
            publish,
        }
    }

    /// Takes over what differs between two settings.
    fn adopt(&mut self, old: &Settings, new: &Settings) {
        if old.secrets != new.secrets {
            self.engine.set_secrets(&new.secrets);
        }
        if old.timeouts != new.timeouts {
            self.engine.set_timeouts(new.timeouts);
        }
        if old.seeds != new.seeds {
            self.engine.set_seeds(new.seeds.clone(), now());
        }
    }

    /// Does what is asked for from all sides, until the settings change.
    async fn serve_until(
        &mut self,
        settings: &mut published::Receiver<Settings>,
    ) -> Result<(), published::error::RecvError> {
        loop {
            self.act();
            let wake = Instant::from_std(self.engine.wake());
            tokio::select! {
                changed = settings.changed() => return changed,
                () = time::sleep_until(wake) => self.engine.tick(now()),
                ready = self.socket.readable() => {
                    if let Err(error) = ready.and_then(|()| self.receive()) {
                        tracing::debug!(%error, "cannot receive datagrams");
                        time::sleep(SOCKET_PAUSE).await;
                    }
                }
                Some(lookup) = self.lookups.join_next() => {
                    if let Ok((name, found)) = lookup {
                        self.engine.resolved(&name, found, now());
                    }
                }
            }
            // A flood of datagrams must not keep the clock from being looked at.
            if self.engine.wake() <= now() {
                self.engine.tick(now());
            }
        }
    }

    /// Takes what has come in, a bounded number of datagrams at once.
    fn receive(&mut self) -> io::Result<()> {
        // One byte more than a datagram has, so that a longer one is seen to be longer.
        let mut buffer = [0; DATAGRAM_BYTES_MAX + 1];
        for _ in 0..BURST {
            match self.socket.try_recv_from(&mut buffer) {
                Ok((length, from)) => {
                    let from = SocketAddr::new(from.ip().to_canonical(), from.port());
                    self.engine.received(from, &buffer[..length], now());
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Does what the engine asks for.
    fn act(&mut self) {
        let output = self.engine.take_output();
        for (to, datagram) in output.datagrams {
            let to = match to.ip() {
                IpAddr::V4(ip) if self.is_v6 => (ip.to_ipv6_mapped(), to.port()).into(),
                _ => to,
            };
            // A full buffer or an unreachable network loses datagrams like any other loss.
            if let Err(error) = self.socket.try_send_to(&datagram, to) {
                tracing::debug!(%error, %to, "cannot send a datagram");
            }
        }
        for name in output.questions {
            let lookup = (self.resolver)(name.clone());
            let is_v6 = self.is_v6;
            self.lookups.spawn(async move {
                let found = match time::timeout(LOOKUP_MAX, lookup).await {
                    Ok(found) => found,
                    Err(_) => Err(io::ErrorKind::TimedOut.into()),
                };
                (name, found.map(|addresses| reachable(addresses, is_v6)))
            });
        }
        if let Some(members) = output.members {
            self.publish.send_replace(Members::new(members));
        }
    }

    /// Says goodbye, and again, since UDP loses some.
    async fn leave(mut self, interval: Duration) {
        self.engine.leave(now());
        self.act();
        for _ in 1..GOODBYES {
            time::sleep((interval / 2).min(GOODBYE_PAUSE_MAX)).await;
            self.engine.say_goodbye(now());
            self.act();
        }
    }
}

/// The addresses that a socket can send to.
fn reachable(addresses: Vec<SocketAddr>, is_v6: bool) -> Vec<SocketAddr> {
    let canonical =
        |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
    addresses.into_iter().map(canonical).filter(|to| is_v6 || to.is_ipv4()).collect()
}

fn now() -> std::time::Instant {
    Instant::now().into_std()
}
