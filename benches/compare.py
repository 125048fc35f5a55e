#!/usr/bin/env python3
"""AegisKV side by side with its peers, in one run on one machine.

HTTP servers are measured in interleaved rounds whose order rotates, so that whatever else
the machine does falls on all alike; what is reported are medians and the medians of each
round's ratios. Writes docs/benchmarks.md (between its marks) and benches/out/last.json.

    compare.py [--quick] [--only http,sync,memory,cluster,hits,sizes,…] [--no-build A B] [--out FILE]
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import hit
import ladder
import peers
import report
from measure import CLIENTS, KEYS, say, settled_resident_bytes, sync_run, wrk
from peers import AegisCluster, AegisKV, BareAxum, BareHyper, Etcd, Nginx, Redis, Server, Webdis
from node import ROOT, exit_on_terminate

OUT = ROOT / "benches" / "out"
PACKAGES = {
    "wrk": "wrk", "redis-server": "redis-server", "redis-cli": "redis-tools",
    "redis-benchmark": "redis-tools", "webdis": "webdis", "nginx": "nginx", "etcd": "etcd-server",
    "h2load": "nghttp2-client",
}


# --- tools ------------------------------------------------------------------------------


def install_missing():
    """Brings peers and load generators; returns the commands that are still missing."""
    missing = {command: package for command, package in PACKAGES.items()
               if not shutil.which(command)}
    if missing and os.geteuid() == 0 and shutil.which("apt-get"):
        say(f"installing {' '.join(sorted(set(missing.values())))}")
        apt_install(sorted(set(missing.values())))
        missing = {c: p for c, p in missing.items() if not shutil.which(c)}
    if missing:
        say(f"missing, their rows are left out: {' '.join(sorted(set(missing.values())))}")
    return set(missing)


def apt_install(packages):
    """Installs without letting the packages start services of their own."""
    policy = Path("/usr/sbin/policy-rc.d")
    ours = not policy.exists()
    if ours:
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
    try:
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for command in (["update", "-q"], ["install", "-qy", "--no-install-recommends", *packages]):
            subprocess.run(["apt-get", *command], env=environment, check=False,
                           stdout=subprocess.DEVNULL)
    finally:
        if ours:
            policy.unlink()


def build():
    """Builds both binaries as they are released; returns their paths, AegisKV's first."""
    command = ["cargo", "build", "--release", "--locked", "--bin", "aegiskv", "--bench", "bare"]
    subprocess.run(command, cwd=ROOT, check=True)
    done = subprocess.run([*command, "--message-format=json", "--quiet"], cwd=ROOT, check=True,
                          capture_output=True, text=True)
    built = {}
    for line in done.stdout.splitlines():
        message = json.loads(line)
        if message.get("executable"):
            built[message["target"]["name"]] = Path(message["executable"])
    return built["aegiskv"], built["bare"]


# --- HTTP -------------------------------------------------------------------------------


def http_run(servers, rounds, seconds):
    """GET and PUT rounds over all servers; {kind: {server: [round, …]}}."""
    figures = {}
    for server in servers:
        server.start()
        server.fill(KEYS)
        server.check("GET")
        server.check("PUT")
    try:
        for kind in ("GET", "PUT"):
            rows = figures[kind] = {server.name: [] for server in servers}
            for server in servers:
                wrk(server, kind, 1)
            for turn in range(rounds):
                shift = turn % len(servers)
                for server in servers[shift:] + servers[:shift]:
                    row = wrk(server, kind, seconds)
                    rows[server.name].append(row)
                    say(f"{kind} round {turn + 1}: {server.name:15} {row['ops']:9.0f}/s"
                        f"  p99 {row['p99_ms']:6.2f} ms  {row['cpu_us']:6.1f} us CPU")
    finally:
        for server in servers:
            server.stop()
    return figures


def cluster_run(folder, binary, rounds, seconds):
    """One node against three, by the same load."""
    return http_run([AegisKV(folder, binary), AegisCluster(folder, binary)], rounds, seconds)


# --- memory and restart -----------------------------------------------------------------


def memory_row(count, before, after, own_before, own_after):
    payload = 16 + len(peers.VALUE)
    return {
        "resident_over_payload": (after - before) / count - payload,
        "accounted_over_payload": (own_after - own_before) / count - payload,
    }


def aegis_items(server):
    return int(server.node.metric("aegis_cache_items"))


def load_aegis(server, count):
    server.start()
    pid = server.node.process.pid
    before, own = peers.resident_bytes(pid), server.node.metric("aegis_cache_size_bytes")
    server.fill(count)
    if aegis_items(server) != count:
        raise SystemExit(f"AegisKV holds {aegis_items(server)} of {count} items")
    after = settled_resident_bytes(pid)
    return memory_row(count, before, after, own, server.node.metric("aegis_cache_size_bytes"))


def load_redis(server, count):
    server.start()
    pid = server.processes[0].pid
    before, own = peers.resident_bytes(pid), int(server.info("used_memory"))
    server.fill(count)
    if server.cli("dbsize").strip() != str(count):
        raise SystemExit(f"redis holds {server.cli('dbsize')} of {count} items")
    after = settled_resident_bytes(pid)
    return memory_row(count, before, after, own, int(server.info("used_memory")))


def redis_restart(server, count):
    """Seconds from the start of the process until PING is answered, all items there."""
    began = time.monotonic()
    server.start()
    while not server.loaded():
        time.sleep(0.002)
    seconds = time.monotonic() - began
    if server.cli("dbsize").strip() != str(count):
        raise SystemExit(f"redis came back with {server.cli('dbsize')} of {count} items")
    server.stop()
    return seconds


