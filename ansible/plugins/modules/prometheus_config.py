#!/usr/bin/python
# Copyright: The AegisKV authors
# Apache-2.0 (see LICENSE)

from __future__ import annotations

DOCUMENTATION = r"""
module: prometheus_config
short_description: Has a Prometheus read AegisKV's rules and targets
description:
  - Puts a marked block below C(rule_files) and one below C(scrape_configs) of a configuration file,
    and leaves all else in it as it is, byte for byte.
  - C(promtool) of the same host checks the file before it takes the old one's place.
author: [The AegisKV authors (@baxromumarov)]
options:
  path:
    description: The configuration file. It has to be there.
    type: path
    default: /etc/prometheus/prometheus.yml
  rules:
    description: Files with rules, as a pattern that begins where the configuration file is.
    type: str
    default: rules/aegiskv/*.yml
  targets:
    description: Files with targets, as a pattern that begins where the configuration file is.
    type: str
    default: targets/aegiskv-*.yml
attributes:
  check_mode:
    support: full
    description: The file is checked, and not written.
  diff_mode:
    support: full
    description: Shows the blocks.
"""

EXAMPLES = r"""
- name: Have Prometheus watch AegisKV
  aegiskv.cluster.prometheus_config:
"""

RETURN = r""" # """

import os
import re
import tempfile

from ansible.module_utils.basic import AnsibleModule

MARKS = ("# BEGIN aegiskv.cluster", "# END aegiskv.cluster")


def main():
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "default": "/etc/prometheus/prometheus.yml"},
            "rules": {"type": "str", "default": "rules/aegiskv/*.yml"},
            "targets": {"type": "str", "default": "targets/aegiskv-*.yml"},
        },
        supports_check_mode=True,
    )
    path = module.params["path"]
    job = ["- job_name: aegiskv", "  file_sd_configs:", f"    - files: [{module.params['targets']}]"]
    try:
        with open(path, encoding="utf-8") as file:
            before = file.read()
        after = with_block(without_blocks(before), "rule_files", [f"- {module.params['rules']}"])
        after = with_block(after, "scrape_configs", job)
        if after != before:
            put(module, path, after)
    except (OSError, ValueError) as error:
        module.fail_json(msg=f"{path}: {error}")
    diff = {"before_header": path, "after_header": path, "before": before, "after": after}
    module.exit_json(changed=after != before, diff=diff)


def without_blocks(text):
    """The text without what an earlier run has put in."""
    begin, end = map(re.escape, MARKS)
    return re.sub(rf"(?ms)^ *{begin}$.*?^ *{end}\n", "", text)


def with_block(text, section, lines):
    """The text with these lines, marked, first in a section that is a list."""
    if text and not text.endswith("\n"):
        text += "\n"
    if not (found := re.search(rf"(?m)^{section}:(.*)\n", text)):
        text += f"{section}:\n"
        found = re.search(rf"(?m)^{section}:(.*)\n", text)
    if found[1].partition("#")[0].strip():
        raise ValueError(f"{section} is written in one line. Write it as a list, each entry in a line")
    # Entries of a list stand below each other.
    entry = re.match(r"(?:[ \t]*(?:#.*)?\n)*( *)- ", text[found.end() :])
    indent = entry[1] if entry else "  "
    block = "".join(f"{indent}{line}\n" for line in (MARKS[0], *lines, MARKS[1]))
    return text[: found.end()] + block + text[found.end() :]


def put(module, path, text):
    """Writes the file, once it is found to be right. Patterns in it begin in its directory."""
    promtool = module.get_bin_path("promtool", required=True)
    handle, draft = tempfile.mkstemp(prefix=".aegiskv-", dir=os.path.dirname(path))
    module.add_cleanup_file(draft)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
    code, out, err = module.run_command([promtool, "check", "config", draft])
    if code != 0:
        raise ValueError(f"promtool refuses what it would become: {(err or out).strip()}")
    if not module.check_mode:
        module.atomic_move(draft, path)


if __name__ == "__main__":
    main()
