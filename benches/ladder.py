"""The load varied, one thing at a time: size, connections, way of asking, rate, items, time.

Each part gives a list of cases, `{"case", "kind", "rows": {server: [round, …]}}`, a round being what
`measure.wrk` gives; rounds are interleaved as everywhere.
"""

import json
import os
import shutil
import subprocess
import threading
import time
from pathlib import Path

import peers
from measure import CLIENTS, KEYS, redis_benchmark, say, settled_resident_bytes, sync_run, wrk
from node import ROOT
from peers import AegisKV, BareHyper, Nginx, Redis, key

SIZES = {"64 B": 64, "1 KiB": 1 << 10, "16 KiB": 16 << 10, "1 MiB": 1 << 20}
CONNECTIONS = (1, 16, 64, 256, 1000)
DURABLE = (1, 16, 64, 256)
MILLIONS = (1, 2, 5, 10)
DEPTH = 16
BATCH = 100
NEEDS = {"wrk", "h2load", *Nginx.needs, *Redis.needs}
TOOLS = ROOT / "benches" / "out" / "tools"


def rounds_of(case, kind, measures, rounds):
    """Interleaved rounds of {server: measurement} as a case."""
    rows = {name: [] for name in measures}
    for turn in range(rounds):
        names = list(measures)
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            row = measures[name]()
            rows[name].append(row)
            say(f"{case}, {kind}, round {turn + 1}: {name:24} {row['ops']:9.0f}/s"
                f"  {row['cpu_us']:7.1f} us CPU")
    return {"case": case, "kind": kind, "rows": rows}


class Running:
    """Servers that serve from here to the end of the block."""

    def __init__(self, *servers):
        self.servers = servers

    def __enter__(self):
        for server in self.servers:
            server.start()
        return self.servers

    def __exit__(self, *_error):
        for server in self.servers:
            server.stop()
            shutil.rmtree(server.folder, ignore_errors=True)


