#!/usr/bin/env python3
"""How many GETs find their key, in AegisKV and in Redis, at equal resident memory.

Each is a cache in front of something that has every key: what is not found is stored. AegisKV goes
first, with `max_memory_mb`; what it then has resident, Redis gets too: its `maxmemory` is moved until
both have the same. All get the same streams of keys. A part of compare.py, or by itself:

    hit.py --binary FILE [--keys N] [--megabytes N] [--requests N]
"""

import argparse
import http.client
import itertools
import random
import shutil
import socket
import sys
from pathlib import Path

import peers
import report
from peers import VALUE, AegisKV, Redis
from node import ROOT, exit_on_terminate

BATCH = 200
# Keys, megabytes of AegisKV, requests.
LOAD = 2_000_000, 128, 8_000_000
QUICK = 100_000, 16, 200_000
MIXES = {"Zipf 0.99": False, "Zipf 0.99, a sixth scans": True}
POLICIES = ("allkeys-lru", "allkeys-lfu")


def stream(keys, requests, scans):
    """Batches of keys by Zipf's law; with scans, every sixth is a key never asked for again."""
    dice = random.Random(4711)
    names = list(range(keys))
    dice.shuffle(names)
    sums = list(itertools.accumulate(rank ** -0.99 for rank in range(1, keys + 1)))
    fresh = itertools.count(keys)
    for _ in range(requests // BATCH):
        batch = dice.choices(names, cum_weights=sums, k=BATCH)
        if scans:
            batch[5::6] = [next(fresh) for _ in batch[5::6]]
        yield batch


class AegisCache:
    name = "AegisKV"

    def __init__(self, folder, binary, megabytes):
        self.server = AegisKV(folder, binary, max_memory_mb=megabytes)
        self.server.start()
        self.connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=120)

    def ask(self, lines):
        headers = {"Content-Type": "application/x-ndjson"}
        self.connection.request("POST", "/v1/batch", "\n".join(lines).encode(), headers)
        answer = self.connection.getresponse()
        results = answer.read().splitlines()
        if answer.status != 200 or len(results) != len(lines):
            raise SystemExit(f"AegisKV: {answer.status}, {len(results)} results of {len(lines)}")
        return results

    def missing(self, batch):
        """Asks for the keys; returns those that are not there."""
        results = self.ask([f'{{"op":"get","key":"{peers.key(at)}"}}' for at in batch])
        lost = [at for at, result in zip(batch, results) if b'"status":404' in result]
        if sum(b'"status":200' in result for result in results) + len(lost) != len(batch):
            raise SystemExit(f"AegisKV: {results[:3]}")
        return lost

    def store(self, batch):
        self.ask([f'{{"op":"put","key":"{peers.key(at)}","value":"{VALUE}"}}' for at in batch])

    def items(self):
        return int(self.server.node.metric("aegis_cache_items"))


class RedisCache:
    def __init__(self, folder, policy, resident):
        self.name = f"Redis, {policy}"
        self.limit = int(resident * 0.8)
        self.server = Redis(Path(folder) / policy, "--maxmemory", self.limit, "--maxmemory-policy", policy)
        self.server.start()
        self.stream = socket.create_connection(("127.0.0.1", self.server.port))
        self.answers = self.stream.makefile("rb")

    def missing(self, batch):
        names = "".join(f"$16\r\n{peers.key(at)}\r\n" for at in batch)
        self.stream.sendall(f"*{len(batch) + 1}\r\n$4\r\nMGET\r\n{names}".encode())
        self.answers.readline()
        lost = []
        for at in batch:
            if self.answers.readline() == b"$-1\r\n":
                lost.append(at)
            else:
                self.answers.readline()
        return lost

    def store(self, batch):
        self.stream.sendall("".join(
            f"*3\r\n$3\r\nSET\r\n$16\r\n{peers.key(at)}\r\n${len(VALUE)}\r\n{VALUE}\r\n"
            for at in batch).encode())
        for _ in batch:
            if self.answers.readline() != b"+OK\r\n":
                raise SystemExit(f"{self.name} does not store")

    def grow_to(self, resident):
        """Moves `maxmemory` so that, once it is full, as much is resident."""
        self.limit += resident - peers.resident_bytes(self.server.processes[0].pid)
        self.server.cli("config", "set", "maxmemory", str(self.limit))

    def items(self):
        return int(self.server.cli("dbsize"))


def run(cache, batches, requests, resident=None):
    """Sends the stream; counts over its second half, when Redis has the memory it is to have."""
    hits, half, step = 0, requests // BATCH // 2, max(1, requests // BATCH // 16)
    for turn, batch in enumerate(batches):
        lost = cache.missing(batch)
        if lost:
            cache.store(lost)
        if turn >= half:
            hits += BATCH - len(lost)
        elif resident and turn % step == step - 1 and turn > half // 4:
            cache.grow_to(resident)
    row = {"hits": hits / (requests // BATCH - half) / BATCH, "items": cache.items(),
           "resident": peers.resident_bytes(cache.server.processes[0].pid)}
    cache.server.stop()
    print(f"{cache.name:20} {row['hits']:.4f} of GETs, {row['items']:9,} items, "
          f"{row['resident'] / 1e6:6.1f} MB resident", flush=True)
    return row


def hit_run(folder, binary, keys, megabytes, requests):
    """The section of the document: its table, and what it was made with."""
    table = []
    for mix, scans in MIXES.items():
        print(mix, flush=True)
        place = Path(folder) / ("scans" if scans else "zipf")
        own = AegisCache(place, binary, megabytes)
        rows = {own.name: run(own, stream(keys, requests, scans), requests)}
        resident = rows[own.name]["resident"]
        for policy in POLICIES:
            redis = RedisCache(place, policy, resident)
            rows[redis.name] = run(redis, stream(keys, requests, scans), requests, resident)
        best = max(row["hits"] for name, row in rows.items() if name != own.name)
        table += [[mix, name, f"{row['hits']:.4f}", f"{100 * (row['hits'] - best):+.2f}",
                   f"{row['items']:,}", f"{row['resident'] / 1e6:.0f}"] for name, row in rows.items()]
    head = ["mix", "server", "hits of GETs", "points over the better Redis", "items", "MB resident"]
    said = (f"{keys:,} keys, 100-byte values, {requests:,} GETs of which the second half counts; "
            f"AegisKV at `max_memory_mb: {megabytes}`.")
    return said + "\n\n" + report.table(head, table)


def main():
    exit_on_terminate()
    words = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    words.add_argument("--binary", required=True)
    words.add_argument("--keys", type=int, default=LOAD[0])
    words.add_argument("--megabytes", type=int, default=LOAD[1])
    words.add_argument("--requests", type=int, default=LOAD[2])
    options = words.parse_args()
    folder = ROOT / "benches" / "out" / "hit"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    print(hit_run(folder, options.binary, options.keys, options.megabytes, options.requests))
    shutil.rmtree(folder)


if __name__ == "__main__":
    sys.exit(main())
