//! Telling systemd how the process fares, by sd_notify(3). Silent where nobody asked.

use std::ffi::OsString;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;
use std::time::Duration;

use sd_notify::NotifyState;

/// Longest status text that is sent, in characters.
const STATUS_CHARS_MAX: usize = 500;

/// Speaks to the service manager that started the process, if one did; cheap to clone.
///
/// A message that cannot be delivered is logged at debug and forgotten: the node serves on.
#[derive(Clone, Debug, Default)]
pub struct Notifier {
    channel: Option<Arc<Channel>>,
}

#[derive(Debug)]
struct Channel {
    socket: UnixDatagram,
    watchdog: Option<Duration>,
}

impl Notifier {
    /// The one that the environment asks for: `NOTIFY_SOCKET`, `WATCHDOG_USEC`, `WATCHDOG_PID`.
    pub fn from_environment() -> Self {
        Self::from_variables(|name| std::env::var_os(name), std::process::id())
    }

    fn from_variables(variable: impl Fn(&str) -> Option<OsString>, pid: u32) -> Self {
        let Some(path) = variable("NOTIFY_SOCKET") else {
            return Self::default();
        };
        let number = |name| variable(name)?.to_str()?.parse::<u64>().ok();
        let for_us = number("WATCHDOG_PID").is_none_or(|asked| asked == u64::from(pid));
        let watchdog = number("WATCHDOG_USEC")
            .filter(|micros| for_us && *micros > 0)
            .map(Duration::from_micros);
        match connect(path.as_bytes()) {
            Ok(socket) => Self { channel: Some(Arc::new(Channel { socket, watchdog })) },
            Err(error) => {
                tracing::warn!(%error, "the socket in NOTIFY_SOCKET cannot be reached");
                Self::default()
            }
        }
    }

    /// The node serves, after a start or a reload.
    pub fn ready(&self, status: &str) {
        self.send(&[NotifyState::Ready, NotifyState::Status(&one_line(status))]);
    }

    /// A reload begins. [`Self::ready`] ends it, whether it succeeded or not.
    pub fn reloading(&self) {
        match NotifyState::monotonic_usec_now() {
            Ok(now) => self.send(&[NotifyState::Reloading, now]),
            Err(error) => tracing::debug!(%error, "no monotonic clock; systemd is not told"),
        }
    }

    /// What the node is doing, for `systemctl status`.
    pub fn status(&self, status: &str) {
        self.send(&[NotifyState::Status(&one_line(status))]);
    }

    /// Starting, or stopping, goes on and needs `more` time from now. To be sent again before it
    /// has run out, as long as there is progress.
    pub fn extend_timeout(&self, more: Duration) {
        let micros = u32::try_from(more.as_micros()).unwrap_or(u32::MAX);
        self.send(&[NotifyState::ExtendTimeoutUsec(micros)]);
    }

    /// The node has begun to stop.
    pub fn stopping(&self, status: &str) {
        self.send(&[NotifyState::Stopping, NotifyState::Status(&one_line(status))]);
    }

    /// The watchdog to feed, if systemd keeps one.
    pub fn watchdog(&self) -> Option<Watchdog> {
        let timeout = self.channel.as_ref()?.watchdog?;
        Some(Watchdog { notifier: self.clone(), timeout, last: None })
    }

    fn send(&self, states: &[NotifyState<'_>]) {
        let Some(channel) = &self.channel else { return };
        let message: String = states.iter().map(|state| format!("{state}\n")).collect();
        if let Err(error) = channel.socket.send(message.as_bytes()) {
            tracing::debug!(%error, "systemd was not told");
        }
    }
}

/// Feeds the watchdog when there was progress, and only then: a node that hangs is killed.
#[derive(Debug)]
pub struct Watchdog {
    notifier: Notifier,
    timeout: Duration,
    last: Option<u64>,
}

impl Watchdog {
    /// How often to call [`Self::feed`]: half of what systemd waits.
    pub fn period(&self) -> Duration {
        self.timeout / 2
    }

