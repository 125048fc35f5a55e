"""The control host of a lab: it has the collection installed, an inventory, and runs playbooks."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import yaml

import host

COLLECTION = "aegiskv.cluster"
PLAY_SECONDS_MAX = 900
# Few shards move soon, and little memory is enough.
SETTINGS = {"num_shards": 16, "max_memory_mb": 64, "rebalance_delay": "3s"}


def tool(name):
    """A program of the virtual environment that these tests run in."""
    return str(Path(sys.executable).parent / name)


class Control:
    """Playbooks against the hosts of a lab, from `directory`; all it makes is in there."""

    def __init__(self, lab, collections, package, directory):
        self.lab, self.collections, self.dir = lab, collections, directory
        self.hosts = {machine.name: machine for machine in lab.hosts}
        self.inventory = directory / "inventory.yml"
        self.secrets = directory / "aegiskv-secrets"
        self.members = ["kv1", "kv2", "kv3"]
        self.per_host = {}
        # All that playbooks have printed.
        self.outputs = []
        self.extra_environment = {}
        # All secrets that there ever were.
        self.secrets_known = set()
        self.vars = {
            "ansible_ssh_common_args": f"-F {lab.ssh_config}",
            "ansible_user": "root",
            "ansible_python_interpreter": "/usr/bin/python3",
            "aegiskv_package_file": str(package),
            "aegiskv_wait_seconds": 60,
            "aegiskv_canary_seconds": 1,
            "aegiskv_monitors": [lab.address, *(m.address for m in lab.hosts if m.name == "mon1")],
            "aegiskv_settings": dict(SETTINGS),
        }

    def play(self, playbook, *options, check=True, **options_of_run):
        """Runs a playbook of the collection; returns how it went."""
        done = subprocess.run(
            self.command(playbook, *options),
            env=self.environment(),
            cwd=self.dir,
            text=True,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=PLAY_SECONDS_MAX,
            **options_of_run,
        )
        self.outputs.append(done.stdout + done.stderr)
        self._note_secrets()
        if check and done.returncode != 0:
            raise host.Failed(playbook, done)
        return Played(done)

    def start(self, playbook, *options):
        """The same, not waited for."""
        return subprocess.Popen(
            self.command(playbook, *options),
            env=self.environment(),
            cwd=self.dir,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )

    def command(self, playbook, *options):
        self._write_inventory()
        name = playbook if str(playbook).endswith(".yml") else f"{COLLECTION}.{playbook}"
        return [tool("ansible-playbook"), "-i", str(self.inventory), str(name), *options]

    def environment(self):
        return self.extra_environment | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": str(self.dir),
            "LC_ALL": "C.UTF-8",
            "ANSIBLE_COLLECTIONS_PATH": str(self.collections),
            "ANSIBLE_PIPELINING": "1",
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_FORKS": "5",
            "ANSIBLE_LOCALHOST_WARNING": "0",
        }

    def secret(self, name):
        return (self.secrets / name).read_text().strip()

    def bearer(self, token=None):
        """Options of curl that show a token, from a file: command lines are searched for secrets."""
        file = self.dir / "header"
        file.write_text(f"Authorization: Bearer {token or self.secret('token')}")
        return ["-H", f"@{file}"]

    @property
    def ca(self):
        return self.secrets / "ca.crt"

    def _note_secrets(self):
        for file in self.secrets.glob("*"):
            if file.name.startswith(("token", "gossip-secret", "ca.key")):
                lines = file.read_text().splitlines()
                self.secrets_known.update(line for line in lines if "---" not in line and line)

    def _write_inventory(self):
        hosts = {
            name: {"ansible_host": self.hosts[name].address} | self.per_host.get(name, {})
            for name in self.members
        }
        groups = {"aegiskv": {"hosts": hosts}}
        if watching := self.hosts.get("mon1"):
            groups["aegiskv_monitoring"] = {"hosts": {"mon1": {"ansible_host": watching.address}}}
        self.inventory.write_text(yaml.safe_dump({"all": {"vars": self.vars, "children": groups}}))


class Played:
    """What a run of a playbook said and did."""

    def __init__(self, done):
        self.code, self.out, self.err = done.returncode, done.stdout, done.stderr
        self.said = done.stdout + done.stderr

    @property
    def changed(self):
        """How many tasks changed something, of each host."""
        found = re.findall(r"^(\S+) +: ok=\d+ +changed=(\d+)", self.out, re.M)
        return {name: int(count) for name, count in found}

    @property
    def why(self):
        """What the tasks that failed said."""
        return re.findall(r"^fatal: \[[^]]+\](?:.*{\n(?:.*\n)*?}|.*)", self.out, re.M)


def operations(machine, path):
    """The JSON that a node's operations port answers with on its own host."""
    return json.loads(machine.run(f"curl -sS localhost:7702{path}"))


def eventually(holds, seconds=20):
    """Asks again until it holds; returns what was said last."""
    deadline = time.monotonic() + seconds
    while not (held := holds()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return held


def lease(machine, options=""):
    """The stop lease, as a node on its own host tells of it; or what curl's options do to it."""
    token = "printf 'Authorization: Bearer %s' \"$(cat /etc/aegiskv/token)\""
    asked = f"{token} | curl -sS --fail -H @- {options or 'localhost:7702/admin/stop-lease'}"
    return json.loads(machine.run(asked)).get("lease")


def pids(control):
    """The process of each member."""
    read = "systemctl show -P MainPID aegiskv"
    return {name: control.hosts[name].run(read).strip() for name in control.members}
