"""Debian hosts with systemd, booted for a test in namespaces of this machine, and a network of
their own between them.

    with Lab("kv1", "kv2") as lab:
        kv1, kv2 = lab.hosts
        kv1.run("apt-get install -y aegiskv")
        kv2.unplug()

A lab has a bridge with one port for each host (10.77.N.11 and up, also under their names) and one
for this machine (`lab.address`). `lab.ssh_config` lets any program reach the hosts by ssh.

A host is its own disk (an overlay on a root that is made once and kept in the build directory), its
own cgroups, and systemd as its first process. What is written to its disk outlives `crash`. Its
kernel and clock are this machine's.

All that a lab makes is named after the process that made it. It ends with the lab; should the
process be killed, the hosts die with it, and the next lab removes what they left.
"""

import contextlib
import fcntl
import functools
import hashlib
import http.server
import ipaddress
import itertools
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from pathlib import Path

from node import build_dir

SUITE = "bookworm"
PACKAGES = (
    "systemd,systemd-sysv,dbus,libpam-systemd,openssh-server,sudo,python3,python3-apt,nftables,"
    "iproute2,procps,curl,ca-certificates,needrestart"
)
# The root's packages come from where this machine's own do, if it runs the same suite.
SOURCES = Path("/etc/apt/sources.list.d/debian.sources")

CGROUPS = Path("/sys/fs/cgroup")
CONTROLLERS = ("systemd", "unified", "freezer", "memory", "pids", "cpu")
BOOT_SECONDS_MAX = 60
COMMAND_SECONDS_MAX = 120

labs = itertools.count(1)


def lacks():
    """What this machine lacks to boot hosts, or None."""
    if os.geteuid() != 0:
        return "only root can boot hosts"
    tools = ("mmdebstrap", "systemd-nspawn", "ip", "nft", "ssh", "ssh-keygen")
    if missing := [tool for tool in tools if not shutil.which(tool)]:
        return f"not installed: {', '.join(missing)}"
    if missing := [name for name in CONTROLLERS if not (CGROUPS / name).is_dir()]:
        return f"hosts need cgroups as of version 1; these are not mounted: {', '.join(missing)}"
    return None


def call(*command, **options):
    """Runs a command on this machine and returns what it printed."""
    done = subprocess.run(command, text=True, capture_output=True, **options)
    if done.returncode != 0:
        raise Failed(" ".join(map(str, command)), done)
    return done.stdout


class Failed(Exception):
    """A command ended with something else than 0."""

    def __init__(self, command, done):
        super().__init__(f"{command}: exit code {done.returncode}\n{done.stdout}{done.stderr}")


