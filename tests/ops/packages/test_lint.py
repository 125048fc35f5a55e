"""What others' checkers say of packages, unit and scripts."""

import os
import re
import shutil
import subprocess

import pytest

from node import ROOT

UNIT = ROOT / "systemd/aegiskv.service"
# As `systemd-analyze security` counts: tenths.
EXPOSURE_MAX = 13


def run(*command, **variables):
    if not shutil.which(command[0]):
        pytest.skip(f"not installed: {command[0]}")
    done = subprocess.run(
        command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={**os.environ, **variables},
    )  # fmt: skip
    return done.returncode, done.stdout


def explained(overrides):
    """Whether each override has a comment above it."""
    lines = [line for line in overrides.read_text().splitlines() if line]
    return all(
        line.startswith("#") or before.startswith("#")
        for before, line in zip([""] + lines, lines, strict=False)
    )


@pytest.mark.parametrize("package", ["deb", "dbgsym"])
def test_lintian_finds_nothing(published, package):
    code, said = run(
        "lintian", "--allow-root", "--fail-on=error,warning", getattr(published, package)
    )
    assert (code, said) == (0, "")


def test_what_lintian_is_told_to_pass_over_is_explained():
    for overrides in ("lintian-overrides", "dbgsym.lintian-overrides"):
        assert explained(ROOT / "packaging/debian" / overrides)


@pytest.mark.parametrize("package", ["rpm", "debuginfo"])
def test_rpmlint_finds_nothing(published, package, tmp_path):
    # As it is published, with its signature, by somebody who knows the key.
    home = {"HOME": str(tmp_path)}
    (tmp_path / ".rpmmacros").write_text(f"%_dbpath {tmp_path}/keys\n")
    assert (
        run("rpmkeys", "--import", published.repo / "dnf/aegiskv-archive-keyring.asc", **home)[0]
        == 0
    )
    package = published.repo / "dnf" / getattr(published, package).name
    code, said = run("rpmlint", "--config", ROOT / "packaging/rpm/rpmlint.toml", package, **home)
    assert code == 0 and "0 errors, 0 warnings" in said, said


def test_the_unit_has_no_mistakes(root):
    root.write("usr/bin/aegiskv", "#!/bin/sh\n", 0o755)
    root.write("etc/systemd/system/aegiskv.service", UNIT.read_text())
    root.run("systemd-sysusers -", check=False)
    # It says nothing of a unit that it takes for right.
    assert root.run("systemd-analyze verify --man=no aegiskv.service 2>&1") == ""
    wrong = UNIT.read_text().replace("WatchdogSec=30", "WatchdogSec=thirty")
    root.write("etc/systemd/system/aegiskv.service", wrong)
    said = root.run("systemd-analyze verify --man=no aegiskv.service", check=False)
    assert "Failed to parse sec value" in said


def exposure(unit):
    options = ("--offline=true", "--no-pager", f"--threshold={EXPOSURE_MAX}")
    code, said = run("systemd-analyze", "security", *options, unit)
    overall = re.search(r"Overall exposure level for \S+: ([\d.]+)", said)
    return code, float(overall.group(1)), said


def test_the_unit_exposes_as_little_as_promised(tmp_path):
    code, level, said = exposure(UNIT)
    assert code == 0 and level * 10 <= EXPOSURE_MAX, said
    # The check does fail.
    loose = tmp_path / "aegiskv.service"
    loose.write_text(UNIT.read_text().replace("CapabilityBoundingSet=\n", ""))
    assert exposure(loose)[0] != 0


def test_user_and_directories_are_declared_as_systemd_reads_them(root):
    root.write("etc/sysusers.d/aegiskv.conf", (ROOT / "systemd/sysusers.conf").read_text())
    root.write("etc/tmpfiles.d/aegiskv.conf", (ROOT / "systemd/tmpfiles.conf").read_text())
    root.run("systemd-sysusers aegiskv.conf && systemd-tmpfiles --create aegiskv.conf")
    entry = root.run("getent passwd aegiskv").strip().split(":")
    assert entry[4:] == ["AegisKV", "/var/lib/aegiskv", "/usr/sbin/nologin"]
    assert root.owner("/var/lib/aegiskv") == "750 aegiskv:aegiskv"
    assert root.owner("/var/log/aegiskv") == "750 aegiskv:aegiskv"


def test_shellcheck_finds_nothing():
    names = ("dist.sh", "repo.sh", "setup.sh")
    scripts = [ROOT / "scripts" / name for name in names]
    scripts += [
        ROOT / "packaging/debian" / name for name in ("preinst", "postinst", "prerm", "postrm")
    ]
    assert run("shellcheck", *scripts) == (0, "")
    assert run("shellcheck", "--shell=sh", *(ROOT / "packaging/rpm").glob("*.sh")) == (0, "")
