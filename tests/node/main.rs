//! A real node as a process: started, used through HTTP, killed, started again.

mod crash;
mod life;
mod support;
