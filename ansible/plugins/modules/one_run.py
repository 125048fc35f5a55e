#!/usr/bin/python
# Copyright: The AegisKV authors
# Apache-2.0 (see LICENSE)

from __future__ import annotations

DOCUMENTATION = r"""
module: one_run
short_description: Refuses a second run of playbooks against a cluster
description:
  - Runs on the control host, which must be Linux. The claim of a run that has ended, or was killed,
    counts for nothing.
author: [The AegisKV authors (@baxromumarov)]
options:
  dir:
    description: The directory that the control host has for this cluster.
    type: path
    required: true
  playbook:
    description: What is run, for the words by which another run is refused.
    type: str
    required: true
attributes:
  check_mode:
    support: full
    description: Nothing is claimed.
"""

EXAMPLES = r"""
- name: Be the only run
  aegiskv.cluster.one_run:
    dir: cluster
    playbook: upgrade
"""

RETURN = r"""
holder:
  description: The name under which this run holds what only one may hold.
  returned: always
  type: str
"""
