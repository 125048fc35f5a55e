"""Clusters that come from the tarball and from repositories, and go to another version and back."""

import shutil
import subprocess
import tarfile

import pytest

import host
import packages
from control import Control, lease, operations
from load import Load
from node import ROOT, build_dir

pytestmark = pytest.mark.long


class Published:
    """A tree like this one's as far as `make repo` goes: dist/ to put packages in, and repo/."""

    def __init__(self, tree, dist):
        self.tree, self.dist, self.repo = tree, tree / "dist", tree / "repo"
        (tree / "scripts").mkdir(parents=True)
        shutil.copy(ROOT / "scripts/repo.sh", tree / "scripts")
        self.dist.mkdir()
        for file in (*dist.glob("*.deb"), *dist.glob("*.rpm"), *dist.glob("*linux-amd64.tar.gz")):
            shutil.copy(file, self.dist)
        self.make_repo()

    def make_repo(self):
        subprocess.run([self.tree / "scripts/repo.sh"], check=True)

    @property
    def key(self):
        return self.repo / "apt/aegiskv-archive-keyring.gpg"

    @property
    def tarball(self):
        return self.dist / "aegiskv-linux-amd64.tar.gz"


@pytest.fixture(scope="module")
def published(package, tmp_path_factory):
    return Published(tmp_path_factory.mktemp("published"), package.parent)


@pytest.fixture(scope="module")
def mixed(collections, published, tmp_path_factory):
    """A control host for one host that gets the tarball, and two that know a repository."""
    if lacking := host.lacks():
        pytest.skip(lacking)
    with host.Lab("kv1", "kv2", "kv3") as lab:
        control = Control(lab, collections, None, tmp_path_factory.mktemp("mixed"))
        control.vars |= {
            "aegiskv_package_file": "",
            "aegiskv_repository_url": lab.serve(published.repo),
            "aegiskv_repository_key": str(published.key),
        }
        control.per_host["kv1"] = {"aegiskv_package_file": str(published.tarball)}
        for machine in lab.hosts:
            # What the root was made from cannot be reached from there.
            machine.run("rm -f /etc/apt/sources.list /etc/apt/sources.list.d/0000*")
        yield control


def test_a_repository_with_another_key_is_refused(mixed, tmp_path):
    home = tmp_path / "gnupg"
    home.mkdir(mode=0o700)
    gpg = ("gpg", "--homedir", home, "--batch", "--quiet")
    host.call(*gpg, "--passphrase", "", "--quick-generate-key", "another", "ed25519", "sign", "never")
    host.call(*gpg, "--output", tmp_path / "another.gpg", "--export")
    host.call("gpgconf", "--homedir", home, "--kill", "all")
    refused = mixed.play("bootstrap", "-e", f"aegiskv_repository_key={tmp_path}/another.gpg", check=False)

    assert refused.code != 0
    assert "NO_PUBKEY" in " ".join(refused.why)
    assert mixed.hosts["kv2"].run("command -v aegiskv; true") == ""


def test_a_cluster_comes_from_the_tarball_and_the_repository(mixed):
    mixed.play("bootstrap")

    for name in mixed.members:
        machine = mixed.hosts[name]
        seen = operations(machine, "/cluster")
        assert [member["status"] for member in seen["members"]] == ["alive"] * 3
        assert machine.run("systemctl is-enabled aegiskv").strip() == "enabled"
        assert machine.run("stat -c '%a %U:%G' /var/lib/aegiskv").strip() == "750 aegiskv:aegiskv"
    by_dpkg = "dpkg-query -W -f '${Status}' aegiskv"
    assert mixed.hosts["kv1"].run(by_dpkg, check=False).returncode != 0
    assert mixed.hosts["kv2"].run(by_dpkg) == "install ok installed"
    assert mixed.play("bootstrap").changed == dict.fromkeys(mixed.members, 0)
    assert mixed.play("bootstrap", "--check", "--diff").changed == dict.fromkeys(mixed.members, 0)


