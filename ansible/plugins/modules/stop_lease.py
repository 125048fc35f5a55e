#!/usr/bin/python
# Copyright: The AegisKV authors
# Apache-2.0 (see LICENSE)

from __future__ import annotations

DOCUMENTATION = r"""
module: stop_lease
short_description: Holds the leave to stop one node of a cluster, or gives it back
description:
  - One node of a cluster at a time may be stopped by tools, which its members agree on, and only
    one that every shard keeps its write quorum without.
  - Held again by the same holder, the lease is renewed.
  - Ask another member than the one that is to be stopped.
author: [The AegisKV authors (@baxromumarov)]
extends_documentation_fragment:
  - aegiskv.cluster.ops
  - aegiskv.cluster.ops.token
  - aegiskv.cluster.ops.timeout
options:
  state:
    description:
      - V(held) takes the lease, or renews it, and fails if somebody else holds it, or while it
        would not be safe.
      - V(released) gives it back. One that nobody holds is released already; one of another holder
        is left alone, and that is a failure.
      - V(looked_at) changes nothing and says who holds it.
    type: str
    choices: [held, released, looked_at]
    default: held
  node_id:
    description: The node that is to be stopped. Needed but to look.
    type: str
  holder:
    description: Who holds it, in words that tell others whom to ask. Needed but to look.
    type: str
  ttl:
    description: How long it is held if nobody gives it back, such as 30m.
    type: str
    default: 30m
  timeout:
    description:
      - Seconds to wait until it is safe, or, to give it back, until the node is back with all its
        copies. A lease of somebody else is not waited for.
    type: int
    default: 600
attributes:
  check_mode:
    support: full
    description: The lease is neither taken nor given back.
"""

EXAMPLES = r"""
- name: Take leave to stop kv2, agreed on with kv3
  aegiskv.cluster.stop_lease:
    node_id: kv2
    holder: ann@control
  delegate_to: kv3
"""

RETURN = r"""
lease:
  description: The lease as the member has it; empty if nobody holds it.
  returned: always
  type: dict
"""

from urllib.parse import urlencode

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.aegiskv.cluster.plugins.module_utils.ops import (
    Ops,
    OpsError,
    arguments,
    field,
    first_token,
    until,
)

PATH = "/admin/stop-lease"


def main():
    module = AnsibleModule(
        argument_spec=arguments(
            "ops_url",
            "token_file",
            "timeout",
            state={
                "type": "str",
                "choices": ["held", "released", "looked_at"],
                "default": "held",
            },
            node_id={"type": "str"},
            holder={"type": "str"},
            ttl={"type": "str", "default": "30m"},
        ),
        required_if=[
            ("state", "held", ("node_id", "holder")),
            ("state", "released", ("node_id", "holder")),
        ],
        supports_check_mode=True,
    )
    wanted = module.params
    try:
        ops = Ops(wanted["ops_url"], first_token(wanted["token_file"]))
        if wanted["state"] == "looked_at" or module.check_mode:
            changed, lease = False, current(ops)
        elif wanted["state"] == "held":
            lease = until(wanted["timeout"], lambda: take(ops, wanted))
            changed = True
        else:
            changed, lease = until(wanted["timeout"], lambda: give_back(ops, wanted)), {}
    except OpsError as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=changed, lease=lease)


def current(ops):
    """The lease that is held; empty if none is."""
    answer = ops.ask("GET", PATH)[1]
    if "lease" not in answer:
        raise OpsError(f"the answer to GET {PATH} does not say who holds it: {answer}", final=True)
    return checked(answer["lease"]) if answer["lease"] is not None else {}


def take(ops, wanted):
    """The lease, granted or renewed, or why it would not be safe now."""
    body = {name: wanted[name] for name in ("node_id", "holder", "ttl")}
    status, answer = ops.ask("POST", PATH, accepts=(200, 404, 409, 503), body=body)
    if status == 503:
        return why_unsafe(answer)
    if status != 200:
        raise OpsError(f"no leave to stop {wanted['node_id']}: {answer.get('detail')}", final=True)
    lease = checked(answer)
    if (lease["node_id"], lease["holder"]) != (wanted["node_id"], wanted["holder"]):
        raise OpsError(f"another lease was granted than was asked for: {answer}", final=True)
    return lease


def why_unsafe(answer):
    lists = {
        "shards without a quorum": answer.get("shards_without_quorum"),
        "shards not level": answer.get("shards_not_level"),
        "members missing": answer.get("members_missing"),
    }
    named = [f"{what}: {', '.join(map(str, which))}" for what, which in lists.items() if which]
    return "; ".join([f"it is not safe: {answer.get('detail')}", *named])


def give_back(ops, wanted):
    """Whether it was given back now, or, in words, why the node's leave cannot end yet."""
    query = urlencode({"node_id": wanted["node_id"], "holder": wanted["holder"]})
    status, answer = ops.ask("DELETE", f"{PATH}?{query}", accepts=(200, 409, 503))
    if status == 503:
        return str(answer.get("detail"))
    if status == 409:
        raise OpsError(f"the lease is not ours to give back: {answer.get('detail')}", final=True)
    return field(answer, "released", bool, f"the answer to DELETE {PATH}")


def checked(lease):
    if not isinstance(lease, dict):
        raise OpsError(f"the lease is no JSON object: {lease!r}", final=True)
    for name in ("node_id", "holder"):
        field(lease, name, str, "the lease")
    return lease


if __name__ == "__main__":
    main()
