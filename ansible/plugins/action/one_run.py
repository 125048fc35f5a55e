# Copyright: The AegisKV authors
# Apache-2.0 (see LICENSE)

"""Refuses a second run against a cluster from this control host while another one is alive.

Says under which name this run holds what only one may hold: the same one again after a run that
was killed, so that the next one can take up what it left.
"""

from __future__ import annotations

import fcntl
import getpass
import json
import os
import socket

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase


class ActionModule(ActionBase):
    _requires_connection = False
    _supports_check_mode = True

    def run(self, tmp=None, task_vars=None):
        result = super().run(tmp, task_vars)
        _checked, wanted = self.validate_argument_spec(
            {
                "dir": {"type": "path", "required": True},
                "playbook": {"type": "str", "required": True},
            }
        )
        me = f"{getpass.getuser()}@{socket.gethostname()}"
        if not self._task.check_mode:
            self._claim(wanted["dir"], {"playbook": wanted["playbook"], "by": me, **ourselves()})
        return dict(result, changed=False, holder=f"ansible of {me}")

    @staticmethod
    def _claim(directory, this):
        os.makedirs(directory, mode=0o700, exist_ok=True)
        path = os.path.join(directory, "run.json")
        # Not closed before it is decided, so that two that come at once decide one after the other.
        with open(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            try:
                other = json.load(file)
            except ValueError:
                other = {}
            if is_another(other, this):
                raise AnsibleActionFail(
                    f"{other['playbook']} of {other['by']}, process {other['pid']}, is at work on "
                    "this cluster. Wait until it ends, or end it; then run this again."
                )
            file.seek(0)
            file.truncate()
            json.dump(this, file)


def ourselves():
    """The process of ansible-playbook, whose worker this is."""
    pid = os.getppid()
    return {"pid": pid, "started": started(pid)}


def started(pid):
    """When a process was started, which tells it from a later one of its number. None: it is gone."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[19]
    except OSError:
        return None


def is_another(other, this):
    """Whether the claim is of a run that is alive, and is not this one."""
    pid = other.get("pid")
    return pid is not None and pid != this["pid"] and other.get("started") == started(pid)