    /// Feeds the watchdog if `progress`, a count of work done by the parts that must not hang,
    /// differs from the last call's. Tells whether it did.
    pub fn feed(&mut self, progress: u64) -> bool {
        let moved = self.last != Some(progress);
        self.last = Some(progress);
        if moved {
            self.notifier.send(&[NotifyState::Watchdog]);
        }
        moved
    }
}

fn connect(path: &[u8]) -> io::Result<UnixDatagram> {
    let address = match path {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        path => SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(path))?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.connect_addr(&address)?;
    // A manager that does not read must not hold up the node.
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Each line of a message is a variable of its own; a status keeps to its line.
fn one_line(status: &str) -> String {
    let plain = |c: char| if c.is_control() { ' ' } else { c };
    status.chars().take(STATUS_CHARS_MAX).map(plain).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Manager {
        socket: UnixDatagram,
        _dir: tempfile::TempDir,
        path: OsString,
    }

    impl Manager {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("notify");
            let socket = UnixDatagram::bind(&path).unwrap();
            socket.set_nonblocking(true).unwrap();
            Self { socket, _dir: dir, path: path.into() }
        }

        fn notifier(&self, watchdog: &[(&str, &str)]) -> Notifier {
            let variable = |name: &str| match name {
                "NOTIFY_SOCKET" => Some(self.path.clone()),
                _ => watchdog.iter().find(|(n, _)| *n == name).map(|(_, v)| OsString::from(v)),
            };
            Notifier::from_variables(variable, 42)
        }

        fn received(&self) -> Option<String> {
            let mut buffer = [0; 1024];
            let length = self.socket.recv(&mut buffer).ok()?;
            Some(String::from_utf8(buffer[..length].to_vec()).unwrap())
        }
    }

    #[test]
    fn the_manager_hears_each_step_of_the_nodes_life() {
        let manager = Manager::new();
        let notifier = manager.notifier(&[]);
        let heard = || manager.received().expect("a message");

        notifier.extend_timeout(Duration::from_secs(30));
        assert_eq!(heard(), "EXTEND_TIMEOUT_USEC=30000000\n");
        notifier.status("replaying\nMAINPID=1");
        assert_eq!(heard(), "STATUS=replaying MAINPID=1\n");
        notifier.ready("serving on 127.0.0.1:7700");
        assert_eq!(heard(), "READY=1\nSTATUS=serving on 127.0.0.1:7700\n");
        notifier.reloading();
        let reloading = heard();
        let micros = reloading.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").expect("its time");
        assert!(micros.trim_end().parse::<u64>().expect("a number") > 0);
        notifier.stopping("draining");
        assert_eq!(heard(), "STOPPING=1\nSTATUS=draining\n");
    }

    #[test]
    fn the_watchdog_is_fed_on_progress_alone() {
        let manager = Manager::new();
        let notifier = manager.notifier(&[("WATCHDOG_USEC", "20000000"), ("WATCHDOG_PID", "42")]);
        let mut watchdog = notifier.watchdog().expect("one was asked for");
        assert_eq!(watchdog.period(), Duration::from_secs(10));

        assert!(watchdog.feed(7));
        assert_eq!(manager.received().as_deref(), Some("WATCHDOG=1\n"));
        assert!(!watchdog.feed(7));
        assert_eq!(manager.received(), None);
        assert!(watchdog.feed(8));
        assert_eq!(manager.received().as_deref(), Some("WATCHDOG=1\n"));
    }

    #[test]
    fn a_watchdog_meant_for_another_process_is_left_alone() {
        let manager = Manager::new();
        let theirs = manager.notifier(&[("WATCHDOG_USEC", "20000000"), ("WATCHDOG_PID", "41")]);
        assert!(theirs.watchdog().is_none());
        assert!(manager.notifier(&[]).watchdog().is_none());
    }

    #[test]
    fn without_a_manager_nothing_is_said() {
        let silent = Notifier::from_variables(|_| None, 42);
        silent.ready("serving");
        silent.reloading();
        assert!(silent.watchdog().is_none());
        let unreachable =
            |name: &str| (name == "NOTIFY_SOCKET").then(|| OsString::from("/nonexistent/notify"));
        Notifier::from_variables(unreachable, 42).ready("serving");
    }

    #[test]
    fn an_abstract_socket_is_reached_by_its_at_sign() {
        let name = format!("aegiskv-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(name.as_bytes()).unwrap();
        let manager = UnixDatagram::bind_addr(&address).unwrap();
        let path = OsString::from(format!("@{name}"));
        let notifier =
            Notifier::from_variables(|name| (name == "NOTIFY_SOCKET").then(|| path.clone()), 42);
        notifier.status("here");
        let mut buffer = [0; 64];
        let length = manager.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"STATUS=here\n");
    }
}
