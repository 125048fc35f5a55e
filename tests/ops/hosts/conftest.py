import subprocess

import pytest

import host
from node import ROOT

KEYRING = "/usr/share/keyrings/aegiskv-archive-keyring.gpg"


@pytest.fixture(scope="session")
def repository():
    """The directory of repositories, as `make repo` makes it."""
    if lacking := host.lacks():
        pytest.skip(lacking)
    subprocess.run(["make", "--silent", "repo"], cwd=ROOT, check=True)
    return ROOT / "repo"


@pytest.fixture(scope="module")
def machine(repository):
    """A host of the module's own, whose apt knows the repository."""
    with host.Lab("kv1") as lab:
        (machine,) = lab.hosts
        url = lab.serve(repository)
        machine.send(repository / "apt/aegiskv-archive-keyring.gpg", KEYRING)
        machine.write(
            "/etc/apt/sources.list.d/aegiskv.list",
            f"deb [signed-by={KEYRING}] {url}/apt stable main\n",
        )
        # What the root was made from cannot be reached from here.
        machine.run("rm -f /etc/apt/sources.list /etc/apt/sources.list.d/0000*")
        machine.run("apt-get update")
        yield machine


@pytest.fixture(scope="module")
def kv1(machine):
    """The host, with the package installed."""
    machine.run("DEBIAN_FRONTEND=noninteractive apt-get install -qy aegiskv")
    return machine
