//! A real node as a process: started, used through HTTP, killed, started again.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod browser;
mod crash;
mod disk;
mod life;
mod live;
mod log;
mod support;
