"""The maintainer scripts, called by dpkg itself in every order in which it calls them."""

import re
import subprocess

import pytest

from root import Failed

OLD, NEW, NEWER = "0.0.1-1", "0.0.2-1", "0.0.3-1"
UNIT = "aegiskv.service"


@pytest.fixture(scope="module")
def packages(published, tmp_path_factory):
    """The package as three versions, each with another config.json; not compressed, to be quick."""
    folder = tmp_path_factory.mktemp("versions")
    return {
        version: repacked(published.deb, folder, version, index)
        for index, version in enumerate((OLD, NEW, NEWER))
    }


def repacked(deb, folder, version, index=0, **scripts):
    """The package in another version; `scripts` end in failure where they are named."""
    tree = folder / f"tree-{version}-{'-'.join(scripts)}"
    subprocess.run(["dpkg-deb", "-R", deb, tree], check=True)
    control = tree / "DEBIAN/control"
    control.write_text(re.sub(r"(?m)^Version: .*$", f"Version: {version}", control.read_text()))
    config = tree / "etc/aegiskv/config.json"
    config.write_text(config.read_text() + "\n" * index)
    for name, argument in scripts.items():
        script = tree / "DEBIAN" / name
        text = script.read_text().replace(
            "set -e\n", f'set -e\n[ "$1" != {argument} ] || exit 1\n', 1
        )
        assert text != script.read_text()
        script.write_text(text)
    path = folder / f"{tree.name}.deb"
    subprocess.run(
        ["dpkg-deb", "-Znone", "--root-owner-group", "-b", tree, path],
        check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    return path


def other_package(folder, name, fields, preinst_fails):
    tree = folder / name
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN/control").write_text(
        f"Package: {name}\nVersion: 1\nArchitecture: all\nMaintainer: nobody <nobody@invalid>\n"
        f"Description: test\n{fields}\n"
    )
    if preinst_fails:
        (tree / "DEBIAN/preinst").write_text("#!/bin/sh\nexit 1\n")
        (tree / "DEBIAN/preinst").chmod(0o755)
    path = folder / f"{name}.deb"
    subprocess.run(
        ["dpkg-deb", "--root-owner-group", "-b", tree, path], check=True, stdout=subprocess.DEVNULL
    )
    return path


@pytest.fixture
def installed(root, packages):
    """A system that seems booted, with the old version installed and running."""
    root.look_booted()
    root.dpkg("-i", root.send(packages[OLD]))
    assert root.told() == [f"--quiet --system start {UNIT}"]
    assert root.running
    return root


def status(root):
    return root.run("dpkg-query -W -f '${db:Status-Status} ${Version}' aegiskv", check=False)


def test_a_first_installation_gives_a_node_with_a_token_of_its_own(root, published):
    root.look_booted()
    printed = root.dpkg("-i", root.send(published.deb))
    assert root.told() == [f"--quiet --system start {UNIT}"]
    assert root.owner("/etc/aegiskv/token") == "640 root:aegiskv"
    token = root.run("cat /etc/aegiskv/token").strip()
    assert len(token) == 43 and token not in printed
    assert root.owner("/etc/aegiskv") == "750 root:aegiskv"
    assert root.owner("/etc/aegiskv/conf.d") == "750 root:aegiskv"
    assert root.owner("/etc/aegiskv/config.json") == "640 root:aegiskv"
    assert root.owner("/var/lib/aegiskv") == "750 aegiskv:aegiskv"
    assert root.owner("/var/log/aegiskv") == "750 aegiskv:aegiskv"
    assert "/usr/sbin/nologin" in root.run("getent passwd aegiskv")
    # The server itself, as its user, finds nothing wrong with what it was given.
    check = "aegiskv config check --config /etc/aegiskv/config.json"
    said = root.run(f"setpriv --reuid aegiskv --regid aegiskv --init-groups {check}")
    assert said == "the configuration is good\n"


def test_where_systemd_does_not_run_the_node_waits_for_the_next_boot(root, packages):
    root.dpkg("-i", root.send(packages[OLD]))
    assert root.told() == []
    assert not root.running
    root.run(f"test -L /etc/systemd/system/multi-user.target.wants/{UNIT}")
    root.dpkg("--purge aegiskv")
    assert root.told() == []


def test_a_policy_against_starting_services_is_kept(root, packages):
    root.look_booted()
    root.write("usr/sbin/policy-rc.d", "#!/bin/sh\nexit 101\n", 0o755)
    root.dpkg("-i", root.send(packages[OLD]))
    assert root.told() == [] and not root.running


