//! The `token` command: a new secret.

use std::io::Write as _;

use anyhow::anyhow;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL;
use clap::Args;

use super::exit::{Exit, output};

/// Bytes of randomness in a token.
const TOKEN_BYTES: usize = 32;

/// Prints a new random token, for auth_token or gossip_secret
///
/// 32 random bytes in base64url. To keep it off the screen: `umask 077; aegiskv token > FILE`.
#[derive(Args, Debug)]
pub(crate) struct Token {}

impl Token {
    pub(crate) fn run() -> anyhow::Result<Exit> {
        let mut bytes = [0; TOKEN_BYTES];
        fill_randomly(&mut bytes)?;
        let mut out = output();
        writeln!(out, "{}", BASE64URL.encode(bytes))?;
        out.flush()?;
        Ok(Exit::Done)
    }
}

/// Fills `bytes` from the system's generator.
///
/// # Errors
/// The system has no randomness to give.
pub(crate) fn fill_randomly(bytes: &mut [u8]) -> anyhow::Result<()> {
    getrandom::fill(bytes).map_err(|error| anyhow!("the system gives no randomness: {error}"))
}
