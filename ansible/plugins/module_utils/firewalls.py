# Copyright: The AegisKV authors
# Apache-2.0 (see LICENSE)

"""Rules of our own in whichever firewall a host has, and no others.

Each firewall has a way of its own to tell whose a rule is: a table by its name, a comment, a
priority that nobody else has. What does not bear that mark is never changed, moved or removed.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import os
import re
import shlex

MARK = "aegiskv"


class FirewallError(Exception):
    """The rules cannot be brought about; says why, and what to do."""


class Door:
    """Who may reach a port: everybody, if `sources` is None."""

    def __init__(self, name, port, protocols, sources):
        self.name, self.port, self.protocols = name, port, protocols
        self.sources = None if sources is None else sorted(map(network, set(sources)))

    def family(self, version):
        return [source for source in self.sources if ipaddress.ip_network(source).version == version]


def network(text):
    """An address, or a network that is one, as all three firewalls write it."""
    try:
        found = ipaddress.ip_network(text)
    except ValueError as error:
        raise FirewallError(f"{text!r} is no address and no network: {error}") from error
    return str(found.network_address if found.num_addresses == 1 else found)


class Nftables:
    """A table of our own that decides about our ports before other chains do, and one accepting
    rule in each chain that drops by its policy."""

    name = "nftables"
    table_file = "/etc/aegiskv-firewall.nft"
    accepts_file = "/etc/aegiskv-firewall-accepts.nft"
    unit_file = "/etc/systemd/system/aegiskv-firewall.service"
    unit = f"""\
# Made by Ansible (aegiskv.cluster.firewall).
[Unit]
Description=Firewall of AegisKV
After=nftables.service
Before=aegiskv.service
PartOf=nftables.service
ReloadPropagatedFrom=nftables.service

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/sbin/nft -f {table_file}
ExecStart=-/usr/sbin/nft -f {accepts_file}
ExecReload=/usr/sbin/nft -f {table_file}
ExecReload=-/usr/sbin/nft -f {accepts_file}
ExecStop=-/usr/sbin/nft delete table inet {MARK}

