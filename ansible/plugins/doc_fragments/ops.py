# Copyright: The AegisKV authors
# Apache-2.0 (see LICENSE)

"""What modules that ask an operations port have in common. The arguments are in module_utils/ops.py."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  ops_url:
    description: The operations port of the member that is asked.
    type: str
    default: http://127.0.0.1:7702
"""

    TOKEN = r"""
options:
  token_file:
    description: File on this host whose first line is a token that may act on the node.
    type: path
    default: /etc/aegiskv/token
"""

    TIMEOUT = r"""
options:
  timeout:
    description: Seconds to wait for it.
    type: int
    default: 600
"""
