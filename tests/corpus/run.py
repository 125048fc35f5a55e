#!/usr/bin/env python3
"""Real data through the command line: the Debian package index, out and in again.

Imports every package record of the machine's index (some 60 thousand) as a key and a value,
counts, lists by prefix, dumps, wipes, imports the dump, dumps again and compares: with each
other, with the index, and after a restart. Ends with `total: N passed, N failed, N skipped`.

    run.py [--binary target/debug/aegiskv]
"""

import argparse
import base64
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "scripts"))
from node import Node, build_dir, exit_on_terminate  # noqa: E402

PREFIX = "deb:"
RECORDS_MIN = 1000


def index():
    """The index as {key: record}, or the reason why there is none."""
    if not shutil.which("apt-cache"):
        return None, "this machine has no apt"
    records = available()
    if len(records) < RECORDS_MIN and os.geteuid() == 0:
        subprocess.run(["apt-get", "update", "-q"], stdout=subprocess.DEVNULL, check=False)
        records = available()
    if len(records) < RECORDS_MIN:
        return None, f"the package index has {len(records)} records; apt-get update fills it"
    return records, None


def available():
    done = subprocess.run(["apt-cache", "dumpavail"], capture_output=True, check=False)
    records = {}
    for record in done.stdout.split(b"\n\n"):
        fields = dict(
            line.split(b": ", 1) for line in record.split(b"\n")
            if b": " in line and not line.startswith(b" ")
        )
        if b"Package" in fields and b"Version" in fields:
            name = b"%s/%s" % (fields[b"Package"], fields[b"Version"])
            records[PREFIX + name.decode()] = record.strip(b"\n")
    return records


def line(key, value):
    """One line of an import, as `aegiskv dump` would write it."""
    try:
        return json.dumps({"key": key, "value": value.decode()})
    except UnicodeDecodeError:
        return json.dumps({"key": key, "value_base64": base64.b64encode(value).decode()})


def parse(path):
    """A dump as {key: value}; a key that stands there twice is a mistake."""
    entries = {}
    *lines, end = path.read_text().splitlines()
    if json.loads(end) != {"dumped_keys": len(lines)}:
        raise SystemExit(f"{path} has {len(lines)} keys and ends with {end}")
    for text in lines:
        entry = json.loads(text)
        key = entry.get("key") or base64.b64decode(entry["key_base64"])
        value = entry.get("value")
        value = value.encode() if value is not None else base64.b64decode(entry["value_base64"])
        if key in entries:
            raise SystemExit(f"{path} has {key} twice")
        entries[key] = value
    return entries


class Run:
    """The steps against one node, with a count of what held and what did not."""

    def __init__(self, node, token):
        self.node, self.token = node, token
        self.passed = self.failed = 0

    def check(self, what, held, detail=""):
        print(f"{'ok  ' if held else 'FAIL'} {what} {'' if held else detail}", flush=True)
        self.passed += bool(held)
        self.failed += not held

    def cli(self, *words):
        command = [self.node.binary, *words, "--addr", self.node.url, "--token", self.token]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        if done.returncode != 0:
            print(f"aegiskv {' '.join(words)} ended with {done.returncode}: {done.stderr[-1000:]}")
        return done

    def items(self):
        return int(self.node.metric("aegis_cache_items"))

    def moves(self, word, path, *more):
        """`import` or `dump` of a file; whether it said that all went well."""
        done = self.cli(word, str(path), *more)
        self.check(f"{word} {path.name}", done.returncode == 0, done.stderr[-500:])

    def all(self, records, folder):
        source, first, second = (folder / f"{name}.ndjson" for name in ("source", "a", "b"))
        source.write_text("".join(line(*entry) + "\n" for entry in records.items()))
        self.moves("import", source, "--partial")
        self.check(f"{len(records)} items counted", self.items() == len(records), self.items())
        self.lists(records)
        self.moves("dump", first)
        self.check("the dump is the index", parse(first) == records)

        bearer = {"Authorization": f"Bearer {self.token}"}
        status, body = self.node.request("DELETE", f"/v1/kv?prefix={PREFIX}", headers=bearer)
        deleted = json.loads(body).get("deleted") if status == 200 else None
        self.check("the wipe says how many it took", deleted == len(records), (status, body[:200]))
        self.check("nothing is left", self.items() == 0, self.items())

        self.moves("import", first)
        self.node.stop()
        self.node.start()
        self.check("all is there after a restart", self.items() == len(records), self.items())
        self.moves("dump", second)
        self.check("both dumps are equal", parse(second) == parse(first))

    def lists(self, records):
        prefix = PREFIX + "libc"
        wanted = {key for key in records if key.startswith(prefix)}
        listed = self.cli("list", "--prefix", prefix).stdout.splitlines()
        found = {text.split()[0] for text in listed if text.startswith(PREFIX)}
        self.check(f"{len(wanted)} keys listed under {prefix}", found == wanted,
                   f"{len(found)} listed, {len(wanted - found)} missing")


def main():
    exit_on_terminate()
    parser = argparse.ArgumentParser()
    parser.add_argument("--binary", type=Path, default=build_dir() / "debug" / "aegiskv")
    options = parser.parse_args()
    records, reason = index()
    if records is None:
        print(f"SKIP corpus: {reason}")
        print("total: 0 passed, 0 failed, 1 skipped")
        return 0
    token = secrets.token_hex(16)
    with tempfile.TemporaryDirectory() as folder:
        node = Node(options.binary, Path(folder) / "data", auth_token=token)
        run = Run(node, token)
        try:
            node.start()
            run.all(records, Path(folder))
            node.stop()
        except SystemExit as failure:
            run.check("the node starts and stops", False, failure)
    print(f"total: {run.passed} passed, {run.failed} failed, 0 skipped")
    return 1 if run.failed else 0


if __name__ == "__main__":
    sys.exit(main())
