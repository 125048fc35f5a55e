"""Secrets rotate, members come and go, data are lost and restored. The tests run in this order."""

import json
import tarfile

import pytest

import host
from control import operations, pids
from load import Load


def test_secrets_rotate_without_a_moment_in_which_somebody_is_locked_out(cluster, command_lines):
    # As in a pipeline, and as loudly as can be: a later test looks for secrets in it.
    cluster.extra_environment["CI"] = "true"
    loud = ("-vvv", "--diff")
    before = {name: cluster.secret(name) for name in ("token", "gossip-secret")}
    certificates = fingerprints(cluster)
    before_it = pids(cluster)

    with Load(cluster) as load:
        # As long as both are accepted, clients are given the new one.
        cluster.play("rotate_secrets", *loud, "-e", "aegiskv_rotate_until=overlap")
        load.token = cluster.secret("token.next")
        cluster.play("rotate_secrets", *loud)
    load.check()

    for name in ("token", "gossip-secret"):
        assert cluster.secret(name) != before[name]
        assert not (cluster.secrets / f"{name}.next").exists()
        for member in cluster.members:
            on_node = cluster.hosts[member].run(f"cat /etc/aegiskv/{name}")
            assert on_node.split() == [cluster.secret(name)]
    assert pids(cluster) == before_it
    assert fingerprints(cluster).isdisjoint(certificates)
    assert answered(cluster, before["token"]) == "401"
    assert answered(cluster, cluster.secret("token")) == "200"


@pytest.mark.long
def test_a_rotation_that_was_ended_is_finished_by_the_next_run(cluster):
    """The last step has reached one node, as a run leaves it that was killed there."""
    old = cluster.secret("gossip-secret")
    cluster.play("rotate_secrets", "-e", "aegiskv_rotate_until=overlap")
    new = cluster.secret("gossip-secret.next")
    cluster.hosts["kv2"].run("cat >/etc/aegiskv/gossip-secret", stdin=f"{new}\n")
    cluster.hosts["kv2"].run("systemctl reload aegiskv")
    refused = cluster.play("bootstrap", check=False)
    assert "Run the playbook rotate_secrets first" in refused.said

    with Load(cluster) as load:
        load.token = cluster.secret("token.next")
        cluster.play("rotate_secrets")
    load.check()

    for member in cluster.members:
        assert cluster.hosts[member].run("cat /etc/aegiskv/gossip-secret").split() == [new]
    assert cluster.secret("gossip-secret") == new != old
    seen = operations(cluster.hosts["kv1"], "/cluster")["members"]
    assert [member["status"] for member in seen] == ["alive"] * 3


def test_a_node_is_added(cluster):
    cluster.members.append("kv4")
    with Load(cluster) as load:
        load.nodes.remove(cluster.hosts["kv4"].address)
        cluster.play("add_node")
    load.check()

    seen = operations(cluster.hosts["kv1"], "/cluster")
    shares = {member["node_id"]: member["shards"] for member in seen["members"]}
    assert set(shares) == {"kv1", "kv2", "kv3", "kv4"}
    assert all(share >= 10 for share in shares.values())
    # Its firewall, and theirs for it.
    for name in ("kv1", "kv4"):
        assert cluster.hosts["kv4"].address in cluster.hosts[name].run("nft list table inet aegiskv")


def test_a_node_is_decommissioned(cluster):
    leaving = cluster.hosts["kv4"]
    with Load(cluster) as load:
        load.nodes.remove(leaving.address)
        cluster.play("decommission", "-e", "aegiskv_leaving_node=kv4")
    load.check()
    cluster.members.remove("kv4")

    seen = operations(cluster.hosts["kv1"], "/cluster")
    assert {member["node_id"] for member in seen["members"]} == {"kv1", "kv2", "kv3"}
    assert seen["shards"]["healthy"] == 16
    assert leaving.run("systemctl is-active aegiskv", check=False).stdout.strip() == "inactive"
    table = cluster.hosts["kv1"].run("nft list table inet aegiskv")
    assert leaving.address not in table
    assert cluster.hosts["kv2"].address in table