def test_an_upgrade_restarts_nothing_asks_nothing_and_keeps_every_edit(installed, packages):
    root = installed
    root.run(
        """
        echo '{"max_memory_mb": 99}' >/etc/aegiskv/conf.d/mine.json
        echo mine >/etc/aegiskv/token
        echo data >/var/lib/aegiskv/data
        chown aegiskv: /etc/aegiskv/conf.d; chmod 0700 /etc/aegiskv/conf.d
        """
    )
    printed = root.dpkg("-i", root.send(packages[NEW]))
    assert root.told() == [] and root.running
    assert "systemctl restart aegiskv" in printed
    assert "Configuration file" not in printed
    # The new version's configuration is in its place, since the old one's was left alone.
    assert root.run("tail -c 2 /etc/aegiskv/config.json") == "\n\n"
    assert root.owner("/etc/aegiskv/config.json") == "640 root:aegiskv"
    assert root.owner("/etc/aegiskv/conf.d") == "700 aegiskv:aegiskv"
    kept = "cat /etc/aegiskv/conf.d/mine.json /etc/aegiskv/token /var/lib/aegiskv/data"
    assert root.run(kept) == '{"max_memory_mb": 99}\nmine\ndata\n'
    # And back.
    root.dpkg("-i", root.send(packages[OLD]))
    assert root.told() == [] and status(root) == f"installed {OLD}"
    assert root.run(kept) == '{"max_memory_mb": 99}\nmine\ndata\n'


def test_an_edited_config_json_is_left_alone_where_nobody_can_be_asked(installed, packages):
    root = installed
    root.run("echo '{}' >/etc/aegiskv/config.json")
    root.dpkg("--force-confold -i", root.send(packages[NEW]))
    assert root.run("cat /etc/aegiskv/config.json") == "{}\n"
    assert root.told() == []


def test_an_upgrade_does_not_start_a_node_that_was_stopped_or_disabled(installed, packages):
    root = installed
    root.run(f"systemctl stop {UNIT}")
    root.told()
    printed = root.dpkg("-i", root.send(packages[NEW]))
    assert root.told() == [] and not root.running
    assert "systemctl restart" not in printed
    root.run(f"systemctl disable {UNIT}")
    root.told()
    root.dpkg("-i", root.send(packages[NEWER]))
    assert root.told() == []
    root.run(f"test ! -e /etc/systemd/system/multi-user.target.wants/{UNIT}")


def test_a_token_that_was_taken_away_does_not_come_back_by_an_upgrade(installed, packages):
    root = installed
    root.run("rm /etc/aegiskv/token")
    root.dpkg("-i", root.send(packages[NEW]))
    root.run("test ! -e /etc/aegiskv/token")


@pytest.mark.parametrize("script, argument", [("preinst", "upgrade"), ("postrm", "failed-upgrade")])
def test_an_upgrade_that_fails_before_its_files_are_there_changes_nothing(
    installed, published, packages, tmp_path, script, argument
):
    root = installed
    if script == "postrm":
        # The old version's fails, then the new one's in its place: everything is undone.
        bad_old = repacked(published.deb, tmp_path, OLD, postrm="upgrade")
        root.dpkg("-i", root.send(bad_old))
    bad = repacked(published.deb, tmp_path, NEW, **{script: argument})
    with pytest.raises(Failed):
        root.dpkg("-i", root.send(bad))
    assert status(root) == f"installed {OLD}"
    assert root.told() == [] and root.running


def test_a_configuration_that_fails_can_be_taken_up_again(root, published, packages, tmp_path):
    root.look_booted()
    bad = repacked(published.deb, tmp_path, OLD, postinst="configure")
    with pytest.raises(Failed):
        root.dpkg("-i", root.send(bad))
    assert root.told() == [] and status(root) == f"half-configured {OLD}"
    # As if it had ended in the middle of its work.
    root.run("echo half >/etc/aegiskv/token.new")
    root.dpkg("-i", root.send(packages[NEW]))
    assert status(root) == f"installed {NEW}"
    assert root.owner("/etc/aegiskv/token") == "640 root:aegiskv"
    root.run("test ! -e /etc/aegiskv/token.new")


def test_after_removal_data_and_settings_are_there_and_a_new_installation_takes_them_up(
    installed, packages
):
    root = installed
    root.run("echo data >/var/lib/aegiskv/data; echo '{}' >/etc/aegiskv/conf.d/mine.json")
    token = root.run("cat /etc/aegiskv/token")
    root.dpkg("--remove aegiskv")
    assert root.told() == [f"stop {UNIT}"] and not root.running
    assert root.run("cat /var/lib/aegiskv/data /etc/aegiskv/conf.d/mine.json") == "data\n{}\n"
    root.dpkg("-i", root.send(packages[NEW]))
    assert root.told() == [f"--quiet --system start {UNIT}"] and root.running
    assert root.run("cat /etc/aegiskv/token /var/lib/aegiskv/data") == token + "data\n"


