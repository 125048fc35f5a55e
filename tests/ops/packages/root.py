"""A Debian system that is not booted, to run package managers and their scripts in.

An overlay on the root that hosts are made from, mounted for each command in a namespace of its own,
so that nothing outlives the command but the files. `systemctl` there writes down what it is told,
and remembers whether the node runs; the real one does what needs no running systemd.
deb-systemd-helper and -invoke are the real ones.
"""

import os
import shutil
import subprocess

import host

SYSTEMCTL = """\
#!/bin/sh
echo "$*" >>/told
case "$*" in
--root=*) exec systemctl.real "$@" ;;
*is-enabled* | *preset*) exec systemctl.real --root=/ "$@" ;;
*disable*) rm -f /running && exec systemctl.real --root=/ disable aegiskv.service ;;
*is-active*) [ -e /running ] ;;
*start*) : >/running ;;
*stop*) rm -f /running ;;
esac
"""
# What is no news: questions, and what deb-systemd-helper lays down on disk.
NO_NEWS = ("is-enabled", "is-active", "daemon-reload", "--root=")

ENTER = """
mount -t overlay overlay -o "lowerdir=$1,upperdir=$2/upper,workdir=$2/work" "$2/root"
mount -t proc proc "$2/root/proc"
mount --rbind /dev "$2/root/dev"
root=$2/root
eval "$3"
"""
INSIDE = 'exec chroot "$root" /bin/sh -ec "$4"'


def lacks():
    """What this machine lacks for such a system, or None."""
    if os.geteuid() != 0:
        return "only root can mount and change roots"
    if not shutil.which("mmdebstrap"):
        return "not installed: mmdebstrap"
    return None


class Failed(Exception):
    pass


class Root:
    def __init__(self, directory):
        self.directory = directory
        for name in ("upper", "work", "root"):
            (directory / name).mkdir()
        (self.files / "usr/bin").mkdir(parents=True)
        shutil.copy(host.base() / "usr/bin/systemctl", self.files / "usr/bin/systemctl.real")
        self.write("usr/bin/systemctl", SYSTEMCTL, 0o755)

    @property
    def files(self):
        """What has been written to the system, from its /."""
        return self.directory / "upper"

    def write(self, path, text, mode=0o644):
        path = self.files / path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)

    def send(self, file):
        """Copies a file to the system's /; returns its path there."""
        shutil.copy(file, self.files)
        return f"/{file.name}"

    def run(self, script, check=True, outside=False):
        """Runs a shell script there, without a terminal; returns all it printed.

        `outside` of it, the script sees this machine, and finds the system at `$root`."""
        enter = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "/bin/sh", "-ec", ENTER]
        done = subprocess.run(
            [*enter, "sh", host.base(), self.directory, script if outside else INSIDE, script],
            env={
                "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
                "LC_ALL": "C.UTF-8",
                "DEBIAN_FRONTEND": "noninteractive",
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
        )
        if check and done.returncode != 0:
            raise Failed(f"{script}: exit code {done.returncode}\n{done.stdout}")
        return done.stdout

    def dpkg(self, *arguments, check=True):
        """Runs dpkg as apt does: it asks no questions, and fails where it would have to."""
        return self.run(f"dpkg --force-unsafe-io {' '.join(arguments)}", check)

    def look_booted(self):
        """From now on systemd seems to run."""
        self.run("mkdir -p /run/systemd/system")

    def told(self):
        """What systemctl was told to do since the last call, but for what is no news."""
        path = self.files / "told"
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return [line for line in lines if not any(word in line for word in NO_NEWS)]

    @property
    def running(self):
        return (self.files / "running").exists()

    def owner(self, path):
        """Mode, owner and group of a file, as `stat` names them."""
        return self.run(f"stat -c '%a %U:%G' {path}").strip()
