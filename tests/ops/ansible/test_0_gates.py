"""What gates let pass, shown with a member that lies. No hosts are needed for it."""

import copy
import http.server
import importlib
import json
import re
import threading

import pytest
import yaml
from ansible.module_utils.testing import patch_module_args

from node import ROOT

CLUSTER = {
    "cluster_id": "c1",
    "epoch": 7,
    "leader": "kv1",
    "members": [{"node_id": name, "status": "alive", "shards": 16} for name in ("kv1", "kv2", "kv3")],
    "shards": {
        "total": 16,
        "healthy": 16,
        "under_replicated": 0,
        "catching_up": 0,
        "moving": 0,
        "unavailable": 0,
    },
    "settled": True,
    "moves_left": 0,
}
LEASE = {"lease_id": 3, "node_id": "kv2", "holder": "ann@control", "until": "2030-01-01T00:00:00Z"}


class Member:
    """Answers as a member of a settled cluster does, but for what a test has it say instead."""

    def __init__(self):
        self.answers = {
            "GET /health": (200, {"node_id": "kv3", "status": "ok"}),
            "GET /cluster": (200, copy.deepcopy(CLUSTER)),
            "GET /ready": (200, {"ready": True, "checks": {"node": "ok", "shards": "ok"}}),
            "GET /admin/stop-lease": (200, {"lease": None}),
            "POST /admin/stop-lease": (200, dict(LEASE)),
            "DELETE /admin/stop-lease": (200, {"released": True, "lease": LEASE}),
        }
        self.asked = []

    def answer(self, handler):
        path = handler.path.partition("?")[0]
        self.asked.append(f"{handler.command} {handler.path}")
        length = int(handler.headers.get("Content-Length") or 0)
        handler.rfile.read(length)
        status, body = self.answers[f"{handler.command} {path}"]
        if status is None:
            return
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)


@pytest.fixture
def member():
    told = Member()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            told.answer(self)

        do_POST = do_DELETE = do_GET

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    told.url = f"http://127.0.0.1:{server.server_port}"
    yield told
    server.shutdown()
    server.server_close()


@pytest.fixture
def module(collections, member, capsys, monkeypatch):
    """Runs a module of the collection against the member; its exit code, and what it returned."""
    monkeypatch.syspath_prepend(str(collections))

    def run(name, **arguments):
        of = importlib.import_module(f"ansible_collections.aegiskv.cluster.plugins.modules.{name}")
        arguments = {"ops_url": member.url, "timeout": 0} | arguments
        with patch_module_args(arguments), pytest.raises(SystemExit) as ended:
            of.main()
        return ended.value.code, json.loads(capsys.readouterr().out)

    return run


GATE = {"asked": "kv3", "cluster_id": "c1", "members": ["kv1", "kv2", "kv3"]}


def test_a_settled_cluster_passes(module):
    code, said = module("settled", **GATE)
    assert code == 0
    assert said["leader"] == "kv1"
    assert said["members"] == {"kv1": "alive", "kv2": "alive", "kv3": "alive"}


def cluster(**changes):
    return "GET /cluster", (200, CLUSTER | changes)


def shards(**changes):
    return cluster(shards=CLUSTER["shards"] | changes)


def with_status(name, status):
    members = [m | ({"status": status} if m["node_id"] == name else {}) for m in CLUSTER["members"]]
    return cluster(members=members)


