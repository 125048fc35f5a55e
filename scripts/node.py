"""One AegisKV node of a script's own, on free loopback ports: start, wait, stop, kill.

Only processes started here are ever ended, and they are ended with the script.
"""

import atexit
import http.client
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
READY_SECONDS_MAX = 120
STOP_SECONDS_MAX = 60


def build_dir():
    return Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))


def free_port():
    """A loopback port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def exit_on_terminate():
    """Lets SIGTERM end the script as an exception does, so that nothing is left running."""

    def leave(_signal, _frame):
        raise SystemExit(143)

    signal.signal(signal.SIGTERM, leave)


class Node:
    """A node over `data_dir`; `settings` are configuration keys as in the config file.

    They go by the environment, over any file that `arguments` name."""

    arguments = ()

    def __init__(self, binary, data_dir, **settings):
        self.binary, self.data_dir, self.settings = Path(binary), Path(data_dir), settings
        self.client_port, self.node_port, self.operations_port = (free_port() for _ in range(3))
        self.process = None
        self.log_path = self.data_dir.with_name(self.data_dir.name + ".log")

    @property
    def url(self):
        return f"http://127.0.0.1:{self.client_port}"

    def start(self):
        """Starts the node and returns the seconds it took until /ready said yes."""
        began = time.monotonic()
        self.launch()
        self.wait_ready()
        return time.monotonic() - began

    def launch(self):
        """Starts the node without waiting for it."""
        self.data_dir.mkdir(parents=True, exist_ok=True)
        settings = {
            "node_id": "bench",
            "bind_addr": f"127.0.0.1:{self.client_port}",
            "gossip_bind_addr": f"127.0.0.1:{self.node_port}",
            "health_addr": f"127.0.0.1:{self.operations_port}",
            "data_dir": self.data_dir,
            "log_level": "warn",
            # A node with a new directory listens for three of these before it founds a cluster.
            "gossip_interval": "20ms",
            **self.settings,
        }
        # The line of a panic says enough; its backtrace would push it out of `log()`.
        environment = {k: v for k, v in os.environ.items() if not k.startswith("AEGIS")}
        environment |= {f"AEGIS_{key.upper()}": str(value) for key, value in settings.items()}
        environment["RUST_BACKTRACE"] = "0"
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen(
                [self.binary, *self.arguments], env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
        atexit.register(self.kill)

    def wait_ready(self):
        """Waits until /ready says yes."""
        began = time.monotonic()
        while not self.ready():
            if self.process.poll() is not None:
                raise SystemExit(f"the node ended with {self.process.returncode}: {self.log()}")
            if time.monotonic() - began > READY_SECONDS_MAX:
                raise SystemExit(f"the node was not ready in {READY_SECONDS_MAX} s: {self.log()}")
            time.sleep(0.002)

    def ready(self):
        try:
            return self.operations("GET", "/ready")[0] == 200
        except OSError:
            return False

    def request(self, method, path, body=None, headers=None, port=None):
        connection = http.client.HTTPConnection("127.0.0.1", port or self.client_port, timeout=60)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def operations(self, method, path, body=None):
        return self.request(method, path, body, port=self.operations_port)

    def metric(self, name):
        """The value of a metric without labels."""
        for line in self.operations("GET", "/metrics")[1].decode().splitlines():
            if line.startswith(name + " "):
                return float(line.split()[1])
        raise SystemExit(f"/metrics has no {name}")

    def log(self):
        return self.log_path.read_text(errors="replace")[-2000:]

    def stop(self):
        """Lets the node drain and leave a clean mark."""
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(STOP_SECONDS_MAX)
        if code != 0:
            raise SystemExit(f"the node stopped with {code}: {self.log()}")

    def kill(self):
        """Ends it as a crash would."""
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
