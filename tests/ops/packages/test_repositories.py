"""The repositories that `make repo` makes, as package managers see them."""

import os
import re
import shutil
import subprocess

import pytest

from node import ROOT


def run(*command, check=True, **options):
    done = subprocess.run(
        command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options
    )
    assert not check or done.returncode == 0, done.stdout
    return done


def lists(tmp_path, repo, keyring):
    """apt-get update of nothing but the repository; what it says, and the options to go on with."""
    for name in ("lists/partial", "cache/archives/partial", "parts"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "status").touch()
    (tmp_path / "sources.list").write_text(
        f"deb [signed-by={keyring}] file:{repo}/apt stable main\n"
    )
    options = {
        "Dir::Etc::SourceList": "sources.list",
        "Dir::Etc::SourceParts": "parts",
        "Dir::Etc::TrustedParts": "parts",
        "Dir::State::Lists": "lists",
        "Dir::State::Status": "status",
        "Dir::Cache": "cache",
    }
    options = [f"-o{key}={tmp_path / value}" for key, value in options.items()]
    options += ["-oAPT::Sandbox::User=root", "-oAPT::Architecture=amd64"]
    return run("apt-get", *options, "update", "--error-on=any", check=False), options


def test_apt_takes_the_packages_with_the_key_beside_them(published, tmp_path):
    keyring = published.repo / "apt/aegiskv-archive-keyring.gpg"
    update, options = lists(tmp_path, published.repo, keyring)
    assert update.returncode == 0, update.stdout
    run("apt-get", *options, "download", "aegiskv", "aegiskv-dbgsym", cwd=tmp_path)
    (deb,) = tmp_path.glob("aegiskv_*.deb")
    assert deb.read_bytes() == published.deb.read_bytes()


def test_apt_refuses_the_repository_with_another_key(published, tmp_path):
    home = tmp_path / "gnupg"
    home.mkdir(mode=0o700)
    gpg = ("gpg", "--homedir", home, "--batch", "--quiet")
    run(*gpg, "--passphrase", "", "--quick-generate-key", "another", "ed25519", "sign", "never")
    run(*gpg, "--output", tmp_path / "another.gpg", "--export")
    run("gpgconf", "--homedir", home, "--kill", "all")
    update, _ = lists(tmp_path, published.repo, tmp_path / "another.gpg")
    assert update.returncode != 0 and "NO_PUBKEY" in update.stdout, update.stdout


def dnf(tmp_path, repo, *arguments):
    """dnf with nothing but the repository, the signatures of packages and index both asked for."""
    done = run(
        "dnf", "--quiet", "--assumeyes", f"--installroot={tmp_path}/root", "--releasever=9",
        f"--setopt=reposdir={tmp_path}/none", "--setopt=gpgcheck=1",
        f"--repofrompath=aegiskv,file://{repo}/dnf", "--repo=aegiskv",
        "--setopt=aegiskv.repo_gpgcheck=1", "--setopt=aegiskv.skip_if_unavailable=0",
        f"--setopt=aegiskv.gpgkey=file://{repo}/dnf/aegiskv-archive-keyring.asc",
        *arguments, check=False,
    )  # fmt: skip
    # It leaves a gpg-agent behind for each keyring.
    for keyring in tmp_path.glob("root/var/cache/dnf/*/pubring"):
        run("gpgconf", "--homedir", keyring, "--kill", "all")
    return done


def test_dnf_takes_the_index_and_rpm_the_packages_with_the_key_beside_them(published, tmp_path):
    if not shutil.which("dnf"):
        pytest.skip("not installed: dnf")
    listed = dnf(tmp_path, published.repo, "repoquery", "--queryformat", "%{name} %{version}")
    assert listed.returncode == 0, listed.stdout
    assert re.findall(r"(?m)^(\S+) \d+\.\d+\.\d+$", listed.stdout) == [
        "aegiskv",
        "aegiskv-debuginfo",
    ]
    keys = ("--dbpath", tmp_path / "keys")
    run("rpmkeys", *keys, "--import", published.repo / "dnf/aegiskv-archive-keyring.asc")
    for package in (published.rpm, published.debuginfo):
        checked = run("rpmkeys", *keys, "-Kv", published.repo / "dnf" / package.name).stdout
        assert "signature" in checked.lower() and "OK" in checked, checked
        # What lies in dist/ is not signed: it is the same wherever it is made.
        assert "signature" not in run("rpmkeys", *keys, "-Kv", package).stdout.lower()


def test_dnf_refuses_an_index_that_was_changed(published, tmp_path):
    if not shutil.which("dnf"):
        pytest.skip("not installed: dnf")
    shutil.copytree(published.repo / "dnf", tmp_path / "dnf", copy_function=os.link)
    index = tmp_path / "dnf/repodata/repomd.xml"
    text = index.read_text()
    index.unlink()
    index.write_text(text.replace("<revision>", "<revision>1"))
    listed = dnf(tmp_path, tmp_path, "repoquery")
    assert listed.returncode != 0 and "aegiskv-0" not in listed.stdout, listed.stdout


def test_a_key_that_is_named_signs(published, tmp_path):
    """In a copy of the tree, with a key in a GNUPGHOME of its own."""
    home = tmp_path / "gnupg"
    home.mkdir(mode=0o700)
    env = {**os.environ, "GNUPGHOME": str(home)}
    run(
        "gpg", "--batch", "--quiet", "--passphrase", "", "--quick-generate-key", "AegisKV test",
        "rsa3072", "sign", "never", env=env,
    )  # fmt: skip
    listed = run("gpg", "--list-keys", "--with-colons", env=env).stdout
    key = next(line.split(":")[9] for line in listed.splitlines() if line.startswith("fpr"))
    tree = tmp_path / "tree"
    (tree / "scripts").mkdir(parents=True)
    shutil.copy(ROOT / "scripts/repo.sh", tree / "scripts")
    (tree / "dist").symlink_to(published.dist)
    said = run(tree / "scripts/repo.sh", env={**env, "AEGIS_SIGNING_KEY": key}).stdout
    assert "thrown away" not in said
    signature = run("gpg", "--verify", tree / "repo/apt/dists/stable/InRelease", env=env).stdout
    assert f"using RSA key {key}" in signature and "Good signature" in signature
    run("gpgconf", "--homedir", home, "--kill", "all")
