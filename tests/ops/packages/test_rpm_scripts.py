"""The RPM package in a root of its own, with its scripts run by rpm."""

import subprocess

import pytest

from node import ROOT

UNIT = "aegiskv.service"


@pytest.fixture(scope="module")
def newer(unpacked, tmp_path_factory):
    """The package once more, in a later version."""
    tree = tmp_path_factory.mktemp("newer")
    for name in ("Cargo.toml", "src", "packaging"):
        (tree / name).symlink_to(ROOT / name)
    (tree / "dist/stage").mkdir(parents=True)
    (tree / "dist/stage/usr").symlink_to(unpacked.deb / "usr")
    for name in ("packaging", "systemd", "LICENSE", "CHANGELOG.md"):
        (tree / "dist/stage" / name).symlink_to(ROOT / name)
    subprocess.run(
        ["cargo", "generate-rpm", "--auto-req", "disabled", "--variant", "server"]
        + ["--set-metadata", 'version = "9.0.0"', "--payload-compress", "none", "-o", tree],
        cwd=tree, check=True,
    )  # fmt: skip
    (package,) = tree.glob("*.rpm")
    return package


def rpm(root, arguments, check=True):
    # The root has no packages of RPM that could be depended on.
    return root.run(f'rpm --root "$root" {arguments}', check, outside=True)


def install(root, package):
    return rpm(root, f"--nodeps --force-debian -U {package}")


@pytest.fixture
def installed(root, published):
    root.look_booted()
    rpm(root, "--initdb")
    root.printed = install(root, published.rpm)
    return root


def test_a_first_installation_prepares_everything_and_leaves_the_start_to_presets(installed):
    root = installed
    assert root.told() == [f"--no-reload preset {UNIT}"]
    assert root.owner("/etc/aegiskv/token") == "640 root:aegiskv"
    token = root.run("cat /etc/aegiskv/token").strip()
    assert len(token) == 43 and token not in root.printed
    assert "systemctl enable --now aegiskv" in root.printed
    assert root.owner("/etc/aegiskv") == "750 root:aegiskv"
    assert root.owner("/etc/aegiskv/config.json") == "640 root:aegiskv"
    assert root.owner("/var/lib/aegiskv") == "750 aegiskv:aegiskv"
    check = "aegiskv config check --config /etc/aegiskv/config.json"
    said = root.run(f"setpriv --reuid aegiskv --regid aegiskv --init-groups {check}")
    assert said == "the configuration is good\n"
    assert rpm(root, "--verify --nodeps aegiskv") == ""


def test_an_upgrade_restarts_nothing_and_keeps_every_edit(installed, newer):
    root = installed
    root.run(
        """
        systemctl start aegiskv.service
        echo '{"max_memory_mb": 99}' >/etc/aegiskv/conf.d/mine.json
        echo '{}' >/etc/aegiskv/config.json
        echo mine >/etc/aegiskv/token
        echo data >/var/lib/aegiskv/data
        """
    )
    root.told()
    printed = install(root, newer)
    assert root.told() == [] and root.running
    assert "systemctl restart aegiskv" in printed
    kept = "cat /etc/aegiskv/conf.d/mine.json /etc/aegiskv/config.json /etc/aegiskv/token"
    assert root.run(kept + " /var/lib/aegiskv/data") == '{"max_memory_mb": 99}\n{}\nmine\ndata\n'
    assert rpm(root, "-q aegiskv") == "aegiskv-9.0.0-1.x86_64\n"


def test_a_removal_stops_the_node_and_keeps_token_and_data(installed, published):
    root = installed
    root.run("systemctl start aegiskv.service; echo data >/var/lib/aegiskv/data")
    token = root.run("cat /etc/aegiskv/token")
    root.told()
    rpm(root, "-e aegiskv")
    assert root.told() == [f"--no-reload disable --now {UNIT}"] and not root.running
    assert root.run("cat /etc/aegiskv/token /var/lib/aegiskv/data") == token + "data\n"
    install(root, published.rpm)
    assert root.run("cat /etc/aegiskv/token /var/lib/aegiskv/data") == token + "data\n"


def test_where_systemd_does_not_run_nothing_is_started_or_stopped(root, published):
    rpm(root, "--initdb")
    install(root, published.rpm)
    assert root.told() == [f"--no-reload preset {UNIT}"]
    rpm(root, "-e aegiskv")
    assert root.told() == [f"--no-reload disable {UNIT}"]
