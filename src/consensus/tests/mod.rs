//! Groups of several nodes in one process, with real files and an unreal network.

mod failover;
mod membership;
mod net;
mod restart;
