"""What is in that which `make dist` makes: every file, whose it is, and where it came from."""

import gzip
import hashlib
import json
import os
import re
import stat
import subprocess
import tarfile
import tomllib
from pathlib import Path

import pytest
import yaml

from node import ROOT, build_dir

CARGO = tomllib.loads((ROOT / "Cargo.toml").read_text())
VERSION = CARGO["package"]["version"]

# Beside manual pages: path and mode. All of it is root's.
FILES = {
    "etc/aegiskv/config.json": 0o640,
    "etc/aegiskv/conf.d/README": 0o644,
    "etc/needrestart/conf.d/aegiskv.conf": 0o644,
    "usr/bin/aegiskv": 0o755,
    "usr/lib/sysusers.d/aegiskv.conf": 0o644,
    "usr/lib/tmpfiles.d/aegiskv.conf": 0o644,
    "usr/share/bash-completion/completions/aegiskv": 0o644,
    "usr/share/fish/vendor_completions.d/aegiskv.fish": 0o644,
}
DEBIAN_FILES = {
    "lib/systemd/system/aegiskv.service": 0o644,
    "usr/share/doc/aegiskv/changelog.Debian.gz": 0o644,
    "usr/share/doc/aegiskv/changelog.gz": 0o644,
    "usr/share/doc/aegiskv/copyright": 0o644,
    "usr/share/lintian/overrides/aegiskv": 0o644,
    "usr/share/zsh/vendor-completions/_aegiskv": 0o644,
}
RPM_FILES = {
    "usr/lib/systemd/system/aegiskv.service": 0o644,
    "usr/share/doc/aegiskv/CHANGELOG.md": 0o644,
    "usr/share/licenses/aegiskv/LICENSE": 0o644,
    "usr/share/zsh/site-functions/_aegiskv": 0o644,
}
TARBALL = [
    "CHANGELOG.md",
    "LICENSE",
    "README.md",
    "aegiskv",
    "completions/_aegiskv",
    "completions/aegiskv",
    "completions/aegiskv.fish",
    "config.json",
    "systemd/aegiskv.service",
    "systemd/sysusers.conf",
    "systemd/tmpfiles.conf",
]


def output(*command):
    return subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE).stdout


def without_manuals(paths):
    return {path for path in paths if not path.startswith("usr/share/man/man1/aegiskv")}


def test_the_debian_package_holds_its_files_with_their_modes_and_owners(published):
    expected = FILES | DEBIAN_FILES
    deb = subprocess.run(
        ["dpkg-deb", "--fsys-tarfile", published.deb], check=True, stdout=subprocess.PIPE
    ).stdout
    (archive := build_dir() / "packages-test.tar").write_bytes(deb)
    with tarfile.open(archive) as tar:
        members = {member.name.removeprefix("./"): member for member in tar if member.isfile()}
        directories = [member for member in tar if member.isdir()]
    archive.unlink()
    assert without_manuals(members) == set(expected)
    assert {path: members[path].mode for path in expected} == expected
    assert {(member.uid, member.gid) for member in members.values()} == {(0, 0)}
    assert {member.mode for member in directories} == {0o755}


def test_the_debian_packages_say_what_they_are(published):
    def field(deb, name):
        return output("dpkg-deb", "-f", deb, name).strip()

    assert field(published.deb, "Package") == "aegiskv"
    assert field(published.deb, "Version") == f"{VERSION}-1"
    depends = field(published.deb, "Depends")
    assert re.match(r"libc6 \(>= 2\.\d+\), ", depends), depends
    assert "systemd | systemd-standalone-sysusers | systemd-sysusers" in depends
    assert field(published.dbgsym, "Package") == "aegiskv-dbgsym"
    assert field(published.dbgsym, "Depends") == f"aegiskv (= {VERSION}-1)"
    conffiles = output("dpkg-deb", "-I", published.deb, "conffiles").split()
    assert sorted(conffiles) == sorted(f"/{path}" for path in FILES if path.startswith("etc/"))


