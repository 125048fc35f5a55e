"""A cluster under load, a Prometheus that scrapes it by the project's own examples, and an
Alertmanager: all on loopback, all ended with the tests.
"""

import contextlib
import http.client
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import pytest
import yaml

from board import GRAFANA
from node import Node, build_dir, free_port

NODES = 3
START_SECONDS_MAX = 90
# Debian's packages would start services, so setup.sh only unpacks them here.
UNPACKED = build_dir() / "debian/usr"


def tool(name):
    """A program on the PATH, or of a package that setup.sh unpacked; skips the test without it."""
    found = shutil.which(name) or shutil.which(name, path=UNPACKED / "bin")
    if not found:
        pytest.skip(f"{name} is not here; `scripts/setup.sh test` unpacks Debian's package")
    return found


def within_its_files(command):
    """The command, where it finds /usr/share/prometheus, a path that Debian has built into it, also
    if the package is only unpacked: in a mount namespace of its own."""
    if Path("/usr/share/prometheus").exists():
        return command
    own = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--map-root-user", "--mount"]
    return [
        *own,
        "sh",
        "-c",
        'mount --bind "$0" /usr/share && exec "$@"',
        UNPACKED / "share",
        *command,
    ]


def binary():
    """The node to test: AEGISKV_BINARY, or the debug build."""
    path = Path(os.environ.get("AEGISKV_BINARY", build_dir() / "debug/aegiskv"))
    if not path.exists():
        pytest.fail(f"there is no {path}; build it with `cargo build`")
    return path


def wait(what, holds, seconds=60):
    """Waits until `holds()` is true; gives what it said last if it never is."""
    end = time.monotonic() + seconds
    while not (now := holds()):
        assert time.monotonic() < end, f"{what}: not within {seconds} s"
        time.sleep(0.3)
    return now


def get(url):
    with urllib.request.urlopen(url, timeout=30) as answer:
        return json.load(answer)


class Daemon:
    """A process with a port and a log of its own."""

    def __init__(self, folder, name, *arguments):
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / f"{name}.log"
        command = [tool(name), f"--web.listen-address=127.0.0.1:{self.port}", *arguments]
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                within_its_files(command), stdout=log, stderr=log, cwd=folder
            )

    def wait_ready(self):
        def answers():
            assert self.process.poll() is None, self.log.read_text()[-2000:]
            with contextlib.suppress(OSError):
                return urllib.request.urlopen(f"{self.url}/-/ready", timeout=5).status == 200

        wait(f"{self.log.stem} is ready", answers)

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()


class Alertmanager(Daemon):
    """With the example of a configuration."""

    def __init__(self, folder):
        super().__init__(
            folder,
            "prometheus-alertmanager",
            f"--config.file={GRAFANA / 'alertmanager.yml'}",
            f"--storage.path={folder / 'alertmanager'}",
            "--cluster.listen-address=",
        )

    def firing(self):
        """{alert: [its labels and annotations]} of what is being told people."""
        told = {}
        for alert in get(f"{self.url}/api/v2/alerts"):
            told.setdefault(alert["labels"]["alertname"], []).append(alert)
        return told


def shortened(rules):
    """The rules with each `for` cut to 2 s and each span of a query to a thirtieth, 10 s at least,
    so that tests need not wait as an operator does. Thresholds stay what they are."""

    def span(found):
        return f"{max(10, int(found[1]) * {'m': 60, 'h': 3600}[found[2]] // 30)}s"

    content = yaml.safe_load(rules)
    for group in content["groups"]:
        for rule in group["rules"]:
            if "for" in rule:
                rule["for"] = "2s"
            rule["expr"] = re.sub(r"(?<=[\[:])(\d+)([mh])(?=[\]:])", span, rule["expr"])
    return yaml.safe_dump(content)


