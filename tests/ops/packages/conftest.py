import subprocess
from types import SimpleNamespace

import pytest

from node import ROOT
from root import Root, lacks


@pytest.fixture(scope="session")
def published():
    """What `make dist` and `make repo` have made, by kind."""
    subprocess.run(["make", "--silent", "repo"], cwd=ROOT, check=True)
    dist = ROOT / "dist"

    def the(pattern):
        (found,) = dist.glob(pattern)
        return found

    return SimpleNamespace(
        dist=dist,
        repo=ROOT / "repo",
        deb=the("aegiskv_*.deb"),
        dbgsym=the("aegiskv-dbgsym_*.deb"),
        rpm=the("aegiskv-[0-9]*.rpm"),
        debuginfo=the("aegiskv-debuginfo-*.rpm"),
        tarball=the("aegiskv-linux-amd64.tar.gz"),
        bill=the("aegiskv.cdx.json"),
    )


@pytest.fixture(scope="session")
def unpacked(published, tmp_path_factory):
    """The Debian package, its symbols, the RPM package and the tarball, each unpacked."""
    trees = SimpleNamespace()
    for kind in ("deb", "dbgsym", "rpm", "tarball"):
        tree = tmp_path_factory.mktemp(kind)
        package = getattr(published, kind)
        if kind == "rpm":
            commands = f"rpm2archive -n <{package} | tar -xC {tree}"
        elif kind == "tarball":
            commands = f"tar -xzf {package} -C {tree}"
        else:
            commands = f"dpkg-deb -x {package} {tree}"
        subprocess.run(["bash", "-ec", f"set -o pipefail; {commands}"], check=True)
        setattr(trees, kind, tree)
    return trees


@pytest.fixture
def root(tmp_path):
    """A Debian system to install into, not booted."""
    if missing := lacks():
        pytest.skip(missing)
    return Root(tmp_path)
