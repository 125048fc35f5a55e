"""Stands between playbooks and a node's operations port, on the node's own host:
`python3 liar.py LIE HONEST`. The first answers to GET /cluster, HONEST of them, are the node's own;
from then on one of LIES is told instead. All other answers are the node's own always."""

import contextlib
import http.server
import itertools
import json
import sys
import urllib.error
import urllib.request

PORT = 7799
NODE = "http://127.0.0.1:7702"


def under_replicated(cluster):
    cluster["shards"]["healthy"] -= 1
    cluster["shards"]["under_replicated"] += 1
    return json.dumps(cluster)


def another_cluster(cluster):
    return json.dumps(cluster | {"cluster_id": "00000000-0000-4000-8000-000000000000"})


def broken_body(cluster):
    return json.dumps(cluster)[:-9]


LIES = {
    "under_replicated": under_replicated,
    "another_cluster": another_cluster,
    "broken_body": broken_body,
    "no_answer": lambda _cluster: None,
}


class Liar(http.server.BaseHTTPRequestHandler):
    def answer(self):
        length = int(self.headers.get("Content-Length") or 0)
        data = self.rfile.read(length) if length else None
        passed = {name: self.headers[name] for name in ("Authorization", "Content-Type") if self.headers[name]}
        asked = urllib.request.Request(NODE + self.path, data, passed, method=self.command)
        try:
            answer = urllib.request.urlopen(asked, timeout=10)
        except urllib.error.HTTPError as error:
            answer = error
        except OSError:
            return
        with contextlib.closing(answer):
            status, body = answer.status, answer.read()
        if (self.command, self.path) == ("GET", "/cluster") and next(asked_before) >= honest:
            if (told := lie(json.loads(body))) is None:
                return
            body = told.encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_DELETE = answer


if __name__ == "__main__":
    lie, honest, asked_before = LIES[sys.argv[1]], int(sys.argv[2]), itertools.count()
    http.server.ThreadingHTTPServer(("127.0.0.1", PORT), Liar).serve_forever()