def test_they_go_to_another_version_and_back(mixed, published, another_build, tmp_path):
    later = tmp_path / "later.tar.gz"
    with_another_program(published.tarball, tmp_path / "tree", later)
    shutil.copy(another_build, published.dist)
    published.make_repo()
    mixed.vars["aegiskv_canary_seconds"] = 1
    before = programs(mixed)
    mixed.per_host["kv1"]["aegiskv_package_file"] = str(later)

    with Load(mixed) as load:
        # The repository was signed anew, with another key; an upgrade brings it along.
        mixed.play("upgrade")
    load.check()

    assert set(before.values()).isdisjoint(programs(mixed).values())
    mixed.per_host["kv1"]["aegiskv_package_file"] = str(published.tarball)
    mixed.vars["aegiskv_version"] = mixed_version(published)
    with Load(mixed) as load:
        mixed.play("upgrade")
    load.check()

    assert programs(mixed) == before
    assert lease(mixed.hosts["kv1"]) is None


def with_another_program(tarball, tree, made):
    with tarfile.open(tarball) as archive:
        archive.extractall(tree, filter="tar")
    host.call("strip", "-o", tree / "aegiskv", build_dir() / "debug/aegiskv")
    host.call("tar", "-C", tree, "-czf", made, ".")


def mixed_version(published):
    (deb,) = (file for file in published.dist.glob("aegiskv_0*.deb"))
    return host.call("dpkg-deb", "--field", deb, "Version").strip()


def programs(control):
    """What each member runs."""
    read = "cmp /usr/bin/aegiskv /proc/$(pidof aegiskv)/exe && sha256sum </usr/bin/aegiskv"
    return {name: control.hosts[name].run(read) for name in control.members}


# A host that has dnf counts as one of the RHEL family here.
BY_DNF = """\
- name: Have dnf
  hosts: aegiskv
  gather_facts: false
  tasks:
    - name: Say so
      ansible.builtin.set_fact:
        pkg_mgr: dnf
        cacheable: true
- name: Make the cluster
  ansible.builtin.import_playbook: aegiskv.cluster.bootstrap
"""


@pytest.fixture(scope="module")
def with_dnf(collections, published, tmp_path_factory):
    """Hosts of Debian with dnf and rpm, since no image of the RHEL family is to be had: one gets the
    file, the other one knows a repository."""
    if lacking := host.lacks() or (not shutil.which("rpmbuild") and "not installed: rpmbuild"):
        pytest.skip(lacking)
    (rpm,) = published.dist.glob("aegiskv-[0-9]*.rpm")
    platform = packages.platform_of(rpm, tmp_path_factory.mktemp("platform"))
    archives = tmp_path_factory.mktemp("archives")
    with host.Lab("kv1", "kv2") as lab:
        control = Control(lab, collections, None, tmp_path_factory.mktemp("with-dnf"))
        control.members = ["kv1", "kv2"]
        control.vars |= {
            "aegiskv_package_file": "",
            "aegiskv_repository_url": lab.serve(published.repo),
            "aegiskv_repository_key": str(published.repo / "dnf/aegiskv-archive-keyring.asc"),
        }
        control.per_host["kv1"] = {"aegiskv_package_file": str(rpm)}
        for machine in lab.hosts:
            packages.install(machine, "rpm dnf python3-dnf", archives)
            machine.send(platform, "/srv/platform.rpm")
            machine.run("rpm --force-debian --nodeps -i /srv/platform.rpm")
            machine.run("mkdir -p /etc/pki/rpm-gpg /etc/yum.repos.d")
        yield control


def test_a_cluster_comes_by_dnf_from_a_file_and_from_a_repository(with_dnf):
    playbook = with_dnf.dir / "by-dnf.yml"
    playbook.write_text(BY_DNF)

    with_dnf.play(playbook)

    for name in with_dnf.members:
        machine = with_dnf.hosts[name]
        seen = operations(machine, "/cluster")
        assert [member["status"] for member in seen["members"]] == ["alive"] * 2
        assert machine.run("rpm -q aegiskv").startswith("aegiskv-0.1.0-1")
        assert machine.run("dpkg-query -W aegiskv 2>/dev/null; true") == ""
        assert machine.run("systemctl is-enabled aegiskv").strip() == "enabled"
    assert "repo_gpgcheck = 1" in with_dnf.hosts["kv2"].run("cat /etc/yum.repos.d/aegiskv.repo")
