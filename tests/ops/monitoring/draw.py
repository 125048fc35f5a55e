"""Draws the dashboard from its own JSON and what a Prometheus answers, with Chromium.

Not Grafana: where that cannot be had, this shows what its panels would. As a program it starts a
cluster, lets a node die and come back under load, and writes the picture of the docs:

    cd tests/ops && PYTHONPATH=.:../../scripts ../../target/ops-venv/bin/python monitoring/draw.py
"""

import html
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

import board
from node import build_dir

HERE = Path(__file__).resolve().parent
WIDTH = 1500
# Pixels of a row of the grid and of the page's head, as in draw.js.
CELL, HEAD = 38, 64
CHARTS = "uplot@1.6.32"


def charts():
    """The folder of uPlot's build, fetched once below the build directory."""
    if not shutil.which("npm"):
        pytest.skip("npm is not here, so there is no uPlot to draw with")
    folder = build_dir() / "ops-npm"
    found = folder / "node_modules/uplot/dist"
    if not found.exists():
        command = ["npm", "install", "--prefix", folder, "--ignore-scripts", "--no-audit", CHARTS]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
    return found


def ask(prometheus, panel, span):
    """The answers to a panel's queries, in their order."""
    for target in panel["targets"]:
        query = board.fill(target["expr"], span=f"{span['end'] - span['start']}s")
        if target.get("instant"):
            yield prometheus.query(query, time=span["end"])
        else:
            yield prometheus.ask("query_range", query=query, **span)["result"]


def opened(dashboard, rows):
    """The rows of these titles (all, if there are none) and their panels, rows opened, one below
    the other as Grafana moves them."""
    kept, panels, down, keep = [], [], 0, True
    for one in dashboard["panels"]:
        if one["type"] != "row":
            panels += [one] if keep else []
            continue
        keep = not rows or one["title"].split(":")[0] in rows
        if not keep:
            continue
        one["gridPos"]["y"] += down
        for panel in one["panels"]:
            panel["gridPos"]["y"] += down
        kept.append(one)
        panels += one["panels"]
        inner = [panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in one["panels"]]
        down += max(inner, default=one["gridPos"]["y"] + 1) - one["gridPos"]["y"] - 1
    return kept, panels


def draw(prometheus, path, start, end, rows=()):
    """Writes the picture and gives [{title, error}] of its panels."""
    dist = charts()
    chromium = shutil.which("chromium")
    if not chromium:
        pytest.skip("chromium is not here; `scripts/setup.sh test` installs Debian's package")
    span = {"start": int(start), "end": int(end), "step": 1}
    dashboard = board.dashboard()
    kept, panels = opened(dashboard, rows)
    for panel in panels:
        panel["answers"] = list(ask(prometheus, panel, span))
    choices = [[one["label"], "All"] for one in dashboard["templating"]["list"][1:]]
    content = {"title": dashboard["title"], "choices": choices, "span": span}
    content |= {"rows": kept, "panels": panels}
    height = max(p["gridPos"]["y"] + p["gridPos"]["h"] for p in panels) * CELL + HEAD
    scripts = (dist / "uPlot.iife.min.js").read_text() + (HERE / "draw.js").read_text()
    styles = (dist / "uPlot.min.css").read_text() + (HERE / "draw.css").read_text()
    data = json.dumps(content).replace("<", "\\u003c")
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder, "page.html")
        page.write_text(
            f"<!doctype html><meta charset=utf-8><style>{styles}</style><body>"
            f"<script>{scripts}; document.body.style.height = '{height}px'; drawAll({data});"
            "document.querySelectorAll('script').forEach(one => one.remove())</script>"
        )
        done = subprocess.run(
            [
                *(chromium, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
                *(f"--user-data-dir={folder}/chromium", f"--window-size={WIDTH},{height}"),
                *("--virtual-time-budget=5000", "--dump-dom", f"--screenshot={path}", str(page)),
            ],
            capture_output=True,
            text=True,
            timeout=120,
        )
    found = re.findall(r'data-title="([^"]*)" data-error="([^"]*)"', done.stdout)
    assert found and Path(path).exists(), done.stdout[-500:] + done.stderr[-2000:]
    return [{"title": html.unescape(title), "error": error} for title, error in found]


def main():
    from stack import Stack

    with tempfile.TemporaryDirectory() as folder:
        stack = Stack(Path(folder))
        try:
            stack.start()
            began = time.time()
            time.sleep(60)
            stack.cluster.nodes[1].kill()
            time.sleep(40)
            stack.cluster.nodes[1].launch()
            time.sleep(80)
            stack.cluster.nodes[2].kill()
            time.sleep(12)
            path = board.ROOT / "docs/dashboard.png"
            rows = sys.argv[1:] or ["Overview", "Traffic", "Replication"]
            for one in draw(stack.prometheus, path, began, time.time(), rows):
                print(f"{one['title']}: {one['error'] or 'drawn'}")
        finally:
            stack.stop()


if __name__ == "__main__":
    main()