def test_a_purge_leaves_the_data_unless_it_was_told_to_take_it(installed, packages):
    root = installed
    root.run(
        """
        echo data >/var/lib/aegiskv/data
        echo '{}' >/etc/aegiskv/conf.d/mine.json
        echo line >/var/log/aegiskv/log
        """
    )
    printed = root.dpkg("--purge aegiskv")
    assert root.told() == [f"stop {UNIT}"]
    assert "rm -r /var/lib/aegiskv" in printed
    root.run("test ! -e /etc/aegiskv && test ! -e /var/log/aegiskv")
    assert root.owner("/var/lib/aegiskv/data") == "644 root:root"
    root.run("test ! -e /var/lib/systemd/deb-systemd-helper-enabled/aegiskv.service.dsh-also")
    # Told to, and in two steps.
    root.dpkg("-i", root.send(packages[OLD]))
    root.run("touch /etc/aegiskv/purge-data")
    root.dpkg("--remove aegiskv")
    root.run("test -e /var/lib/aegiskv/data")
    root.dpkg("--purge aegiskv")
    root.run("test ! -e /var/lib/aegiskv && test ! -e /etc/aegiskv")


def test_a_removal_that_comes_to_nothing_starts_the_node_again(installed, tmp_path):
    root = installed
    rival = other_package(
        tmp_path, "rival", "Conflicts: aegiskv\nReplaces: aegiskv\nProvides: aegiskv", True
    )
    with pytest.raises(Failed):
        root.dpkg("-i", root.send(rival))
    assert root.told() == [f"stop {UNIT}", f"--quiet --system start {UNIT}"]
    assert status(root) == f"installed {OLD}" and root.running


def test_a_removal_that_comes_to_nothing_leaves_a_stopped_node_stopped(installed, tmp_path):
    root = installed
    root.run(f"systemctl stop {UNIT}")
    rival = other_package(
        tmp_path, "rival", "Conflicts: aegiskv\nReplaces: aegiskv\nProvides: aegiskv", True
    )
    with pytest.raises(Failed):
        root.dpkg("-i", root.send(rival))
    assert not root.running


def test_another_package_in_its_place_stops_it_and_keeps_the_data(installed, tmp_path):
    root = installed
    root.run("echo data >/var/lib/aegiskv/data")
    rival = other_package(
        tmp_path, "rival", "Conflicts: aegiskv\nReplaces: aegiskv\nProvides: aegiskv", False
    )
    root.dpkg("-i", root.send(rival))
    assert root.told() == [f"stop {UNIT}"] and not root.running
    assert root.run("cat /var/lib/aegiskv/data") == "data\n"


@pytest.mark.parametrize("fails", [True, False])
def test_while_it_is_deconfigured_the_node_runs_on(installed, tmp_path, fails):
    root = installed
    breaking = other_package(tmp_path, "breaking", f"Breaks: aegiskv (<= {OLD})", fails)
    printed = root.dpkg("--auto-deconfigure -i", root.send(breaking), check=False)
    assert "De-configuring aegiskv" in printed
    assert root.told() == [] and root.running
    assert status(root) == (f"installed {OLD}" if fails else f"half-configured {OLD}")


def test_owners_that_the_operator_has_laid_down_hold(root, packages):
    root.run("dpkg-statoverride --add root root 0600 /etc/aegiskv/config.json")
    root.dpkg("-i", root.send(packages[OLD]))
    assert root.owner("/etc/aegiskv/config.json") == "600 root:root"


@pytest.mark.parametrize(
    "script, calls",
    {
        "preinst": ["install", f"install {OLD}", f"upgrade {OLD}", f"abort-upgrade {NEW}"],
        "postinst": [
            "configure",
            f"configure {OLD}",
            f"abort-upgrade {NEW}",
            "abort-remove",
            "abort-remove in-favour rival 1",
            "abort-deconfigure in-favour rival 1",
            f"abort-deconfigure in-favour rival 1 removing other {OLD}",
            "triggered something",
        ],
        "prerm": [
            "remove",
            "remove in-favour rival 1",
            f"upgrade {NEW}",
            "deconfigure in-favour rival 1",
            f"deconfigure in-favour rival 1 removing other {OLD}",
            f"failed-upgrade {OLD}",
        ],
        "postrm": [
            "remove",
            f"upgrade {NEW}",
            f"failed-upgrade {OLD}",
            "abort-install",
            f"abort-install {OLD}",
            f"abort-upgrade {OLD}",
            "disappear rival 1",
            "purge",
            "purge",
        ],
    }.items(),
)
def test_every_call_that_policy_knows_succeeds_twice(installed, script, calls):
    for call in calls:
        for _ in range(2):
            installed.run(f"/var/lib/dpkg/info/aegiskv.{script} {call}")
    told = installed.told()
    assert not [line for line in told if "restart" in line], told
    assert {line.split()[-2] for line in told} <= {"start", "stop"}
    if script != "prerm":
        assert not [line for line in told if "stop" in line], told
