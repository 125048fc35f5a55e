"""The servers of the comparison: how each is started, filled and asked.

Every server listens on a free loopback port, keeps its files in a folder of the run,
and is ended by the handle it was started with.
"""

import base64
import http.client
import json
import os
import re
import resource
import shutil
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))
from node import Node, free_port  # noqa: E402

VALUE_BYTES = 100
VALUE = "v" * VALUE_BYTES
CORES = os.cpu_count() or 1
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


def key(at):
    """The key of item `at`: 16 bytes, as redis-benchmark makes them."""
    return f"key:{at:012d}"


def cpu_seconds(pids):
    """User and system time of processes, all their threads, so far."""
    total = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        total += int(fields[11]) + int(fields[12])
    return total / TICKS_PER_SECOND


def resident_bytes(pid):
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"process {pid} has no resident memory")


class Server:
    """A process that serves HTTP; `get` and `put` are the arguments of load.lua."""

    name = ""
    needs = ()
    checked_body = VALUE.encode()
    trust = None

    def __init__(self, folder):
        self.folder = Path(folder) / self.name.replace(" ", "-")
        self.folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.processes = []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    @property
    def pids(self):
        """The serving processes, children too."""
        found = [process.pid for process in self.processes]
        for pid in found:
            children = Path(f"/proc/{pid}/task/{pid}/children")
            if children.exists():
                found.extend(int(child) for child in children.read_text().split())
        return found

    def spawn(self, *command, port=None):
        with open(self.folder / "log", "ab") as log:
            process = subprocess.Popen(
                [str(word) for word in command],
                cwd=self.folder, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
            )
        self.processes.append(process)
        deadline = time.monotonic() + 30
        while True:
            try:
                socket.create_connection(("127.0.0.1", port or self.port), timeout=1).close()
                return process
            except OSError as error:
                if process.poll() is not None or time.monotonic() > deadline:
                    log = (self.folder / "log").read_text()[-2000:]
                    raise SystemExit(f"{self.name} does not serve: {error}\n{log}") from error
                time.sleep(0.02)

    def start(self):
        raise NotImplementedError

    def fill(self, count):
        """Stores `count` items; servers that answer without data have nothing to do."""

    def stop(self):
        for process in reversed(self.processes):
            process.terminate()
        for process in reversed(self.processes):
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.processes.clear()

    def check(self, kind):
        """One request of the kind measured must succeed, and a GET give back the value."""
        method, path, *rest = self.get if kind == "GET" else self.put
        fill = {"%s": key(7), "%b": base64.b64encode(key(7).encode()).decode()}
        texts = [path, *rest[:1]]
        for mark, text in fill.items():
            texts = [each.replace(mark, text) for each in texts]
        texts = [re.sub(r"%(\d+)v", lambda size: "v" * int(size[1]), each) for each in texts]
        headers = {"Content-Type": rest[1]} if len(rest) > 1 else {}
        connection = self.connect(timeout=10)
        connection.request(method, texts[0], texts[1] if rest else None, headers)
        response = connection.getresponse()
        body = response.read()
        connection.close()
        if response.status >= 300 or (kind == "GET" and self.checked_body not in body):
            raise SystemExit(f"{self.name} answers {kind} with {response.status} {body[:200]}")

    def connect(self, timeout):
        if self.trust:
            return http.client.HTTPSConnection("127.0.0.1", self.port, timeout=timeout,
                                               context=self.trust)
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)

    def version(self):
        return ""


def first_line(*command):
    done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    return (done.stdout + done.stderr).strip().splitlines()[0]


