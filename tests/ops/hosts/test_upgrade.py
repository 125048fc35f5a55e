"""A package's life on a host: upgraded, downgraded, removed, installed again, purged.

The tests run in this order, each on what the one before has left.
"""

import re

import pytest

import host
import kv

OLD = "0.0.9-1"
SITE = '{"max_memory_mb": 512}\n'


@pytest.fixture(scope="module")
def kv1(machine, repository, tmp_path_factory):
    """A host with the version before, data, and settings of the operator's.

    That version is the package of today with another number, changelog and program, and with
    another text of each configuration file that the operator is not to edit."""
    (package,) = (repository.parent / "dist").glob("aegiskv_*.deb")
    tree, old = (tmp_path_factory.mktemp("old") / name for name in ("tree", "old.deb"))
    host.call("dpkg-deb", "--raw-extract", package, tree)
    control = tree / "DEBIAN/control"
    control.write_text(re.sub("(?m)^Version: .*", f"Version: {OLD}", control.read_text()))
    (changelog,) = tree.glob("usr/share/doc/aegiskv/changelog.Debian.gz")
    changelog.unlink()
    # More at its end changes nothing in what a program does.
    with open(tree / "usr/bin/aegiskv", "ab") as program:
        program.write(b"old")
    with open(tree / "etc/aegiskv/config.json", "a") as file:
        file.write("\n")
    with open(tree / "etc/needrestart/conf.d/aegiskv.conf", "a") as file:
        file.write("# old\n")
    host.call("dpkg-deb", "--root-owner-group", "-Zgzip", "-z1", "--build", tree, old)

    machine.send(old, "/srv/old.deb")
    apt(machine, "install", "/srv/old.deb")
    assert installed(machine) == OLD
    kv.put(machine, "user:1", "Ann")
    kv.setting(machine, "50-site", SITE)
    machine.run("systemctl reload aegiskv")
    return machine


def test_an_upgrade_asks_nothing_restarts_nothing_and_keeps_everything(kv1):
    pid, token = kv.unit(kv1, "MainPID"), kv1.run("cat /etc/aegiskv/token")
    before = kv1.run("sha256sum </etc/aegiskv/config.json")

    said = apt(kv1, "upgrade")

    assert installed(kv1) != OLD
    assert "systemctl restart aegiskv" in said
    assert kv1.run("sha256sum </etc/aegiskv/config.json") != before
    assert kv.unit(kv1, "MainPID") == pid
    assert kv.unit(kv1, "NRestarts") == "0"
    assert runs_what_is_installed(kv1) is False
    assert kv.get(kv1, "user:1") == "Ann"
    assert kv1.run("cat /etc/aegiskv/conf.d/50-site.json") == SITE
    assert kv1.run("cat /etc/aegiskv/token") == token
    # The settings that the old program runs with can still be changed.
    kv1.run("systemctl reload aegiskv")

    kv1.run("systemctl restart aegiskv")
    assert runs_what_is_installed(kv1) is True
    assert kv.get(kv1, "user:1") == "Ann"


def test_a_downgrade_works(kv1):
    kv.put(kv1, "user:2", "Bob")

    apt(kv1, "install", "--allow-downgrades", "/srv/old.deb")
    kv1.run("systemctl restart aegiskv")

    assert installed(kv1) == OLD
    assert runs_what_is_installed(kv1) is True
    assert kv.get(kv1, "user:1") == "Ann"
    assert kv.get(kv1, "user:2") == "Bob"
    assert kv1.run("cat /etc/aegiskv/conf.d/50-site.json") == SITE


def test_removed_and_installed_again_it_has_its_data(kv1):
    token = kv1.run("cat /etc/aegiskv/token")
    apt(kv1, "remove", "aegiskv")
    assert not kv1.run("pgrep -x aegiskv", check=False).stdout
    assert kv1.run("ls /usr/bin/aegiskv", check=False).returncode != 0
    assert kv1.run("ls /var/lib/aegiskv/identity.json")

    apt(kv1, "install", "aegiskv")

    assert kv.unit(kv1, "ActiveState") == "active"
    assert kv.get(kv1, "user:1") == "Ann"
    assert kv1.run("cat /etc/aegiskv/conf.d/50-site.json") == SITE
    assert kv1.run("cat /etc/aegiskv/token") == token


def test_a_purge_keeps_data_alone(kv1):
    apt(kv1, "purge", "aegiskv")

    assert left(kv1) == ["/var/lib/aegiskv"]
    assert kv1.run("ls /var/lib/aegiskv/identity.json")
    assert kv1.run("systemctl list-unit-files --no-legend 'aegiskv*'; true") == ""

    # Another token, and the same data.
    apt(kv1, "install", "aegiskv")
    assert kv.get(kv1, "user:1") == "Ann"


def test_a_purge_takes_data_too_if_the_operator_said_so(kv1):
    kv1.run("touch /etc/aegiskv/purge-data")
    apt(kv1, "purge", "aegiskv")
    assert left(kv1) == []


def apt(machine, *arguments):
    """Runs apt at a terminal where nobody answers, as an operator's: a question ends it."""
    command = f"apt-get -y {' '.join(arguments)}"
    # What needrestart would ask, at each upgrade of anything, is not the package's question.
    environment = "env -u DEBIAN_FRONTEND NEEDRESTART_MODE=l"
    done = machine.run(f"{environment} script -qec '{command}' /dev/null")
    assert "Configuration file" not in done
    return done


def installed(machine):
    return machine.run("dpkg-query -W -f '${Version}' aegiskv")


def runs_what_is_installed(machine):
    pid = kv.unit(machine, "MainPID")
    compared = f"cmp -s /proc/{pid}/exe /usr/bin/aegiskv"
    return machine.run(compared, check=False).returncode == 0


def left(machine):
    """What there still is of the package, its documentation aside."""
    where = "/etc /usr /lib/systemd /var/lib/aegiskv /var/log/aegiskv /run/aegiskv*"
    found = machine.run(f"find {where} -name '*aegiskv*' 2>/dev/null; true").split()
    ours = ("/etc/apt/", "/usr/share/keyrings/")
    return sorted(path for path in found if not path.startswith(ours))
