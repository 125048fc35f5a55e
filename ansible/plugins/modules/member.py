#!/usr/bin/python
# Copyright: The AegisKV authors
# Apache-2.0 (see LICENSE)

from __future__ import annotations

DOCUMENTATION = r"""
module: member
short_description: Takes a member out of a cluster, step by step
description:
  - Asks one member about another one, and waits until what was asked for has come about.
author: [The AegisKV authors (@baxromumarov)]
extends_documentation_fragment:
  - aegiskv.cluster.ops
  - aegiskv.cluster.ops.token
  - aegiskv.cluster.ops.timeout
options:
  node_id:
    description: The member that it is about.
    type: str
    required: true
  state:
    description:
      - V(empty) decommissions it, and waits until it holds no copy of any shard.
      - V(absent) ends its membership. It must be dead, or empty.
      - V(dead) changes nothing, and waits until it is dead, or no member.
    type: str
    choices: [empty, absent, dead]
    required: true
  cluster_id:
    description: The cluster that it is about.
    type: str
    required: true
attributes:
  check_mode:
    support: full
    description: Nothing is asked for, and nothing waited for.
"""

EXAMPLES = r"""
- name: Move all that kv4 holds to others
  aegiskv.cluster.member:
    node_id: kv4
    state: empty
    cluster_id: "{{ cluster_id }}"
  delegate_to: kv1
"""

RETURN = r"""
status:
  description: The member's status as it is now; C(absent) if there is no such member.
  returned: success
  type: str
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.aegiskv.cluster.plugins.module_utils.ops import (
    Ops,
    OpsError,
    arguments,
    field,
    first_token,
    segment,
    until,
)

ABSENT = {"status": "absent", "shards": 0}


def main():
    module = AnsibleModule(
        argument_spec=arguments(
            "ops_url",
            "token_file",
            "timeout",
            node_id={"type": "str", "required": True},
            state={"type": "str", "choices": ["empty", "absent", "dead"], "required": True},
            cluster_id={"type": "str", "required": True},
        ),
        supports_check_mode=True,
    )
    wanted = module.params
    try:
        ops = Ops(wanted["ops_url"], first_token(wanted["token_file"]))
        before = found(ops, wanted)
        changed = wanted["state"] != "dead" and not reached(before, wanted["state"])
        now = before
        if changed and not module.check_mode:
            until(wanted["timeout"], lambda: ask_for(ops, wanted))
        if not module.check_mode:
            now = until(wanted["timeout"], lambda: look(ops, wanted))
    except OpsError as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=changed, status=now["status"])


def found(ops, wanted):
    """The member as the one that is asked sees it."""
    cluster = ops.ask("GET", "/cluster")[1]
    of = field(cluster, "cluster_id", str, "the answer to GET /cluster")
    if of != wanted["cluster_id"]:
        raise OpsError(f"{ops.url} is of cluster {of}, and not of {wanted['cluster_id']}", final=True)
    for member in field(cluster, "members", list, "the answer to GET /cluster"):
        if member.get("node_id") == wanted["node_id"]:
            field(member, "status", str, "the member")
            field(member, "shards", int, "the member")
            return member
    return ABSENT


def reached(member, state):
    if state == "empty":
        return member is ABSENT or (member["status"] == "leaving" and member["shards"] == 0)
    if state == "dead":
        return member["status"] in ("dead", "absent")
    return member is ABSENT


def ask_for(ops, wanted):
    """Asks for it; in words, why it is not granted yet."""
    action = "decommission" if wanted["state"] == "empty" else "remove"
    path = f"/admin/nodes/{segment(wanted['node_id'])}/{action}"
    status, answer = ops.ask("POST", path, accepts=(200, 202, 404, 409, 503))
    return str(answer.get("detail")) if status in (409, 503) else True


def look(ops, wanted):
    """The member once it is as it should be; in words, what it still is."""
    member = found(ops, wanted)
    if reached(member, wanted["state"]):
        return member
    return f"{wanted['node_id']} is {member['status']} and holds {member['shards']} shards"


if __name__ == "__main__":
    main()
