"""Other packages than the one of today, made of it."""

import re
import shutil
from pathlib import Path

import host


def repack(package, version, into, program=None, script=None, tail=b""):
    """The package with another version; with another program, a script in its place, or
    more at its end."""
    tree, made = into / f"tree-{version}", into / f"aegiskv_{version}_amd64.deb"
    host.call("dpkg-deb", "--raw-extract", package, tree)
    control = tree / "DEBIAN/control"
    control.write_text(re.sub("(?m)^Version: .*", f"Version: {version}", control.read_text()))
    installed = tree / "usr/bin/aegiskv"
    if program is not None:
        host.call("strip", "-o", installed, program)
    if script is not None:
        shutil.copyfile(script, installed)
    with open(installed, "ab") as file:
        file.write(tail)
    host.call("dpkg-deb", "--root-owner-group", "-Zgzip", "-z1", "--build", tree, made)
    shutil.rmtree(tree)
    return Path(made)
