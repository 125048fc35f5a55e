"""The container image: three containers, set up as packaging/compose.yaml says, are a cluster."""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml

import host
from kv import eventually
from node import ROOT

SECRETS = {"AEGIS_AUTH_TOKEN": "a" * 43, "AEGIS_GOSSIP_SECRET": "b" * 43}


@pytest.fixture(scope="module")
def engine(repository):
    """Podman with the image loaded, and networks for three containers."""
    if missing := [tool for tool in ("podman", "runc") if not shutil.which(tool)]:
        pytest.skip(f"not installed: {', '.join(missing)}")
    image = repository.parent / "dist/aegiskv-image-amd64.tar.gz"
    if not image.exists():
        pytest.skip("`make dist` made no image")
    with host.Lab("kv1", "kv2", "kv3", boot=False) as lab:
        engine = Engine(lab)
        # Debian 12's podman does not take it as it is.
        with subprocess.Popen(["gunzip", "-c", image], stdout=subprocess.PIPE) as unpacked:
            engine("load", stdin=unpacked.stdout)
        yield engine
        engine("rm", "--all", "--force", "--time", "0")


@pytest.fixture(scope="module")
def cluster(engine):
    """The containers of the compose file's services, by name, running."""
    file = yaml.safe_load((ROOT / "packaging/compose.yaml").read_text())
    containers = {
        name: Container(engine, place, service)
        for place, (name, service) in zip(engine.lab.hosts, file["services"].items(), strict=True)
    }
    assert list(containers) == ["kv1", "kv2", "kv3"]
    for container in containers.values():
        container.create()
    wait_for_three(containers)
    return containers


def test_three_containers_are_one_cluster(cluster):
    assert cluster["kv1"].curl("-X", "PUT", "-d", "Ann", "-i", "{kv1}:7700/v1/kv/user:1")
    for node in ("kv1", "kv2", "kv3"):
        assert cluster["kv1"].curl(f"{{{node}}}:7700/v1/kv/user:1") == "Ann"


def test_the_health_check_tells_a_process_that_works_from_one_that_hangs(cluster):
    assert cluster["kv3"].healthy()
    os.kill(cluster["kv3"].pid(), signal.SIGSTOP)
    assert not cluster["kv3"].healthy()
    os.kill(cluster["kv3"].pid(), signal.SIGCONT)
    assert cluster["kv3"].healthy()


def test_the_process_is_nobody_in_particular_and_may_do_nothing(cluster):
    status = Path(f"/proc/{cluster['kv1'].pid()}/status").read_text()
    fields = dict(line.split(":\t", 1) for line in status.splitlines())
    assert set(fields["Uid"].split()) == {"10001"}
    assert set(fields["Gid"].split()) == {"10001"}
    assert int(fields["CapEff"], 16) == int(fields["CapBnd"], 16) == 0
    assert fields["NoNewPrivs"] == "1"


def test_data_outlives_the_containers(cluster):
    assert cluster["kv1"].curl("-X", "PUT", "-d", "Bob", "-i", "{kv2}:7700/v1/kv/user:2")
    for container in cluster.values():
        assert container.stop() == 0
    for container in cluster.values():
        container.create()
    wait_for_three(cluster)
    assert cluster["kv1"].curl("{kv3}:7700/v1/kv/user:2") == "Bob"


def wait_for_three(containers):
    for container in containers.values():
        assert eventually(container.ready, seconds=60), container.log()
    members = json.loads(containers["kv1"].exec("aegiskv", "status", "--json"))["members"]
    assert sorted(member["node_id"] for member in members) == ["kv1", "kv2", "kv3"]


class Engine:
    """Podman with images, containers and volumes of its own, in memory, which go with the lab."""

    def __init__(self, lab):
        self.lab = lab
        store = lab.disks / "podman"
        store.mkdir()
        host.call("mount", "-t", "tmpfs", "tmpfs", store)
        self.podman = [
            *("podman", "--root", store, "--runroot", lab.dir / "podman"),
            # Of Debian's runtimes, the one that takes cgroups as they are here.
            *("--runtime", shutil.which("runc"), "--cgroup-manager", "cgroupfs"),
            *("--events-backend", "file", "--tmpdir", lab.dir / "libpod"),
        ]

    def __call__(self, *command, **options):
        return host.call(*self.podman, *command, **options)


