"""The node of a host, as its operator sees it."""

import time

KEYRING = "/usr/share/keyrings/aegiskv-archive-keyring.gpg"
TOKEN = '-H "Authorization: Bearer $(cat /etc/aegiskv/token)"'


def put(host, key, value):
    host.run(f"curl -fsS {TOKEN} -X PUT localhost:7700/v1/kv/{key} -d {value}")


def get(host, key):
    return host.run(f"curl -fsS {TOKEN} localhost:7700/v1/kv/{key}")


def status(host, request):
    """The status code that curl gets for a request."""
    return int(host.run(f"curl -s -o /dev/null -w '%{{http_code}}' {request}"))


def setting(host, name, text):
    """Writes a settings file of the operator's; takes it away if there is no text."""
    path = f"/etc/aegiskv/conf.d/{name}.json"
    if text is None:
        host.run(f"rm {path}")
    else:
        host.write(path, text)


def drop_in(host, text):
    """Overrides settings of the unit."""
    host.write("/etc/systemd/system/aegiskv.service.d/test.conf", f"[Service]\n{text}\n")
    host.run("systemctl daemon-reload")


def unit(host, name):
    """A property of the unit."""
    return host.run(f"systemctl show -P {name} aegiskv").strip()


def journal(host, options=""):
    return host.run(f"journalctl --no-pager -o cat -u aegiskv {options}")


def eventually(holds, seconds=20):
    """Asks again until it holds; returns what was said last."""
    deadline = time.monotonic() + seconds
    while not (held := holds()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return held
