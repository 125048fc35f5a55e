#!/usr/bin/python
# Copyright: The AegisKV authors
# Apache-2.0 (see LICENSE)

from __future__ import annotations

DOCUMENTATION = r"""
module: ready
short_description: Waits until the node on a host does its whole part
description:
  - Asks the node itself, after a start. A node is ready when it serves and its copies are level.
author: [The AegisKV authors (@baxromumarov)]
extends_documentation_fragment:
  - aegiskv.cluster.ops
  - aegiskv.cluster.ops.timeout
options:
  node_id:
    description: The name that the node has to have.
    type: str
    required: true
attributes:
  check_mode:
    support: full
    description: The node is not asked.
"""

EXAMPLES = r"""
- name: Wait for the node
  aegiskv.cluster.ready:
    node_id: kv1
"""

RETURN = r"""
checks:
  description: What the node says of each of its parts.
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


def main():
    module = AnsibleModule(
        argument_spec=arguments(
            "ops_url",
            "timeout",
            node_id={"type": "str", "required": True},
        ),
        supports_check_mode=True,
    )
    if module.check_mode:
        module.exit_json(changed=False, checks={})
    name = module.params["node_id"]
    try:
        ops = Ops(module.params["ops_url"])
        checks = until(module.params["timeout"], lambda: look(ops, name))
    except OpsError as error:
        module.fail_json(msg=f"{name} is not ready: {error}")
    module.exit_json(changed=False, checks=checks)


def look(ops, name):
    """What the node says of its parts, or, in words, what is not ready."""
    found = field(ops.ask("GET", "/health")[1], "node_id", str, "the answer to GET /health")
    if found != name:
        raise OpsError(f"the node calls itself {found}", final=True)
    _status, answer = ops.ask("GET", "/ready", accepts=(200, 503))
    checks = field(answer, "checks", dict, "the answer to GET /ready")
    if field(answer, "ready", bool, "the answer to GET /ready"):
        return checks
    return "; ".join(f"{part}: {text}" for part, text in checks.items() if text != "ok")


if __name__ == "__main__":
    main()
