"""Other packages than the one of today, made of it."""

import re
import shutil
from pathlib import Path

import host


def repack(package, version, into, program=None, script=None, tail=b""):
    """The package with another version; with another program, a script in its place that finds the
    program under the name aegiskv.real, or more at its end."""
    tree, made = into / f"tree-{version}", into / f"aegiskv_{version}_amd64.deb"
    host.call("dpkg-deb", "--raw-extract", package, tree)
    control = tree / "DEBIAN/control"
    control.write_text(re.sub("(?m)^Version: .*", f"Version: {version}", control.read_text()))
    installed = tree / "usr/bin/aegiskv"
    if program is not None:
        host.call("strip", "-o", installed, program)
    if script is not None:
        installed.rename(installed.with_name("aegiskv.real"))
        installed.write_text(script)
        installed.chmod(0o755)
    with open(installed, "ab") as file:
        file.write(tail)
    host.call("dpkg-deb", "--root-owner-group", "-Zgzip", "-z1", "--build", tree, made)
    shutil.rmtree(tree)
    return Path(made)


def install(machine, packages, archives):
    """Installs packages of Debian's on a host, which does not reach the archive itself."""
    status = f"Dir::State::status={host.base()}/var/lib/dpkg/status"
    into = f"Dir::Cache::archives={archives}"
    archives.joinpath("partial").mkdir(exist_ok=True)
    for left in archives.glob("*.deb"):
        left.unlink()
    apt = ["apt-get", "-qq", "-o", status, "-o", into, "-o", "APT::Sandbox::User=root"]
    host.call(*apt, "--download-only", "--no-install-recommends", "-y", "install", *packages.split())
    for file in archives.glob("*.deb"):
        machine.send(file, f"/srv/{file.name}")
    machine.run("DEBIAN_FRONTEND=noninteractive dpkg -i /srv/*.deb")


def platform_of(rpm, into):
    """A package without files that provides all that this one needs of its distribution."""
    needed = host.call("rpm", "--query", "--requires", "--package", rpm).splitlines()
    named = dict.fromkeys(name for name in needed if not name.startswith(("rpmlib(", "config(")))
    spec = into / "platform.spec"
    provided = "".join(f"Provides: {name}\n" for name in named)
    spec.write_text(
        "Name: platform\nVersion: 1\nRelease: 1\nSummary: What there is\nLicense: none\n"
        f"{provided}%description\nNothing.\n%files\n"
    )
    host.call("rpmbuild", "--quiet", "--define", f"_rpmdir {into}", "--define", f"_topdir {into}", "-bb", spec)
    (made,) = into.glob("*/platform-*.rpm")
    return made
