"""Check mode on a cluster that is at work: playbooks say what they would do, and do nothing."""

import pytest

from control import lease, pids
from test_1_bootstrap import state

pytestmark = pytest.mark.long


@pytest.mark.parametrize(
    "playbook",
    ["rolling_restart", "upgrade", "rotate_secrets", "add_node", "backup", "restore", "support_bundle"],
)
def test_check_mode_goes_through_and_changes_nothing(cluster, playbook, another_build, package, tmp_path):
    dump = tmp_path / "dump.ndjson"
    dump.write_text('{"dumped_keys":0}\n')
    options = ("-e", f"aegiskv_backup_file={dump}") if playbook == "restore" else ()
    if playbook == "upgrade":
        cluster.vars["aegiskv_package_file"] = str(another_build)
    if playbook == "add_node":
        cluster.members.append("kv4")
    before = everything(cluster)
    try:
        played = cluster.play(playbook, "--check", "--diff", *options)
        if playbook in ("upgrade", "rotate_secrets"):
            assert any(played.changed.values())
        if playbook == "add_node":
            assert played.changed["kv4"] > 0
        assert everything(cluster) == before
    finally:
        cluster.vars["aegiskv_package_file"] = str(package)
        if "kv4" in cluster.members:
            cluster.members.remove("kv4")
    assert lease(cluster.hosts["kv1"]) is None


def everything(cluster):
    """What a playbook might have changed, on the hosts and here."""
    kept = {file.name: file.read_bytes() for file in cluster.secrets.iterdir()}
    here = sorted(path.name for path in cluster.dir.iterdir() if path.name not in ("header", ".ansible"))
    members = [name for name in cluster.members if name != "kv4"]
    on_hosts = {name: state(cluster.hosts[name]) for name in cluster.members}
    return kept, here, on_hosts, {name: pids(cluster).get(name) for name in members}
