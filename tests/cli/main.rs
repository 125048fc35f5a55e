//! The command line, tried on the built binary.

mod certificates;
mod clients;
mod offline;
mod program;
mod server;
