"""From bare Debian to a cluster. The tests run in this order, on the same hosts."""

import re

import pytest

import host
from control import eventually, operations

CHANGED_VALUE = 96


def test_check_mode_on_empty_hosts_says_what_would_be_and_does_nothing(control):
    before = {name: state(machine) for name, machine in control.hosts.items()}

    played = control.play("bootstrap", "--check", "--diff")

    assert all(count > 0 for name, count in played.changed.items())
    assert '"gossip_bind_addr"' in played.out
    assert not control.secrets.exists()
    assert {name: state(machine) for name, machine in control.hosts.items()} == before


def test_a_cluster_comes_of_one_command(control, command_lines):
    # Said as loudly as can be: a later test looks for secrets in it.
    control.play("bootstrap", "-vvv", "--diff")

    for name in control.members:
        machine = control.hosts[name]
        seen = operations(machine, "/cluster")
        assert {m["node_id"]: m["status"] for m in seen["members"]} == dict.fromkeys(
            control.members, "alive"
        )
        assert seen["shards"]["healthy"] == 16
        assert machine.run("systemctl is-enabled aegiskv").strip() == "enabled"
        ready = operations(machine, "/ready")
        assert ready["checks"]["listeners"] == "ok"


@pytest.mark.parametrize("name", ["kv1", "kv2", "kv3"])
def test_each_node_serves_over_tls_with_the_token(control, name):
    address = control.hosts[name].address
    url = f"https://{address}:7700/v1/kv/from-{name}"
    token = control.bearer()
    with_ca = ["curl", "-sS", "--max-time", "10", "--cacert", control.ca]
    code = ["-o", "/dev/null", "-w", "%{http_code}"]

    assert host.call(*with_ca, *code, *token, "-X", "PUT", url, "-d", "1") == "201"
    assert host.call(*with_ca, *token, url) == "1"
    # By its name as well; without the token, or without the authority, there is nothing.
    named = ["--resolve", f"{name}:7700:{address}"]
    assert host.call(*with_ca, *named, *token, f"https://{name}:7700/v1/kv/from-{name}") == "1"
    assert host.call(*with_ca, *code, url) == "401"
    with pytest.raises(host.Failed, match="certificate"):
        host.call("curl", "-sS", "--max-time", "10", *token, url)


def test_each_port_is_open_to_those_it_is_for_and_closed_to_others(control, lab):
    """kv4 is no member yet, and no monitor; this machine is a monitor."""
    node = control.hosts["kv1"]
    assert reaches(control.hosts["kv2"], node.address, 7701)
    assert not reaches(control.hosts["kv4"], node.address, 7701)
    assert reaches(control.hosts["kv4"], node.address, 7700)
    assert not reaches(control.hosts["kv4"], node.address, 7702)
    assert host.call("curl", "-sS", "--max-time", "3", f"http://{node.address}:7702/live")
    # What comes in by UDP and is nonsense is counted.
    before = refusals(node)
    send = "import socket; [socket.socket(2, 2).sendto(b'nonsense', ('{}', 7701)) for _ in range(20)]"
    control.hosts["kv4"].run(f'python3 -c "{send.format(node.address)}"')
    assert refusals(node) == before
    control.hosts["kv2"].run(f'python3 -c "{send.format(node.address)}"')
    assert eventually(lambda: refusals(node) > before)
    # The rules come back with the host's own, whatever happens to those.
    node.run("systemctl restart nftables")
    assert not reaches(control.hosts["kv4"], node.address, 7701)
    assert reaches(control.hosts["kv2"], node.address, 7701)


def test_keys_are_their_own_and_secrets_are_the_same(control):
    machines = [control.hosts[name] for name in control.members]

    keys = {machine.run("sha256sum </etc/aegiskv/tls/node.key") for machine in machines}
    assert len(keys) == 3
    for machine in machines:
        modes = machine.run(
            "stat -c '%n %a %U:%G' /etc/aegiskv/tls/node.key /etc/aegiskv/token "
            "/etc/aegiskv/gossip-secret"
        )
        assert re.findall(r" (.*)", modes) == ["640 root:aegiskv"] * 3
        assert machine.run("cat /etc/aegiskv/token").strip() == control.secret("token")
        assert machine.run("cat /etc/aegiskv/gossip-secret").strip() == (
            control.secret("gossip-secret")
        )
        # What is in the control host's directory are secrets of all; no node's key is among them.
        on_node = machine.run("cat /etc/aegiskv/tls/node.key")
        kept = [path.read_text() for path in control.secrets.iterdir()]
        assert not any(on_node.strip() in text for text in kept)


def test_the_second_run_changes_nothing(control):
    assert control.play("bootstrap").changed == dict.fromkeys(control.members, 0)


def test_check_mode_shows_one_changed_value_and_just_that(control):
    settings = control.vars["aegiskv_settings"]
    before = settings["max_memory_mb"]
    settings["max_memory_mb"] = CHANGED_VALUE
    try:
        played = control.play("bootstrap", "--check", "--diff")
    finally:
        settings["max_memory_mb"] = before

    assert played.changed == dict.fromkeys(control.members, 1)
    lines = re.findall(r"^[-+](?![-+]{2} ).*", played.out, re.M)
    assert lines == ['-    "max_memory_mb": 64,', '+    "max_memory_mb": 96,'] * 3
    assert operations(control.hosts["kv1"], "/config")["max_memory_mb"]["value"] == before


@pytest.mark.long
def test_a_mistake_in_a_setting_is_named_before_anything_is_written(control):
    before = control.hosts["kv1"].run("cat /etc/aegiskv/conf.d/50-ansible.json")
    control.vars["aegiskv_settings"]["max_memory"] = 1
    try:
        played = control.play("bootstrap", "-vvv", "--diff", check=False)
    finally:
        del control.vars["aegiskv_settings"]["max_memory"]

    assert played.code != 0
    assert "max_memory_mb" in " ".join(played.why)
    assert control.hosts["kv1"].run("cat /etc/aegiskv/conf.d/50-ansible.json") == before


def reaches(machine, address, port):
    connect = f"import socket; socket.create_connection(('{address}', {port}), 2).close()"
    return machine.run(f'python3 -c "{connect}"', check=False).returncode == 0


def refusals(machine):
    """How many datagrams of strangers a node has refused."""
    found = re.findall(
        r"^aegis_peer_refusals_total{[^}]*} (\d+)", machine.run("curl -sS localhost:7702/metrics"), re.M
    )
    return sum(map(int, found))


def state(machine):
    """What a playbook might have changed on a host."""
    return machine.run(
        "dpkg-query -W | sha256sum; find /etc /usr/local /var/cache/aegiskv-packages -type f "
        "! -path '/etc/machine-id' -printf '%p %s %T@\\n' 2>/dev/null | sort | sha256sum; "
        "nft list ruleset | sha256sum; getent passwd aegiskv; true"
    )
