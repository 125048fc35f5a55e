#!/usr/bin/python
# Copyright: The AegisKV authors
# Apache-2.0 (see LICENSE)

from __future__ import annotations

DOCUMENTATION = r"""
module: authority
short_description: Certificates signed by an authority on the control host
description:
  - Makes the authority, C(ca.crt) and C(ca.key), if there is none, and signs a node's request.
  - Names are those given here. What a request says of names is not looked at.
requirements: [openssl 1.1.1 or newer]
author: [The AegisKV authors (@baxromumarov)]
options:
  dir:
    description: Directory of C(ca.crt) and C(ca.key). Made if need be, for its owner alone.
    type: path
    required: true
  name:
    description: The authority's name, for one that is made.
    type: str
    default: AegisKV CA
  ca_days:
    description: Days until an authority that is made runs out.
    type: int
    default: 3650
  request:
    description: A node's request, PEM. Without it, nothing is signed.
    type: str
  names:
    description: Host names and addresses that the certificate is good for.
    type: list
    elements: str
    default: []
  days:
    description: Days until the certificate runs out.
    type: int
    default: 365
attributes:
  check_mode:
    support: full
    description: Nothing is made or signed.
"""

EXAMPLES = r"""
- name: Sign the node's request
  aegiskv.cluster.authority:
    dir: secrets
    request: "{{ asked.request }}"
    names: [kv1, 10.0.1.10]
  delegate_to: localhost
"""

RETURN = r"""
ca:
  description: The authority's certificate, PEM.
  returned: always
  type: str
certificate:
  description: The node's certificate, PEM. Empty if nothing was signed.
  returned: always
  type: str
"""

import ipaddress
import os
import tempfile

from ansible.module_utils.basic import AnsibleModule


def main():
    module = AnsibleModule(
        argument_spec={
            "dir": {"type": "path", "required": True},
            "name": {"type": "str", "default": "AegisKV CA"},
            "ca_days": {"type": "int", "default": 3650},
            "request": {"type": "str"},
            "names": {"type": "list", "elements": "str", "default": []},
            "days": {"type": "int", "default": 365},
        },
        supports_check_mode=True,
    )
    openssl = module.get_bin_path("openssl", required=True)
    where = module.params["dir"]
    certificate, key = os.path.join(where, "ca.crt"), os.path.join(where, "ca.key")
    there = [os.path.exists(path) for path in (certificate, key)]
    changed, signed = False, ""
    try:
        if not any(there):
            changed = True
            if not module.check_mode:
                make(module, openssl, certificate, key)
        elif module.params["request"] and not all(there):
            module.fail_json(msg=f"{certificate} and {key} are needed; one of them is not there")
        if module.params["request"]:
            changed = True
            if not module.check_mode:
                signed = sign(module, openssl, certificate, key)
        with open(certificate if os.path.exists(certificate) else os.devnull) as file:
            ca = file.read()
    except OSError as error:
        module.fail_json(msg=f"the authority cannot be kept in files: {error}")
    module.exit_json(changed=changed, ca=ca, certificate=signed)


def make(module, openssl, certificate, key):
    """A new authority. Its certificate appears last: with it all is there."""
    os.makedirs(module.params["dir"], mode=0o700, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=module.params["dir"]) as room:
        new_key, new = os.path.join(room, "key"), os.path.join(room, "crt")
        module.run_command(curve(openssl, new_key), check_rc=True, umask=0o077)
        command = [openssl, "req", "-new", "-x509", "-sha256", "-key", new_key, "-out", new]
        command += ["-days", str(module.params["ca_days"]), "-subj", f"/CN={module.params['name']}"]
        command += ["-addext", "keyUsage=critical,keyCertSign,cRLSign"]
        module.run_command(command, check_rc=True)
        os.replace(new_key, key)
        os.replace(new, certificate)


def curve(openssl, path):
    """Makes a key; `path` is written with the mode that the umask leaves."""
    options = ["-pkeyopt", "ec_paramgen_curve:P-256", "-out", path]
    return [openssl, "genpkey", "-algorithm", "EC", *options]


def sign(module, openssl, certificate, key):
    with tempfile.TemporaryDirectory() as room:
        request, extensions = os.path.join(room, "csr"), os.path.join(room, "ext")
        with open(request, "w", encoding="utf-8") as file:
            file.write(module.params["request"])
        with open(extensions, "w", encoding="utf-8") as file:
            names = ",".join(alternative(name) for name in module.params["names"])
            file.write(
                f"subjectAltName={names}\nbasicConstraints=critical,CA:FALSE\n"
                "keyUsage=critical,digitalSignature\nextendedKeyUsage=serverAuth,clientAuth\n"
            )
        command = [openssl, "x509", "-req", "-sha256", "-in", request, "-extfile", extensions]
        command += ["-CA", certificate, "-CAkey", key, "-days", str(module.params["days"])]
        command += ["-set_serial", f"0x{os.urandom(16).hex()}"]
        _code, signed, _err = module.run_command(command, check_rc=True)
    return signed


def alternative(name):
    try:
        return f"IP:{ipaddress.ip_address(name)}"
    except ValueError:
        return f"DNS:{name}"


if __name__ == "__main__":
    main()
