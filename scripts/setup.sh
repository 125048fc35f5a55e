#!/usr/bin/env bash
# Makes sure that the tools a target needs are there: `setup.sh build|test`.
# Debian packages are installed when run as root; otherwise it says which are
# missing. Nothing here touches what is already installed.
set -euo pipefail

# command to look for -> Debian package that brings it
declare -A package=(
    [cc]=gcc [make]=make [curl]=curl [python3]=python3 [git]=git [ip]=iproute2 [nft]=nftables
    [mmdebstrap]=mmdebstrap [systemd-nspawn]=systemd-container [ssh]=openssh-client
    [podman]=podman [runc]=runc
)

need_commands() {
    local missing=() command
    for command in "$@"; do
        command -v "$command" >/dev/null || missing+=("${package[$command]}")
    done
    install_packages "${missing[@]}"
}

install_packages() {
    (($# > 0)) || return 0
    if ((EUID != 0)) || ! command -v apt-get >/dev/null; then
        echo "missing on this machine: $*" >&2
        echo "install them first, for example: sudo apt-get install $*" >&2
        exit 1
    fi
    echo "installing $*"
    apt-get update -q >/dev/null
    DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends "$@" >/dev/null
}

if ! command -v cargo >/dev/null; then
    echo "cargo is not on the PATH; install Rust 1.95 or newer from https://rustup.rs" >&2
    exit 1
fi

case "${1:-build}" in
# jemalloc and aws-lc are C libraries that are built from source.
build) need_commands cc make curl ;;
test)
    need_commands cc make curl git python3
    # Debian keeps the virtual environments of its own Python in a package apart.
    python3 -c 'import ensurepip, venv' 2>/dev/null || install_packages python3-venv
    # Only root can cut networks, boot hosts and run containers; tests that do are skipped where
    # that cannot be.
    if ((EUID == 0)); then
        (need_commands ip nft) || echo "networks are not cut without ip and nft" >&2
        (need_commands mmdebstrap systemd-nspawn ssh podman runc) ||
            echo "tests on hosts and containers of their own are skipped" >&2
    fi
    ;;
*)
    echo "usage: setup.sh build|test" >&2
    exit 2
    ;;
esac
