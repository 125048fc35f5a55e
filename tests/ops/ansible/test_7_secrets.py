"""Secrets are looked for where they must not be, after all that other tests have done."""


def test_no_secret_is_in_what_playbooks_said_nor_on_a_command_line_nor_in_a_journal(
    cluster, command_lines
):
    secrets = set(cluster.secrets_known)
    for name in cluster.members:
        key = cluster.hosts[name].run("cat /etc/aegiskv/tls/node.key")
        secrets |= {line for line in key.splitlines() if line and "---" not in line}
    assert len(secrets) >= 5 * len(cluster.members)
    assert any("-vvv" in line and "ansible-playbook" in line for line in command_lines)
    said = {
        "playbooks": "\n".join(cluster.outputs),
        "command lines": "\n".join(command_lines),
    } | {
        name: cluster.hosts[name].run("journalctl --no-pager -o cat")
        for name in (*cluster.members, "mon1")
    }
    assert "TASK [" in said["playbooks"]
    assert all("Started aegiskv.service" in said[name] for name in cluster.members)

    found = [where for where, text in said.items() if any(secret in text for secret in secrets)]

    assert found == []
