//! The process among others: what it tells systemd and whoever asks for a reload, its pid file, how
//! many files it may open.
//!
//! Nothing here changes the environment or ends the process.

mod notify;
mod pid_file;
mod reload_report;

pub use notify::{Notifier, Watchdog};
pub use pid_file::{PidFile, PidFileError};
pub use reload_report::ReloadReport;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Files that the node itself needs open beside client connections: listeners, the log and its
/// segments, snapshots under way, connections to other nodes. Where the limit allows less than twice
/// that, half of it is theirs.
const FILES_BESIDE_CONNECTIONS: u64 = 512;

/// How many files the process may open, and how many connections that allows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenFiles {
    /// The limit in force, after raising it as far as allowed.
    pub limit: u64,
    /// The connections to accept: `max_conns`, or fewer where the limit allows no more.
    pub connections: u32,
    /// What to change, where the limit is too low.
    pub warning: Option<String>,
}

/// Raises the limit of open files as far as the process may, and sees whether `max_conns`
/// connections fit beneath it.
///
/// # Errors
/// What the system says when it cannot tell the limit.
pub fn open_files(max_conns: u32) -> std::io::Result<OpenFiles> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let limit = match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
        Ok(()) => hard,
        Err(_) => soft,
    };
    Ok(connections_within(limit, max_conns))
}

fn connections_within(limit: u64, max_conns: u32) -> OpenFiles {
    let beside = FILES_BESIDE_CONNECTIONS.min(limit / 2);
    // One connection at least: a node that serves nobody cannot even be asked why.
    let connections = u32::try_from((limit - beside).max(1)).unwrap_or(u32::MAX);
    if connections >= max_conns {
        return OpenFiles { limit, connections: max_conns, warning: None };
    }
    let needed = u64::from(max_conns) + FILES_BESIDE_CONNECTIONS;
    let warning = format!(
        "the process may open {limit} files, which allows {connections} connections instead of \
         max_conns ({max_conns}); set LimitNOFILE={needed} in the unit (or ulimit -n {needed}), \
         or lower max_conns"
    );
    OpenFiles { limit, connections, warning: Some(warning) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_bounded_by_the_files_that_may_be_open() {
        let roomy = connections_within(65_535, 10_000);
        assert_eq!(roomy, OpenFiles { limit: 65_535, connections: 10_000, warning: None });

        let tight = connections_within(1024, 10_000);
        assert_eq!(tight.connections, 512);
        assert_eq!(
            tight.warning.as_deref(),
            Some(
                "the process may open 1024 files, which allows 512 connections instead of \
                 max_conns (10000); set LimitNOFILE=10512 in the unit (or ulimit -n 10512), or \
                 lower max_conns"
            )
        );
        // Too few for what the node needs itself, and still for whoever asks what is wrong.
        assert_eq!(connections_within(256, 10_000).connections, 128);
        assert_eq!(connections_within(100, 10_000).connections, 50);
        assert_eq!(connections_within(1, 10_000).connections, 1);
        assert_eq!(connections_within(256, 100).connections, 100);
        assert!(connections_within(256, 10_000).warning.is_some());
        assert_eq!(connections_within(u64::MAX, u32::MAX).connections, u32::MAX);
    }

    #[test]
    fn the_soft_limit_is_raised_to_the_hard_one() {
        let raised = open_files(1).expect("the limit can be told");
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("the limit can be told");
        assert_eq!((raised.limit, soft), (hard, hard));
    }
}
