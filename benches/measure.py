"""How something is measured: load on a server for some seconds, and its resident memory."""

import json
import subprocess
import time

import peers
from node import ROOT
from peers import AegisKV, Redis

CLIENTS = 64
KEYS = 100_000


def say(text):
    print(text, flush=True)


def wrk(server, ask, seconds, clients=CLIENTS, keys=KEYS, depth=1, each=1, misses=False):
    """One round of load on a server: operations a second, latency, CPU per operation.

    `ask` is GET, PUT, or arguments of load.lua; a request of it counts for `each` operations. With
    `misses`, keys that are not there are no failure."""
    method, path, *rest = {"GET": server.get, "PUT": server.put}.get(ask, ask)
    rest += ["", ""][len(rest):]
    threads = min(2, peers.CORES, clients)
    before = peers.cpu_seconds(server.pids)
    done = subprocess.run(
        ["wrk", f"-t{threads}", f"-c{clients}", f"-d{seconds}s", "--latency", "--timeout", "20s", "-s",
         ROOT / "benches" / "load.lua", server.url, "--", method, str(keys), path, *rest,
         str(depth)],
        capture_output=True, text=True, check=True,
    )
    cpu = peers.cpu_seconds(server.pids) - before
    result = next(line for line in done.stdout.splitlines() if line.startswith("RESULT "))
    result = json.loads(result.removeprefix("RESULT "))
    if result["broken"] or (result["refused"] and not misses):
        raise SystemExit(f"{server.name}, {ask}: failed requests in the load: {result}")
    operations = result["requests"] * each
    if not operations:
        raise SystemExit(f"{server.name}, {ask}: not one answer within {seconds} s")
    return {
        "ops": operations / (result["micros"] / 1e6),
        "p50_ms": result["p50_us"] / 1000,
        "p99_ms": result["p99_us"] / 1000,
        "p999_ms": result["p999_us"] / 1000,
        "cpu_us": cpu * 1e6 / operations,
    }


def redis_benchmark(redis, seconds, clients=CLIENTS, kind="set", depth=1):
    """SET or GET for about `seconds`, like one round of wrk."""

    def run(count):
        before, began = peers.cpu_seconds(redis.pids), time.monotonic()
        done = subprocess.run(
            ["redis-benchmark", "-h", "127.0.0.1", "-p", str(redis.port), "-c", str(clients),
             "-n", str(count), "-t", kind, "-d", "100", "-r", str(KEYS), "-P", str(depth), "--csv"],
            capture_output=True, text=True, check=True,
        )
        took = time.monotonic() - began
        cpu = peers.cpu_seconds(redis.pids) - before
        fields = [field.strip('"') for field in done.stdout.splitlines()[-1].split(",")]
        return {"ops": float(fields[1]), "p50_ms": float(fields[4]), "p99_ms": float(fields[6]),
                "cpu_us": cpu * 1e6 / count}, took

    _, took = run(2000)
    return run(max(2000, int(2000 / took * seconds)))[0]


def sync_run(folder, binary, rounds, seconds, clients=(CLIENTS,)):
    """{clients: {server: [round, …]}} of fsynced writes."""
    aegis = AegisKV(folder / "sync", binary, wal_mode="sync")
    redis = Redis(folder / "sync", "--appendonly", "yes", "--appendfsync", "always",
                  "--auto-aof-rewrite-percentage", "0")
    figures = {count: {"AegisKV": [], "Redis": []} for count in clients}
    aegis.start()
    redis.start()
    try:
        aegis.check("PUT")
        for count, rows in figures.items():
            for turn in range(rounds):
                order = [("AegisKV", lambda: wrk(aegis, "PUT", seconds, clients=count)),
                         ("Redis", lambda: redis_benchmark(redis, seconds, clients=count))]
                for name, measure in order if turn % 2 == 0 else order[::-1]:
                    row = measure()
                    rows[name].append(row)
                    say(f"sync, {count} clients, round {turn + 1}: {name:8} {row['ops']:9.0f}/s"
                        f"  p99 {row['p99_ms']:.2f} ms")
    finally:
        aegis.stop()
        redis.stop()
    return figures


def settled_resident_bytes(pid):
    """Resident memory once it has stood still for two seconds, half a minute at most."""
    last = peers.resident_bytes(pid)
    for _ in range(15):
        time.sleep(2)
        now = peers.resident_bytes(pid)
        if abs(now - last) < 1 << 20:
            return now
        last = now
    return last
