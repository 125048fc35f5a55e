"""What is written in the collection: lint, and that the same thing is said everywhere."""

import json
import re
import subprocess
import sys
from pathlib import Path

import ansible_test
import pytest
import yaml

from control import tool
from node import ROOT

HERE = ROOT / "ansible"
ROLES = ("aegiskv", "firewall", "monitoring")
SANITY = (
    "action-plugin-docs",
    "compile",
    "empty-init",
    "ignores",
    "line-endings",
    "no-assert",
    "no-get-exception",
    "no-illegal-filenames",
    "no-smart-quotes",
    "replace-urlopen",
    "shebang",
    "symlinks",
    "use-argspec-type-path",
    "use-compat-six",
)


@pytest.mark.parametrize(
    "command",
    [
        ["ansible-lint", "--offline", "--profile", "production", "--strict"],
        ["yamllint", "--strict", "."],
    ],
    ids=["ansible-lint", "yamllint"],
)
def test_the_linters_have_nothing_to_say(collections, command, tmp_path):
    where = collections / "ansible_collections/aegiskv/cluster"
    environment = {
        "PATH": f"{tool('')}:/usr/bin:/bin",
        "HOME": str(tmp_path),
        "LC_ALL": "C.UTF-8",
        "ANSIBLE_COLLECTIONS_PATH": str(collections),
        "NO_COLOR": "1",
    }
    program = [tool(command[0]), *command[1:]]
    done = subprocess.run(program, cwd=where, env=environment, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_sanity_tests_that_need_nothing_from_elsewhere_pass(collections, tmp_path):
    where = collections / "ansible_collections/aegiskv/cluster"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    command = [tool("ansible-test"), "sanity", "--python", version]
    for name in SANITY:
        command += ["--test", name]
    environment = {"PATH": f"{tool('')}:/usr/bin:/bin", "HOME": str(tmp_path), "LC_ALL": "C.UTF-8"}
    done = subprocess.run(command, cwd=where, env=environment, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("Running sanity test") + done.stderr.count(
        "Running sanity test"
    ) >= len(SANITY)


def test_modules_and_their_documentation_say_the_same(collections):
    """As ansible-test's validate-modules has it; by itself that one wants to fetch pip."""
    validator = Path(ansible_test.__file__).parent / "_util/controller/sanity/validate-modules"
    where = collections / "ansible_collections/aegiskv/cluster"
    modules = sorted(where.glob("plugins/modules/*.py"))
    assert len(modules) > 10
    done = subprocess.run(
        [sys.executable, validator / "validate.py", "--format", "json", "--arg-spec"]
        + ["--collection", "ansible_collections/aegiskv/cluster", "--collection-version", "0.1.0"]
        + [str(module.relative_to(where)) for module in modules],
        cwd=where,
        env={"PYTHONPATH": f"{collections}:{validator}", "PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"},
        text=True,
        capture_output=True,
    )
    said = json.loads(done.stdout)
    assert len(said) == len(modules)
    # Ansible's own licence is asked for, which a collection need not have.
    wrong = [
        (module, error["msg"])
        for module, found in said.items()
        for error in found["errors"]
        if error["code"] != "missing-gplv3-license"
    ]
    assert wrong == []


@pytest.mark.parametrize("role", ROLES)
def test_defaults_and_their_specification_and_documentation_are_equal(role):
    defaults = read(f"roles/{role}/defaults/main.yml")
    specification = read(f"roles/{role}/meta/argument_specs.yml")["argument_specs"]
    for entry in specification.values():
        specified = {name: option["default"] for name, option in entry["options"].items()}
        assert specified == defaults
        assert all(option["description"] for option in entry["options"].values())
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \| .+ \|$", readme(role), re.M)
    documented = {name: default.replace("\\|", "|") for name, default in rows}
    assert documented == {name: shown(value) for name, value in defaults.items()}


def test_what_the_role_sets_is_what_the_package_has():
    """Where the product has a default, the role has the same one."""
    documented = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", text("../docs/configure.md"), re.M))
    packaged = json.loads(text("../packaging/config.json"))
    defaults, own = read("roles/aegiskv/defaults/main.yml"), read("roles/aegiskv/vars/main.yml")
    for port, key in (
        ("aegiskv_client_port", "bind_addr"),
        ("aegiskv_node_port", "gossip_bind_addr"),
        ("aegiskv_ops_port", "health_addr"),
    ):
        assert documented[key] == f"`127.0.0.1:{defaults[port]}`"
    assert own["aegiskv_token_file"] == packaged["auth_token_file"]
    # The data stay where the package has them: the role does not set it.
    written = own["aegiskv_settings_of_node"] | own["aegiskv_settings_of_tls"]
    assert "data_dir" not in written
    assert set(written) <= set(documented)
    firewall = read("roles/firewall/defaults/main.yml")
    for name in ("client_port", "node_port", "ops_port"):
        assert firewall[f"firewall_{name}"] == defaults[f"aegiskv_{name}"]


def test_every_playbook_is_in_the_readme_and_every_role_is_described():
    words = text("README.md")
    for playbook in (HERE / "playbooks").glob("*.yml"):
        assert f"`{playbook.stem}`" in words
    assert words.splitlines()[2:6] == [
        "```",
        "ansible-galaxy collection install aegiskv-cluster-0.1.0.tar.gz",
        "ansible-playbook -i inventory.yml aegiskv.cluster.bootstrap",
        "```",
    ]
    version = re.search('(?m)^version = "(.*)"', text("../Cargo.toml"))[1]
    assert read("galaxy.yml")["version"] == version


@pytest.mark.parametrize("inventory", ["three-nodes", "five-over-zones"])
def test_the_examples_are_inventories(collections, inventory, tmp_path):
    done = subprocess.run(
        [tool("ansible-inventory"), "-i", HERE / f"examples/{inventory}.yml", "--list"],
        env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"},
        text=True,
        capture_output=True,
        check=True,
    )
    listed = json.loads(done.stdout)
    assert len(listed["aegiskv"]["hosts"]) == int(inventory.startswith("five")) * 2 + 3
    known = read("roles/aegiskv/defaults/main.yml").keys()
    for variables in listed["_meta"]["hostvars"].values():
        assert {name for name in variables if name.startswith("aegiskv")} <= known


def test_hosts_keep_the_order_that_the_inventory_has():
    """Ansible's own filters on sets return lists in another order with each run."""
    for file in (HERE / "roles").glob("**/*.yml"):
        found = re.search(r"\|\s*(difference|intersect|union|symmetric_difference)\b", file.read_text())
        assert not found, (file, found)


def test_every_module_is_named_in_full_and_secrets_are_not_logged():
    """What gets a secret, or returns one, is not logged."""
    for file in sorted((HERE / "roles/aegiskv/tasks").glob("*.yml")):
        for task in tasks(yaml.safe_load(file.read_text())):
            names = [key for key in task if "." in key]
            about = yaml.safe_dump(task)
            secret = "aegiskv.cluster.secret" in names or re.search(
                r"(aegiskv_secrets|aegiskv_pair|aegiskv_has|aegiskv_contents)\b.*", about
            )
            if names and secret and "ansible.builtin.assert" not in names:
                assert task.get("no_log") is True, (file.name, task["name"])


def tasks(tree):
    for task in tree or []:
        yield task
        for part in ("block", "rescue", "always"):
            yield from tasks(task.get(part))


def shown(value):
    if value == "":
        return "empty"
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"


def readme(role):
    return text(f"roles/{role}/README.md")


def read(path):
    return yaml.safe_load(text(path))


def text(path):
    return (HERE / path).read_text()
