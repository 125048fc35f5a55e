#!/usr/bin/env bash
# Makes what is published, into dist/: packages for Debian and for RPM, debug symbols apart, a
# tarball, a container image, the bill of materials, checksums. `dist.sh build` builds the program
# alone, `dist.sh package` does the rest with it as it was built last. Same commit, same tools: same
# bytes, wherever the tree lies.
set -euo pipefail
cd "$(dirname "$0")/.."

target=${CARGO_TARGET_DIR:-$PWD/target}
program=$target/dist/aegiskv
stage=dist/stage
version=$(sed -nE '0,/^version/s/^version = "(.*)"/\1/p' Cargo.toml)
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
export SOURCE_DATE_EPOCH LC_ALL=C TZ=UTC
umask 022

main() {
    [[ ${1:-} == package ]] || build
    [[ ${1:-} != build ]] || return 0
    rm -rf dist
    stage
    debian_packages
    rpm_packages
    tarball
    scripts/bill_of_materials.py dist/aegiskv.cdx.json
    image
    rm -r "$stage"
    (cd dist && sha256sum -- * >SHA256SUMS)
    ls -l dist
}

# Paths of this machine are replaced in what Rust and C compilers write down.
build() {
    local home=${CARGO_HOME:-$HOME/.cargo} flags
    flags=(
        "--remap-path-prefix=$home=/build/cargo"
        "--remap-path-prefix=$(rustc --print sysroot)=/build/rust"
        "--remap-path-prefix=$PWD=/build/aegiskv"
        "--remap-path-prefix=$target=/build/target"
    )
    CARGO_ENCODED_RUSTFLAGS=$(IFS=$'\x1f' && echo "${flags[*]}")
    CFLAGS="-ffile-prefix-map=$home=/build/cargo -ffile-prefix-map=$target=/build/target"
    AEGISKV_REVISION=$(git describe --always --dirty --abbrev=12 --exclude='*')
    export CARGO_ENCODED_RUSTFLAGS CFLAGS AEGISKV_REVISION
    cargo build --locked --profile dist --bin aegiskv
}

# What is made by the program itself, and what comes compressed, laid out as it is to be installed.
stage() {
    local share=$stage/usr/share
    mkdir -p "$stage/usr/bin" "$share"/{man/man1,doc/aegiskv,bash-completion/completions} \
        "$share"/{zsh/vendor-completions,fish/vendor_completions.d}
    program_and_symbols
    "$program" man --dir "$share/man/man1" 2>/dev/null
    gzip -9n "$share"/man/man1/*
    "$program" completions bash >"$share/bash-completion/completions/aegiskv"
    "$program" completions zsh >"$share/zsh/vendor-completions/_aegiskv"
    "$program" completions fish >"$share/fish/vendor_completions.d/aegiskv.fish"
    gzip -9nc CHANGELOG.md >"$share/doc/aegiskv/changelog.gz"
    debian_changelog aegiskv | gzip -9n >"$share/doc/aegiskv/changelog.Debian.gz"
    mkdir "$share/doc/aegiskv-dbgsym"
    debian_changelog aegiskv-dbgsym | gzip -9n >"$share/doc/aegiskv-dbgsym/changelog.Debian.gz"
}

# The program without its symbols, and those by themselves, where debuggers look for them.
program_and_symbols() {
    local id symbols
    id=$(readelf --notes "$program" | sed -nE 's/ *Build ID: ([0-9a-f]+)/\1/p')
    symbols=$stage/usr/lib/debug/.build-id/${id:0:2}/${id:2}.debug
    mkdir -p "${symbols%/*}"
    objcopy --only-keep-debug --compress-debug-sections "$program" "$symbols"
    chmod 0644 "$symbols"
    strip -o "$stage/usr/bin/aegiskv" "$program"
}

# Debian's own changelog is about the packaging; what users notice is in the other one.
# debian_changelog PACKAGE
debian_changelog() {
    cat <<-END
	$1 ($version-1) unstable; urgency=medium

	  * Version $version; what is new is in changelog.gz.

	 -- $(sed -nE 's/^maintainer = "(.*)"/\1/p' Cargo.toml)  $(date -R -d "@$SOURCE_DATE_EPOCH")
	END
}

debian_packages() {
    cargo deb --quiet --locked --no-build --output dist/
    cargo deb --quiet --locked --no-build --output dist/ --variant dbgsym
}

rpm_packages() {
    # Files bear their own times, unless they are later than the commit.
    cp -r packaging systemd LICENSE CHANGELOG.md "$stage/"
    find "$stage" -exec touch --no-dereference --date="@$SOURCE_DATE_EPOCH" {} +
    # What it needs is worked out by the tool itself, on any machine alike.
    cargo generate-rpm --auto-req builtin --variant server --output dist/
    cargo generate-rpm --auto-req disabled --output dist/ --variant debuginfo
}

tarball() {
    local root=$stage/aegiskv
    mkdir -p "$root"/{systemd,man,completions}
    cp "$stage/usr/bin/aegiskv" packaging/config.json LICENSE README.md CHANGELOG.md "$root/"
    cp systemd/aegiskv.service systemd/*.conf "$root/systemd/"
    cp "$stage"/usr/share/man/man1/* "$root/man/"
    cp "$stage"/usr/share/{bash-completion/completions/aegiskv,zsh/vendor-completions/_aegiskv} \
        "$stage"/usr/share/fish/vendor_completions.d/aegiskv.fish "$root/completions/"
    tar -C "$root" --sort=name --owner=0 --group=0 --numeric-owner --mode=u=rwX,go=rX \
        --mtime="@$SOURCE_DATE_EPOCH" -c . | gzip -9n >dist/aegiskv-linux-amd64.tar.gz
}

# An archive for `docker load` and `podman load`. Where the base image cannot be pulled, its like is
# made from Debian's packages. AEGIS_BASE_IMAGE names another one; `none` leaves the image out.
image() {
    local name=aegiskv:$version base=${AEGIS_BASE_IMAGE:-docker.io/library/debian:bookworm-slim}
    if [[ $base == none ]] || ! command -v buildah >/dev/null; then
        echo "SKIP the container image: AEGIS_BASE_IMAGE is none, or buildah is not installed"
        return
    fi
    if ! buildah_here pull --quiet "$base" >/dev/null 2>&1; then
        if ((EUID != 0)) || ! command -v mmdebstrap >/dev/null; then
            echo "SKIP the container image: $base cannot be pulled, nor made: no root, or no mmdebstrap"
            return
        fi
        echo "$base cannot be pulled; made from Debian's packages instead"
        base_image "$base"
    fi
    buildah_here bud --quiet --isolation chroot --pull-never --format docker \
        --timestamp "$SOURCE_DATE_EPOCH" --build-arg BASE="$base" --tag "$name" \
        --file packaging/Dockerfile dist >/dev/null
    buildah_here push --quiet "$name" "docker-archive:$stage/image.tar:$name"
    gzip -nc "$stage/image.tar" >dist/aegiskv-image-amd64.tar.gz
}

# base_image NAME
base_image() {
    local container
    mmdebstrap --quiet --variant=minbase bookworm "$stage/base.tar"
    container=$(buildah_here from scratch)
    buildah_here add --quiet "$container" "$stage/base.tar" / >/dev/null
    buildah_here config --cmd bash "$container"
    buildah_here commit --quiet --timestamp "$SOURCE_DATE_EPOCH" "$container" "$1" >/dev/null
}

# With a store of its own, which goes with the stage.
buildah_here() {
    buildah --root "$PWD/$stage/images" --runroot "$PWD/$stage/run" --storage-driver vfs "$@"
}

main "$@"
