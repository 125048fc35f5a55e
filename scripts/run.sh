#!/usr/bin/env bash
# Builds AegisKV and runs a throw-away cluster of three nodes on loopback until Ctrl-C.
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/setup.sh build
echo "building the release binary; the first time takes some minutes"
cargo build --release --locked --bin aegiskv

exec "${CARGO_TARGET_DIR:-target}/release/aegiskv" dev --nodes 3 --port "${CLIENT_PORT:-7700}"
