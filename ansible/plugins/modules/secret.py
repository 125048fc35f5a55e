#!/usr/bin/python
# Copyright: The AegisKV authors
# Apache-2.0 (see LICENSE)

from __future__ import annotations

DOCUMENTATION = r"""
module: secret
short_description: A secret of a cluster, kept in a file of the control host
description:
  - Makes the secret if there is none. While it is rotated, the new one lies beside it, in a file
    of the same name that ends in C(.next).
  - What is returned is secret. Tasks that use this module want C(no_log).
author: [The AegisKV authors (@baxromumarov)]
options:
  path:
    description: The file. Its directory is made if need be, for its owner alone.
    type: path
    required: true
  state:
    description:
      - V(present) makes the secret if there is none.
      - V(rotating) makes a new one as well, unless there is one already.
      - V(rotated) puts the new one in the place of the old one.
    type: str
    choices: [present, rotating, rotated]
    default: present
attributes:
  check_mode:
    support: full
    description: No file is made; a secret that would be made is returned empty.
"""

EXAMPLES = r"""
- name: Have a token
  aegiskv.cluster.secret:
    path: secrets/token
  delegate_to: localhost
  no_log: true
  register: token
"""

RETURN = r"""
current:
  description: The secret.
  returned: always
  type: str
next:
  description: The one that is to replace it; empty unless it is being rotated.
  returned: always
  type: str
"""

import os
import secrets

from ansible.module_utils.basic import AnsibleModule

RANDOM_BYTES = 32


def main():
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "state": {
                "type": "str",
                "choices": ["present", "rotating", "rotated"],
                "default": "present",
            },
        },
        supports_check_mode=True,
    )
    path, state = module.params["path"], module.params["state"]
    following = path + ".next"
    try:
        changed = made(module, path)
        if state == "rotating":
            changed |= made(module, following)
        if state == "rotated" and os.path.exists(following):
            changed = True
            if not module.check_mode:
                os.replace(following, path)
        found = {"current": content(path), "next": content(following)}
    except OSError as error:
        module.fail_json(msg=f"the secret cannot be kept in a file: {error}")
    module.exit_json(changed=changed, **found)


def made(module, path):
    """Makes a secret unless there is one; whether it was, or would have been, made."""
    if os.path.exists(path):
        if not content(path):
            module.fail_json(msg=f"{path} is empty; remove it, and a secret is made")
        return False
    if not module.check_mode:
        os.makedirs(os.path.dirname(os.path.abspath(path)), mode=0o700, exist_ok=True)
        unfinished = f"{path}.{os.getpid()}.unfinished"
        with open(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_urlsafe(RANDOM_BYTES) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    return True


def content(path):
    try:
        with open(path, encoding="utf-8") as file:
            return file.read().strip()
    except FileNotFoundError:
        return ""


if __name__ == "__main__":
    main()
