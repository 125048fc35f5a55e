"""What is in grafana/: the dashboard, the rules, and the metrics that they name."""

import json
import re
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[3]
GRAFANA = ROOT / "grafana"
DASHBOARD = GRAFANA / "aegiskv.json"

# A metric of AegisKV or of its process, wherever it stands.
METRIC = re.compile(r"(?<![\w:])(?:aegis|process)_[a-z_]+[a-z](?![\w:])")
# A vector selector: a name and its matchers.
SELECTOR = re.compile(r"(?<![\w:$])([A-Za-z_:][\w:]*)\s*\{([^}]*)\}")


def dashboard():
    return json.loads(DASHBOARD.read_text())


def panels(board):
    """Every panel with something to show, those in rows too."""
    for panel in board["panels"]:
        if panel["type"] == "row":
            yield from panel["panels"]
        else:
            yield panel


def targets(board):
    """(panel's title, query) for every query of the panels."""
    for panel in panels(board):
        for target in panel["targets"]:
            yield panel["title"], target


def fill(expression, instance=".+", cluster=".*", rate="10s", span="5m"):
    """The query as Grafana sends it, with these choices of the variables."""
    values = {
        "__rate_interval": rate,
        "__range": span,
        "job": ".+",
        "cluster": cluster,
        "instance": instance,
    }
    filled = re.sub(r"\$(\w+)", lambda name: values.get(name[1], name[0]), expression)
    assert "$" not in filled, f"{expression}: there is no such variable"
    return filled


def rules():
    """Every rule of the files in grafana/rules."""
    return [
        rule
        for path in sorted((GRAFANA / "rules").glob("*.yml"))
        for group in yaml.safe_load(path.read_text())["groups"]
        for rule in group["rules"]
    ]


def alerts():
    return {rule["alert"]: rule for rule in rules() if "alert" in rule}


def recordings():
    return {rule["record"]: rule for rule in rules() if "record" in rule}


def metrics_of_code():
    """Names that src/metrics declares; its unit tests aside."""
    files = [path for path in (ROOT / "src/metrics").glob("*.rs") if path.name != "tests.rs"]
    code = "".join(path.read_text().split("mod tests {")[0] for path in files)
    return set(re.findall(r'"((?:aegis|process)_[a-z_]+)"', code))


def metrics_of_docs():
    """{name: type} as docs/metrics.md lists them."""
    page = (ROOT / "docs/metrics.md").read_text()
    return dict(re.findall(r"^\| `(\w+)` \| (\w+) \|", page, re.MULTILINE))


def named(text):
    """The metrics that a text names, histograms by their family's name."""
    known = metrics_of_docs()
    names = set()
    for name in METRIC.findall(text):
        stem = re.sub(r"_(bucket|sum|count)$", "", name)
        names.add(stem if known.get(stem) == "histogram" else name)
    return names
