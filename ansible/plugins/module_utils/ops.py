# Copyright: The AegisKV authors
# Apache-2.0 (see LICENSE)

"""A node's operations port, asked so that nothing but the expected answer passes for one.

Every answer has a status that was asked for, is one JSON object, and comes within a bound of time
and size. What is anything else is an `OpsError`, which says what was asked, and what came.
"""

from __future__ import annotations

import json
import time
from http.client import HTTPConnection, HTTPException
from urllib.parse import quote, urlsplit

ANSWER_BYTES_MAX = 16 * 1024 * 1024
ANSWER_SECONDS_MAX = 10
# Documented in doc_fragments/ops.py.
ARGUMENTS = {
    "ops_url": {"type": "str", "default": "http://127.0.0.1:7702"},
    "token_file": {"type": "path", "default": "/etc/aegiskv/token", "no_log": False},
    "timeout": {"type": "int", "default": 600},
}


def arguments(*common, **own):
    """A module's arguments: those of the names that modules have in common, and its own."""
    return dict({name: ARGUMENTS[name] for name in common}, **own)


class OpsError(Exception):
    """The node gave no answer that could be used. `final` if asking again cannot help."""

    def __init__(self, message, final=False):
        super().__init__(message)
        self.final = final


class Ops:
    """The operations port at `url`, such as http://127.0.0.1:7702."""

    def __init__(self, url, token=None):
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname or parts.path not in ("", "/"):
            raise OpsError(
                f"ops_url is {url!r}; it must look like http://127.0.0.1:7702", final=True
            )
        self.url = url.rstrip("/")
        self.host = parts.hostname
        self.port = parts.port or 7702
        self.token = token

    def ask(self, method, path, accepts=(200,), body=None):
        """The status and the JSON object that came; the status is one of `accepts`."""
        status, answer = self._exchange(method, path, body)
        where = f"{method} {self.url}{path}"
        if status not in accepts:
            raise OpsError(f"{where} was answered with {status}: {in_words(answer)}")
        try:
            parsed = json.loads(answer)
        except ValueError as error:
            raise OpsError(
                f"{where} was answered with {status} and a body that is no JSON ({error}): "
                f"{excerpt(answer)}",
                final=True,
            )
        if not isinstance(parsed, dict):
            raise OpsError(
                f"{where} was answered with {status} and no JSON object: {excerpt(answer)}",
                final=True,
            )
        return status, parsed

    def text(self, path):
        """What `GET` of a path is answered with, as text."""
        status, answer = self._exchange("GET", path, None)
        if status != 200:
            raise OpsError(f"GET {self.url}{path} was answered with {status}: {in_words(answer)}")
        return answer.decode("utf-8", "replace")

    def _exchange(self, method, path, body):
        headers = {"Accept": "application/json"}
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        payload = None
        if body is not None:
            payload = json.dumps(body).encode()
            headers["Content-Type"] = "application/json"
        connection = HTTPConnection(self.host, self.port, timeout=ANSWER_SECONDS_MAX)
        try:
            connection.request(method, path, payload, headers)
            response = connection.getresponse()
            answer = response.read(ANSWER_BYTES_MAX + 1)
        except (OSError, HTTPException) as error:
            raise OpsError(
                f"{method} {self.url}{path} was not answered: {error or type(error).__name__}"
            )
        finally:
            connection.close()
        if len(answer) > ANSWER_BYTES_MAX:
            raise OpsError(f"{method} {self.url}{path}: the answer does not end", final=True)
        return response.status, answer


def first_token(path):
    """The token in use: the first line of the file. None if there is no file."""
    if not path:
        return None
    try:
        with open(path, encoding="utf-8") as file:
            lines = file.read().split()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise OpsError(f"the token cannot be read: {error}", final=True)
    return lines[0] if lines else None


def field(answer, name, kind, asked):
    """A field of an answer that must be there and of this type."""
    value = answer.get(name)
    if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
        raise OpsError(f"{asked} has no usable field {name!r}: it is {value!r}", final=True)
    return value


def in_words(answer):
    """What a problem document says, or the beginning of whatever came instead."""
    try:
        problem = json.loads(answer)
        return str(problem.get("detail") or problem.get("title") or excerpt(answer))
    except (ValueError, AttributeError):
        return excerpt(answer)


def excerpt(answer):
    text = answer[:200].decode("utf-8", "replace").strip()
    return text if text else "nothing"


def segment(name):
    """A node's name as one segment of a path."""
    return quote(name, safe="")


def until(seconds_max, attempt, pause=1.0):
    """Calls `attempt` until it returns something else than a string, which says what is missing.

    Returns that; raises an `OpsError` with what was missing last when the time is over."""
    deadline = time.monotonic() + seconds_max
    while True:
        try:
            came = attempt()
        except OpsError as error:
            if error.final:
                raise
            came = str(error)
        if not isinstance(came, str):
            return came
        if time.monotonic() >= deadline:
            raise OpsError(f"{came} (waited for {seconds_max} s)")
        time.sleep(pause)
