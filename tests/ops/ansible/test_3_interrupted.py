"""Playbooks that cannot go on, are killed, or meet another one."""

import os
import re
import signal
import time

import pytest
import yaml

from control import lease, operations, pids
from load import Load
from node import ROOT

pytestmark = pytest.mark.long
BOB = '{"node_id": "kv1", "holder": "bob@elsewhere", "ttl": "10m"}'
SECONDS_INTO_A_STEP = 0.3


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


@pytest.mark.parametrize("playbook", ["rolling_restart", "upgrade"])
def test_a_run_that_was_killed_in_any_step_is_taken_up_by_the_next(cluster, playbook, another_build, package):
    """Each run takes up what the one before has left, and is killed one step later."""
    steps = acting(cluster.play(playbook))
    assert "Restart the node" in steps
    if playbook == "upgrade":
        cluster.vars["aegiskv_package_file"] = str(another_build)
    before = pids(cluster)
    try:
        with Load(cluster) as load:
            for step in steps:
                running = cluster.start(playbook)
                read_until(running, step)
                time.sleep(SECONDS_INTO_A_STEP)
                os.killpg(running.pid, signal.SIGKILL)
                running.wait()
                running.stdout.close()
            cluster.play(playbook)
        load.check()
    finally:
        cluster.vars["aegiskv_package_file"] = str(package)

    after = pids(cluster)
    assert all(before[name] != after[name] for name in cluster.members)
    seen = operations(cluster.hosts["kv1"], "/cluster")
    assert [member["status"] for member in seen["members"]] == ["alive"] * 3
    assert seen["shards"]["healthy"] == 16
    assert lease(cluster.hosts["kv1"]) is None
    for name in cluster.members:
        nothing_is_half_made(cluster.hosts[name])
    if playbook == "upgrade":
        read = "dpkg-query -W -f '${Version}' aegiskv"
        assert {cluster.hosts[name].run(read) for name in cluster.members} == {"9.0.0-1"}
        # And back, for the tests that follow.
        cluster.play("upgrade")


def acting(played):
    """The steps of a run that do something on a host, in their order; others only reckon."""
    reckoning = ("set_fact", "assert", "include_tasks", "include_role", "add_host", "debug", "fail")
    idle = {
        task["name"]
        for file in (ROOT / "ansible/roles/aegiskv/tasks").glob("*.yml")
        for task in tasks(yaml.safe_load(file.read_text()))
        if any(f"ansible.builtin.{name}" in task for name in reckoning)
    }
    named = re.findall(r"^TASK \[\S+ : (.*)\] \*+$", played.out, re.M)
    return [step for step in dict.fromkeys(named) if step not in idle]


def tasks(tree):
    for task in tree:
        yield task
        for part in ("block", "rescue", "always"):
            yield from tasks(task.get(part, []))


def nothing_is_half_made(machine):
    machine.run("cmp /usr/bin/aegiskv /proc/$(pidof aegiskv)/exe; dpkg --audit")
    assert machine.run("dpkg --audit") == ""
    left = "find /etc/aegiskv /var/cache/aegiskv-packages -name '.ansible*' -o -name '*.dpkg-*'"
    assert machine.run(left) == ""
    # Packages are kept by the beginning of their checksum.
    for line in machine.run("cd /var/cache/aegiskv-packages; sha1sum *.deb").splitlines():
        checksum, name = line.split()
        assert checksum.startswith(name.partition("-")[0])


def read_until(running, task):
    """Reads what a playbook prints until it begins a task."""
    said = ""
    for line in running.stdout:
        said += line
        if line.startswith("TASK [") and line.rstrip(" *\n").endswith(f": {task}]"):
            return
    raise AssertionError(f"{task} never began: {said}")
