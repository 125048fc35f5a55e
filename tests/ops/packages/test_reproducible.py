"""The same commit makes the same bytes."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from node import ROOT, build_dir

# What holds the distribution's own packages of the day; it is made alike, not promised to be equal.
NOT_PROMISED = ("aegiskv-image-amd64.tar.gz",)


def sums(dist):
    lines = (dist / "SHA256SUMS").read_text().splitlines()
    found = {name: digest for digest, name in map(str.split, lines)}
    return {name: digest for name, digest in found.items() if name not in NOT_PROMISED}


def test_packaging_the_same_build_twice_makes_the_same_bytes(published, tmp_path):
    """In another directory, at another time, by another umask and locale, without the build."""
    tree = copy_of_the_tree(tmp_path)
    (tree / "target/dist").mkdir(parents=True)
    os.link(build_dir() / "dist/aegiskv", tree / "target/dist/aegiskv")
    env = environment(LANG="de_DE.UTF-8", TZ="Asia/Tokyo")
    subprocess.run(
        ["sh", "-ec", "umask 077; scripts/dist.sh package"], cwd=tree, env=env, check=True
    )
    assert sums(tree / "dist") == sums(published.dist)


@pytest.mark.skipif(
    not os.environ.get("AEGIS_REBUILD"),
    reason="a second release build takes minutes; AEGIS_REBUILD=1 does it",
)
def test_building_twice_in_different_places_makes_the_same_bytes(published, tmp_path):
    tree = copy_of_the_tree(tmp_path)
    # Another place for the libraries' sources as well, with what was downloaded before.
    home = tmp_path / "cargo"
    home.mkdir()
    shutil.copytree(cargo_home() / "registry", home / "registry", copy_function=os.link)
    shutil.copytree(cargo_home() / "bin", home / "bin", copy_function=os.link)
    env = environment(CARGO_HOME=str(home))
    subprocess.run(["scripts/dist.sh"], cwd=tree, env=env, check=True)
    assert sums(tree / "dist") == sums(published.dist)


def cargo_home():
    return Path(os.environ.get("CARGO_HOME") or Path.home() / ".cargo")


def environment(**variables):
    """This process's, with the build in the tree's own directory, and no image."""
    variables["AEGIS_BASE_IMAGE"] = "none"
    return {k: v for k, v in os.environ.items() if k != "CARGO_TARGET_DIR"} | variables


def copy_of_the_tree(tmp_path):
    """What is committed, with the changes that are not, in a repository of its own."""
    tree = tmp_path / "elsewhere/tree"
    subprocess.run(["git", "clone", "--quiet", ROOT, tree], check=True)
    changes = subprocess.run(
        ["git", "-C", ROOT, "diff", "--binary", "HEAD"], check=True, stdout=subprocess.PIPE
    ).stdout
    if changes:
        subprocess.run(["git", "-C", tree, "apply"], input=changes, check=True)
    return tree
