#!/usr/bin/python
# Copyright: The AegisKV authors
# Apache-2.0 (see LICENSE)

from __future__ import annotations

DOCUMENTATION = r"""
module: scraped
short_description: Waits until a Prometheus reaches all nodes
description:
  - Asks Prometheus for its targets, and fails with what it says of those that it does not reach.
author: [The AegisKV authors (@baxromumarov)]
options:
  url:
    description: Where Prometheus answers.
    type: str
    default: http://127.0.0.1:9090
  targets:
    description: The nodes, each by its address for operations, with the port.
    type: list
    elements: str
    required: true
  timeout:
    description: Seconds to wait for it.
    type: int
    default: 90
attributes:
  check_mode:
    support: full
    description: Prometheus is not asked.
"""

EXAMPLES = r"""
- name: See that all nodes are reached
  aegiskv.cluster.scraped:
    targets: [10.0.1.10:7702, 10.0.1.11:7702, 10.0.1.12:7702]
"""

RETURN = r""" # """

import json

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.urls import open_url
from ansible_collections.aegiskv.cluster.plugins.module_utils.ops import OpsError, until

PATH = "/api/v1/targets?state=active"


def main():
    module = AnsibleModule(
        argument_spec={
            "url": {"type": "str", "default": "http://127.0.0.1:9090"},
            "targets": {"type": "list", "elements": "str", "required": True},
            "timeout": {"type": "int", "default": 90},
        },
        supports_check_mode=True,
    )
    if not module.check_mode:
        try:
            until(module.params["timeout"], lambda: look(**module.params))
        except OpsError as error:
            module.fail_json(msg=str(error))
    module.exit_json(changed=False)


def look(url, targets, **_others):
    """Whether all are reached; in words, which are not."""
    try:
        with open_url(url.rstrip("/") + PATH, timeout=10) as answer:
            known = json.load(answer)["data"]["activeTargets"]
        states = {
            target["labels"]["instance"]: target["lastError"] or f"the target is {target['health']}"
            for target in known
            if target["health"] != "up"
        }
        up = {target["labels"]["instance"] for target in known if target["health"] == "up"}
    except (OSError, ValueError, LookupError, TypeError) as error:
        return f"Prometheus at {url} does not tell of its targets: {error!r}"
    wrong = [
        f"{target} ({states.get(target, 'Prometheus does not know of it')})"
        for target in targets
        if target not in up
    ]
    return f"Prometheus at {url} does not reach {', '.join(wrong)}" if wrong else True


if __name__ == "__main__":
    main()
