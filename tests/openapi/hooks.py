"""What the document cannot say and a valid request must nevertheless keep to.

Only requests that are meant to be valid are mended; invalid ones go out as they are.
"""

import uuid

import schemathesis
from schemathesis import GenerationMode

CONDITIONS = ("If-Match", "If-None-Match")

# More keyed writes than a node remembers for one shard are refused, as documented; the
# generated requests love one key, and so one shard.
KEYED_WRITES_MAX = 100

# A batch under one such key may be no longer than this.
KEYED_BATCH_OPS_MAX = 1000

keyed_writes = 0


@schemathesis.hook
def before_call(_context, case, _kwargs):
    keep_stored_types_readable(case)
    if case.meta is None or case.meta.generation.mode != GenerationMode.POSITIVE:
        return
    headers, query = case.headers or {}, case.query or {}
    for name in CONDITIONS:
        # Generated at the schema's edges, an ETag comes without its quotes.
        if str(headers.get(name, "")).isdigit():
            headers[name] = f'"{headers[name]}"'
    if all(name in headers for name in CONDITIONS):
        del headers[CONDITIONS[0]]
    give_own_retry_key(headers)
    # A cursor is opaque: only the server can make one.
    query.pop("cursor", None)
    if query.get("op") == "touch":
        query.pop("by", None)
    elif query.get("ttl") == "keep" and "op" in query:
        del query["ttl"]  # a counter's time counts at its creation
    if isinstance(case.body, dict):
        ops = case.body.get("ops", [])
        if len(ops) > KEYED_BATCH_OPS_MAX:
            headers.pop("Idempotency-Key", None)
        for op in ops:
            if "if_match" in op and "if_none_match" in op:
                del op["if_match"]


def keep_stored_types_readable(case):
    """A value is served under the type it was stored with, whether or not it keeps to it;
    the reader of the answers takes JSON at its word."""
    if case.method == "PUT" and case.headers and "Content-Type" in case.headers:
        case.headers["Content-Type"] = "application/octet-stream"
    ops = case.body.get("ops") if isinstance(case.body, dict) else None
    for op in ops if isinstance(ops, list) else []:
        if isinstance(op, dict) and isinstance(op.get("content_type"), str):
            op["content_type"] = "application/octet-stream"


def give_own_retry_key(headers):
    """A key of a retry belongs to one request only."""
    global keyed_writes
    if "Idempotency-Key" in headers:
        keyed_writes += 1
        if keyed_writes <= KEYED_WRITES_MAX:
            headers["Idempotency-Key"] = str(uuid.uuid4())
        else:
            del headers["Idempotency-Key"]
