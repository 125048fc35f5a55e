"""The rules by promtool, their tests, their runbooks, and the names that all of it uses."""

import re
import subprocess

import pytest
import yaml

import board
from stack import tool

SEVERITIES = {"critical", "warning", "info"}
TESTS = sorted((board.GRAFANA / "tests").glob("*.yml"))
SECTIONS = ["Meaning", "Impact", "Diagnosis", "Mitigation"]

# Metrics that the dashboard leaves out, with the reason.
NOT_SHOWN = {
    "process_virtual_memory_bytes": "address space that is reserved says nothing about need",
}


def run(*command):
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def cases():
    """Every case of the tests in grafana/tests."""
    for path in TESTS:
        yield from yaml.safe_load(path.read_text())["tests"]


def labels_of(sample):
    return dict(re.findall(r'(\w+)="([^"]*)"', sample["labels"]))


def firing():
    """{alert: labels that it fires with}, as the tests have it."""
    fired = {}
    for case in cases():
        for check in case["promql_expr_test"]:
            for sample in check["exp_samples"]:
                labels = labels_of(sample)
                fired[labels.pop("alertname")] = labels
    return fired


def test_promtool_takes_the_rules():
    out = run(
        tool("promtool"), "check", "rules", *map(str, (board.GRAFANA / "rules").glob("*.yml"))
    )
    assert out.count("SUCCESS") == 2


def test_promtool_takes_the_example_of_a_configuration():
    out = run(tool("promtool"), "check", "config", str(board.GRAFANA / "prometheus.yml"))
    assert "2 rule files found" in out


def test_promtool_takes_the_other_way_to_find_nodes(tmp_path):
    """The part about DNS is a comment, since nobody needs both ways."""
    text = (board.GRAFANA / "prometheus.yml").read_text()
    settings = yaml.safe_load(re.sub(r"^  # ((?:- |  ).*)$", r"  \1", text, flags=re.M))
    by_file, by_dns = settings["scrape_configs"]
    assert "file_sd_configs" in by_file and "dns_sd_configs" in by_dns
    settings |= {"scrape_configs": [by_dns], "rule_files": []}
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(settings))
    run(tool("promtool"), "check", "config", str(tmp_path / "prometheus.yml"))


def test_amtool_takes_the_example_of_a_configuration():
    run(tool("amtool"), "check-config", str(board.GRAFANA / "alertmanager.yml"))


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.stem)
def test_promtool_runs_the_tests_of_the_rules(path):
    assert "SUCCESS" in run(tool("promtool"), "test", "rules", str(path))


def test_each_alert_is_seen_to_fire_and_to_stay_quiet():
    fires, quiet = set(), set()
    for case in cases():
        name = case["name"].split()[0]
        for check in case["promql_expr_test"]:
            assert check["expr"] == f'ALERTS{{alertname="{name}", alertstate="firing"}}'
            (fires if check["exp_samples"] else quiet).add(name)
    assert fires == quiet == set(board.alerts())


def test_a_test_of_rules_can_fail(tmp_path):
    """Rules that never fire must not pass."""
    for name in ("rules", "tests"):
        (tmp_path / name).mkdir()
    for path in (board.GRAFANA / "rules").glob("*.yml"):
        content = yaml.safe_load(path.read_text())
        for group in content["groups"]:
            for rule in group["rules"]:
                rule["expr"] = "vector(0) < 0"
        (tmp_path / "rules" / path.name).write_text(yaml.safe_dump(content))
    path = tmp_path / "tests/disk.yml"
    path.write_text((board.GRAFANA / "tests/disk.yml").read_text())
    done = subprocess.run([tool("promtool"), "test", "rules", path], capture_output=True, text=True)
    assert done.returncode != 0 and "AegisKVFsyncSlow" in done.stdout + done.stderr


@pytest.mark.parametrize("name", board.alerts())
def test_an_alert_says_what_a_person_needs(name):
    rule = board.alerts()[name]
    notes = rule["annotations"]
    assert name.startswith("AegisKV")
    assert rule["labels"]["severity"] in SEVERITIES
    assert rule["labels"]["severity"] == firing()[name]["severity"]
    assert set(notes) == {"summary", "description", "runbook_url"}
    assert notes["description"].endswith(".") and len(notes["summary"]) < 100
    # What it is not told with, it cannot name.
    used = set(re.findall(r"\$labels\.(\w+)", notes["summary"] + notes["description"]))
    assert used <= set(firing()[name])


@pytest.mark.parametrize("name", board.alerts())
def test_an_alert_has_its_runbook(name):
    path = board.ROOT / board.alerts()[name]["annotations"]["runbook_url"]
    assert path == board.GRAFANA / "runbooks" / f"{name}.md"
    text = path.read_text()
    assert text.startswith(f"# {name}\n")
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == SECTIONS


def test_there_is_no_runbook_without_an_alert():
    books = {path.stem for path in (board.GRAFANA / "runbooks").glob("*.md")}
    assert books == set(board.alerts())


def test_the_docs_list_every_alert_with_its_severity():
    page = (board.ROOT / "docs/monitor.md").read_text()
    listed = dict(re.findall(r"^\| \[(AegisKV\w+)\]\(\S+\) \| (\w+) \|", page, re.M))
    assert listed == {name: rule["labels"]["severity"] for name, rule in board.alerts().items()}


def code_in(text):
    """Blocks of commands, and commands within sentences."""
    return re.findall(r"^```\n(.*?)^```", text, re.M | re.S) + re.findall(r"`([^`\n]+)`", text)


def test_runbooks_ask_for_what_port_7702_answers():
    requests = set(re.findall(r"`(?:GET|POST) (/[\w/-]+)", (board.ROOT / "docs/run.md").read_text()))
    requests |= {"/health", "/cluster/shards"}
    asked = 0
    for book in (board.GRAFANA / "runbooks").glob("*.md"):
        for code in code_in(book.read_text()):
            for path in re.findall(r"7702(/[\w/-]+)", code):
                assert path in requests, f"{book.name}: {path}"
                asked += 1
    assert asked > 20


def test_code_docs_dashboard_rules_and_runbooks_name_the_same_metrics():
    code = board.metrics_of_code()
    assert code == set(board.metrics_of_docs())
    texts = {"the dashboard": board.DASHBOARD.read_text()}
    folders = (board.GRAFANA / "rules", board.GRAFANA / "tests", board.GRAFANA / "runbooks")
    for path in [p for folder in folders for p in folder.iterdir()]:
        texts[path.name] = path.read_text()
    for page in ("monitor.md", "run.md", "troubleshoot.md", "cluster.md", "secure.md", "size.md"):
        texts[page] = (board.ROOT / "docs" / page).read_text()
    for where, text in texts.items():
        unknown = board.named(text) - code
        assert not unknown, f"{where} names {unknown}, which src/metrics does not have"
    shown = board.named(texts["the dashboard"])
    assert code - shown == set(NOT_SHOWN), "show it, or say why not"


def test_rules_use_recordings_that_are_there():
    recorded = set(board.recordings())
    for rule in board.rules():
        used = set(re.findall(r"\b\w+:aegis_\w+:\w+", rule["expr"]))
        assert used <= recorded, f"{rule}: {used - recorded}"
