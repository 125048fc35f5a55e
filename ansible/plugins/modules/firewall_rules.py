#!/usr/bin/python
# Copyright: The AegisKV authors
# Apache-2.0 (see LICENSE)

from __future__ import annotations

DOCUMENTATION = r"""
module: firewall_rules
short_description: Lets clients, members and monitors reach a node, each their own port
description:
  - Uses firewalld or ufw where one of them is active, and nftables else.
  - Adds and removes rules of its own only. Rules of others stay as they are, byte for byte.
author: [The AegisKV authors (@baxromumarov)]
options:
  state:
    description: Whether the rules are to be there.
    type: str
    choices: [present, absent]
    default: present
  backend:
    description: The firewall to use; V(auto) takes the one that the host has.
    type: str
    choices: [auto, nftables, ufw, firewalld]
    default: auto
  clients:
    description: Addresses and networks that reach the client port. Empty, everybody does.
    type: list
    elements: str
    default: []
  members:
    description: Addresses that reach the node port, over TCP and UDP. Nobody else does.
    type: list
    elements: str
    default: []
  monitors:
    description: Addresses and networks that reach the operations port. Nobody else does.
    type: list
    elements: str
    default: []
  client_port:
    description: The port for clients.
    type: int
    default: 7700
  node_port:
    description: The port between nodes.
    type: int
    default: 7701
  ops_port:
    description: The port for operators.
    type: int
    default: 7702
attributes:
  check_mode:
    support: full
    description: Rules are looked at, and those that would change are named.
"""

EXAMPLES = r"""
- name: Let the cluster in
  aegiskv.cluster.firewall_rules:
    members: [10.0.1.10, 10.0.1.11, 10.0.1.12]
    monitors: [10.0.9.5]
"""

RETURN = r"""
backend:
  description: The firewall that was used.
  returned: success
  type: str
changes:
  description: What was done, or would be.
  returned: success
  type: list
  elements: str
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.aegiskv.cluster.plugins.module_utils.firewalls import (
    Door,
    Firewalld,
    FirewallError,
    Nftables,
    Ufw,
)

BACKENDS = (Firewalld, Ufw, Nftables)


def main():
    sources = {"type": "list", "elements": "str", "default": []}
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "backend": {
                "type": "str",
                "choices": ["auto", "nftables", "ufw", "firewalld"],
                "default": "auto",
            },
            "clients": sources,
            "members": sources,
            "monitors": sources,
            "client_port": {"type": "int", "default": 7700},
            "node_port": {"type": "int", "default": 7701},
            "ops_port": {"type": "int", "default": 7702},
        },
        supports_check_mode=True,
    )
    try:
        firewall = chosen(module)
        if module.params["state"] == "present":
            todo = firewall.changes(doors(module.params))
        else:
            todo = firewall.removals()
        if not module.check_mode:
            for _what, do in todo:
                do()
    except (FirewallError, OSError) as error:
        module.fail_json(msg=str(error))
    words = [what for what, _do in todo]
    diff = {"before": "", "after": "".join(f"{what}\n" for what in words)}
    module.exit_json(changed=bool(todo), backend=firewall.name, changes=words, diff=diff)


def doors(params):
    return [
        Door("clients", params["client_port"], ["tcp"], params["clients"] or None),
        Door("members", params["node_port"], ["tcp", "udp"], params["members"]),
        Door("monitors", params["ops_port"], ["tcp"], params["monitors"]),
    ]


def chosen(module):
    def run(command, data=None, check=True):
        """What a command printed; None if it failed and need not succeed, or is not there."""
        if not module.get_bin_path(command[0]):
            if check:
                raise FirewallError(f"{command[0]} is not installed")
            return None
        code, out, err = module.run_command(command, data=data)
        if code != 0 and check:
            raise FirewallError(f"{' '.join(command)} failed: {err.strip() or out.strip()}")
        return out if code == 0 else None

    wanted = module.params["backend"]
    for kind in BACKENDS:
        firewall = kind(run)
        if wanted == firewall.name or (wanted == "auto" and firewall.is_there()):
            return firewall
    raise FirewallError(
        "the host has no firewall: neither firewalld nor ufw is active, and nftables is not "
        "installed. Install one, or set aegiskv_firewall: false"
    )


if __name__ == "__main__":
    main()