class Lab:
    """Hosts of the given names, booted, with the network between them. A context manager.

    With `boot=False` there is just a network namespace for each, as `id` names it."""

    def __init__(self, *names, boot=True):
        self.name = f"aegis-{os.getpid()}-{next(labs)}"
        self.bridge = f"{self.name}-net"
        # Disks may grow; what is small goes where paths are short, as sockets want it.
        self.disks = disks() / self.name
        self.dir = Path(tempfile.gettempdir(), self.name)
        self.ssh_config = self.dir / "ssh_config"
        self.hosts = [Host(self, name, 11 + index) for index, name in enumerate(names)]
        self.boot = boot
        self.address = None
        self.closing = contextlib.ExitStack()

    def __enter__(self):
        with self.closing as undo:
            with lock():
                remove_leftovers()
                undo.callback(remove, self.name)
                self.disks.mkdir(parents=True)
                self.dir.mkdir(mode=0o700)
                self._lay_network()
            if self.boot:
                self._boot()
            self.closing = undo.pop_all()
        return self

    def __exit__(self, *_):
        self.closing.close()

    def serve(self, directory):
        """Serves a directory over http to the hosts, as long as the lab stands; returns its URL."""
        handler = functools.partial(QuietHandler, directory=directory)
        server = http.server.ThreadingHTTPServer((self.address, 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self.closing.callback(server.server_close)
        self.closing.callback(server.shutdown)
        return f"http://{self.address}:{server.server_port}"

    def cut(self, *pairs):
        """Lets nothing through between the two hosts of each pair, until `mend`."""
        rules = "".join(
            f"iifname {a.name} oifname {b.name} drop\niifname {b.name} oifname {a.name} drop\n"
            for a, b in pairs
        )
        self._nft(
            "table bridge cuts {\n"
            f"chain pairs {{ type filter hook forward priority 0;\n{rules}}}\n}}\n"
        )

    def mend(self):
        # Declared before it is deleted, lest it not be there.
        self._nft("table bridge cuts\ndelete table bridge cuts\n")

    def _boot(self):
        self._write_ssh_config()
        for host in self.hosts:
            host.prepare()
        for host in self.hosts:
            host.launch()
        for host in self.hosts:
            host.wait_booted()

    def _nft(self, script):
        call("ip", "netns", "exec", self.bridge, "nft", "-f", "-", input=script)

    def _lay_network(self):
        network = free_network()
        self.address = str(network[1])
        call("ip", "netns", "add", self.bridge)
        in_bridge = ("ip", "-n", self.bridge, "link")
        call(*in_bridge, "add", "br0", "type", "bridge")
        call(*in_bridge, "set", "br0", "up")
        call("ip", "link", "add", self.name, "type", "veth", "peer", "here", "netns", self.bridge)
        call(*in_bridge, "set", "here", "master", "br0", "up")
        call("ip", "addr", "add", f"{self.address}/24", "dev", self.name)
        call("ip", "link", "set", self.name, "up")
        for host in self.hosts:
            host.address = str(network[host.number])
            call("ip", "netns", "add", host.id)
            peer = ("peer", "eth0", "netns", host.id)
            call(*in_bridge, "add", host.name, "type", "veth", *peer)
            call(*in_bridge, "set", host.name, "master", "br0", "up")
            call("ip", "-n", host.id, "addr", "add", f"{host.address}/24", "dev", "eth0")
            call("ip", "-n", host.id, "link", "set", "eth0", "up")
            call("ip", "-n", host.id, "link", "set", "lo", "up")
            call("ip", "-n", host.id, "route", "add", "default", "via", self.address)

    def _write_ssh_config(self):
        call("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.dir / "key")
        # All hosts have the key that the root was made with.
        host_key = (base() / "etc/ssh/ssh_host_ed25519_key.pub").read_text()
        self.dir.joinpath("known_hosts").write_text(f"* {host_key}")
        self.ssh_config.write_text(
            "".join(f"Host {host.name}\n  HostName {host.address}\n" for host in self.hosts)
            + f"""Host *
  User root
  BatchMode yes
  IdentitiesOnly yes
  IdentityFile {self.dir}/key
  UserKnownHostsFile {self.dir}/known_hosts
  GlobalKnownHostsFile none
  LogLevel ERROR
  ConnectTimeout 5
  ControlMaster auto
  ControlPath {self.dir}/%n
  ControlPersist yes
"""
        )


class Host:
    """One host of a lab. Made by `Lab`."""

    def __init__(self, lab, name, number):
        self.lab, self.name, self.number = lab, name, number
        self.id = f"{lab.name}-{name}"
        self.disk = lab.disks / name
        self.console = lab.dir / f"{name}.console"
        self.address = None
        self.process = None

    def run(self, command, check=True, seconds_max=COMMAND_SECONDS_MAX, stdin=subprocess.DEVNULL):
        """Runs a command with sh as root; returns what it printed to standard output.

        With `check=False` returns the finished process instead, whatever its exit code."""
        ssh = ["ssh", "-F", self.lab.ssh_config, self.name, command]
        fed = {"input": stdin} if isinstance(stdin, str) else {"stdin": stdin}
        done = subprocess.run(
            ssh, text=True, errors="replace", capture_output=True, timeout=seconds_max, **fed
        )
        if not check:
            return done
        if done.returncode != 0:
            raise Failed(f"{self.name}: {command}", done)
        return done.stdout

    def write(self, path, text, mode="0644"):
        """Writes a file, and its directory if there is none."""
        self.run(f"install -D -m {mode} /dev/stdin {path}", stdin=text)

    def send(self, file, path, mode="0644"):
        """Copies a file of this machine."""
        with open(file, "rb") as content:
            self.run(f"install -D -m {mode} /dev/stdin {path}", stdin=content)

    def boot(self):
        """Boots it again after `crash`."""
        self.launch()
        self.wait_booted()

    def crash(self):
        """Ends all its processes at once. What they wrote is on its disk, fsynced or not."""
        self.process.kill()
        end_processes(CGROUPS / "pids" / self.id)
        subprocess.run(
            ["ssh", "-F", self.lab.ssh_config, "-O", "exit", self.name], stderr=subprocess.DEVNULL
        )

    def freeze(self):
        """Stops all its processes where they are, as a hanging machine does, until `thaw`."""
        self._cgroup("freezer", "freezer.state").write_text("FROZEN")

    def thaw(self):
        self._cgroup("freezer", "freezer.state").write_text("THAWED")

    def cap_memory(self, size):
        """Lets it have so many bytes of memory; -1 for no limit."""
        self._cgroup("memory", "memory.limit_in_bytes").write_text(str(size))

    def memory_used(self):
        """How many bytes of memory it has in use, the cache of files included."""
        return int(self._cgroup("memory", "memory.usage_in_bytes").read_text())

    def unplug(self):
        """Pulls its network cable."""
        call("ip", "-n", self.lab.bridge, "link", "set", self.name, "down")

    def plug(self):
        call("ip", "-n", self.lab.bridge, "link", "set", self.name, "up")

    def prepare(self):
        """Writes what tells it from the other hosts to its disk."""
        etc, ssh = self.disk / "upper/etc", self.disk / "upper" / "root" / ".ssh"
        for directory in (etc, ssh, self.disk / "work", self.disk / "root"):
            directory.mkdir(parents=True)
        for private in (ssh, ssh.parent):
            private.chmod(0o700)
        names = "".join(f"{host.address} {host.name}\n" for host in self.lab.hosts)
        etc.joinpath("hosts").write_text(f"127.0.0.1 localhost\n{names}")
        etc.joinpath("hostname").write_text(f"{self.name}\n")
        etc.joinpath("machine-id").touch()
        etc.joinpath("resolv.conf").touch()
        shutil.copy(self.lab.dir / "key.pub", ssh / "authorized_keys")

    def launch(self):
        """Starts its first process, and does not wait for more."""
        # The overlay is mounted in a namespace of the host's own, and so goes when the host does.
        # In a process namespace of its own, nspawn takes all that it started along when it dies.
        script = """
            for group in $GROUPS_OF_ITS_OWN; do mkdir -p $group && echo $$ >$group/cgroup.procs; done
            cd "$DISK" &&
            mount -t overlay overlay -o "lowerdir=$BASE,upperdir=upper,workdir=work" root &&
            exec "$@"
        """
        nspawn = [
            *("systemd-nspawn", "--quiet", "--boot", "--directory=root"),
            *("--register=no", "--keep-unit", f"--machine={self.name}", "--link-journal=no"),
            *(f"--network-namespace-path=/run/netns/{self.id}", "--resolv-conf=off"),
            # For firewalls, and for IPAddressDeny, which is a BPF program.
            "--capability=CAP_NET_ADMIN,CAP_BPF,CAP_PERFMON",
            "--system-call-filter=bpf perf_event_open",
            "--console=pipe",
        ]
        environment = os.environ | {
            "GROUPS_OF_ITS_OWN": " ".join(str(CGROUPS / name / self.id) for name in CONTROLLERS),
            "DISK": str(self.disk),
            "BASE": str(base()),
            "SYSTEMD_NSPAWN_API_VFS_WRITABLE": "network",
        }
        with open(self.console, "ab") as console:
            self.process = subprocess.Popen(
                ["setpriv", "--pdeathsig=KILL", "unshare", "--mount", "--pid", "--mount-proc"]
                + ["--fork", "--kill-child", "sh", "-ec", script, "sh", *nspawn],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                start_new_session=True,
            )

    def wait_booted(self):
        """Waits until systemd has started all that it was to start."""
        deadline = time.monotonic() + BOOT_SECONDS_MAX
        while True:
            done = self.run("systemctl is-system-running --wait", check=False)
            if done.stdout.strip() == "running":
                return
            # 255 is ssh's own, as long as nobody answers.
            if done.returncode != 255:
                raise Failed(f"{self.name}: not all units started", self._failed_units())
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise Failed(f"{self.name} does not boot: {self.console.read_text()}", done)
            time.sleep(0.1)

    def _failed_units(self):
        return self.run("systemctl --failed --no-legend; systemctl list-jobs", check=False)

    def _cgroup(self, controller, file):
        return CGROUPS / controller / self.id / file


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def disks():
    return build_dir() / "ops-hosts"


@contextlib.contextmanager
def lock():
    """Keeps labs of other processes from being made at the same time."""
    with open("/run/lock/aegis-lab", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@functools.cache
def base():
    """The root that all hosts share and none changes. Made once for its packages, then kept."""
    sources = SOURCES if SOURCES.exists() and SUITE in SOURCES.read_text() else None
    made_of = f"{SUITE} {PACKAGES} {sources and sources.read_text()}"
    root = build_dir() / f"ops-base-{hashlib.sha256(made_of.encode()).hexdigest()[:12]}"
    with lock():
        if not root.exists():
            for old in build_dir().glob("ops-base-*"):
                shutil.rmtree(old)
            unfinished = build_dir() / "ops-base-unfinished"
            command = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={PACKAGES}", SUITE]
            call(*command, unfinished, *([sources] if sources else []))
            unfinished.rename(root)
    return root


def free_network():
    """A /24 that this machine does not know of."""
    taken = call("ip", "-o", "-4", "addr")
    for network in ipaddress.ip_network("10.77.0.0/16").subnets(new_prefix=24):
        if f" {network[1]}/" not in taken:
            return network
    raise RuntimeError("all networks of 10.77.0.0/16 are in use; end other runs of these tests")


def remove_leftovers():
    """Removes what processes that are no more have left of their labs."""
    for disk in disks().glob("aegis-*"):
        pid = re.match(r"aegis-(\d+)-", disk.name)
        if pid and not Path(f"/proc/{pid[1]}").exists():
            remove(disk.name)


def remove(lab):
    """Ends all hosts of the lab of this name and removes all it had, whatever there is of it."""
    groups = list(CGROUPS.glob(f"*/{lab}-*"))
    for group in groups:
        end_processes(group)
    for group in groups:
        for path, _, _ in os.walk(group, topdown=False):
            os.rmdir(path)
    if Path(f"/sys/class/net/{lab}").exists():
        call("ip", "link", "del", lab)
    for namespace in Path("/run/netns").glob(f"{lab}-*"):
        call("ip", "netns", "del", namespace.name)
    # Containers' disks are mounted there.
    for line in reversed(Path("/proc/mounts").read_text().splitlines()):
        if (mounted := line.split()[1]).startswith(f"{disks() / lab}/"):
            call("umount", mounted)
    shutil.rmtree(disks() / lab, ignore_errors=True)
    shutil.rmtree(Path(tempfile.gettempdir(), lab), ignore_errors=True)


def end_processes(group):
    """Kills all processes in a cgroup and those below it, and waits until they are gone."""
    if (state := group / "freezer.state").exists():
        state.write_text("THAWED")
    deadline = time.monotonic() + 10
    while pids := [p for f in group.rglob("cgroup.procs") for p in f.read_text().split()]:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        if time.monotonic() > deadline:
            raise RuntimeError(f"these processes of {group.name} do not end: {' '.join(pids)}")
        time.sleep(0.02)
