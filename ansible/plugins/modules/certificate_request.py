#!/usr/bin/python
# Copyright: The AegisKV authors
# Apache-2.0 (see LICENSE)

from __future__ import annotations

DOCUMENTATION = r"""
module: certificate_request
short_description: A key that is made on the node, and a request for its certificate
description:
  - Makes the key if there is none; it never leaves the host. Says whether a certificate is wanted,
    since there is none, it is another key's or another authority's, it lacks a name, or it runs out.
requirements: [openssl 1.1.1 or newer]
author: [The AegisKV authors (@baxromumarov)]
options:
  key_file:
    description: The key. Its directory must exist.
    type: path
    required: true
  cert_file:
    description: The certificate, as far as there is one.
    type: path
    required: true
  ca:
    description: The authority that has to have signed it, PEM.
    type: str
    default: ""
  common_name:
    description: The node's name, for the request.
    type: str
    required: true
  names:
    description: Host names and addresses that the certificate has to be good for.
    type: list
    elements: str
    required: true
  group:
    description: The group that may read the key.
    type: str
    default: aegiskv
  renew_days:
    description: A certificate that runs out within so many days is to be renewed.
    type: int
    default: 30
  renew:
    description: Whether a new certificate is wanted in any case. The key stays.
    type: bool
    default: false
attributes:
  check_mode:
    support: full
    description: No key is made, and no request.
"""

EXAMPLES = r"""
- name: Ask for a certificate
  aegiskv.cluster.certificate_request:
    key_file: /etc/aegiskv/tls/node.key
    cert_file: /etc/aegiskv/tls/node.crt
    common_name: kv1
    names: [kv1, 10.0.1.10]
  register: asked
"""

RETURN = r"""
wanted:
  description: Why a certificate is wanted; empty if the one that is there is good.
  returned: always
  type: str
request:
  description: The request, PEM. Empty if none is wanted, and in check mode.
  returned: always
  type: str
"""

import grp
import os
import re
import tempfile

from ansible.module_utils.basic import AnsibleModule

DAY_SECONDS = 24 * 60 * 60
ADDRESS = re.compile(r"[0-9.]+|[0-9a-fA-F:.]*:[0-9a-fA-F:.]*")


def main():
    module = AnsibleModule(
        argument_spec={
            "key_file": {"type": "path", "required": True, "no_log": False},
            "cert_file": {"type": "path", "required": True},
            "ca": {"type": "str", "default": ""},
            "common_name": {"type": "str", "required": True},
            "names": {"type": "list", "elements": "str", "required": True},
            "group": {"type": "str", "default": "aegiskv"},
            "renew_days": {"type": "int", "default": 30},
            "renew": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    name = module.params["common_name"]
    if not re.fullmatch(r"[A-Za-z0-9._-]+", name):
        module.fail_json(msg=f"common_name is {name!r}; letters, digits, '.', '_' and '-' may be")
    openssl = module.get_bin_path("openssl")
    if openssl is None:
        if module.check_mode:
            module.exit_json(changed=True, wanted="openssl is not installed yet", request="")
        module.fail_json(msg="openssl is needed on the node to make its key; install it")
    wanted = "a new one was asked for" if module.params["renew"] else lacking(module, openssl)
    request = ""
    if wanted and not module.check_mode:
        try:
            request = make(module, openssl)
        except (OSError, KeyError) as error:
            module.fail_json(msg=f"the key cannot be made: {error}")
    module.exit_json(changed=bool(wanted), wanted=wanted, request=request)


def lacking(module, openssl):
    """Why the certificate that is there is not good enough; empty if it is."""
    key, certificate = module.params["key_file"], module.params["cert_file"]
    for path in (key, certificate):
        if not os.path.exists(path):
            return f"{path} is not there"

    def printed(*command):
        code, out, _err = module.run_command([openssl, *command])
        return out if code == 0 else None

    of_key = printed("pkey", "-in", key, "-pubout")
    if of_key is None or of_key != printed("x509", "-in", certificate, "-noout", "-pubkey"):
        return f"{certificate} is not of the key in {key}"
    soon = str(module.params["renew_days"] * DAY_SECONDS)
    if printed("x509", "-in", certificate, "-noout", "-checkend", soon) is None:
        return f"{certificate} runs out within {module.params['renew_days']} days"
    for name in module.params["names"]:
        check = "-checkip" if ADDRESS.fullmatch(name) else "-checkhost"
        if "does match" not in (printed("x509", "-in", certificate, "-noout", check, name) or ""):
            return f"{certificate} is not good for {name}"
    with tempfile.NamedTemporaryFile("w", suffix=".crt") as authority:
        authority.write(module.params["ca"])
        authority.flush()
        verify = ("verify", "-no-CApath", "-CAfile", authority.name, certificate)
        if module.params["ca"] and printed(*verify) is None:
            return f"{certificate} is of another authority"
    return ""


def make(module, openssl):
    """The request for the key, which is made if it is not there."""
    key = module.params["key_file"]
    if not os.path.exists(key):
        group = grp.getgrnam(module.params["group"]).gr_gid
        new = f"{key}.new"
        command = [openssl, "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"]
        module.run_command([*command, "-out", new], check_rc=True, umask=0o077)
        os.chown(new, 0, group)
        os.chmod(new, 0o640)
        os.replace(new, key)
    subject = f"/CN={module.params['common_name']}"
    command = [openssl, "req", "-new", "-sha256", "-key", key, "-subj", subject]
    _code, request, _err = module.run_command(command, check_rc=True)
    return request


if __name__ == "__main__":
    main()
