#!/usr/bin/env python3
"""Holds a real node to its own OpenAPI document with generated requests (schemathesis).

Every operation is tried with valid and with invalid requests, alone and in sequences.
A 5xx, an answer the document does not describe, a bad request that is taken or a good one
that is refused fails. Ends with `total: N passed, N failed, N skipped`.

    run.py [--seconds 150] [--binary target/debug/aegiskv]
"""

import argparse
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent.parent / "scripts"))
from node import Node, build_dir, exit_on_terminate  # noqa: E402

SCHEMATHESIS = "schemathesis==4.32.5"


def schemathesis():
    """The tool, in a virtual environment below the build directory; None if out of reach."""
    environment = build_dir().resolve() / "openapi-venv"
    tool = environment / "bin" / "schemathesis"
    if not tool.exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", environment], check=True)
        pip = [environment / "bin" / "pip", "install", "--quiet", SCHEMATHESIS]
        if subprocess.run(pip).returncode != 0:
            shutil.rmtree(environment)
            return None
    return tool


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=int, default=150, help="time for generated requests")
    parser.add_argument("--binary", type=Path, default=build_dir() / "debug" / "aegiskv")
    return parser.parse_args()


def run(tool, node, token, seconds, report):
    """Runs schemathesis and returns its exit code; what it leaves lies beside the report."""
    environment = {**os.environ, "SCHEMATHESIS_HOOKS": "hooks", "PYTHONPATH": str(HERE)}
    return subprocess.run([
        tool, "--config-file", HERE / "schemathesis.toml", "run", f"{node.url}/openapi.json",
        "--header", f"Authorization: Bearer {token}",
        "--max-time", str(seconds), "--request-timeout", "20", "--workers", "1",
        "--output-sanitize", "false", "--continue-on-failure", "--report", "junit", "--report-junit-path", report,
    ], env=environment, cwd=report.parent).returncode


def counts(report):
    """Passed, failed and skipped operations of a JUnit report."""
    cases = list(xml.etree.ElementTree.parse(report).iter("testcase"))
    failed = sum(1 for case in cases if case.find("failure") is not None
                 or case.find("error") is not None)
    skipped = sum(1 for case in cases if case.find("skipped") is not None)
    return len(cases) - failed - skipped, failed, skipped


def afterwards(node):
    """What must still hold after all the requests; a list of complaints."""
    complaints = []
    if node.process.poll() is not None:
        return [f"the node ended with {node.process.returncode}: {node.log()}"]
    if not node.ready():
        complaints.append("the node is no longer ready")
    if "panicked" in node.log_path.read_text(errors="replace"):
        complaints.append(f"a task panicked: {node.log()}")
    return complaints


def main():
    exit_on_terminate()
    options = arguments()
    tool = schemathesis()
    if tool is None:
        print(f"SKIP openapi: {SCHEMATHESIS} cannot be installed from here")
        print("total: 0 passed, 0 failed, 1 skipped")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        token = secrets.token_hex(16)
        node = Node(options.binary, Path(folder) / "data", auth_token=token, max_memory_mb=256)
        node.start()
        status, _ = node.request("GET", "/v1/kv/a")
        refused = [] if status == 401 else [f"without its token, GET is answered with {status}"]
        bearer = {"Authorization": f"Bearer {token}"}
        document = json.loads(node.request("GET", "/openapi.json", headers=bearer)[1])
        print(f"OpenAPI {document['openapi']}, {len(document['paths'])} paths", flush=True)
        report = Path(folder) / "junit.xml"
        code = run(tool, node, token, options.seconds, report)
        if not report.exists():
            raise SystemExit(f"schemathesis ended with {code} and no report")
        passed, failed, skipped = counts(report)
        complaints = refused + afterwards(node)
        if code != 0 and failed == 0:
            complaints.append(f"schemathesis ended with {code}")
        if not complaints:
            node.stop()
    for complaint in complaints:
        print(complaint)
    failed += len(complaints)
    print(f"total: {passed} passed, {failed} failed, {skipped} skipped")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
