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
  ops_url:
    description: The operations port of the member that is asked.
    type: str
    default: http://127.0.0.1:7702
  token_file:
    description: File on this host whose first line is a token that may act on the node.
    type: path
    default: /etc/aegiskv/token
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
    description: Seconds to wait until it is safe. A lease of somebody else is not waited for.
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

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.aegiskv.cluster.plugins.module_utils.ops import (
    Ops,
    OpsError,
    first_token,
    until,
)

PATH = "/admin/stop-lease"


def main():
    module = AnsibleModule(
        argument_spec={
            "state": {
                "type": "str",
                "choices": ["held", "released", "looked_at"],
                "default": "held",
            },
            "ops_url": {"type": "str", "default": "http://127.0.0.1:7702"},
            "token_file": {"type": "path", "default": "/etc/aegiskv/token", "no_log": False},
            "node_id": {"type": "str"},
            "holder": {"type": "str"},
            "ttl": {"type": "str", "default": "30m"},
            "timeout": {"type": "int", "default": 600},
        },
        required_if=[
            ("state", "held", ("node_id", "holder")),
            ("state", "released", ("node_id", "holder")),
        ],
        supports_check_mode=True,
    )
    wanted = module.params
    try:
        ops = Ops(wanted["ops_url"], first_token(wanted["token_file"]))
        before = current(ops)
        if wanted["state"] == "looked_at" or module.check_mode:
            changed, lease = False, before
        elif wanted["state"] == "held":
            lease = until(wanted["timeout"], lambda: take(ops, wanted))
            changed = True
        else:
            changed, lease = give_back(ops, before, wanted), {}
    except OpsError as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=changed, lease=lease)


def current(ops):
    raise NotImplementedError


if __name__ == "__main__":
    main()
