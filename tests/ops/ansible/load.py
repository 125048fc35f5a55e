"""Clients that write and read all the while, and remember what they were promised.

    with Load(control) as load:
        control.play("rolling_restart")
    load.check()

Each client tries a request that failed once more, at another node, as clients should. What fails
twice counts as failed. Each key is written by one client alone, so that its last acknowledged write
is known, and read at the end.
"""

import http.client
import itertools
import random
import socket
import ssl
import threading
import time

CLIENTS = 4
KEYS_OF_EACH = 25
PAUSE_SECONDS = 0.06
# Longer than a node holds a request while another one takes over.
ANSWER_SECONDS_MAX = 15
LOOK_EVERY_SECONDS = 0.05
CLIENT_PORT = 7700


class Load:
    def __init__(self, control):
        self.control = control
        self.nodes = [control.hosts[name].address for name in control.members]
        self.token = control.secret("token")
        self.tls = ssl.create_default_context(cafile=control.ca)
        self.failed, self.done, self.down_together, self.seen_down = [], 0, [], set()
        self.acknowledged, self.tried = {}, {}
        self.ending = threading.Event()
        work = [threading.Thread(target=self._client, args=(n,)) for n in range(CLIENTS)]
        self.threads = [*work, threading.Thread(target=self._look)]

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.ending.set()
        for thread in self.threads:
            thread.join()

    def check(self):
        """That no request failed, no acknowledged write is lost, and one node at a time was down."""
        assert self.done > 100, f"the load was no load: {self.done} requests"
        assert not self.failed, f"{len(self.failed)} of {self.done} failed: {self.failed[:3]}"
        assert not self.down_together, f"down at the same time: {self.down_together[:3]}"
        client = Client(self)
        lost = []
        for key, value in self.acknowledged.items():
            status, body = client.request("GET", f"{key}?consistency=linearizable")
            # What was tried after it may have come in as well.
            if status != 200 or int(body) not in range(value, self.tried[key] + 1):
                lost.append((key, value, status, body))
        assert not lost, f"{len(lost)} of {len(self.acknowledged)} are lost: {lost[:3]}"

    def _client(self, number):
        client, counter = Client(self), itertools.count(1)
        keys = [f"load-{number}-{index}" for index in range(KEYS_OF_EACH)]
        while not self.ending.wait(PAUSE_SECONDS):
            key, value = random.choice(keys), next(counter)
            self.tried[key] = value
            self._count(client, "PUT", key, str(value))
            if key in self.acknowledged or self.ending.is_set():
                self._count(client, "GET", key)

    def _count(self, client, method, key, body=None):
        self.done += 1
        try:
            status, said = client.request(method, key, body)
        except OSError as error:
            self.failed.append((method, key, repr(error)))
            return
        if method == "PUT" and status in (201, 204):
            self.acknowledged[key] = int(body)
        elif status != 200:
            self.failed.append((method, key, status, said))

    def _look(self):
        while not self.ending.wait(LOOK_EVERY_SECONDS):
            down = [node for node in self.nodes if not listens(node)]
            self.seen_down.update(down)
            # Looked at once more: the one may have come up while the other was asked.
            if len(down) > 1 and len(still := [node for node in down if not listens(node)]) > 1:
                self.down_together.append((time.time(), still))


class Client:
    """Asks one node, and another one if that fails."""

    def __init__(self, load):
        self.load, self.connection = load, None
        self.node = random.choice(load.nodes)

    def request(self, method, key, body=None):
        try:
            status, said = self._request(method, key, body)
            if status < 500:
                return status, said
        except (OSError, http.client.HTTPException):
            pass
        self._close()
        others = [node for node in self.load.nodes if node != self.node and listens(node)]
        self.node = random.choice(others or self.load.nodes)
        try:
            return self._request(method, key, body)
        except http.client.HTTPException as error:
            self._close()
            raise OSError(f"{self.node}: {error!r}") from error
        except OSError:
            self._close()
            raise

    def _request(self, method, key, body):
        if self.connection is None:
            self.connection = http.client.HTTPSConnection(
                self.node, CLIENT_PORT, timeout=ANSWER_SECONDS_MAX, context=self.load.tls
            )
        headers = {"Authorization": f"Bearer {self.load.token}"}
        self.connection.request(method, f"/v1/kv/{key}", body, headers)
        answer = self.connection.getresponse()
        said = answer.read()
        if answer.will_close:
            self._close()
        return answer.status, said

    def _close(self):
        if self.connection is not None:
            self.connection.close()
        self.connection = None


def listens(node):
    try:
        socket.create_connection((node, CLIENT_PORT), timeout=1).close()
    except OSError:
        return False
    return True