[Install]
WantedBy=multi-user.target nftables.service
"""

    def __init__(self, run):
        self.run = run

    def is_there(self):
        return self.run(["nft", "--version"], check=False) is not None

    def changes(self, doors):
        """What is to be done, each in words and as a function."""
        ruleset = json.loads(self.run(["nft", "-j", "list", "ruleset"]))["nftables"]
        table, accepts = self._table(doors), self._accepts(doors, ruleset)
        todo = []
        if not self._is_loaded(table, ruleset):
            todo.append(("load the table inet aegiskv", lambda: self._feed(table)))
        todo += self._writes(self.table_file, table) + self._writes(self.unit_file, self.unit)
        # Started before the rules for others' chains are written, lest it add them a second time.
        if not self._is_enabled():
            todo.append(("enable aegiskv-firewall.service", self._enable))
        todo += self._obsolete(doors, ruleset)
        todo += [(f"nft {rule}", lambda rule=rule: self._feed(rule)) for rule in accepts["new"]]
        return todo + self._writes(self.accepts_file, "".join(f"{r}\n" for r in accepts["all"]))

    def removals(self):
        ruleset = json.loads(self.run(["nft", "-j", "list", "ruleset"]))["nftables"]
        todo = self._obsolete([], ruleset)
        if os.path.exists(self.unit_file):
            disable = ["systemctl", "disable", "--now", "aegiskv-firewall.service"]
            todo.append(("disable aegiskv-firewall.service", lambda: self.run(disable)))
        if any(self._is_ours(item.get("table", {})) for item in ruleset):
            delete = f"delete table inet {MARK}"
            # The unit may have done so when it was stopped.
            declared = f"table inet {MARK}\n{delete}"
            todo.append((f"nft {delete}", lambda: self._feed(declared)))
        for path in (self.unit_file, self.accepts_file, self.table_file):
            if os.path.exists(path):
                todo.append((f"remove {path}", lambda path=path: os.remove(path)))
        return todo

    def _table(self, doors):
        rules, sets = [], []
        for door in doors:
            ports = f"meta l4proto {{ {', '.join(door.protocols)} }} th dport {door.port}"
            if door.sources is None:
                rules.append(f"{ports} accept")
                continue
            for version, kind, selector in ((4, "ipv4_addr", "ip"), (6, "ipv6_addr", "ip6")):
                if elements := door.family(version):
                    name = f"{door.name}{version}"
                    sets.append(
                        f"    set {name} {{\n        type {kind}\n        flags interval\n"
                        f"        elements = {{ {', '.join(elements)} }}\n    }}\n"
                    )
                    rules.append(f"{ports} {selector} saddr @{name} accept")
        every = ", ".join(str(door.port) for door in doors)
        rules.append(f"meta l4proto {{ tcp, udp }} th dport {{ {every} }} drop")
        body = "".join(f"        {rule}\n" for rule in ['iif "lo" accept', *rules])
        text = (
            f"{''.join(sets)}    chain input {{\n"
            f"        type filter hook input priority filter - 1; policy accept;\n{body}    }}\n"
        )
        digest = hashlib.sha256(text.encode()).hexdigest()
        return (
            f"# Made by Ansible (aegiskv.cluster.firewall).\n"
            f"table inet {MARK}\ndelete table inet {MARK}\n"
            f'table inet {MARK} {{\n    comment "{digest}"\n{text}}}\n'
        )

    def _accepts(self, doors, ruleset):
        """The rules for chains that drop what they do not know: all, and those not there yet."""
        ports, comment = ", ".join(str(door.port) for door in doors), comment_of(doors)
        wanted = {"all": [], "new": []}
        for chain in (item["chain"] for item in ruleset if "chain" in item):
            if not self._drops(chain):
                continue
            where = (chain["family"], chain["table"], chain["name"])
            rules = [item["rule"] for item in ruleset if self._is_in(item.get("rule", {}), where)]
            rule = (
                f"add rule {' '.join(where)} meta l4proto {{ tcp, udp }} th dport {{ {ports} }} "
                f'accept comment "{comment}"'
            )
            wanted["all"].append(rule)
            if any(rule.get("comment") == comment for rule in rules):
                continue
            if rules and ends_it(rules[-1]):
                raise FirewallError(
                    f"the chain {' '.join(where)} ends with a rule that lets nothing through, so a "
                    "rule behind it would do nothing. Its policy drops anyway: take that rule out, "
                    "or open the ports of AegisKV there yourself and set aegiskv_firewall: false"
                )
            wanted["new"].append(rule)
        return wanted

    def _obsolete(self, doors, ruleset):
        """The rules of ours in others' chains that are for other ports than now."""
        todo = []
        for rule in (item["rule"] for item in ruleset if "rule" in item):
            comment = rule.get("comment", "")
            if comment.split(" ")[0] == MARK and (not doors or comment != comment_of(doors)):
                where = f"{rule['family']} {rule['table']} {rule['chain']} handle {rule['handle']}"
                delete = f"delete rule {where}"
                todo.append((f"nft {delete}", lambda delete=delete: self._feed(delete)))
        return todo

    def _is_loaded(self, table, ruleset):
        digest = re.search('comment "([0-9a-f]+)"', table)[1]
        listed = self.run(["nft", "list", "tables"], check=False) or ""
        if f"table inet {MARK}" not in listed:
            return False
        if f'comment "{digest}"' not in self.run(["nft", "list", "table", "inet", MARK]):
            return False
        rules = [item for item in ruleset if self._is_ours_in(item.get("rule", {}))]
        wanted = [line for line in table.splitlines() if line.endswith(("accept", "drop"))]
        return len(rules) == len(wanted)

    @staticmethod
    def _writes(path, text):
        return [] if content(path) == text else [(f"write {path}", lambda: write(path, text))]

    def _is_enabled(self):
        unit = "aegiskv-firewall.service"
        asked = (["systemctl", word, unit] for word in ("is-enabled", "is-active"))
        return all(self.run(command, check=False) is not None for command in asked)

    def _enable(self):
        self.run(["systemctl", "daemon-reload"])
        self.run(["systemctl", "enable", "--now", "aegiskv-firewall.service"])

    def _feed(self, script):
        self.run(["nft", "-f", "-"], data=script)

    @staticmethod
    def _drops(chain):
        mine = chain["family"] == "inet" and chain["table"] == MARK
        hook, policy = chain.get("hook"), chain.get("policy")
        return not mine and hook == "input" and policy == "drop" and chain["family"] in (
            "inet",
            "ip",
            "ip6",
        )

    @staticmethod
    def _is_in(rule, where):
        return (rule.get("family"), rule.get("table"), rule.get("chain")) == where

    @staticmethod
    def _is_ours(table):
        return (table.get("family"), table.get("name")) == ("inet", MARK)

    @staticmethod
    def _is_ours_in(rule):
        return (rule.get("family"), rule.get("table")) == ("inet", MARK)


def comment_of(doors):
    return " ".join([MARK, *(str(door.port) for door in doors)])


