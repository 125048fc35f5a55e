"""Gates on real hosts, with members that lie: the play stops, says why, and goes no further."""

from pathlib import Path

import pytest

import liar
from control import eventually, lease, operations, pids

pytestmark = pytest.mark.long
LIAR = Path(liar.__file__)
WHY = {
    "under_replicated": "1 shards are under replicated",
    "another_cluster": "it is a member of cluster 00000000-0000-4000-8000-000000000000, and not of",
    "broken_body": "was answered with 200 and a body that is no JSON",
    "no_answer": "was not answered",
}


@pytest.fixture(scope="module")
def among_liars(cluster):
    """The cluster, with playbooks that ask all members by way of liars."""
    patience = cluster.vars["aegiskv_wait_seconds"]
    for name in cluster.members:
        cluster.hosts[name].send(LIAR, "/srv/liar.py")
    cluster.vars |= {"aegiskv_ops_url": f"http://127.0.0.1:{liar.PORT}", "aegiskv_wait_seconds": 3}
    yield cluster
    cluster.vars["aegiskv_wait_seconds"] = patience
    del cluster.vars["aegiskv_ops_url"]


def start_lying(cluster, lie, honest):
    for name in cluster.members:
        run = f"systemd-run --quiet --unit=liar python3 /srv/liar.py {lie} {honest}"
        cluster.hosts[name].run(f"systemctl stop liar 2>/dev/null; {run}")
    for name in cluster.members:
        asked = f"curl -sS localhost:{liar.PORT}/health"
        assert eventually(lambda m=cluster.hosts[name], a=asked: m.run(a, check=False).stdout)


@pytest.mark.parametrize("lie", liar.LIES)
def test_a_lie_holds_the_gate_and_nothing_is_touched(among_liars, lie):
    # The first question is what there is, the second one whether a node may be stopped.
    start_lying(among_liars, lie, honest=1)
    before = pids(among_liars)

    played = among_liars.play("rolling_restart", check=False)

    assert played.code != 0
    assert "not settled, asked of kv" in played.why[0]
    assert WHY[lie] in played.why[0]
    assert pids(among_liars) == before
    assert lease(among_liars.hosts["kv1"]) is None


@pytest.mark.parametrize("playbook", ["rolling_restart", "upgrade"])
def test_after_a_lie_about_the_first_node_the_next_one_is_not_touched(
    among_liars, playbook, another_build, package
):
    among_liars.vars["aegiskv_package_file"] = str(another_build)
    start_lying(among_liars, "under_replicated", honest=2)
    before = pids(among_liars)
    try:
        played = among_liars.play(playbook, check=False)
        after, left = pids(among_liars), lease(among_liars.hosts["kv1"])
    finally:
        among_liars.vars["aegiskv_package_file"] = str(package)

    assert played.code != 0
    assert WHY["under_replicated"] in played.why[0]
    (touched,) = (name for name in among_liars.members if after[name] != before[name])
    assert left["node_id"] == touched
    # Told the truth, the next run takes it up, and brings back what was upgraded.
    start_lying(among_liars, "under_replicated", honest=1000)
    among_liars.play(playbook)
    assert lease(among_liars.hosts["kv1"]) is None
    for name in among_liars.members:
        assert operations(among_liars.hosts[name], "/cluster")["settled"]
        among_liars.hosts[name].run("cmp /usr/bin/aegiskv /proc/$(pidof aegiskv)/exe")
