"""`systemctl reload aegiskv`: what changes under open connections, and what a mistake does."""

import http.client
import ssl

import pytest

import kv

TLS = "/etc/aegiskv/tls"


@pytest.fixture(scope="module")
def node(kv1):
    """The host's node, serving the network with TLS."""
    kv1.run("aegiskv certs init --dir /srv/pki")
    issue(kv1, "first")
    issue(kv1, "second")
    use(kv1, "first")
    kv.setting(
        kv1,
        "50-site",
        f"""{{
            "bind_addr": ":7700",
            "tls_enabled": true,
            "tls_cert_file": "{TLS}/kv1.crt",
            "tls_key_file": "{TLS}/kv1.key"
        }}""",
    )
    kv1.run("systemctl restart aegiskv")
    return kv1


def test_a_reload_changes_the_log_level_under_an_open_connection(node):
    client = Client(node)
    assert client.put("level", "1") == 201
    assert kv.journal(node, "-p debug..debug") == ""

    kv.setting(node, "60-level", '{"log_level": "debug"}')
    node.run("systemctl reload aegiskv")

    assert client.get("level") == "1"
    assert client.connected_once
    assert kv.eventually(lambda: "aegiskv::" in kv.journal(node, "-p debug..debug"))


def test_a_reload_brings_a_new_certificate_and_keeps_open_connections(node):
    client = Client(node)
    assert client.put("certificate", "1") == 201
    before = Client(node).certificate()
    assert client.certificate() == before

    use(node, "second")
    node.run("systemctl reload aegiskv")

    assert client.get("certificate") == "1"
    assert client.connected_once
    assert client.certificate() == before
    after = Client(node)
    assert after.certificate() != before
    assert after.get("certificate") == "1"


@pytest.mark.parametrize("mistake", ["setting", "certificate"])
def test_a_mistake_fails_the_reload_and_changes_nothing(node, mistake):
    client = Client(node)
    pid, certificate = kv.unit(node, "MainPID"), client.certificate()
    make, mend, complaint = MISTAKES[mistake]
    make(node)

    done = node.run("systemctl reload aegiskv", check=False)

    assert done.returncode != 0
    state = node.run("systemctl status --no-pager -l aegiskv")
    assert "active (running)" in state
    assert "reload refused" in kv.unit(node, "StatusText")
    assert complaint in kv.unit(node, "StatusText")
    assert complaint in state
    assert client.get("certificate") == "1"
    assert client.connected_once
    assert Client(node).certificate() == certificate
    assert kv.unit(node, "MainPID") == pid

    mend(node)
    node.run("systemctl reload aegiskv")
    assert "refused" not in kv.unit(node, "StatusText")
    assert Client(node).get("certificate") == "1"


MISTAKES = {
    "setting": (
        lambda node: kv.setting(node, "70-wrong", '{"log_levle": "info", "max_conns": 5}'),
        lambda node: kv.setting(node, "70-wrong", None),
        "log_levle",
    ),
    # The key of one and the certificate of another.
    "certificate": (
        lambda node: node.run(f"cp /srv/pki/first.key {TLS}/kv1.key"),
        lambda node: node.run(f"cp /srv/pki/second.key {TLS}/kv1.key"),
        "tls_key_file: does not belong to the certificate",
    ),
}


class Client:
    """One connection to a node, kept open."""

    def __init__(self, node):
        self.token = node.run("cat /etc/aegiskv/token").strip()
        trust = ssl.create_default_context(cadata=node.run("cat /srv/pki/ca.crt"))
        self.connection = http.client.HTTPSConnection(node.address, 7700, context=trust, timeout=10)
        self.connection.connect()
        self.socket = self.connection.sock

    @property
    def connected_once(self):
        return self.connection.sock is self.socket

    def certificate(self):
        return self.socket.getpeercert()["serialNumber"]

    def put(self, key, value):
        return self._ask("PUT", key, value)[0]

    def get(self, key):
        status, value = self._ask("GET", key)
        assert status == 200
        return value

    def _ask(self, method, key, body=None):
        headers = {"Authorization": f"Bearer {self.token}"}
        self.connection.request(method, f"/v1/kv/{key}", body, headers)
        answer = self.connection.getresponse()
        return answer.status, answer.read().decode()


def issue(node, name):
    node.run(f"aegiskv certs issue --dir /srv/pki {name} --san kv1 --san {node.address}")


def use(node, name):
    """Puts a pair of certificate and key in the place of the one before."""
    node.run(
        f"install -d -g aegiskv -m 0750 {TLS}"
        f" && install -g aegiskv -m 0640 /srv/pki/{name}.crt {TLS}/kv1.crt"
        f" && install -g aegiskv -m 0640 /srv/pki/{name}.key {TLS}/kv1.key"
    )