def ends_it(rule):
    """Whether nothing gets past a rule."""
    expressions = [key for part in rule.get("expr", []) for key in part]
    return set(expressions) <= {"counter", "log", "drop", "reject"} and bool(
        {"drop", "reject"} & set(expressions)
    )


class Ufw:
    """Rules that bear a comment of ours."""

    name = "ufw"

    def __init__(self, run):
        self.run = run

    def is_there(self):
        return "Status: active" in (self.run(["ufw", "status"], check=False) or "")

    def changes(self, doors):
        verbose = self.run(["ufw", "status", "verbose"])
        if not re.search(r"Default: (deny|reject) \(incoming\)", verbose):
            raise FirewallError(
                "ufw lets everything in by default, so rules would close nothing; run `ufw default "
                "deny incoming` after you have let ssh in"
            )
        wanted = {}
        for door in doors:
            for source in door.sources if door.sources is not None else ["any"]:
                for protocol in door.protocols:
                    rule = self._rule(door, source, protocol)
                    wanted[shlex.join(rule)] = rule
        present = self._present()
        todo = [
            (f"ufw delete {line}", lambda rule=rule: self._do(["delete", *rule]))
            for line, rule in present.items()
            if line not in wanted
        ]
        return todo + [
            (f"ufw {line}", lambda rule=rule: self._do(rule))
            for line, rule in wanted.items()
            if line not in present
        ]

    def removals(self):
        return [
            (f"ufw delete {line}", lambda rule=rule: self._do(["delete", *rule]))
            for line, rule in self._present().items()
        ]

    def _do(self, rule):
        self.run(["ufw", *rule])

    def _present(self):
        """Our rules, as ufw itself would write the commands for them."""
        added = (shlex.split(line) for line in self.run(["ufw", "show", "added"]).splitlines())
        ours = (
            words[1:] for words in added if words[:1] == ["ufw"] and words[-1].startswith(f"{MARK} ")
        )
        return {shlex.join(rule): rule for rule in ours}

    @staticmethod
    def _rule(door, source, protocol):
        comment = ["comment", f"{MARK} {door.name}"]
        if source == "any":
            return ["allow", f"{door.port}/{protocol}", *comment]
        target = ["from", source, "to", "any", "port", str(door.port), "proto", protocol]
        return ["allow", *target, *comment]


class Firewalld:
    """Rich rules of a priority that nobody else has, in the default zone; those in force and those
    that are kept alike."""

    name = "firewalld"
    priority = 7700

    def __init__(self, run):
        self.run = run

    def is_there(self):
        return (self.run(["firewall-cmd", "--state"], check=False) or "").strip() == "running"

    def changes(self, doors):
        zone = self.run(["firewall-cmd", "--get-default-zone"]).strip()
        if self.run(["firewall-cmd", "--permanent", f"--zone={zone}", "--get-target"]).strip() == (
            "ACCEPT"
        ):
            raise FirewallError(
                f"firewalld's zone {zone} lets everything in, so rules would close nothing; make "
                "another zone the default one"
            )
        return self._to([self._rule(door, *way) for door in doors for way in self._ways(door)])

    def removals(self):
        return self._to([])

    def _to(self, wanted):
        todo = []
        for kept in ([], ["--permanent"]):
            listed = self.run(["firewall-cmd", *kept, "--list-rich-rules"]).splitlines()
            present = [rule for rule in listed if f'priority="{self.priority}"' in rule]
            for what, rules, others in (("remove", present, wanted), ("add", wanted, present)):
                missing = (rule for rule in rules if rule not in others)
                todo += [(f"{what} {rule}", self._doing(kept, what, rule)) for rule in missing]
        return todo

    def _doing(self, kept, what, rule):
        return lambda: self.run(["firewall-cmd", *kept, f"--{what}-rich-rule={rule}"])

    @staticmethod
    def _ways(door):
        sources = [None] if door.sources is None else door.sources
        return [(source, protocol) for source in sources for protocol in door.protocols]

    def _rule(self, door, source, protocol):
        address = ""
        if source is not None:
            family = f"ipv{ipaddress.ip_network(source).version}"
            address = f' family="{family}" source address="{source}"'
        port = f'port port="{door.port}" protocol="{protocol}" accept'
        return f'rule priority="{self.priority}"{address} {port}'


def content(path):
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except FileNotFoundError:
        return None


def write(path, text):
    unfinished = f"{path}.new"
    with open(unfinished, "w", encoding="utf-8") as file:
        file.write(text)
    os.chmod(unfinished, 0o644)
    os.replace(unfinished, path)