class AegisKV(Server):
    name = "AegisKV"
    get = ("GET", "/v1/kv/%s")

    def __init__(self, folder, binary, value_bytes=VALUE_BYTES, tls=False, **settings):
        super().__init__(folder)
        settings = {"max_memory_mb": 4096, **settings}
        self.binary, self.value_bytes = binary, value_bytes
        self.checked_body = b"v" * value_bytes
        self.put = ("PUT", "/v1/kv/%s?ttl=1h", f"%{value_bytes}v")
        if tls:
            settings |= self.certificates()
        self.node = Node(binary, self.folder / "data", **settings)
        self.port = self.node.client_port

    def certificates(self):
        """Makes the node's certificate and has clients trust it; returns its settings."""
        folder = self.folder / "tls"
        for command in (["init"], ["issue", "bench", "--san", "127.0.0.1"]):
            subprocess.run([self.binary, "certs", *command, "--dir", folder], check=True,
                           capture_output=True)
        self.trust = ssl.create_default_context(cafile=folder / "ca.crt")
        files = {"cert": "bench.crt", "key": "bench.key", "ca": "ca.crt"}
        return {f"tls_{part}_file": folder / file for part, file in files.items()}

    @property
    def url(self):
        return f"http{'s' if self.trust else ''}://127.0.0.1:{self.port}"

    def start(self):
        seconds = self.node.start()
        self.processes = [self.node.process]
        return seconds

    def stop(self):
        self.node.stop()
        self.processes.clear()

    def fill(self, count, ttl=True, stride=1):
        """Loads through the batch endpoint, a line an item, over one connection; every
        `stride`th item after the one before."""
        connection = self.connect(timeout=120)
        value, ttl = "v" * self.value_bytes, ', "ttl": "2h"' if ttl else ""
        step = max(1, min(1000, (4 << 20) // self.value_bytes))
        for start in range(0, count, step):
            lines = "".join(
                f'{{"op":"put","key":"{key(at * stride % count)}","value":"{value}"{ttl}}}\n'
                for at in range(start, min(start + step, count))
            )
            headers = {"Content-Type": "application/x-ndjson"}
            connection.request("POST", "/v1/batch", lines.encode(), headers)
            response = connection.getresponse()
            body = response.read()
            stored = body.count(b'"status":201') + body.count(b'"status":204')
            if response.status != 200 or stored != lines.count("\n"):
                raise SystemExit(f"AegisKV took {stored} items: {response.status} {body[:300]}")
        connection.close()

    def version(self):
        return first_line(str(self.binary), "--version")


class Bare(Server):
    get = AegisKV.get

    def __init__(self, folder, binary, value_bytes=VALUE_BYTES):
        super().__init__(folder)
        self.binary, self.value_bytes = binary, value_bytes
        self.checked_body = b"v" * value_bytes
        self.put = ("PUT", "/v1/kv/%s?ttl=1h", f"%{value_bytes}v")

    def start(self):
        kind = self.name.removeprefix("bare ")
        self.spawn(self.binary, kind, f"127.0.0.1:{self.port}", self.value_bytes)


class AegisCluster(AegisKV):
    """Three nodes on the same cores; the load goes to the first, which serves every key."""

    name = "AegisKV, three nodes"

    def __init__(self, folder, binary, **settings):
        super().__init__(folder, binary, **settings)
        others = [Node(binary, self.folder / f"data{at}", **self.node.settings) for at in (2, 3)]
        self.nodes = [self.node, *others]
        seeds = ",".join(f"127.0.0.1:{node.node_port}" for node in self.nodes)
        for at, node in enumerate(self.nodes, 1):
            # Found fast: only how it works once it is there is measured.
            node.settings |= {"node_id": f"node{at}", "seeds": seeds, "gossip_interval": "100ms"}

    def start(self):
        for node in self.nodes:
            node.launch()
        for node in self.nodes:
            node.wait_ready()
        deadline = time.monotonic() + 60
        while not self.healthy():
            if time.monotonic() > deadline:
                raise SystemExit(f"the cluster is not healthy: {self.node.log()}")
            time.sleep(0.1)
        self.processes = [node.process for node in self.nodes]

    def healthy(self):
        view = json.loads(self.node.operations("GET", "/cluster")[1])
        level = view["shards"]["healthy"] == view["shards"]["total"]
        primaries = [member["primaries"] for member in view["members"]]
        return level and len(primaries) == 3 and max(primaries) - min(primaries) <= 2

    def stop(self):
        for node in self.nodes:
            node.stop()
        self.processes.clear()



class BareHyper(Bare):
    name = "bare hyper"


class BareAxum(Bare):
    name = "bare axum"


class Redis(Server):
    """Redis alone, over its own protocol."""

    name = "Redis"
    needs = ("redis-server", "redis-cli", "redis-benchmark")

    def __init__(self, folder, *options):
        super().__init__(folder)
        self.options = options

    def start(self):
        self.spawn(
            "redis-server", "--port", self.port, "--bind", "127.0.0.1",
            "--dir", self.folder, "--save", "", "--daemonize", "no", *self.options,
        )

    def cli(self, *words, text=None):
        command = ["redis-cli", "-h", "127.0.0.1", "-p", str(self.port), *words]
        done = subprocess.run(command, input=text, capture_output=True, check=True)
        return done.stdout.decode()

    def fill(self, count, ttl=True, stride=1):
        step = 100_000
        words, expiry = ("*4\r\n$5\r\nSETEX", "$4\r\n7200\r\n") if ttl else ("*3\r\n$3\r\nSET", "")
        for start in range(0, count, step):
            commands = "".join(
                f"{words}\r\n$16\r\n{key(at * stride % count)}\r\n{expiry}"
                f"${len(VALUE)}\r\n{VALUE}\r\n"
                for at in range(start, min(start + step, count))
            )
            self.cli("--pipe", text=commands.encode())

    def info(self, name):
        for line in self.cli("info", "everything").splitlines():
            if line.startswith(name + ":"):
                return line.split(":", 1)[1].strip()
        raise SystemExit(f"redis has no {name}")

    def loaded(self):
        """Whether PING is answered with PONG: not while the RDB is being loaded."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as stream:
                stream.sendall(b"PING\r\n")
                return stream.recv(64).startswith(b"+PONG")
        except OSError:
            return False

    def version(self):
        return first_line("redis-server", "--version").split(" sha")[0]


class Webdis(Server):
    name = "webdis + Redis"
    needs = ("webdis", *Redis.needs)
    get = ("GET", "/GET/%s.txt")
    put = ("PUT", "/SETEX/%s/3600", VALUE)

    def start(self):
        self.redis = Redis(self.folder)
        self.redis.start()
        config = self.folder / "webdis.json"
        config.write_text(
            f'{{"redis_host":"127.0.0.1","redis_port":{self.redis.port},"redis_auth":null,'
            f'"http_host":"127.0.0.1","http_port":{self.port},"threads":{CORES},'
            f'"daemonize":false,"database":0,"verbosity":0,"logfile":"{self.folder}/webdis.log"}}'
        )
        self.spawn("webdis", config)
        self.processes.extend(self.redis.processes)

    def fill(self, count):
        self.redis.fill(count)

    def version(self):
        done = subprocess.run(["dpkg-query", "-W", "-f", "${Version}", "webdis"],
                              capture_output=True, text=True)
        return f"webdis {done.stdout}"


class Nginx(Server):
    """Static files on tmpfs, with its cache of open files; PUT through its DAV module."""

    name = "nginx"
    needs = ("nginx",)
    get = ("GET", "/get/%s")
    put = ("PUT", "/put/%s", VALUE)

    def start(self):
        shared = Path("/dev/shm")
        self.files = (shared if shared.is_dir() else self.folder) / f"aegiskv-bench-{os.getpid()}"
        for name in ("get", "put", "temp"):
            (self.files / name).mkdir(parents=True, exist_ok=True)
        user = "user root;" if os.geteuid() == 0 else ""
        files_max = min(resource.getrlimit(resource.RLIMIT_NOFILE)[1], 200_000)
        config = self.folder / "nginx.conf"
        config.write_text(f"""
            {user} daemon off; worker_processes auto; worker_rlimit_nofile {files_max};
            pid {self.folder}/pid; error_log {self.folder}/error.log;
            events {{ worker_connections 4096; }}
            http {{
                access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000000;
                default_type application/octet-stream; root {self.files};
                client_body_temp_path {self.files}/temp;
                proxy_temp_path {self.folder}/a; fastcgi_temp_path {self.folder}/b;
                uwsgi_temp_path {self.folder}/c; scgi_temp_path {self.folder}/d;
                server {{
                    listen 127.0.0.1:{self.port} backlog=4096;
                    location /get/ {{ open_file_cache max={files_max * 3 // 4} inactive=10m; }}
                    location /put/ {{ dav_methods PUT; }}
                }}
            }}""")
        self.spawn("nginx", "-p", self.folder, "-c", config)

    def fill(self, count):
        for at in range(count):
            (self.files / "get" / key(at)).write_text(VALUE)

    def stop(self):
        super().stop()
        shutil.rmtree(self.files, ignore_errors=True)

    def version(self):
        return first_line("nginx", "-v").removeprefix("nginx version: ")


class Etcd(Server):
    """etcd as it ships (every write fsynced), through its JSON gateway."""

    name = "etcd gateway"
    needs = ("etcd",)
    get = ("POST", "/v3/kv/range", '{"key":"%b"}', "application/json")
    put = ("POST", "/v3/kv/put",
           f'{{"key":"%b","value":"{base64.b64encode(VALUE.encode()).decode()}"}}',
           "application/json")
    checked_body = base64.b64encode(VALUE.encode())

    def start(self):
        peer = f"http://127.0.0.1:{free_port()}"
        self.spawn(
            "etcd", "--name", "bench", "--data-dir", self.folder / "data", "--log-level", "error",
            "--logger", "zap",
            "--listen-client-urls", self.url, "--advertise-client-urls", self.url,
            "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
            "--initial-cluster", f"bench={peer}", "--quota-backend-bytes", str(8 << 30),
        )
        deadline = time.monotonic() + 30
        while True:
            try:
                self.check("PUT")
                return
            except (SystemExit, OSError):
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    def fill(self, count):
        """Through the gateway in transactions of 128 puts, the most that etcd takes."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        value = base64.b64encode(VALUE.encode()).decode()
        for start in range(0, count, 128):
            puts = ",".join(
                f'{{"requestPut":{{"key":"{base64.b64encode(key(at).encode()).decode()}",'
                f'"value":"{value}"}}}}'
                for at in range(start, min(start + 128, count))
            )
            connection.request("POST", "/v3/kv/txn", f'{{"success":[{puts}]}}',
                               {"Content-Type": "application/json"})
            response = connection.getresponse()
            body = response.read()
            if response.status != 200:
                raise SystemExit(f"etcd refuses a transaction: {response.status} {body[:300]}")
        connection.close()

    def version(self):
        return first_line("etcd", "--version").lower()