def test_the_rpm_package_holds_its_files_with_their_modes_and_owners(published):
    expected = FILES | RPM_FILES
    line = (
        "[%{FILENAMES} %{FILEMODES:octal} %{FILEUSERNAME} %{FILEGROUPNAME} %{FILEFLAGS:fflags}\\n]"
    )
    listed = output("rpm", "-qp", "--nosignature", "--qf", line, published.rpm).splitlines()
    files = {}
    for path, mode, user, group, *flags in map(str.split, listed):
        files[path.removeprefix("/")] = int(mode, 8), user, group, "".join(flags)
    assert without_manuals(files) == set(expected)
    for path, mode in expected.items():
        group = "aegiskv" if path == "etc/aegiskv/config.json" else "root"
        assert files[path][:3] == (stat.S_IFREG | mode, "root", group), path
        # c: configuration, n: never replaced once edited.
        assert ("cn" == files[path][3]) == path.startswith("etc/"), path


def test_the_tarball_holds_what_an_installation_by_hand_needs(unpacked):
    tree = unpacked.tarball
    files = sorted(str(path.relative_to(tree)) for path in tree.rglob("*") if path.is_file())
    assert [path for path in files if not path.startswith("man/")] == TARBALL
    assert os.access(tree / "aegiskv", os.X_OK)


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_all_have_the_same_program_and_the_same_unit(unpacked):
    programs = [unpacked.deb / "usr/bin", unpacked.rpm / "usr/bin", unpacked.tarball]
    assert len({digest(folder / "aegiskv") for folder in programs}) == 1
    units = ["lib/systemd/system", "usr/lib/systemd/system", "systemd"]
    for folder, tree in zip(units, (unpacked.deb, unpacked.rpm, unpacked.tarball), strict=True):
        unit = tree / folder / "aegiskv.service"
        assert unit.read_text() == (ROOT / "systemd/aegiskv.service").read_text()


def test_manual_pages_and_completions_are_what_the_program_prints(unpacked, tmp_path):
    program = unpacked.deb / "usr/bin/aegiskv"
    subprocess.run([program, "man", "--dir", tmp_path], check=True, stderr=subprocess.DEVNULL)
    expected = {page.name + ".gz": page.read_bytes() for page in tmp_path.iterdir()}
    assert "aegiskv.1.gz" in expected and "aegiskv-status.1.gz" in expected
    share = [unpacked.deb / "usr/share/man/man1", unpacked.rpm / "usr/share/man/man1"]
    for folder in (*share, unpacked.tarball / "man"):
        found = {page.name: gzip.decompress(page.read_bytes()) for page in folder.iterdir()}
        assert found == expected
    zsh = {"deb": "vendor-completions", "rpm": "site-functions"}
    for kind, folder in zsh.items():
        share = getattr(unpacked, kind) / "usr/share"
        for shell, path in {
            "bash": "bash-completion/completions/aegiskv",
            "fish": "fish/vendor_completions.d/aegiskv.fish",
            "zsh": f"zsh/{folder}/_aegiskv",
        }.items():
            assert (share / path).read_text() == output(program, "completions", shell), path


def build_id(path):
    notes = output("readelf", "--notes", path)
    return re.search(r"Build ID: ([0-9a-f]{40})", notes).group(1)


def test_debug_symbols_lie_apart_and_fit_the_program(unpacked, published):
    program = unpacked.deb / "usr/bin/aegiskv"
    assert ".debug_info" not in output("readelf", "--section-headers", "--wide", program)
    number = build_id(program)
    path = f"usr/lib/debug/.build-id/{number[:2]}/{number[2:]}.debug"
    symbols = unpacked.dbgsym / path
    assert build_id(symbols) == number
    assert ".debug_line" in output("readelf", "--section-headers", "--wide", symbols)
    assert f"/{path}" in output("rpm", "-qlp", "--nosignature", published.debuginfo).split()