class Prometheus(Daemon):
    """With the example of a configuration, but for addresses, and every second."""

    def __init__(self, folder, nodes, alertmanager):
        settings = yaml.safe_load((GRAFANA / "prometheus.yml").read_text())
        settings["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        (folder / "rules").mkdir()
        for path in (GRAFANA / "rules").glob("*.yml"):
            (folder / "rules" / path.name).write_text(shortened(path.read_text()))
        managers = settings["alerting"]["alertmanagers"][0]["static_configs"][0]
        managers["targets"] = [f"127.0.0.1:{alertmanager.port}"]
        targets = [f"127.0.0.1:{node.operations_port}" for node in nodes]
        (folder / "targets").mkdir()
        listed = yaml.safe_load((GRAFANA / "targets/aegiskv.yml").read_text())
        listed[0]["targets"] = targets
        (folder / "targets/aegiskv.yml").write_text(yaml.safe_dump(listed))
        (folder / "prometheus.yml").write_text(yaml.safe_dump(settings))
        super().__init__(
            folder,
            "prometheus",
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'prometheus'}",
        )

    def ask(self, path, **parameters):
        """What Prometheus' API answers; an error of the query is an error here."""
        try:
            return get(f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}")["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{parameters}: {error.read().decode()}") from None

    def query(self, expression, **when):
        return self.ask("query", query=expression, **when)["result"]

    def values(self, expression):
        """The numbers of an instant query; NaN is none."""
        numbers = (float(one["value"][1]) for one in self.query(expression))
        return [number for number in numbers if number == number]


class Member(Node):
    """A node whose reloadable settings stand in a file, so that a test can change them."""

    def __init__(self, folder, name, binary, **settings):
        super().__init__(binary, folder / name, node_id=name, **settings)
        self.file = folder / f"{name}.json"
        self.arguments = ["--config", str(self.file)]
        self.live = {}

    def write(self, **settings):
        """Changes settings in the file, without telling the node."""
        self.live |= settings
        self.file.write_text(json.dumps(self.live))

    def reload(self, **settings):
        """Changes settings and has them read; gives the answer's status."""
        self.write(**settings)
        return self.operations("POST", "/admin/reload")[0]


class Cluster:
    """Three nodes that speak TLS to clients and to each other."""

    # Quick to notice a death, and small enough to be filled.
    SETTINGS = {
        "num_shards": 24,
        "wal_mode": "sync",
        "gossip_interval": "200ms",
        "suspect_timeout": "1s",
        "dead_timeout": "2s",
        "gossip_secret": "a-secret-that-is-only-good-for-tests-1",
        "tls_enabled": "true",
    }
    LIVE = {"max_memory_mb": 32, "eviction_policy": "none", "max_conns": 200}

    def __init__(self, folder):
        program = binary()
        pki = folder / "pki"

        def certs(*arguments):
            subprocess.run([program, "certs", *arguments], check=True, capture_output=True)

        certs("init", "--dir", pki)
        self.nodes = []
        for name in (f"kv{n + 1}" for n in range(NODES)):
            certs("issue", "--dir", pki, name, "--san", "127.0.0.1")
            files = {"cert": f"{name}.crt", "key": f"{name}.key", "ca": "ca.crt"}
            files = {f"tls_{key}_file": pki / file for key, file in files.items()}
            self.nodes.append(Member(folder, name, program, **self.SETTINGS, **files))
        addrs = ",".join(f"127.0.0.1:{node.node_port}" for node in self.nodes)
        for node in self.nodes:
            node.settings["addrs"] = addrs
            node.write(**self.LIVE)
        self.trust = ssl.create_default_context(cafile=pki / "ca.crt")

    def start(self):
        for node in self.nodes:
            node.launch()
        for node in self.nodes:
            node.wait_ready()
        wait("all shards have all their copies", self.is_whole, START_SECONDS_MAX)

    def is_whole(self):
        """Whether each node sees each shard healthy, and every member."""
        sees = (json.loads(node.operations("GET", "/cluster")[1]) for node in self.nodes)
        sees = [(len(view["members"]), view["shards"]["healthy"]) for view in sees]
        return sees == [(NODES, self.SETTINGS["num_shards"])] * NODES

    def reload(self, **settings):
        assert [node.reload(**settings) for node in self.nodes] == [200] * NODES

    def connect(self, node):
        return http.client.HTTPSConnection(
            "127.0.0.1", node.client_port, timeout=10, context=self.trust
        )


