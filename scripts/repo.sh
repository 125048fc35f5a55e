#!/usr/bin/env bash
# Makes signed repositories of what `make dist` made, as plain files: repo/apt and repo/dnf. Serve
# them with any web server. Packages of earlier versions that lie there stay in them.
#
# AEGIS_SIGNING_KEY names the key, in the caller's GNUPGHOME. Without it a key is made for this one
# run and thrown away.
set -euo pipefail
cd "$(dirname "$0")/.."
umask 022
# rpmsign looks for a terminal to ask for a passphrase on, unless told of one.
export GPG_TTY=${GPG_TTY:-none}

scratch=$(mktemp -d)
trap 'gpgconf --homedir "$scratch" --kill all; rm -rf "$scratch"' EXIT

main() {
    compgen -G 'dist/*.deb' >/dev/null || {
        echo "dist/ holds no packages; run make dist first" >&2
        exit 1
    }
    if [[ -z ${AEGIS_SIGNING_KEY:-} ]]; then throw_away_key; fi
    mkdir -p repo/apt/pool repo/dnf
    local part
    for part in repo/apt repo/dnf; do
        gpg --batch --no-auto-check-trustdb --export "$AEGIS_SIGNING_KEY" \
            >"$part/aegiskv-archive-keyring.gpg"
        gpg --batch --no-auto-check-trustdb --armor --export "$AEGIS_SIGNING_KEY" \
            >"$part/aegiskv-archive-keyring.asc"
    done
    apt_repository
    dnf_repository
}

throw_away_key() {
    export GNUPGHOME=$scratch
    gpg --batch --quiet --passphrase '' --quick-generate-key \
        'AegisKV packages, for trying out' rsa3072 sign never 2>/dev/null
    AEGIS_SIGNING_KEY=$(gpg --batch --list-keys --with-colons |
        awk -F: '/^fpr/ { print $10; exit }')
    echo "AEGIS_SIGNING_KEY is not set: signed with a key made for this run and thrown away"
}

# One suite, one component: the packages, their index, the index's checksums, and those signed.
apt_repository() (
    cp dist/*.deb repo/apt/pool/
    cd repo/apt
    index=dists/stable/main/binary-amd64
    mkdir -p "$index"
    apt-ftparchive packages pool >"$index/Packages"
    gzip -9nk -f "$index/Packages"
    apt-ftparchive \
        -o APT::FTPArchive::Release::Origin=AegisKV \
        -o APT::FTPArchive::Release::Label=AegisKV \
        -o APT::FTPArchive::Release::Suite=stable \
        -o APT::FTPArchive::Release::Codename=stable \
        -o APT::FTPArchive::Release::Components=main \
        -o APT::FTPArchive::Release::Architectures=amd64 \
        release dists/stable >"$scratch/Release"
    mv "$scratch/Release" dists/stable/Release
    sign --clearsign --output dists/stable/InRelease dists/stable/Release
    sign --armor --detach-sign --output dists/stable/Release.gpg dists/stable/Release
)

# Packages and index are both signed: dnf checks the former by default, the latter when told to.
dnf_repository() {
    local package
    for package in dist/*.rpm; do
        cp "$package" "$scratch/"
        rpmsign --define "__gpg $(command -v gpg)" --define "_gpg_name $AEGIS_SIGNING_KEY" \
            --addsign "$scratch/${package##*/}" >/dev/null
        mv "$scratch/${package##*/}" repo/dnf/
    done
    createrepo_c --quiet repo/dnf
    sign --armor --detach-sign repo/dnf/repodata/repomd.xml
}

sign() {
    gpg --batch --yes --quiet --no-auto-check-trustdb --local-user "$AEGIS_SIGNING_KEY" "$@"
}

main "$@"
