#!/usr/bin/env python3
"""Writes the bill of materials (CycloneDX) to the given file: each library that is built into the
program, with its version and licence.

cargo-cyclonedx goes by what Cargo has resolved, which holds optional libraries that no feature
turns on. Those are left out here, since whoever looks for a flawed library should not find one that
is not there.
"""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TARGET = "x86_64-unknown-linux-gnu"


def main(path):
    draft = ROOT / "aegiskv.cdx.json"
    cargo("cyclonedx", "--quiet", "--format", "json", "--spec-version", "1.5",
          "--target", TARGET, "--override-filename", "aegiskv.cdx")  # fmt: skip
    # Names of the local package hold the place where it lies.
    bill = json.loads(draft.read_text().replace(f"file://{ROOT}", "file:///build/aegiskv"))
    draft.unlink()
    built = built_in()
    bill["components"] = [
        part for part in bill["components"] if (part["name"], part["version"]) in built
    ]
    there = {part["bom-ref"] for part in [bill["metadata"]["component"], *bill["components"]]}
    bill["dependencies"] = [
        {**of, "dependsOn": [ref for ref in of.get("dependsOn", []) if ref in there]}
        for of in bill["dependencies"]
        if of["ref"] in there
    ]
    path.write_text(json.dumps(bill, indent=2) + "\n")


def built_in():
    """Name and version of each library that a build takes part in, as Cargo says."""
    tree = cargo("tree", "--locked", "--prefix", "none", "--edges", "normal,build",
                 "--target", TARGET, "--format", "{p}")  # fmt: skip
    parts = (line.split() for line in tree.splitlines() if line)
    return {(name, version.removeprefix("v")) for name, version, *_ in parts}


def cargo(*arguments):
    done = subprocess.run(
        ["cargo", *arguments], cwd=ROOT, check=True, text=True, stdout=subprocess.PIPE
    )
    return done.stdout


main(Path(sys.argv[1]).resolve())