def aegis_restart(server, count):
    seconds = server.start()
    if aegis_items(server) != count:
        raise SystemExit(f"AegisKV came back with {aegis_items(server)} of {count} items")
    return seconds


def memory_and_restart_run(folder, binary, count, repeats):
    redis = Redis(folder / "big", "--dbfilename", "dump.rdb")
    aegis = AegisKV(folder / "big", binary)
    try:
        memory = {"AegisKV": load_aegis(aegis, count), "Redis": load_redis(redis, count)}
        for name, row in memory.items():
            say(f"memory: {name:8} {row['resident_over_payload']:.1f} bytes over payload resident, "
                f"{row['accounted_over_payload']:.1f} by its own account")
        redis.cli("save")
        redis.stop()
        # As a crash leaves it: each repeat starts from this copy, in the page cache like the RDB.
        aegis.node.kill()
        crashed = aegis.folder / "crashed"
        shutil.copytree(aegis.node.data_dir, crashed)
        starts = {"AegisKV after kill -9": [], "AegisKV after a clean stop": [], "Redis, RDB": []}
        for _ in range(repeats):
            shutil.rmtree(aegis.node.data_dir)
            shutil.copytree(crashed, aegis.node.data_dir)
            starts["AegisKV after kill -9"].append(aegis_restart(aegis, count))
            aegis.stop()
            starts["Redis, RDB"].append(redis_restart(redis, count))
            starts["AegisKV after a clean stop"].append(aegis_restart(aegis, count))
            aegis.stop()
            say("restart: " + ", ".join(f"{n} {rows[-1]:.2f} s" for n, rows in starts.items()))
        return memory, starts
    finally:
        aegis.node.kill()
        redis.stop()


# --- the run ----------------------------------------------------------------------------


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a smoke run; writes no document")
    parser.add_argument("--only", help="parts to run",
                        default=",".join(["http,sync,memory,cluster,hits", *ladder.PARTS]))
    parser.add_argument("--servers", help="HTTP servers to run, by name")
    parser.add_argument("--no-build", nargs=2, metavar=("AEGISKV", "BARE"), type=Path,
                        help="binaries to use as they are")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "benchmarks.md")
    return parser.parse_args()


# What a part cannot do without; those of `ladder` need its own.
NEEDS = {"http": set(), "cluster": {"wrk"}, "sync": {"wrk", *Redis.needs}, "memory": set(Redis.needs),
         "hits": set(Redis.needs)}


class Progress:
    """Goes through the parts, and says before each how long the rest took the last time."""

    def __init__(self, parts):
        self.parts, self.path = parts, OUT / "took.json"
        self.took = json.loads(self.path.read_text()) if self.path.exists() else {}

    def __iter__(self):
        for at, part in enumerate(self.parts):
            rest = self.parts[at:]
            known = [self.took[each] for each in rest if each in self.took]
            left = f"about {sum(known) / 60:.0f} min left" if len(known) == len(rest) else (
                "how long the rest takes is known after the first whole run")
            say(f"--- {part}: part {at + 1} of {len(self.parts)}, {left}")
            began = time.monotonic()
            yield part
            self.took[part] = time.monotonic() - began
            self.path.write_text(json.dumps(self.took))


def main():
    exit_on_terminate()
    options = arguments()
    parts = options.only.split(",")
    binary, bare = (path.resolve() for path in options.no_build or build())
    missing = install_missing()
    folder = OUT / "run"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    rounds, seconds, items, repeats = (2, 1, 50_000, 1) if options.quick else (5, 3, 2_000_000, 3)

    results = {"machine": report.machine(folder), "items": items, "rounds": rounds,
               "seconds": seconds, "clients": CLIENTS, "versions": []}
    servers: list[Server] = [
        AegisKV(folder, binary), BareHyper(folder, bare), BareAxum(folder, bare),
        Webdis(folder), Nginx(folder), Etcd(folder),
    ]
    servers = [server for server in servers if missing.isdisjoint(server.needs)
               and (not options.servers or server.name in options.servers.split(","))]
    results["versions"] = [v for v in (s.version() for s in [*servers, Redis(folder)]) if v]
    runs = {
        "http": lambda: http_run(servers, rounds, seconds),
        "cluster": lambda: cluster_run(folder / "cluster", binary, rounds, seconds),
        "sync": lambda: sync_run(folder, binary, rounds, seconds)[CLIENTS],
        "memory": lambda: memory_and_restart_run(folder, binary, items, repeats),
        "hits": lambda: hit.hit_run(folder, binary, *(hit.QUICK if options.quick else hit.LOAD)),
    }
    for part, measure in ladder.PARTS.items():
        runs[part] = lambda part=part, measure=measure: measure(
            folder / part, binary, bare, rounds, seconds, options.quick)
    progress = Progress([part for part in runs if part in parts
                         and missing.isdisjoint(NEEDS.get(part, ladder.NEEDS))])
    for part in progress:
        results[part] = runs[part]()
    if "memory" in results:
        results["memory"], results["restart"] = results["memory"]
    shutil.rmtree(folder)

    (OUT / "last.json").write_text(json.dumps(results, indent=1))
    pictures = OUT if options.quick else options.out.with_suffix("")
    texts = report.figures(results) | report.ladder_figures(results, pictures)
    say("\n" + "\n\n".join(texts.values()))
    if not options.quick:
        report.write(options.out, texts)
        say(f"written to {options.out}")


if __name__ == "__main__":
    sys.exit(main())
