#!/usr/bin/env bash
# Makes sure that the tools a target needs are there: `setup.sh build|dist|repo|test`.
# Debian packages are installed when run as root; otherwise it says which are
# missing. Nothing here touches what is already installed.
set -euo pipefail

# command to look for -> Debian package that brings it
declare -A package=(
    [cc]=gcc [make]=make [curl]=curl [python3]=python3 [git]=git [ip]=iproute2 [nft]=nftables
    [dpkg-shlibdeps]=dpkg-dev [objcopy]=binutils [buildah]=buildah
    [apt-ftparchive]=apt-utils [gpg]=gpg [gpg-agent]=gpg-agent [createrepo_c]=createrepo-c
    [rpmsign]=rpm [lintian]=lintian [rpmlint]=rpmlint [dnf]=dnf [shellcheck]=shellcheck
    [mmdebstrap]=mmdebstrap [systemd-nspawn]=systemd-container [ssh]=openssh-client
    [podman]=podman [runc]=runc [chromium]=chromium [valgrind]=valgrind [strace]=strace
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
    refresh_index
    DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends "$@" >/dev/null
}

# need_cargo_tool COMMAND CRATE VERSION [LIBRARY...]: the libraries are optimised.
need_cargo_tool() {
    local found optimised=() library
    found=$(cargo "$1" --version 2>/dev/null) || true
    [[ ${found##* } != "$3" ]] || return 0
    for library in "${@:4}"; do
        optimised+=(--config "profile.dev.package.$library.opt-level=3")
    done
    echo "installing $2 $3"
    cargo install --locked --debug --quiet --force "${optimised[@]}" "$2@$3"
}

# Once a run is enough.
refresh_index() {
    [[ -n ${index_is_fresh:-} ]] || apt-get update -q >/dev/null
    index_is_fresh=yes
}

# Packages that would start services are only unpacked, below the build directory.
unpack_packages() {
    local into=${CARGO_TARGET_DIR:-$(dirname "$0")/../target}/debian package folder
    for package in "$@"; do
        [[ ! -e $into/usr/share/doc/$package ]] || continue
        command -v apt-get >/dev/null || return 1
        echo "unpacking $package"
        ((EUID != 0)) || refresh_index
        folder=$(mktemp -d)
        (cd "$folder" && apt-get download -q "$package" >/dev/null 2>&1) &&
            mkdir -p "$into" && dpkg -x "$folder"/*.deb "$into"
        rm -r "$folder"
        [[ -e $into/usr/share/doc/$package ]] || return 1
    done
}

if ! command -v cargo >/dev/null; then
    echo "cargo is not on the PATH; install Rust 1.95 or newer from https://rustup.rs" >&2
    exit 1
fi

case "${1:-build}" in
# jemalloc and aws-lc are C libraries that are built from source.
build) need_commands cc make curl ;;
dist)
    need_commands cc make git python3 dpkg-shlibdeps objcopy
    # The image can be left out, and is where these are not.
    ((EUID != 0)) || need_commands buildah mmdebstrap
    # Their versions are part of what makes packages the same everywhere. Built with debug settings,
    # which takes half the time, but for what compresses and adds up.
    need_cargo_tool deb cargo-deb 3.8.0 lzma-sys xz2 md-5 digest block-buffer
    need_cargo_tool generate-rpm cargo-generate-rpm 0.21.1 \
        zstd-sys zstd-safe sha2 sha3 keccak sha1 md-5 digest block-buffer generic-array rpm
    need_cargo_tool cyclonedx cargo-cyclonedx 0.5.9
    ;;
repo) need_commands apt-ftparchive gpg gpg-agent createrepo_c rpmsign ;;
test)
    need_commands cc make curl git python3 valgrind strace
    # Debian keeps the virtual environments of its own Python in a package apart.
    python3 -c 'import ensurepip, venv' 2>/dev/null || install_packages python3-venv
    unpack_packages prometheus prometheus-alertmanager ||
        echo "the monitoring is not tested without Debian's prometheus" >&2
    # The dashboard is drawn by a browser. The library for it comes by npm, which is not installed
    # here: Debian's brings hundreds of packages along.
    ((EUID != 0)) || (need_commands chromium) ||
        echo "the dashboard is not drawn without chromium" >&2
    command -v npm >/dev/null || echo "the dashboard is not drawn without npm" >&2
    # Only root can cut networks, boot hosts and run containers; tests that do are skipped where
    # that cannot be.
    if ((EUID == 0)); then
        (need_commands ip nft) || echo "networks are not cut without ip and nft" >&2
        (need_commands mmdebstrap systemd-nspawn ssh podman runc) ||
            echo "tests on hosts and containers of their own are skipped" >&2
        (need_commands lintian rpmlint rpmsign dnf shellcheck) ||
            echo "packages are not looked at by others' checkers" >&2
    fi
    ;;
*)
    echo "usage: setup.sh build|dist|repo|test" >&2
    exit 2
    ;;
esac
