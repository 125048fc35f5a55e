#!/usr/bin/python
# Copyright: The AegisKV authors
# Apache-2.0 (see LICENSE)

from __future__ import annotations

DOCUMENTATION = r"""
module: settled
short_description: Waits until a cluster is settled, as one of its members sees it
description:
  - A gate. It passes only if the member that is asked is the one that was meant, belongs to the
    cluster that was meant, and says that there is a leader, that every member is alive, that every
    shard is healthy, and that nothing is still to be copied, moved or balanced.
  - Whatever else comes as an answer, or none, holds the gate, and the failure says what came.
    Answers that cannot become right by waiting fail at once.
author: [The AegisKV authors (@baxromumarov)]
extends_documentation_fragment:
  - aegiskv.cluster.ops
  - aegiskv.cluster.ops.timeout
options:
  asked:
    description: The C(node_id) of the member that is asked.
    type: str
    required: true
  cluster_id:
    description: The cluster that it has to be a member of. Without it, any.
    type: str
  members:
    description: Members that have to be there, by C(node_id).
    type: list
    elements: str
    default: []
  away:
    description: Members that need not be alive, or must not be there, as with one to be replaced.
    type: list
    elements: str
    default: []
  only_members:
    description: Whether the members must be O(members) and no others.
    type: bool
    default: false
attributes:
  check_mode:
    support: full
    description: Nothing is changed in any mode; in check mode it is asked once and not waited for.
"""

EXAMPLES = r"""
- name: Wait until kv2 may be stopped, asked of kv3
  aegiskv.cluster.settled:
    asked: kv3
    members: [kv1, kv2, kv3]
  delegate_to: kv3
"""

RETURN = r"""
cluster_id:
  description: The cluster's id.
  returned: success
  type: str
leader:
  description: The member that leads the topology.
  returned: success
  type: str
members:
  description: All members by C(node_id), each with its status.
  returned: success
  type: dict
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.aegiskv.cluster.plugins.module_utils.ops import (
    Ops,
    OpsError,
    arguments,
    field,
    until,
)

STATES = ("healthy", "under_replicated", "catching_up", "moving", "unavailable")
THE_ANSWER = "the answer to GET /cluster"


def main():
    module = AnsibleModule(
        argument_spec=arguments(
            "ops_url",
            "timeout",
            asked={"type": "str", "required": True},
            cluster_id={"type": "str"},
            members={"type": "list", "elements": "str", "default": []},
            away={"type": "list", "elements": "str", "default": []},
            only_members={"type": "bool", "default": False},
        ),
        supports_check_mode=True,
    )
    wanted = module.params
    try:
        ops = Ops(wanted["ops_url"])
        seconds_max = 0 if module.check_mode else wanted["timeout"]
        seen = until(seconds_max, lambda: look(ops, wanted))
    except OpsError as error:
        module.fail_json(msg=f"not settled, asked of {wanted['asked']}: {error}")
    module.exit_json(changed=False, **seen)


def look(ops, wanted):
    """What the member sees, or why that is not enough."""
    name = field(ops.ask("GET", "/health")[1], "node_id", str, "the answer to GET /health")
    if name != wanted["asked"]:
        raise OpsError(f"{ops.url} is {name}, and not {wanted['asked']}", final=True)
    return judge(ops.ask("GET", "/cluster")[1], wanted)


def judge(cluster, wanted):
    """Whether the answer to `GET /cluster` is one of a settled cluster."""
    found = field(cluster, "cluster_id", str, THE_ANSWER)
    if wanted["cluster_id"] and found != wanted["cluster_id"]:
        raise OpsError(
            f"it is a member of cluster {found}, and not of {wanted['cluster_id']}", final=True
        )
    members = {}
    for member in field(cluster, "members", list, THE_ANSWER):
        if not isinstance(member, dict):
            raise OpsError(f"{THE_ANSWER} has a member that is no object: {member!r}", final=True)
        name = field(member, "node_id", str, "a member")
        members[name] = field(member, "status", str, f"the member {name}")
    wrong = missing(members, wanted) + unhealthy(field(cluster, "shards", dict, THE_ANSWER))
    if cluster.get("leader") is None:
        wrong.append("nobody leads the topology")
    if not field(cluster, "settled", bool, THE_ANSWER):
        left = cluster.get("moves_left")
        wrong.append(f"shards are still to be copied, moved or balanced ({left} moves are left)")
    if wrong:
        return "; ".join(wrong)
    return {"cluster_id": found, "leader": cluster["leader"], "members": members}


def missing(members, wanted):
    """What is wrong with the members."""
    wrong = [f"{name} is no member" for name in wanted["members"] if name not in members]
    for name, status in sorted(members.items()):
        if status != "alive" and name not in wanted["away"]:
            wrong.append(f"{name} is {status}")
        if wanted["only_members"] and name not in wanted["members"]:
            wrong.append(f"{name} is a member still")
    return wrong


def unhealthy(shards):
    """What is wrong with the shards."""
    counts = {state: field(shards, state, int, "shards") for state in STATES}
    total = field(shards, "total", int, "shards")
    if total < 1 or sum(counts.values()) != total:
        raise OpsError(f"the counts of shards do not add up: {shards}", final=True)
    return [
        f"{count} shards are {state.replace('_', ' ')}"
        for state, count in counts.items()
        if count and state != "healthy"
    ]


if __name__ == "__main__":
    main()