def test_a_host_that_was_lost_is_replaced(cluster):
    successor = cluster.hosts["kv4"]
    successor.run("find /var/lib/aegiskv -mindepth 1 -delete")
    lost = cluster.hosts["kv3"]
    refused = cluster.play("replace_node", "-e", "aegiskv_lost_node=kv3", check=False)
    assert "there is nothing to replace" in refused.said

    with Load(cluster) as load:
        load.nodes.remove(lost.address)
        lost.crash()
        cluster.per_host["kv3"] = {"ansible_host": successor.address}
        cluster.play("replace_node", "-e", "aegiskv_lost_node=kv3")
    load.check()
    # From now on the name means the other machine.
    cluster.hosts["kv3"] = successor

    seen = operations(cluster.hosts["kv1"], "/cluster")
    addresses = {member["node_id"]: member["gossip_addr"] for member in seen["members"]}
    assert addresses["kv3"] == f"{successor.address}:7701"
    assert len(addresses) == 3
    assert seen["shards"]["healthy"] == 16


def test_what_was_backed_up_is_restored_to_a_cluster_that_lost_all_its_disks(cluster):
    address = cluster.hosts["kv2"].address
    curl = ["curl", "-sS", "--fail", "--cacert", cluster.ca, *cluster.bearer()]
    url = f"https://{address}:7700/v1/kv"
    for index in range(50):
        host.call(*curl, "-X", "PUT", f"{url}/kept-{index}", "-d", f"value {index}")
    file = cluster.dir / "backup.ndjson"
    cluster.play("backup", "-e", f"aegiskv_backup_file={file}")
    assert file.stat().st_mode & 0o777 == 0o600
    before = content(file)
    assert before["kept-7"] == "value 7"
    born = operations(cluster.hosts["kv1"], "/cluster")["cluster_id"]
    for command in ("stop --no-block", "stop"):
        for name in cluster.members:
            cluster.hosts[name].run(f"systemctl {command} aegiskv")
    for name in cluster.members:
        cluster.hosts[name].run("find /var/lib/aegiskv -mindepth 1 -delete")
    cluster.play("bootstrap")
    assert operations(cluster.hosts["kv1"], "/cluster")["cluster_id"] != born
    assert json.loads(host.call(*curl, url))["keys"] == []

    cluster.play("restore", "-e", f"aegiskv_backup_file={file}")

    after = cluster.dir / "after.ndjson"
    cluster.play("backup", "-e", f"aegiskv_backup_file={after}")
    assert content(after) == before
    for name in cluster.members:
        assert cluster.hosts[name].run("ls -d /tmp/*aegiskv; true") == ""


@pytest.mark.long
def test_a_bundle_for_support_has_what_all_nodes_say(cluster):
    cluster.hosts["kv2"].run("systemctl stop aegiskv")
    try:
        cluster.play("support_bundle")
    finally:
        cluster.hosts["kv2"].run("systemctl start aegiskv")

    with tarfile.open(cluster.dir / "aegiskv-support.tar.gz") as archive:
        files = {
            member.name: archive.extractfile(member).read().decode()
            for member in archive.getmembers()
            if member.isfile()
        }
    of = "aegiskv-support/{}/{}".format
    assert json.loads(files[of("kv1", "cluster.json")])["leader"]
    assert json.loads(files[of("kv1", "config.json")])["node_id"]["value"] == "kv1"
    assert "aegis_build_info" in files[of("kv3", "metrics.txt")]
    assert "was not answered" in files[of("kv2", "cluster.json")]
    assert "aegiskv" in files[of("kv2", "log.txt")]
    everything = "".join(files.values())
    assert not any(secret in everything for secret in cluster.secrets_known)


def content(file):
    """Keys and values of a dump."""
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert lines[-1] == {"dumped_keys": len(lines) - 1}
    return {line["key"]: line["value"] for line in lines[:-1]}


def fingerprints(cluster):
    read = "openssl x509 -in /etc/aegiskv/tls/node.crt -noout -fingerprint -sha256"
    return {cluster.hosts[name].run(read) for name in cluster.members}


def answered(cluster, token):
    """The status that a listing with a token gets."""
    url = f"https://{cluster.hosts['kv1'].address}:7700/v1/kv"
    code = ["curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", "--cacert", cluster.ca]
    return host.call(*code, *cluster.bearer(token), url)