def sizes(folder, binary, bare, rounds, seconds, quick):
    cases = []
    for name, size in SIZES.items():
        keys = min(KEYS, (256 << 20) // size)
        pair = AegisKV(folder, binary, size), BareHyper(folder, bare, size)
        with Running(*pair):
            for server in pair:
                server.fill(keys)
                server.check("GET")
            for kind in ("GET", "PUT"):
                measures = {server.name: lambda server=server: wrk(server, kind, seconds, keys=keys)
                            for server in pair}
                cases.append(rounds_of(name, kind, measures, rounds))
    return cases


def connections(folder, binary, bare, rounds, seconds, quick):
    cases = []
    with Running(AegisKV(folder, binary), BareHyper(folder, bare)) as pair:
        pair[0].fill(KEYS)
        for clients in CONNECTIONS:
            for kind in ("GET", "PUT"):
                measures = {
                    server.name: lambda server=server: wrk(server, kind, seconds, clients=clients)
                    for server in pair
                }
                cases.append(rounds_of(f"{clients}", kind, measures, rounds))
    return cases


def batch_of(kind):
    """A batch of lines as arguments of load.lua."""
    value = f',"value":"%{peers.VALUE_BYTES}v","ttl":"1h"' if kind == "PUT" else ""
    line = f'{{"op":"{kind.lower()}","key":"%s"{value}}}\n'
    return "POST", "/v1/batch", line * BATCH, "application/x-ndjson"


def ways(folder, binary, bare, rounds, seconds, quick):
    """Each way of asking beside the plain one of the same node; where a peer has it, beside that."""
    cases = []
    plain, tls = AegisKV(folder / "plain", binary), AegisKV(folder / "tls", binary, tls=True)
    hyper, redis, nginx = BareHyper(folder, bare), Redis(folder), Nginx(folder)
    with Running(plain, tls, hyper, redis, nginx):
        for server in (plain, tls, redis, nginx):
            server.fill(KEYS)
        for kind in ("GET", "PUT"):
            redis_kind = {"GET": "get", "PUT": "set"}[kind]
            one = {"AegisKV, one by one": lambda: wrk(plain, kind, seconds)}
            cases.append(rounds_of(f"pipelined, {DEPTH}", kind, {
                "AegisKV": lambda: wrk(plain, kind, seconds, depth=DEPTH), **one,
                "bare hyper": lambda: wrk(hyper, kind, seconds, depth=DEPTH),
                "Redis": lambda: redis_benchmark(redis, seconds, kind=redis_kind, depth=DEPTH),
            }, rounds))
            cases.append(rounds_of(f"batch of {BATCH}", kind, {
                "AegisKV": lambda: wrk(plain, batch_of(kind), seconds, each=BATCH), **one,
            }, rounds))
            cases.append(rounds_of("TLS", kind, {
                "AegisKV": lambda: wrk(tls, kind, seconds), **one,
            }, rounds))
            cases.append(rounds_of("HTTP/2, 10 streams", kind, {
                "AegisKV": lambda: h2load(plain, kind, seconds), **one,
            }, rounds))
    return cases


def urls_of(server, path):
    """A file with addresses of random keys, one a line."""
    urls = server.folder / "urls"
    urls.write_text("".join(f"{server.url}{path.replace('%s', key(at * 7919 % KEYS))}\n"
                            for at in range(10_000)))
    return urls


def h2load(server, kind, seconds):
    """HTTP/2 without TLS: CLIENTS connections of ten streams, random keys; no latencies."""
    method, path, *body = server.get if kind == "GET" else server.put
    urls = urls_of(server, path)
    command = ["h2load", "-t2", f"-c{CLIENTS}", "-m10", f"-D{seconds}", f"-i{urls}"]
    if body:
        value = server.folder / "value"
        value.write_text("v" * server.value_bytes)
        command += ["-d", value, "-H", f":method: {method}"]
    before = peers.cpu_seconds(server.pids)
    done = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    cpu = peers.cpu_seconds(server.pids) - before
    words = next(line for line in done.splitlines() if line.startswith("requests:")).split()
    count = {what.rstrip(","): int(number) for number, what in zip(words[1::2], words[2::2])}
    if count["failed"] or count["errored"] or not count["succeeded"]:
        raise SystemExit(f"{server.name}, HTTP/2: failed requests in the load: {done}")
    return {"ops": count["succeeded"] / seconds, "cpu_us": cpu * 1e6 / count["succeeded"]}


def oha():
    """The load generator that keeps its rate whatever the server does; built if need be."""
    found = shutil.which("oha") or TOOLS / "bin" / "oha"
    if not Path(found).exists():
        say("building oha, for the load at a fixed rate")
        subprocess.run(["cargo", "install", "--locked", "--quiet", "--root", TOOLS, "oha"], check=True)
    return found


def at_rate(program, server, kind, seconds, rate=None):
    """Load at `rate` a second, or as much as there is; latency counts from when a request was due."""
    method, path, *body = server.get if kind == "GET" else server.put
    urls = urls_of(server, path)
    command = [program, "--no-tui", "--output-format", "json", "-c", str(CLIENTS), "-m", method,
               "-z", f"{seconds}s", "--urls-from-file", urls]
    if body:
        command += ["-d", "v" * server.value_bytes]
    if rate:
        command += ["-q", f"{rate:.0f}", "--latency-correction"]
    before = peers.cpu_seconds(server.pids)
    done = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    cpu = peers.cpu_seconds(server.pids) - before
    count = sum(done["statusCodeDistribution"].values())
    if any(int(status) >= 300 for status in done["statusCodeDistribution"]):
        raise SystemExit(f"{server.name}: {done['statusCodeDistribution']}")
    late = done["latencyPercentiles"]
    return {"ops": done["summary"]["requestsPerSec"], "p50_ms": late["p50"] * 1000,
            "p99_ms": late["p99"] * 1000, "p999_ms": late["p99.9"] * 1000,
            "cpu_us": cpu * 1e6 / count}


def rates(folder, binary, bare, rounds, seconds, quick):
    cases, program = [], oha()
    with Running(AegisKV(folder, binary), BareHyper(folder, bare)) as pair:
        pair[0].fill(KEYS)
        for kind in ("GET", "PUT"):
            peak = {server.name: at_rate(program, server, kind, seconds)["ops"] for server in pair}
            for share in (0.5, 0.8):
                measures = {
                    server.name: lambda server=server: at_rate(
                        program, server, kind, seconds, peak[server.name] * share)
                    for server in pair
                }
                cases.append(rounds_of(f"{share:.0%} of its peak", kind, measures, rounds))
    return cases


def durable(folder, binary, bare, rounds, seconds, quick):
    figures = sync_run(folder, binary, rounds, seconds, DURABLE)
    return [{"case": f"{clients}", "kind": "PUT", "rows": rows} for clients, rows in figures.items()]


def growth(folder, binary, bare, rounds, seconds, quick):
    """Cost per operation and resident bytes as items become more."""
    cases = []
    for millions in MILLIONS[:1] if quick else MILLIONS:
        count = 50_000 if quick else millions * 1_000_000
        with Running(AegisKV(folder, binary, max_memory_mb=8192)) as [server]:
            pid = server.node.process.pid
            before = peers.resident_bytes(pid)
            server.fill(count)
            item = (settled_resident_bytes(pid) - before) / count
            for kind in ("GET", "PUT"):
                case = rounds_of(f"{millions} million", kind, {
                    server.name: lambda: wrk(server, kind, seconds, keys=count)}, rounds)
                cases.append(case | {"resident_bytes": item})
    return cases


def item_memory(folder, binary, bare, rounds, seconds, quick):
    """Resident bytes an item over its payload: as loaded, and after each was written again, in no
    order, twice. [{"case", "server", "loaded", "churned"}]"""
    count, cases = 50_000 if quick else 1_000_000, []
    payload = 16 + peers.VALUE_BYTES
    for ttl in (True, False):
        for server in (AegisKV(folder, binary), Redis(folder)):
            with Running(server):
                pid = server.pids[0]
                before = peers.resident_bytes(pid)

                def over_payload():
                    return (settled_resident_bytes(pid) - before) / count - payload

                server.fill(count, ttl)
                loaded = over_payload()
                for turn in range(2):
                    server.fill(count, ttl, stride=7919 + 2 * turn)
                row = {"case": "with TTL" if ttl else "without TTL", "server": server.name,
                       "loaded": loaded, "churned": over_payload()}
                cases.append(row)
                say(f"memory, {row}")
    return cases


def under_snapshot(folder, binary, bare, rounds, seconds, quick):
    """The same load with no snapshot under way, and with one after the other."""
    cases, count = [], 50_000 if quick else 1_000_000
    with Running(AegisKV(folder, binary)) as [server]:
        server.fill(count)

        def busy():
            over = threading.Event()

            def snapshots():
                while not over.is_set():
                    server.node.operations("POST", "/admin/snapshot")

            maker = threading.Thread(target=snapshots)
            maker.start()
            try:
                return wrk(server, kind, seconds, keys=count)
            finally:
                over.set()
                maker.join()

        for kind in ("GET", "PUT"):
            cases.append(rounds_of(f"{count:,} items", kind, {
                "AegisKV": lambda: wrk(server, kind, seconds, keys=count),
                "AegisKV, snapshots": busy,
            }, rounds))
    return cases


def soak(folder, binary, bare, rounds, seconds, quick):
    """Full of items that come and go, for ten minutes: one row for each two windows of load."""
    rows, minutes = [], 0.2 if quick else 10
    with Running(AegisKV(folder, binary, max_memory_mb=256)) as [server]:
        pid, began = server.node.process.pid, time.monotonic()
        while time.monotonic() - began < minutes * 60:
            put = wrk(server, "PUT", seconds, keys=4_000_000)
            get = wrk(server, "GET", seconds, keys=4_000_000, misses=True)
            rows.append({
                "minute": (time.monotonic() - began) / 60,
                "resident_mb": peers.resident_bytes(pid) / 1e6,
                "files": len(os.listdir(f"/proc/{pid}/fd")),
                "put_p99_ms": put["p99_ms"], "get_p99_ms": get["p99_ms"],
                "put_ops": put["ops"], "get_ops": get["ops"],
            })
            say(f"soak: {rows[-1]}")
    return rows


PARTS = {
    "sizes": sizes, "connections": connections, "ways": ways, "rates": rates, "durable": durable,
    "growth": growth, "items": item_memory, "snapshot": under_snapshot, "soak": soak,
}
