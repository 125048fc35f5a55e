"""A host with Prometheus, and with what looks like Grafana, comes to watch the cluster."""

import json
import re

import pytest

import host
from control import eventually
from node import ROOT, build_dir

pytestmark = pytest.mark.long
UNPACKED = build_dir() / "debian"
# As Debian has them, but for the interval: nobody wants to wait here.
SETTINGS = "sed -i 's/^  scrape_interval: .*/  scrape_interval: 1s/' /etc/prometheus/prometheus.yml"
FILES = "find /etc/prometheus /etc/grafana /var/lib/grafana -type f -printf '%p %s %T@\\n' 2>/dev/null | sort"
GRAFANA = """\
[Service]
ExecStart=/bin/sleep infinity
"""


@pytest.fixture(scope="module")
def monitoring(cluster):
    if not (UNPACKED / "usr/bin/prometheus").exists():
        pytest.skip("prometheus is not unpacked; `scripts/setup.sh test` does it")
    machine = cluster.hosts["mon1"]
    parts = ("usr/bin/prometheus", "usr/bin/promtool", "usr/share/prometheus", "etc/prometheus")
    tree = cluster.dir / "prometheus.tar"
    unit = ("etc/default/prometheus", "lib/systemd/system/prometheus.service")
    host.call("tar", "-C", UNPACKED, "-cf", tree, *parts, *unit)
    machine.send(tree, "/srv/prometheus.tar")
    # /lib is a link there.
    machine.run("tar -C / --keep-directory-symlink -xf /srv/prometheus.tar")
    machine.run("useradd --system prometheus; install -d -o prometheus /var/lib/prometheus")
    machine.run("sed -i 's|^ARGS=.*|ARGS=--storage.tsdb.path=/var/lib/prometheus|' /etc/default/prometheus")
    machine.run(f"{SETTINGS}; systemctl daemon-reload; systemctl start prometheus")
    machine.run("mkdir -p /etc/grafana/provisioning/dashboards /etc/grafana/provisioning/datasources")
    machine.write("/etc/systemd/system/grafana-server.service", GRAFANA)
    machine.run("systemctl daemon-reload; systemctl start grafana-server")
    return machine


def test_check_mode_shows_what_monitoring_would_become(cluster, monitoring):
    before = monitoring.run(FILES)
    played = cluster.play("monitoring", "--check", "--diff")
    assert played.changed["mon1"] > 0
    assert "+  - job_name: aegiskv" in played.out
    assert monitoring.run(FILES) == before


def test_prometheus_and_grafana_come_to_watch_the_cluster(cluster, monitoring):
    before = monitoring.run("cat /etc/prometheus/prometheus.yml")
    grafana = monitoring.run("systemctl show -P MainPID grafana-server")

    cluster.play("monitoring")

    up = asked(monitoring, "query?query=up%7Bjob%3D%22aegiskv%22%7D")["result"]
    assert {(one["metric"]["instance"], one["metric"]["cluster"], one["value"][1]) for one in up} == {
        (f"{cluster.hosts[name].address}:7702", "main", "1") for name in cluster.members
    }
    rules = asked(monitoring, "rules")["groups"]
    alerts = {rule["name"] for group in rules for rule in group["rules"] if rule["type"] == "alerting"}
    ours = (ROOT / "grafana/rules/alerts.yml").read_text()
    assert alerts == set(re.findall(r"- alert: (\w+)", ours))
    assert len(alerts) > 20
    # What was there is as it was.
    now = monitoring.run("cat /etc/prometheus/prometheus.yml")
    assert re.sub(r"(?ms)^ *# BEGIN aegiskv.*?# END aegiskv.cluster\n", "", now) == before
    assert now.count("# BEGIN aegiskv.cluster") == 2
    board = monitoring.run("cat /var/lib/grafana/dashboards/aegiskv/aegiskv.json")
    assert json.loads(board) == json.loads((ROOT / "grafana/aegiskv.json").read_text())
    source = monitoring.run("cat /etc/grafana/provisioning/datasources/aegiskv.yml")
    assert "url: http://127.0.0.1:9090" in source
    assert monitoring.run("systemctl show -P MainPID grafana-server") != grafana

    again = cluster.play("monitoring", "--diff")
    assert again.changed == {"mon1": 0}


def test_a_node_that_prometheus_does_not_reach_is_named(cluster, monitoring):
    away = cluster.hosts["kv2"].address
    monitoring.run(f"ip route add blackhole {away}")
    try:
        down = "query?query=up%7Bjob%3D%22aegiskv%22%7D%3D%3D0"
        assert eventually(lambda: asked(monitoring, down)["result"])
        played = cluster.play("monitoring", "-e", "monitoring_wait_seconds=2", check=False)
    finally:
        monitoring.run(f"ip route del blackhole {away}")

    assert played.code != 0
    assert re.search(rf"does not reach {away}:7702 \(.*invalid argument\)", " ".join(played.why))


def test_a_configuration_that_promtool_refuses_is_left_as_it_was(cluster, monitoring):
    """The operator has a job of the same name."""
    monitoring.run("cp /etc/prometheus/prometheus.yml /srv/kept.yml")
    monitoring.run(r"sed -i 's/^  - job_name: node$/  - job_name: aegiskv/' /etc/prometheus/prometheus.yml")
    monitoring.run("sed -i '/BEGIN aegiskv/,/END aegiskv/d' /etc/prometheus/prometheus.yml")
    before = monitoring.run("cat /etc/prometheus/prometheus.yml")
    try:
        played = cluster.play("monitoring", check=False)
        after = monitoring.run("cat /etc/prometheus/prometheus.yml; ls -A /etc/prometheus")
    finally:
        monitoring.run("cp /srv/kept.yml /etc/prometheus/prometheus.yml")

    assert played.code != 0
    assert 'multiple scrape configs with job name \\"aegiskv\\"' in " ".join(played.why)
    assert after.startswith(before)
    assert ".aegiskv-" not in after


def test_a_host_without_prometheus_and_grafana_is_told_so(cluster):
    played = cluster.play("monitoring", "-e", "aegiskv_monitoring_group=aegiskv", check=False)
    assert played.code != 0
    assert "Install Prometheus or Grafana there first" in played.why[0]


def asked(machine, path):
    """What Prometheus on a host answers with."""
    return json.loads(machine.run(f"curl -sS 'localhost:9090/api/v1/{path}'"))["data"]
