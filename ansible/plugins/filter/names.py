# Copyright: The AegisKV authors
# Apache-2.0 (see LICENSE)

from __future__ import annotations

from ansible.errors import AnsibleFilterError


def with_port(address, port):
    """`address:port`; an IPv6 address goes into brackets."""
    if not isinstance(address, str) or not address:
        raise AnsibleFilterError(f"with_port wants an address, and not {address!r}")
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def after(names, name):
    """The names behind this one, and then those before it."""
    if name not in names:
        return list(names)
    place = names.index(name)
    return [*names[place + 1 :], *names[:place]]


class FilterModule:
    def filters(self):
        return {"with_port": with_port, "after": after}
