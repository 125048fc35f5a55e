"""Playbooks that cannot go on, are killed, or meet another one."""

import os
import re
import signal

import pytest

from control import lease, operations, pids

BOB = '{"node_id": "kv1", "holder": "bob@elsewhere", "ttl": "10m"}'


@pytest.fixture
def impatient(cluster):
    """Gates that do not wait long."""
    patience = cluster.vars["aegiskv_wait_seconds"]
    cluster.vars["aegiskv_wait_seconds"] = 3
    yield cluster
    cluster.vars["aegiskv_wait_seconds"] = patience


@pytest.mark.parametrize("playbook", ["rolling_restart", "upgrade"])
def test_with_a_node_that_was_stopped_by_hand_nothing_is_touched(impatient, playbook):
    impatient.hosts["kv3"].run("systemctl stop aegiskv")
    before = pids(impatient)
    try:
        played = impatient.play(playbook, check=False)
        after, left = pids(impatient), lease(impatient.hosts["kv1"])
    finally:
        impatient.hosts["kv3"].run("systemctl start aegiskv")

    assert played.code != 0
    assert re.search("not settled, asked of kv[12]: .*kv3 is (leaving|suspect|dead)", played.why[0])
    assert after == before
    assert left is None


def test_while_somebody_else_holds_the_lease_nothing_is_touched(impatient):
    before = pids(impatient)
    lease(impatient.hosts["kv2"], f"localhost:7702/admin/stop-lease -d '{BOB}'")
    try:
        played = impatient.play("rolling_restart", check=False)
        held = lease(impatient.hosts["kv1"])
    finally:
        release = "-X DELETE 'localhost:7702/admin/stop-lease?node_id=kv1'"
        lease(impatient.hosts["kv2"], release)

    assert played.code != 0
    assert "bob@elsewhere holds the stop lease for kv1" in played.why[0]
    assert held["holder"] == "bob@elsewhere"
    assert pids(impatient) == before


def test_a_second_run_beside_one_is_refused_by_name(cluster):
    running = cluster.start("rolling_restart")
    try:
        read_until(running, "Hold the stop lease")
        second = cluster.play("upgrade", check=False)
    finally:
        said = running.communicate()[0]

    assert second.code != 0
    assert f"process {running.pid}, is at work on this cluster" in second.said
    assert "rolling_restart of " in second.said
    assert running.returncode == 0, said


@pytest.mark.parametrize(
    ("playbook", "steps"),
    [
        (
            "rolling_restart",
            [
                "Wait until the cluster is settled",
                "Hold the stop lease",
                "Restart the node",
                "Wait until the node is ready",
                "Give the stop lease back",
            ],
        ),
        ("upgrade", ["Copy it", "Install the package with apt", "Restart the node"]),
    ],
)
def test_a_run_that_was_killed_is_finished_by_the_next(cluster, playbook, steps, request):
    before = pids(cluster)
    if playbook == "upgrade":
        other = request.getfixturevalue("another_build")
        cluster.vars["aegiskv_package_file"] = str(other)
    for step in steps:
        running = cluster.start(playbook)
        read_until(running, step)
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()
        running.stdout.close()

    cluster.play(playbook)

    after = pids(cluster)
    assert all(before[name] != after[name] for name in cluster.members)
    seen = operations(cluster.hosts["kv1"], "/cluster")
    assert [member["status"] for member in seen["members"]] == ["alive"] * 3
    assert seen["shards"]["healthy"] == 16
    assert lease(cluster.hosts["kv1"]) is None
    for name in cluster.members:
        cluster.hosts[name].run("cmp /usr/bin/aegiskv /proc/$(pidof aegiskv)/exe")
    if playbook == "upgrade":
        versions = {
            cluster.hosts[name].run("dpkg-query -W -f '${Version}' aegiskv")
            for name in cluster.members
        }
        assert versions == {"9.0.0-1"}


def read_until(running, task):
    """Reads what a playbook prints until it begins a task."""
    said = ""
    for line in running.stdout:
        said += line
        if line.startswith("TASK [") and line.rstrip(" *\n").endswith(f": {task}]"):
            return
    raise AssertionError(f"{task} never began: {said}")