class Load:
    """Clients that do some of everything, each asking one node, until they are stopped."""

    PAUSE = 0.01

    def __init__(self, cluster):
        self.cluster, self.stopping = cluster, threading.Event()
        self.threads = [threading.Thread(target=self.run, args=[node]) for node in cluster.nodes]

    def start(self):
        for thread in self.threads:
            thread.start()

    def stop(self):
        self.stopping.set()
        for thread in self.threads:
            thread.join()

    def run(self, node):
        connection, turn = self.cluster.connect(node), 0
        while not self.stopping.wait(self.PAUSE):
            turn += 1
            try:
                for method, path, body in self.step(turn):
                    connection.request(method, path, body, {"content-type": "application/json"})
                    connection.getresponse().read()
            except (OSError, http.client.HTTPException):
                # The node is down, which is what some tests are about.
                connection.close()

    def step(self, turn):
        """A PUT and reads each time; the rarer operations now and then."""
        key = f"/v1/kv/user:{turn % 500}"
        yield "PUT", key, b"x" * 400
        yield "GET", key, None
        yield "GET", f"/v1/kv/user:{turn % 700}", None
        if turn % 5 == 0:
            yield "PUT", f"/v1/kv/session:{turn % 50}?ttl=300ms", b"y" * 100
            yield "GET", f"/v1/kv/session:{(turn - 50) % 50}", None
            yield "POST", "/v1/kv/visits?op=incr", None
            yield "POST", f"{key}?op=touch&ttl=5m", None
        if turn % 20 == 0:
            yield "DELETE", f"/v1/kv/user:{turn % 500}", None
            yield "GET", "/v1/kv?prefix=user:&limit=50", None
            batch = {"ops": [{"op": "put", "key": "a", "value": "1"}, {"op": "get", "key": "a"}]}
            yield "POST", "/v1/batch", json.dumps(batch)
        if turn % 200 == 0:
            yield "DELETE", "/v1/kv?prefix=session:", None


class Stack:
    """All of it, started in `folder`."""

    def __init__(self, folder):
        tool("prometheus"), tool("prometheus-alertmanager")
        self.cluster = Cluster(folder)
        self.load = Load(self.cluster)
        self.daemons = []
        self.alertmanager = self.keep(Alertmanager(folder))
        self.prometheus = self.keep(Prometheus(folder, self.cluster.nodes, self.alertmanager))

    def keep(self, daemon):
        self.daemons.append(daemon)
        return daemon

    def start(self):
        self.cluster.start()
        self.load.start()
        for daemon in self.daemons:
            daemon.wait_ready()
        wait("all nodes are scraped", lambda: self.prometheus.values("sum(up)") == [NODES])

    def stop(self):
        self.load.stop()
        for daemon in self.daemons:
            daemon.stop()
        for node in self.cluster.nodes:
            node.kill()

    def await_alerts(self, *names, seconds=90):
        """Waits until Alertmanager has all of them; gives what it has."""
        told = {}

        def all_fire():
            told.clear()
            told.update(self.alertmanager.firing())
            return set(names) <= set(told)

        try:
            wait(f"{names} fire", all_fire, seconds)
        except AssertionError as late:
            raise AssertionError(f"{late}; there are {sorted(told)}") from None
        return told

    def await_calm(self, *names, seconds=90):
        wait(f"{names} clear", lambda: not set(names) & set(self.alertmanager.firing()), seconds)


def fill_memory(cluster, share):
    """Puts values until the fullest node has used `share` of its memory."""
    connection = cluster.connect(cluster.nodes[0])
    for n in range(10_000):
        if n % 8 == 0:
            used = max(node.metric("aegis_cache_size_bytes") for node in cluster.nodes)
            if used > share * cluster.nodes[0].metric("aegis_cache_max_bytes"):
                return
        connection.request("PUT", f"/v1/kv/fill:{n}", b"z" * 100_000)
        answer = connection.getresponse()
        answer.read()
        assert answer.status in (201, 204), answer.status
    raise AssertionError(f"memory was not filled to {share}")


def hold_connections(node, count):
    """Opens so many connections to the node and keeps them."""
    return [socket.create_connection(("127.0.0.1", node.client_port)) for _ in range(count)]
