import contextlib
import os
import subprocess
import threading
from pathlib import Path

import pytest

import host
import packages
from control import Control, tool
from node import ROOT, build_dir


@pytest.fixture(scope="session")
def tarball(tmp_path_factory):
    """The collection, as it is built to be published."""
    where = tmp_path_factory.mktemp("built")
    command = [tool("ansible-galaxy"), "collection", "build", ROOT / "ansible"]
    host.call(*command, "--output-path", where)
    (tarball,) = where.glob("aegiskv-cluster-*.tar.gz")
    return tarball


@pytest.fixture(scope="session")
def collections(tarball, tmp_path_factory):
    """Where the collection is installed, from its tarball."""
    where = tmp_path_factory.mktemp("collections")
    host.call(tool("ansible-galaxy"), "collection", "install", tarball, "-p", where)
    return where


@pytest.fixture(scope="session")
def package():
    """The Debian package, as `make dist` makes it, or the one that AEGIS_PACKAGE names."""
    if named := os.environ.get("AEGIS_PACKAGE"):
        return Path(named)
    subprocess.run(["make", "--silent", "dist/SHA256SUMS"], cwd=ROOT, check=True)
    (package,) = (ROOT / "dist").glob("aegiskv_*.deb")
    return package


@pytest.fixture(scope="session")
def lab():
    """Three hosts for the cluster, a fourth for growth, and one that watches; bare Debian at first."""
    if lacking := host.lacks():
        pytest.skip(lacking)
    with host.Lab("kv1", "kv2", "kv3", "kv4", "mon1") as lab:
        yield lab


@pytest.fixture(scope="session")
def control(lab, collections, package, tmp_path_factory):
    return Control(lab, collections, package, tmp_path_factory.mktemp("control"))


@pytest.fixture(scope="session")
def cluster(control):
    """The same, with the cluster made."""
    if not control.secrets.exists():
        control.play("bootstrap")
    return control


@pytest.fixture(scope="session")
def another_build(package, tmp_path_factory):
    """A package of a later version, with a program that was really built otherwise."""
    build = ["cargo", "build", "--locked", "--quiet", "--bin", "aegiskv"]
    subprocess.run(build, cwd=ROOT, check=True)
    into, program = tmp_path_factory.mktemp("other"), build_dir() / "debug/aegiskv"
    return packages.repack(package, "9.0.0-1", into, program, tail=b"another build")


@pytest.fixture(scope="session")
def command_lines():
    """All command lines on this machine, and so on its hosts, from the first test that asks on."""
    seen, ending = set(), threading.Event()

    def look():
        while not ending.wait(0.2):
            for file in Path("/proc").glob("[0-9]*/cmdline"):
                with contextlib.suppress(OSError):
                    seen.add(file.read_bytes().replace(b"\0", b" ").decode(errors="replace"))

    thread = threading.Thread(target=look)
    thread.start()
    yield seen
    ending.set()
    thread.join()
