"""The firewall role beside rules that were there before, each firewall on a host of its own."""

import socket
import subprocess

import pytest
import yaml

import host
from control import Control, eventually
from packages import install

pytestmark = pytest.mark.long
OURS = "aegiskv"
NFT_RULES = """\
#!/usr/sbin/nft -f
flush ruleset
table inet filter {
    set blocked {
        type ipv4_addr
        elements = { 192.0.2.1 }
    }
    chain input {
        type filter hook input priority filter; policy drop;
        ct state established,related accept
        iif "lo" accept
        ip saddr @blocked drop
        tcp dport 22 accept comment "ssh"
    }
    chain forward {
        type filter hook forward priority filter; policy drop;
    }
}
table ip nat {
    chain post {
        type nat hook postrouting priority srcnat; policy accept;
    }
}
"""
PLAYBOOK = [
    {
        "name": "Open ports",
        "hosts": "aegiskv",
        "gather_facts": False,
        "roles": [{"role": "aegiskv.cluster.firewall"}],
    }
]
# What the hosts' root lacks, and the names by which they are called here.
FIREWALLS = {"nftables": "fw1", "ufw": "fw2", "firewalld": "fw3"}
LISTENER = "systemd-run --quiet --unit=listener python3 -m http.server 7701"


@pytest.fixture(scope="module")
def guarded(collections, tmp_path_factory):
    """A control host, with hosts that have rules of others and something that listens."""
    if lacking := host.lacks():
        pytest.skip(lacking)
    with host.Lab(*FIREWALLS.values()) as lab:
        control = Control(lab, collections, None, tmp_path_factory.mktemp("firewalls"))
        control.members = list(FIREWALLS.values())
        control.playbook = control.dir / "firewall.yml"
        control.playbook.write_text(yaml.safe_dump(PLAYBOOK))
        archives = tmp_path_factory.mktemp("archives")
        nftables, ufw, firewalld = lab.hosts
        nftables.write("/etc/nftables.conf", NFT_RULES, "0755")
        nftables.run("systemctl enable --now nftables")
        install(ufw, "ufw", archives)
        ufw.run("ufw allow 22/tcp comment 'ssh'; ufw deny from 192.0.2.1; ufw --force enable")
        # It wants to know protocols by name.
        install(firewalld, "firewalld netbase", archives)
        firewalld.run("systemctl enable --now firewalld; firewall-cmd --permanent --add-service=ssh")
        firewalld.run("firewall-cmd --permanent --add-rich-rule='rule family=ipv4 source address=192.0.2.1 drop'")
        # Only in force, and not kept: a reload would take it away.
        firewalld.run("firewall-cmd --reload; firewall-cmd --add-port=9999/tcp")
        for machine in lab.hosts:
            machine.run(LISTENER)
            assert machine.run("command -v nft")
        yield control


def rules(machine):
    """All rules of a host that it had before, or that are kept, without counters."""
    kind = next(kind for kind, name in FIREWALLS.items() if name == machine.name)
    commands = {
        "nftables": "nft list ruleset; cat /etc/nftables.conf",
        "ufw": "ufw show added; ufw status verbose; cat /etc/default/ufw /etc/ufw/ufw.conf",
        "firewalld": "firewall-cmd --list-all; firewall-cmd --permanent --list-all",
    }
    return machine.run(commands[kind])


def without_ours(machine):
    kept, skipping = [], False
    for line in rules(machine).splitlines():
        skipping = skipping or line == f"table inet {OURS} {{"
        if not skipping and OURS not in line and 'priority="7700"' not in line:
            kept.append(line)
        skipping = skipping and line != "}"
    return kept


def test_rules_of_others_stay_and_ours_come_and_go(guarded):
    machines = guarded.lab.hosts
    here, member = guarded.lab.address, "10.77.255.9"
    before = {machine.name: rules(machine) for machine in machines}
    assert not any(connects(machine) for machine in machines)

    guarded.vars["firewall_members"] = [here, member]
    guarded.play(guarded.playbook)

    for machine in machines:
        assert without_ours(machine) == before[machine.name].splitlines()
        assert eventually(lambda machine=machine: connects(machine), 3), machine.name
        assert ssh_is_open(machine)
        assert member in rules(machine)
    assert set(guarded.play(guarded.playbook).changed.values()) == {0}

    # A member that was taken out of the inventory loses its rule, and no other one does.
    guarded.vars["firewall_members"] = [member]
    guarded.play(guarded.playbook)
    for machine in machines:
        assert not connects(machine), machine.name
        assert without_ours(machine) == before[machine.name].splitlines()
        assert member in rules(machine)
        assert here not in rules(machine)

    guarded.vars["firewall_state"] = "absent"
    guarded.play(guarded.playbook)
    for machine in machines:
        assert rules(machine) == before[machine.name]


def connects(machine):
    try:
        socket.create_connection((machine.address, 7701), 1).close()
    except OSError:
        return False
    return True


def ssh_is_open(machine):
    """By a connection of its own."""
    ssh = ["ssh", "-F", machine.lab.ssh_config, "-o", "ControlPath=none", machine.name, "true"]
    return subprocess.run(ssh, timeout=10).returncode == 0
