#!/usr/bin/env bash
# Runs tests of packages, hosts and monitoring with pytest, in a virtual environment below the
# build directory: `tests/ops/run.sh packages -k lintian`.
set -euo pipefail
cd "$(dirname "$0")"

target=${CARGO_TARGET_DIR:-$(cd ../.. && pwd)/target}
venv=$target/ops-venv
if ! cmp -s requirements.txt "$venv/requirements.txt"; then
    python3 -m venv --clear "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check -r requirements.txt
    cp requirements.txt "$venv/"
fi
exec "$venv/bin/pytest" "$@"
