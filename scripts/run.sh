#!/usr/bin/env bash
# Builds AegisKV and serves one node on loopback until Ctrl-C. Its data stays in
# DATA_DIR, so the next run finds everything again.
set -euo pipefail
cd "$(dirname "$0")/.."

client_port=${CLIENT_PORT:-7700}
node_port=$((client_port + 1))
operations_port=$((client_port + 2))
data_dir=${DATA_DIR:-data}

for port in "$client_port" "$node_port" "$operations_port"; do
    if (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
        echo "port $port is taken by another process; stop it, or choose other ports:" >&2
        echo "    make run CLIENT_PORT=$((client_port + 10)) DATA_DIR=data-$((client_port + 10))" >&2
        exit 1
    fi
done

scripts/setup.sh build
echo "building the release binary; the first time takes some minutes"
cargo build --release --locked --bin aegiskv

export AEGIS_BIND_ADDR=127.0.0.1:$client_port
export AEGIS_GOSSIP_BIND_ADDR=127.0.0.1:$node_port
export AEGIS_HEALTH_ADDR=127.0.0.1:$operations_port
export AEGIS_DATA_DIR=$data_dir

mkdir -p "$data_dir"
target_dir=${CARGO_TARGET_DIR:-target}
"$target_dir/release/aegiskv" &
node=$!
# The node drains and leaves a clean snapshot when told to stop; wait for it.
trap 'kill -TERM "$node" 2>/dev/null || true' INT TERM

ready() { curl -fsS -o /dev/null "http://127.0.0.1:$operations_port/ready" 2>/dev/null; }
until ready; do
    kill -0 "$node" 2>/dev/null || { wait "$node" || code=$?; exit "${code:-1}"; }
    sleep 0.1
done

cat <<TRY

AegisKV serves on http://127.0.0.1:$client_port, its data in $data_dir/. Try in another terminal:

    curl -i -X PUT 'localhost:$client_port/v1/kv/user:1?ttl=15m' -d '{"n":"Ann"}'
    curl -i localhost:$client_port/v1/kv/user:1
    curl localhost:$client_port/v1/kv?prefix=user:
    curl localhost:$operations_port/ready
    curl -s localhost:$operations_port/metrics | grep aegis_ops_total

Ctrl-C stops it; \`make run\` again finds the data again.

TRY

# A signal interrupts `wait`; only the end of the node ends the loop.
code=0
while kill -0 "$node" 2>/dev/null; do
    wait "$node" && code=0 || code=$?
done
# Stopped by Ctrl-C is how this is meant to end.
[[ $code -eq 130 || $code -eq 143 ]] && code=0
exit "$code"
