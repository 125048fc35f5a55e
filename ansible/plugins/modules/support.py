#!/usr/bin/python
# Copyright: The AegisKV authors
# Apache-2.0 (see LICENSE)

from __future__ import annotations

DOCUMENTATION = r"""
module: support
short_description: What a node and its host say of themselves
description:
  - Collects what the operations port answers, the unit's state and the end of its log. Secrets are
    not in it; the product redacts them. What does not answer is noted as such.
author: [The AegisKV authors (@baxromumarov)]
extends_documentation_fragment:
  - aegiskv.cluster.ops
  - aegiskv.cluster.ops.token
options:
  log_lines:
    description: So many lines of the end of the log are taken.
    type: int
    default: 5000
attributes:
  check_mode:
    support: full
    description: Nothing is changed in any mode.
"""

EXAMPLES = r"""
- name: Collect what the node says
  aegiskv.cluster.support:
  register: support
"""

RETURN = r"""
files:
  description: Texts by the names of the files that they are to be.
  returned: always
  type: dict
"""

import json

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.aegiskv.cluster.plugins.module_utils.ops import (
    Ops,
    OpsError,
    arguments,
    first_token,
)

PATHS = {
    "health.json": "/health",
    "ready.json": "/ready",
    "ready-for-stop.json": "/ready?for=stop",
    "stats.json": "/stats",
    "cluster.json": "/cluster",
    "shards.json": "/cluster/shards",
    "config.json": "/config",
    "stop-lease.json": "/admin/stop-lease",
}
COMMANDS = {
    "unit.txt": ["systemctl", "status", "--no-pager", "--full", "--lines=0", "aegiskv.service"],
    "version.txt": ["/usr/bin/aegiskv", "--version"],
    "disk.txt": ["df", "-h"],
    "memory.txt": ["cat", "/proc/meminfo"],
    "pressure.txt": ["cat", "/proc/loadavg"],
}


def main():
    module = AnsibleModule(
        argument_spec=arguments(
            "ops_url",
            "token_file",
            log_lines={"type": "int", "default": 5000},
        ),
        supports_check_mode=True,
    )
    log = ["journalctl", "--no-pager", "-u", "aegiskv.service", "-n", str(module.params["log_lines"])]
    files = {name: printed(module, command) for name, command in COMMANDS.items()}
    files["log.txt"] = printed(module, log)
    try:
        ops = Ops(module.params["ops_url"], first_token(module.params["token_file"]))
    except OpsError as error:
        module.fail_json(msg=str(error))
    for name, path in PATHS.items():
        files[name] = answered(ops, path)
    files["metrics.txt"] = metrics(ops)
    module.exit_json(changed=False, files=files)


def answered(ops, path):
    try:
        return json.dumps(ops.ask("GET", path, accepts=(200, 503))[1], indent=2) + "\n"
    except OpsError as error:
        return f"{error}\n"


def metrics(ops):
    try:
        return ops.text("/metrics")
    except OpsError as error:
        return f"{error}\n"


def printed(module, command):
    if not module.get_bin_path(command[0]):
        return f"{command[0]} is not there\n"
    _code, out, err = module.run_command(command)
    return out + err


if __name__ == "__main__":
    main()