@pytest.mark.parametrize(
    ("lie", "why"),
    [
        (with_status("kv1", "dead"), "kv1 is dead"),
        (with_status("kv1", "suspect"), "kv1 is suspect"),
        (with_status("kv2", "leaving"), "kv2 is leaving"),
        (cluster(members=CLUSTER["members"][:2]), "kv3 is no member"),
        (shards(healthy=15, under_replicated=1), "1 shards are under replicated"),
        (shards(healthy=14, catching_up=2), "2 shards are catching up"),
        (shards(healthy=15), "do not add up"),
        (shards(healthy=16.0), "no usable field 'healthy'"),
        (shards(total=0, healthy=0), "do not add up"),
        (cluster(settled=False, moves_left=100), "100 moves are left"),
        (cluster(settled="true"), "no usable field 'settled'"),
        (("GET /cluster", (200, {k: v for k, v in CLUSTER.items() if k != "settled"})), "'settled'"),
        (cluster(leader=None), "nobody leads"),
        (cluster(cluster_id="c2"), "a member of cluster c2, and not of c1"),
        (("GET /cluster", (200, json.dumps(CLUSTER).encode()[:-9])), "a body that is no JSON"),
        (("GET /cluster", (200, b"<html>healthy 16 settled true</html>")), "no JSON"),
        (("GET /cluster", (200, [CLUSTER])), "no JSON object"),
        (("GET /cluster", (200, b"")), "no JSON"),
        (("GET /cluster", (500, CLUSTER)), "answered with 500"),
        (("GET /cluster", (None, None)), "was not answered"),
        (("GET /health", (200, {"node_id": "kv2"})), "is kv2, and not kv3"),
    ],
)
def test_a_gate_holds_and_says_why(module, member, lie, why):
    member.answers[lie[0]] = lie[1]
    code, said = module("settled", **GATE)
    assert code != 0
    assert why in said["msg"]


def test_a_gate_waits_for_what_passes_and_not_for_what_cannot(module, member):
    member.answers.update([with_status("kv1", "suspect")])
    assert "(waited for 2 s)" in module("settled", **GATE, timeout=2)[1]["msg"]
    assert len(member.asked) > 2

    del member.asked[:]
    member.answers.update([cluster(cluster_id="c2")])
    assert module("settled", **GATE, timeout=60)[0] != 0
    assert len(member.asked) == 2


HOLD = {"node_id": "kv2", "holder": "ann@control", "token_file": "/nowhere"}


def test_the_lease_is_taken_and_given_back(module, member):
    assert module("stop_lease", **HOLD)[1]["lease"]["lease_id"] == 3
    code, said = module("stop_lease", **HOLD, state="released")
    assert (code, said["changed"]) == (0, True)
    assert member.asked[-1] == "DELETE /admin/stop-lease?node_id=kv2&holder=ann%40control"


@pytest.mark.parametrize(
    ("status", "body", "why"),
    [
        (409, {"detail": "bob holds the stop lease for kv1", "held_by": "bob"}, "bob holds"),
        (503, {"detail": "kv1 is away", "members_missing": ["kv1"]}, "members missing: kv1"),
        (404, {"detail": "the cluster has no member named kv2"}, "no member named kv2"),
        (200, LEASE | {"holder": "bob"}, "another lease was granted"),
        (200, LEASE | {"node_id": "kv1"}, "another lease was granted"),
        (200, {}, "no usable field 'node_id'"),
        (200, b"granted", "no JSON"),
        (401, {"detail": "no token"}, "answered with 401: no token"),
        (None, None, "was not answered"),
    ],
)
def test_no_lease_no_stop(module, member, status, body, why):
    member.answers["POST /admin/stop-lease"] = (status, body)
    code, said = module("stop_lease", **HOLD)
    assert code != 0
    assert why in said["msg"]


def test_a_node_that_is_not_ready_is_told_from_one_that_is(module, member):
    assert module("ready", node_id="kv3")[0] == 0
    for answer, why in (
        ((503, {"ready": False, "checks": {"shards": "2 copies here not level yet"}}), "not level"),
        ((200, {"ready": "yes", "checks": {}}), "no usable field 'ready'"),
        ((200, {}), "no usable field 'checks'"),
    ):
        member.answers["GET /ready"] = answer
        code, said = module("ready", node_id="kv3")
        assert code != 0
        assert why in said["msg"]


def test_no_gate_looks_away():
    """In no task is a failure ignored, or text searched where a field is meant."""
    files = sorted((ROOT / "ansible").glob("**/*.yml"))
    assert len(files) > 20
    for file in files:
        text = file.read_text()
        assert not re.search(r"ignore_errors|ignore_unreachable|\bgrep\b", text), file
        for task in tasks(yaml.safe_load(text)):
            assert "failed_when" not in task, (file, task)
            if "rescue" in task:
                assert file.name == "upgrade.yml"


def tasks(tree):
    if isinstance(tree, list):
        for part in tree:
            yield from tasks(part)
    elif isinstance(tree, dict):
        yield tree
        for part in tree.values():
            yield from tasks(part)
