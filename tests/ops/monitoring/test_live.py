"""A real Prometheus and Alertmanager beside a cluster under load: every query has an answer, and
alerts fire when something breaks and clear when it is mended.

The tests go through one cluster's life in the order of this file.
"""

import json
import re
import time

import pytest

import board
from draw import draw
from stack import Stack, fill_memory, hold_connections, wait

# Queries that are empty when all is well, with the reason.
EMPTY = {
    "Alerts": "no alert, no line; while one fires it is looked at, below",
    "annotation Alerts": "the same",
    "annotation Starts": "marks the moments of a start, and there is none just now",
}


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    stack = Stack(tmp_path_factory.mktemp("monitoring"))
    try:
        stack.start()
        yield stack
    finally:
        stack.stop()


@pytest.fixture
def leave(stack):
    """Somebody holds leave to stop a node: else there is nothing to say of it."""
    nodes = stack.cluster.nodes
    asked = json.dumps({"node_id": nodes[1].settings["node_id"], "holder": "ops@deploy"})

    def told():
        texts = [node.operations("GET", "/metrics")[1] for node in nodes]
        return all(b"aegis_stop_lease{" in text for text in texts)

    lease = "/admin/stop-lease"
    wait("a stop lease", lambda: nodes[0].operations("POST", lease, asked)[0] == 200, 40)
    wait("all members know of it", told, 10)
    yield
    named = f"{lease}?node_id={nodes[1].settings['node_id']}"
    assert nodes[0].operations("DELETE", named)[0] == 200


def instance(node):
    return f"127.0.0.1:{node.operations_port}"


def chosen(value):
    """A choice as Grafana writes it into a query: a regular expression within a string."""
    return re.escape(value).replace("\\", r"\\")


def alert_panel(stack):
    """What the dashboard's list of alerts shows."""
    query = dict(board.targets(board.dashboard()))["Alerts"]["expr"]
    return {one["metric"]["alertname"] for one in stack.prometheus.query(board.fill(query))}


def test_a_killed_node_is_told_of_and_its_return_too(stack):
    missing = ["AegisKVNodeDown", "AegisKVMembersMissing", "AegisKVUnderReplicated"]
    missing.append("AegisKVReplicationFailing")
    stack.await_calm(*missing)
    leader = next(n for n in stack.cluster.nodes if n.metric("aegis_topology_leader") == 1)
    # One that leads shards and the topology: the worst to lose.
    leader.kill()
    told = stack.await_alerts(*missing)
    assert told["AegisKVNodeDown"][0]["labels"]["instance"] == instance(leader)
    assert told["AegisKVNodeDown"][0]["labels"]["cluster"] == "main"
    assert told["AegisKVMembersMissing"][0]["annotations"]["summary"].endswith("missing: 1")
    assert set(missing) <= alert_panel(stack)
    for name in missing:
        for text in told[name][0]["annotations"].values():
            assert "<no value>" not in text and "error" not in text
    leader.launch()
    leader.wait_ready()
    stack.await_calm(*missing)


def queries(view):
    """(where, query) of everything in the dashboard, and of all rules."""
    dashboard = board.dashboard()
    for title, target in board.targets(dashboard):
        yield title, board.fill(target["expr"], **view)
    for one in dashboard["annotations"]["list"]:
        yield f"annotation {one['name']}", board.fill(one["expr"], **view)
    for name in board.recordings():
        yield name, name


def numbers(stack, view):
    """{where: how many numbers each of its queries gave}; NaN is none."""
    found = {}
    for where, query in queries(view):
        found.setdefault(where, []).append(len(stack.prometheus.values(query)))
    return found


@pytest.mark.parametrize("view", ["cluster", "node"])
def test_every_query_returns_data(stack, leave, view):
    for node in stack.cluster.nodes:
        assert node.operations("POST", "/admin/snapshot")[0] == 200
    # The node that was killed cannot tell of the failover that another one decided.
    decider = max(stack.cluster.nodes, key=lambda node: node.metric("aegis_failovers_total"))
    choice = {"instance": chosen(instance(decider))} if view == "node" else {}

    def complete():
        found = numbers(stack, choice)
        return all(min(counts) > 0 for where, counts in found.items() if where not in EMPTY)

    try:
        wait("all queries return data", complete, 40)
    except AssertionError:
        found = numbers(stack, choice)
        lacking = {w: c for w, c in found.items() if w not in EMPTY and not min(c)}
        raise AssertionError(f"no data: {lacking}") from None


