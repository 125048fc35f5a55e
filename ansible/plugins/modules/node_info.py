#!/usr/bin/python
# Copyright: The AegisKV authors
# Apache-2.0 (see LICENSE)

from __future__ import annotations

DOCUMENTATION = r"""
module: node_info
short_description: What there is of AegisKV on a host
description:
  - Looks at the package, the unit, the process and the operations port of the host it runs on.
  - Nothing is changed, and nothing of it is an error; a host without AegisKV says so.
author: [The AegisKV authors (@baxromumarov)]
extends_documentation_fragment:
  - aegiskv.cluster.ops
options:
  program:
    description: The program.
    type: path
    default: /usr/bin/aegiskv
  config_file:
    description: The configuration file that the unit names.
    type: path
    default: /etc/aegiskv/config.json
  user:
    description: The user that the node runs as, who alone reads all of the configuration.
    type: str
    default: aegiskv
attributes:
  check_mode:
    support: full
    description: Nothing is changed in any mode.
"""

EXAMPLES = r"""
- name: Look at the node
  aegiskv.cluster.node_info:
  register: node
"""

RETURN = r"""
installed:
  description: Whether the program is there.
  returned: always
  type: bool
version:
  description: What the installed program says of its version.
  returned: always
  type: str
package:
  description: The installed package's version, as dpkg or rpm has it. Empty without a package.
  returned: always
  type: str
unit:
  description: The unit's C(ActiveState).
  returned: always
  type: str
runs_installed:
  description: Whether the running process is of the installed program, or is not running.
  returned: always
  type: bool
answers:
  description: Whether the operations port answers as one of AegisKV does.
  returned: always
  type: bool
node_id:
  description: The name that the running node has.
  returned: always
  type: str
cluster_id:
  description: The cluster that the running node is a member of, or that its data are of.
  returned: always
  type: str
leader:
  description: The member that leads the topology, as this node knows it.
  returned: always
  type: str
pending_restart:
  description: Settings that differ between the files and the running node and want a restart.
  returned: always
  type: list
  elements: str
"""

import json
import os

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.aegiskv.cluster.plugins.module_utils.ops import Ops, OpsError, arguments

IDENTITY = "identity.json"


def main():
    module = AnsibleModule(
        argument_spec=arguments(
            "ops_url",
            program={"type": "path", "default": "/usr/bin/aegiskv"},
            config_file={"type": "path", "default": "/etc/aegiskv/config.json"},
            user={"type": "str", "default": "aegiskv"},
        ),
        supports_check_mode=True,
    )
    program = module.params["program"]
    installed = os.access(program, os.X_OK)
    state, pid = unit(module)
    found = {
        "installed": installed,
        "version": said(module, [program, "--version"]) if installed else "",
        "package": package(module),
        "unit": state,
        "runs_installed": runs(pid, program),
    }
    found.update(asked(module, pid, wanted(module) if installed else {}))
    module.exit_json(changed=False, **found)


def unit(module):
    shown = said(module, ["systemctl", "show", "aegiskv.service", "-p", "ActiveState,MainPID"])
    values = dict(line.split("=", 1) for line in shown.splitlines() if "=" in line)
    return values.get("ActiveState", "unknown"), int(values.get("MainPID") or 0)


def package(module):
    for command in (
        ["dpkg-query", "-W", "-f", "${db:Status-Status} ${Version}", "aegiskv"],
        ["rpm", "-q", "--qf", "installed %{VERSION}-%{RELEASE}", "aegiskv"],
    ):
        if module.get_bin_path(command[0]):
            status, _space, version = said(module, command).partition(" ")
            if status == "installed":
                return version
    return ""


def runs(pid, program):
    """Whether the process runs the file that is there now, and not one that was replaced."""
    if not pid:
        return True
    try:
        running, there = os.stat(f"/proc/{pid}/exe"), os.stat(program)
    except OSError:
        return False
    return (running.st_dev, running.st_ino) == (there.st_dev, there.st_ino)


def wanted(module):
    """The configuration as a start would have it now; empty if it has mistakes."""
    command = [module.params["program"], "config", "show", "--json"]
    command += ["--config", module.params["config_file"]]
    if os.geteuid() == 0:
        command = ["setpriv", f"--reuid={module.params['user']}", "--init-groups"] + (
            [f"--regid={module.params['user']}"] + command
        )
    try:
        return json.loads(said(module, command) or "{}")
    except ValueError:
        return {}


def asked(module, pid, files):
    """What the running node says, and of what the files say otherwise."""
    nothing = {
        "answers": False,
        "node_id": "",
        "cluster_id": identity(files),
        "leader": "",
        "pending_restart": [],
    }
    if not pid:
        return nothing
    try:
        ops = Ops(module.params["ops_url"])
        cluster, health = ops.ask("GET", "/cluster")[1], ops.ask("GET", "/health")[1]
        in_force = ops.ask("GET", "/config")[1]
    except OpsError as error:
        return dict(nothing, no_answer=str(error))
    return {
        "answers": True,
        "node_id": health.get("node_id") or "",
        "cluster_id": cluster.get("cluster_id") or "",
        "leader": cluster.get("leader") or "",
        "pending_restart": sorted(
            key
            for key, value in files.items()
            if not value["live"]
            and key in in_force
            and value["value"] != in_force[key].get("value")
        ),
    }


def identity(files):
    """The cluster that the data on the disk are of."""
    data_dir = files.get("data_dir", {}).get("value", "/var/lib/aegiskv")
    try:
        with open(os.path.join(data_dir, IDENTITY), encoding="utf-8") as file:
            return str(json.load(file).get("cluster_id") or "")
    except (OSError, ValueError, AttributeError):
        return ""


def said(module, command):
    """What a command printed; nothing if it failed or is not there."""
    if not module.get_bin_path(command[0]):
        return ""
    code, out, _err = module.run_command(command)
    return out.strip() if code == 0 else ""


if __name__ == "__main__":
    main()
