"""Members are stopped one after the other, under load, and nobody notices."""

import re

import pytest

import packages
from control import lease, operations, pids
from load import Load


def test_a_rolling_restart_is_not_noticed(cluster):
    before = pids(cluster)

    with Load(cluster) as load:
        played = cluster.play("rolling_restart")
    load.check()

    after = pids(cluster)
    assert all(before[name] != after[name] for name in cluster.members)
    assert load.seen_down == {cluster.hosts[name].address for name in cluster.members}
    assert lease(cluster.hosts["kv1"]) is None
    leader = operations(cluster.hosts["kv1"], "/cluster")["leader"]
    assert restarted(played)[-1] != restarted(played)[0]
    assert leader in cluster.members


@pytest.mark.long
def test_a_changed_setting_that_wants_a_restart_goes_the_same_way(cluster):
    before = pids(cluster)
    cluster.vars["aegiskv_settings"]["wal_max_size_mb"] = 32
    # By a reload alone.
    cluster.vars["aegiskv_settings"]["max_conns"] = 5000

    with Load(cluster) as load:
        cluster.play("bootstrap")
    load.check()

    after = pids(cluster)
    for name in cluster.members:
        assert operations(cluster.hosts[name], "/config")["wal_max_size_mb"]["value"] == 32
        assert before[name] != after[name]
    assert lease(cluster.hosts["kv1"]) is None


@pytest.mark.long
def test_a_changed_setting_that_a_reload_applies_restarts_nothing(cluster):
    before = pids(cluster)
    cluster.vars["aegiskv_settings"]["max_conns"] = 6000

    cluster.play("bootstrap")

    assert pids(cluster) == before
    for name in cluster.members:
        assert operations(cluster.hosts[name], "/config")["max_conns"]["value"] == 6000


def test_an_upgrade_and_the_way_back(cluster, package, another_build):
    cluster.vars["aegiskv_canary_seconds"] = 1
    programs = {}
    for file, version in ((another_build, "9.0.0-1"), (package, None)):
        cluster.vars["aegiskv_package_file"] = str(file)
        with Load(cluster) as load:
            cluster.play("upgrade")
        load.check()
        for name in cluster.members:
            machine = cluster.hosts[name]
            installed = machine.run("dpkg-query -W -f '${Version}' aegiskv")
            assert (installed == "9.0.0-1") == (version == "9.0.0-1")
            machine.run("cmp /usr/bin/aegiskv /proc/$(pidof aegiskv)/exe")
            programs[file] = machine.run("sha256sum </usr/bin/aegiskv")
        assert lease(cluster.hosts["kv1"]) is None
    assert programs[another_build] != programs[package]


@pytest.mark.long
def test_an_upgrade_to_what_is_there_restarts_nothing(cluster):
    before = pids(cluster)
    cluster.play("upgrade")
    assert pids(cluster) == before


@pytest.mark.long
@pytest.mark.parametrize(
    ("named", "why"),
    [("/nowhere/aegiskv.deb", "which is not there"), ("/etc/hostname", "which is no .deb, .rpm or .tar.gz")],
)
def test_no_node_is_stopped_for_a_file_that_is_no_package(cluster, named, why):
    before = pids(cluster)
    played = cluster.play("upgrade", "-e", f"aegiskv_package_file={named}", check=False)
    assert played.code != 0
    assert why in " ".join(played.why)
    assert pids(cluster) == before
    assert lease(cluster.hosts["kv1"]) is None


BROKEN = {
    "does not start": "#!/bin/sh\n[ \"$1\" != --version ] || exec echo aegiskv 9\nexit 1\n",
    # It serves, and does not find the others, since it has another secret than they have.
    "is never ready": "#!/bin/sh\n[ \"$1\" != --config ] || export AEGIS_GOSSIP_SECRET_FILE=/etc/aegiskv/token\n"
    'exec /usr/bin/aegiskv.real "$@"\n',
}


@pytest.mark.long
@pytest.mark.parametrize("how", BROKEN)
def test_a_canary_that_is_not_well_is_backed_out(cluster, package, tmp_path, how):
    before, patience = pids(cluster), cluster.vars["aegiskv_wait_seconds"]
    made = packages.repack(package, "9.0.1-1", tmp_path, script=BROKEN[how])
    cluster.vars |= {"aegiskv_package_file": str(made), "aegiskv_wait_seconds": 15}
    try:
        with Load(cluster) as load:
            played = cluster.play("upgrade", check=False)
        load.check()
    finally:
        cluster.vars |= {"aegiskv_package_file": str(package), "aegiskv_wait_seconds": patience}

    assert played.code != 0
    assert "was not well with the new version, and is back at" in played.why[-1]
    (canary,) = {re.search(r"\[([^]]+)\]", line)[1] for line in played.why}
    after = pids(cluster)
    for name in cluster.members:
        machine = cluster.hosts[name]
        assert machine.run("dpkg-query -W -f '${Version}' aegiskv") != "9.0.1-1"
        assert (after[name] != before[name]) == (name == canary)
    assert operations(cluster.hosts["kv1"], "/cluster")["shards"]["healthy"] == 16
    assert lease(cluster.hosts["kv1"]) is None


def restarted(played):
    """The hosts in the order in which they were restarted."""
    blocks = re.findall(r"TASK \[[^]]*: Restart the node\] \*+\n(?:changed|ok): \[(\w+)\]", played.out)
    assert blocks
    return blocks
