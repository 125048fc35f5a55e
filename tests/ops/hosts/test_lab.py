"""What other tests rely on: hosts fail as they are told to, and nothing of a lab is left behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import host

ANSWERS = "exec 3<>/dev/tcp/{}/22 && head -c 4 <&3"

LONG_LAB = """
import time, host, node
node.exit_on_terminate()
with host.Lab("kv1") as lab:
    print(lab.name, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def lab():
    with host.Lab("kv1", "kv2", "kv3") as lab:
        yield lab


def test_hosts_fail_and_recover(lab):
    kv1, kv2, kv3 = lab.hosts
    for a in lab.hosts:
        for b in lab.hosts:
            assert reaches(a, b)

    lab.cut((kv1, kv2))
    assert not reaches(kv1, kv2)
    assert not reaches(kv2, kv1)
    assert reaches(kv1, kv3)
    assert reaches(kv2, kv3)
    lab.mend()
    assert reaches(kv1, kv2)

    kv2.unplug()
    assert not reaches(kv1, kv2)
    kv2.plug()
    assert eventually(lambda: reaches(kv1, kv2))

    kv3.freeze()
    # Its kernel, this machine's, takes the connection; nobody says a word.
    assert not reaches(kv1, kv3)
    kv3.thaw()
    assert reaches(kv1, kv3)

    kv3.write("/var/lib/left", "here")
    first_boot = booted_at(kv3)
    kv3.crash()
    assert not reaches(kv1, kv3)
    kv3.boot()
    assert kv3.run("cat /var/lib/left") == "here"
    assert booted_at(kv3) != first_boot

    eater = "python3 -c 'print(len(bytearray(b\"x\") * (64 << 20)))'"
    assert kv1.run(eater) == f"{64 << 20}\n"
    kv1.cap_memory(kv1.memory_used() + (32 << 20))
    assert kv1.run(eater, check=False).returncode != 0
    kv1.cap_memory(-1)
    assert kv1.run(eater) == f"{64 << 20}\n"


@pytest.mark.parametrize("ended_by", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_of_a_lab_that_was_ended(ended_by):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", LONG_LAB]
    other = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    name = other.stdout.readline().strip()
    other.stdout.close()
    assert traces(name)
    assert len(processes(name)) > 5

    other.send_signal(ended_by)
    other.wait()

    assert eventually(lambda: not processes(name))
    if ended_by == signal.SIGKILL:
        with host.Lab():
            pass
    assert traces(name) == []


def reaches(a, b):
    """Whether `a` hears what sshd on `b` says first."""
    said = a.run(f"timeout 1 bash -c '{ANSWERS.format(b.name)}'", check=False).stdout
    return said == "SSH-"


def booted_at(of):
    return of.run("systemctl show -P UserspaceTimestampMonotonic")


def eventually(holds, seconds=10):
    deadline = time.monotonic() + seconds
    while not (held := holds()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return held


def processes(name):
    groups = Path("/sys/fs/cgroup/pids").glob(f"{name}-*")
    return [pid for g in groups for f in g.rglob("cgroup.procs") for pid in f.read_text().split()]


def traces(name):
    """Whatever this machine has that belongs to the lab of this name."""
    places = [
        *(Path("/sys/fs/cgroup").glob(f"*/{name}-*")),
        *(Path("/run/netns").glob(f"{name}-*")),
        *(Path("/sys/class/net").glob(f"{name}*")),
        *host.disks().glob(name),
        *Path("/tmp").glob(f"{name}*"),
    ]
    return [str(place) for place in places] + [
        line for line in Path("/proc/mounts").read_text().splitlines() if name in line
    ]
