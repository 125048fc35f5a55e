import contextlib
import subprocess

import pytest

import host
from kv import KEYRING
from node import ROOT


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    """Adds what the host has to say to the report of a failure."""
    report = yield
    machine = item.funcargs.get("machine")
    if report.failed and machine:
        with contextlib.suppress(subprocess.TimeoutExpired):
            journal = machine.run("journalctl --no-pager -n 60", check=False, seconds_max=10)
            report.sections.append(("the host's journal", journal.stdout))
    return report


@pytest.fixture(scope="session", autouse=True)
def able():
    if lacking := host.lacks():
        pytest.skip(lacking)


@pytest.fixture(scope="session")
def repository():
    """The directory of repositories, as `make repo` makes it."""
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
