//! The command line, tried on the built binary.

mod certificates;
mod clients;
mod dev;
mod documents;
mod files;
mod leases;
mod offline;
mod program;
mod server;
mod size;