class Container:
    """A service of a compose file, run in the network namespace of one host of the lab."""

    def __init__(self, engine, place, service):
        self.engine, self.place, self.name = engine, place, place.name
        self.service = dict(service)

    def create(self):
        """Runs it as compose does, less what concerns this machine's ports and reboots."""
        left = dict(self.service)
        options = [f"--env={name}={filled_in(value)}" for name, value in left.pop("environment").items()]
        options += [f"--volume={volume}" for volume in left.pop("volumes")]
        options += [f"--cap-drop={capability}" for capability in left.pop("cap_drop")]
        options += [f"--security-opt={option}" for option in left.pop("security_opt")]
        options += [f"--read-only={str(left.pop('read_only')).lower()}"]
        for name, count in left.pop("ulimits").items():
            options.append(f"--ulimit={name}={at_most_here(name, count)}")
        options += [f"--ulimit=nproc={at_most_here('nproc', 4096)}"]
        image = left.pop("image")
        self.stop_seconds = int(left.pop("stop_grace_period").removesuffix("s"))
        assert [port.rsplit(":", 1)[1] for port in left.pop("ports")] == ["7700", "7702"]
        assert left.pop("restart") == "unless-stopped"
        assert not left, f"what these settings of {self.name} do is not tried: {left}"

        others = [f"--add-host={h.name}:{h.address}" for h in self.engine.lab.hosts]
        self.engine(
            *("run", "--detach", "--name", self.name, "--hostname", self.name, *others, *options),
            *("--network", f"ns:/run/netns/{self.place.id}", "--cgroup-parent", f"/{self.place.id}"),
            # Podman would have systemd time it; the test runs it instead.
            *("--no-healthcheck", "--pull", "never", image),
        )

    def stop(self):
        """Stops it as compose does, and removes it; returns the exit code of the process."""
        self.engine("stop", "--time", str(self.stop_seconds), self.name)
        code = self.engine("inspect", "--format", "{{.State.ExitCode}}", self.name)
        self.engine("rm", self.name)
        return int(code)

    def pid(self):
        return int(self.engine("inspect", "--format", "{{.State.Pid}}", self.name))

    def exec(self, *command):
        return self.engine("exec", self.name, *command)

    def healthy(self):
        """Runs the health check as the image defines it, once."""
        image = json.loads(self.engine("image", "inspect", self.service["image"]))[0]
        check = image["Healthcheck"]
        assert check["Test"][0] == "CMD"
        command = ["exec", self.name, *check["Test"][1:]]
        try:
            seconds = check["Timeout"] / 1e9
            done = subprocess.run(
                [*self.engine.podman, *command], capture_output=True, timeout=seconds
            )
        except subprocess.TimeoutExpired:
            return False
        return done.returncode == 0

    def ready(self):
        done = subprocess.run(
            ["curl", "-fs", "-m", "2", f"http://{self.place.address}:7702/ready"],
            capture_output=True,
        )
        return done.returncode == 0

    def curl(self, *arguments):
        """What a node answers, asked from this machine; {kv2} is that node's address."""
        addresses = {place.name: place.address for place in self.engine.lab.hosts}
        authorization = f"Authorization: Bearer {SECRETS['AEGIS_AUTH_TOKEN']}"
        arguments = [argument.format(**addresses) for argument in arguments]
        return host.call("curl", "-fsS", "-m", "10", "-H", authorization, *arguments)

    def log(self):
        return subprocess.run(
            [*self.engine.podman, "logs", self.name], capture_output=True, text=True
        ).stderr


def filled_in(value):
    """A value of a compose file, with ${NAME:?complaint} replaced by what NAME is here."""
    return re.sub(r"\$\{(\w+)(?::\?[^}]*)?\}", lambda found: SECRETS[found[1]], value)


def at_most_here(name, count):
    """A limit as it may be set on this machine."""
    hard = resource.getrlimit(getattr(resource, f"RLIMIT_{name.upper()}"))[1]
    return count if hard == resource.RLIM_INFINITY else min(count, hard)
