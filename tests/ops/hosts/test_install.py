"""`apt install aegiskv`, and what is there after it."""

import re

import kv


def test_a_repository_signed_by_another_key_is_refused(machine):
    listed = machine.run("cat /etc/apt/sources.list.d/aegiskv.list")

    def update(keyring):
        sources = re.sub("signed-by=[^]]*", f"signed-by={keyring}", listed)
        machine.write("/srv/other.list", sources)
        machine.run("rm -rf /tmp/lists && mkdir -p /tmp/lists/partial")
        where = "-o Dir::Etc::SourceList=/srv/other.list -o Dir::Etc::SourceParts=-"
        return machine.run(f"apt-get update {where} -o Dir::State::Lists=/tmp/lists", check=False)

    assert update(kv.KEYRING).returncode == 0
    refused = update("/usr/share/keyrings/debian-archive-keyring.gpg")
    assert refused.returncode != 0
    assert "NO_PUBKEY" in refused.stderr
    assert "is not signed" in refused.stderr


def test_an_installed_node_serves(kv1):
    assert kv.unit(kv1, "ActiveState") == "active"
    assert kv.unit(kv1, "StatusText").startswith("serving")
    assert kv1.run("systemctl is-enabled aegiskv") == "enabled\n"
    kv.put(kv1, "user:1", "Ann")
    assert kv.get(kv1, "user:1") == "Ann"
    assert kv.status(kv1, "localhost:7700/v1/kv/user:1") == 401
    assert kv.status(kv1, "-X PUT -d Eve localhost:7700/v1/kv/user:1") == 401
    assert kv.status(kv1, "-X POST localhost:7702/admin/snapshot") == 401
    assert kv.get(kv1, "user:1") == "Ann"


def test_nobody_outside_reaches_it(kv1):
    listening = kv1.run("ss -Hltun 'sport >= 7700 and sport <= 7709'").splitlines()
    assert len(listening) == 4
    assert all("127.0.0.1:770" in line for line in listening)


def test_files_belong_to_whom_they_should(kv1):
    paths = {
        "/etc/aegiskv": "750 root:aegiskv",
        "/etc/aegiskv/conf.d": "750 root:aegiskv",
        "/etc/aegiskv/config.json": "640 root:aegiskv",
        "/etc/aegiskv/token": "640 root:aegiskv",
        "/var/lib/aegiskv": "750 aegiskv:aegiskv",
        "/var/log/aegiskv": "750 aegiskv:aegiskv",
    }
    listed = kv1.run(f"stat -c '%n %a %U:%G' {' '.join(paths)}").splitlines()
    assert dict(line.split(" ", 1) for line in listed) == paths


def test_the_token_is_in_no_log(kv1):
    token = kv1.run("cat /etc/aegiskv/token").strip()
    assert len(token) >= 32
    logged = kv1.run("journalctl --no-pager --all -o verbose; cat /var/log/apt/* /var/log/dpkg.log")
    assert "aegiskv" in logged
    assert token not in logged


def test_the_unit_takes_most_of_the_system_away_from_it(kv1):
    verdict = kv1.run("systemd-analyze security --no-pager aegiskv").splitlines()[-1]
    exposure = float(verdict.split("service:")[1].split()[0])
    assert 0 < exposure <= 1.3


def test_needrestart_leaves_a_node_alone(kv1):
    def started(service):
        return kv1.run(f"systemctl show -P ExecMainStartTimestampMonotonic {service}")

    # Needrestart 3.6 dies now and then of telling sessions without a terminal (SIGPIPE).
    kv1.write("/etc/needrestart/conf.d/quiet.conf", "$nrconf{sendnotify} = 0;\n")
    node, other = started("aegiskv"), started("systemd-journald")
    # The same library, as an upgrade of it would bring it: what runs has the old one.
    libc = "/lib/x86_64-linux-gnu/libc.so.6"
    kv1.run(f"cp -p {libc} /srv/libc && mv /srv/libc {libc}")

    said = kv1.run("needrestart -r a")

    assert started("systemd-journald") != other
    assert started("aegiskv") == node
    assert "aegiskv.service" in said.split("being deferred:")[1]
