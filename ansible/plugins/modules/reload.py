#!/usr/bin/python
# Copyright: The AegisKV authors
# Apache-2.0 (see LICENSE)

from __future__ import annotations

DOCUMENTATION = r"""
module: reload
short_description: Has a running node read its configuration again
description:
  - The node checks the new configuration first, and keeps the old one on any mistake. That is a
    failure here, with all that is wrong.
  - What is changed and wants a restart is named; nothing is restarted.
author: [The AegisKV authors (@baxromumarov)]
extends_documentation_fragment:
  - aegiskv.cluster.ops
  - aegiskv.cluster.ops.token
attributes:
  check_mode:
    support: full
    description: The node is not asked.
"""

EXAMPLES = r"""
- name: Put the settings into force
  aegiskv.cluster.reload:
  register: reloaded
"""

RETURN = r"""
applied:
  description: The settings that have other values now, or other files behind them.
  returned: always
  type: list
  elements: str
needs_restart:
  description: The settings that were changed and keep their values until a restart.
  returned: always
  type: list
  elements: str
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.aegiskv.cluster.plugins.module_utils.ops import (
    Ops,
    OpsError,
    arguments,
    field,
    first_token,
)


def main():
    module = AnsibleModule(
        argument_spec=arguments("ops_url", "token_file"),
        supports_check_mode=True,
    )
    if module.check_mode:
        module.exit_json(changed=False, applied=[], needs_restart=[])
    try:
        ops = Ops(module.params["ops_url"], first_token(module.params["token_file"]))
        status, answer = ops.ask("POST", "/admin/reload", accepts=(200, 422))
        if status == 422:
            module.fail_json(
                msg=f"the node keeps its old configuration: {answer.get('detail')}",
                problems=answer.get("problems", []),
            )
        applied = field(answer, "applied", list, "the answer to the reload")
        needs_restart = field(answer, "needs_restart", list, "the answer to the reload")
    except OpsError as error:
        module.fail_json(msg=str(error))
    module.exit_json(
        changed=bool(applied),
        applied=applied,
        needs_restart=needs_restart,
        reload_warnings=answer.get("warnings", []),
    )


if __name__ == "__main__":
    main()