def test_nothing_tells_of_the_machine_that_built_it(unpacked, published, tmp_path):
    here = [
        str(ROOT),
        str(build_dir()),
        os.environ.get("CARGO_HOME") or str(Path.home() / ".cargo"),
    ]
    (symbols,) = unpacked.dbgsym.rglob("*.debug")
    plain = tmp_path / "plain.debug"
    subprocess.run(["objcopy", "--decompress-debug-sections", symbols, plain], check=True)
    assert b"/build/aegiskv" in plain.read_bytes()
    for path in (unpacked.deb / "usr/bin/aegiskv", plain):
        content = path.read_bytes()
        for place in here:
            at = content.find(place.encode())
            assert at < 0, f"{path.name}: {content[max(0, at - 40) : at + 120]}"
    assert not [place for place in here if place in published.bill.read_text()]


def test_the_program_knows_which_commit_it_is(unpacked):
    revision = output("git", "-C", ROOT, "log", "-1", "--format=%h", "--abbrev=12").strip()
    content = (unpacked.deb / "usr/bin/aegiskv").read_bytes()
    assert revision.encode() in content


def test_the_bill_of_materials_names_what_is_linked_in_with_its_licence(published):
    bill = json.loads(published.bill.read_text())
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.5")
    components = {(part["name"], part["version"]) for part in bill["components"]}
    lock = tomllib.loads((ROOT / "Cargo.lock").read_text())
    locked = {(package["name"], package["version"]) for package in lock["package"]}
    assert components <= locked
    tree = output(
        "cargo", "tree", "--manifest-path", ROOT / "Cargo.toml", "--locked", "--prefix", "none",
        "--edges", "normal,build", "--target", "x86_64-unknown-linux-gnu", "--format", "{p}",
    )  # fmt: skip
    linked = {tuple(line.split()[:2]) for line in tree.splitlines() if line}
    linked = {(name, version.removeprefix("v")) for name, version in linked} - {
        ("aegiskv", VERSION)
    }
    assert components == linked
    assert {"tokio", "aws-lc-sys", "tikv-jemalloc-sys"} <= {name for name, _ in components}
    # Optional, resolved, and turned on by nobody.
    assert not {"ring", "quinn"} & {name for name, _ in components}
    assert not [part["name"] for part in bill["components"] if not part.get("licenses")]


def test_checksums_are_of_all_that_is_there(published):
    lines = (published.dist / "SHA256SUMS").read_text().splitlines()
    sums = {name: digest for digest, name in map(str.split, lines)}
    assert set(sums) == {path.name for path in published.dist.iterdir()} - {"SHA256SUMS"}
    assert sums == {name: digest(published.dist / name) for name in sums}


def test_the_image_runs_the_program_as_nobody_special(published, unpacked):
    archive = published.dist / "aegiskv-image-amd64.tar.gz"
    if not archive.exists():
        pytest.skip("make dist made no image here, and said why")
    with tarfile.open(archive) as tar:
        (manifest,) = json.load(tar.extractfile("manifest.json"))
        config = json.load(tar.extractfile(manifest["Config"]))["config"]
        layer = tarfile.open(fileobj=tar.extractfile(manifest["Layers"][-1]))
        with layer:
            program = hashlib.sha256(layer.extractfile("usr/bin/aegiskv").read()).hexdigest()
            data = layer.getmember("data")
    assert manifest["RepoTags"][0].endswith(f"aegiskv:{VERSION}")
    assert program == digest(unpacked.deb / "usr/bin/aegiskv")
    assert (data.uid, data.gid, data.mode & 0o777) == (10001, 10001, 0o750)
    assert config["User"] == "10001:10001"
    assert config["Entrypoint"] == ["aegiskv"]
    assert config["StopSignal"] == "SIGTERM"
    assert config["Healthcheck"]["Test"] == ["CMD", "aegiskv", "status"]
    assert set(config["Volumes"]) == {"/data"}
    assert set(config["ExposedPorts"]) == {"7700/tcp", "7701/tcp", "7701/udp", "7702/tcp"}
    environment = dict(variable.split("=", 1) for variable in config["Env"])
    assert environment["AEGIS_DATA_DIR"] == "/data"


def test_the_compose_file_is_of_this_version():
    compose = yaml.safe_load((ROOT / "packaging/compose.yaml").read_text())
    assert {node["image"] for node in compose["services"].values()} == {f"aegiskv:{VERSION}"}
    assert len(compose["services"]) == 3