def test_every_alert_can_be_asked(stack):
    known = stack.prometheus.ask("rules", type="alert")["groups"]
    health = {rule["name"]: rule["health"] for group in known for rule in group["rules"]}
    assert health == dict.fromkeys(board.alerts(), "ok")


def test_every_choice_has_something_to_choose(stack):
    for one in board.dashboard()["templating"]["list"][1:]:
        inner = re.fullmatch(r"label_values\((.*), (\w+)\)", one["query"]["query"])
        query, label = board.fill(inner[1]), inner[2]
        found = stack.prometheus.ask(f"label/{label}/values", **{"match[]": query})
        assert len(found) == (3 if label == "instance" else 1), one["name"]


def test_metrics_are_those_of_the_docs(stack, leave):
    """As a node says it, not as the code reads."""
    text = stack.cluster.nodes[0].operations("GET", "/metrics")[1].decode()
    said = dict(re.findall(r"^# TYPE (\w+) (\w+)$", text, re.M))
    assert said == board.metrics_of_docs()


def test_a_refused_reload_is_told_of_until_it_is_mended(stack):
    node = stack.cluster.nodes[0]
    node.file.write_text('{"max_memory_mb": "plenty"}')
    assert node.operations("POST", "/admin/reload")[0] == 422
    told = stack.await_alerts("AegisKVReloadFailed")
    assert told["AegisKVReloadFailed"][0]["labels"]["instance"] == instance(node)
    assert node.reload() == 200
    stack.await_calm("AegisKVReloadFailed")


def test_settings_that_differ_are_told_of_until_they_are_equal(stack):
    assert stack.cluster.nodes[1].reload(max_memory_mb=40) == 200
    stack.await_alerts("AegisKVConfigSkew")
    assert stack.cluster.nodes[1].reload(max_memory_mb=32) == 200
    stack.await_calm("AegisKVConfigSkew")


def test_connections_near_their_limit_are_told_of(stack):
    node = stack.cluster.nodes[1]
    held = hold_connections(node, 180)
    stack.await_alerts("AegisKVConnectionsHigh")
    held += hold_connections(node, 40)
    stack.await_alerts("AegisKVConnectionsRejected")
    for connection in held:
        connection.close()
    stack.await_calm("AegisKVConnectionsHigh", "AegisKVConnectionsRejected")


def test_full_memory_is_told_of_until_there_is_room(stack):
    """First over 90%; then no room at all, so that writes are refused, which is told of as well."""
    fill_memory(stack.cluster, 0.92)
    stack.await_alerts("AegisKVMemoryHigh")
    full = ["AegisKVMemoryFull", "AegisKVErrors"]
    stack.cluster.reload(max_memory_mb=29)
    stack.await_alerts(*full)
    stack.cluster.reload(max_memory_mb=128)
    stack.await_calm("AegisKVMemoryHigh", *full)


def test_a_node_that_serves_nobody_is_told_of(stack):
    node = stack.cluster.nodes[2]
    assert node.operations("POST", "/admin/drain")[0] == 202
    stack.await_alerts("AegisKVNodeNotServing")
    node.stop()
    node.launch()
    node.wait_ready()
    stack.await_calm("AegisKVNodeNotServing", "AegisKVNodeDown")


def test_a_lost_majority_and_a_lost_cluster_are_told_of(stack):
    first, *others = stack.cluster.nodes
    for node in others:
        node.kill()
    stack.await_alerts("AegisKVShardsUnavailable", "AegisKVNoLeader")
    first.kill()
    stack.await_alerts("AegisKVClusterDown")
    # What follows from it is not said beside it.
    wait(
        "it is inhibited",
        lambda: (
            stack.alertmanager.firing()["AegisKVNodeDown"][0]["status"]["state"] == "suppressed"
        ),
    )
    for node in stack.cluster.nodes:
        node.launch()
    for node in stack.cluster.nodes:
        node.wait_ready()
    stack.await_calm("AegisKVClusterDown", "AegisKVShardsUnavailable", "AegisKVNoLeader")


def test_the_dashboard_can_be_drawn(stack, tmp_path):
    """By our own renderer, every panel of it, from all that has happened here."""
    began = time.time() - 240
    drawn = draw(stack.prometheus, tmp_path / "dashboard.png", began, time.time())
    titles = [panel["title"] for panel in board.panels(board.dashboard())]
    assert [one["title"] for one in drawn] == titles
    assert [one["title"] for one in drawn if one["error"]] == []
    assert (tmp_path / "dashboard.png").stat().st_size > 50_000
