"""The document of a benchmark run: the machine, the tables, and the aims reached or not."""

import os
import platform
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pictures


def machine(folder):
    """What the run ran on, the disk's fsync measured where the logs will lie."""
    facts = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            facts["CPU"] = f"{line.split(':', 1)[1].strip()}, {os.cpu_count()} cores seen"
            break
    total = Path("/proc/meminfo").read_text().splitlines()[0].split()[1]
    facts["Memory"] = f"{int(total) / (1 << 20):.0f} GiB"
    facts["Kernel"] = f"{platform.system()} {platform.release()}"
    facts["Disk"] = f"{filesystem(folder)}; append of 128 bytes and fdatasync: {fsync_ms(folder)}"
    facts["Load before"] = Path("/proc/loadavg").read_text().split()[0]
    facts["Run"] = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True,
                            text=True, cwd=Path(__file__).parent)
    facts["Commit"] = commit.stdout.strip() or "unknown"
    return facts


def filesystem(folder):
    done = subprocess.run(["df", "--output=fstype,source", folder], capture_output=True, text=True)
    kind, source = done.stdout.splitlines()[-1].split()
    return f"{kind} on {source}"


def fsync_ms(folder):
    path, took = Path(folder) / "fsync", []
    with open(path, "ab", buffering=0) as file:
        for _ in range(300):
            file.write(b"x" * 128)
            began = time.perf_counter()
            os.fdatasync(file.fileno())
            took.append((time.perf_counter() - began) * 1000)
    path.unlink()
    took.sort()
    return f"median {statistics.median(took):.2f} ms, p99 {took[int(len(took) * 0.99)]:.2f} ms"


def table(head, rows):
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def median(rows, name):
    return statistics.median(row[name] for row in rows)


def spread(rows, name):
    values = [row[name] for row in rows]
    return f"{min(values):,.0f} to {max(values):,.0f}"


def ratio(ours, theirs, name="ops"):
    """The median of the rounds' own ratios: noise that both rounds share falls out."""
    return statistics.median(a[name] / b[name] for a, b in zip(ours, theirs, strict=True))


def http_tables(http):
    texts = []
    for kind, servers in http.items():
        ours = servers.get("AegisKV")
        rows = [
            [name, f"{median(rows, 'ops'):,.0f}", spread(rows, "ops"),
             f"{ratio(ours, rows):.2f}" if ours else "", f"{median(rows, 'p50_ms'):.2f}",
             f"{median(rows, 'p99_ms'):.2f}", f"{median(rows, 'cpu_us'):.1f}"]
            for name, rows in servers.items()
        ]
        texts.append(f"### {kind} over HTTP\n\n" + table(
            ["server", f"{kind} a second", "rounds", "AegisKV is times this", "p50 ms", "p99 ms",
             "server CPU, us an operation"], rows))
    return texts


def cluster_tables(cluster):
    texts = []
    for kind, servers in cluster.items():
        lone = servers["AegisKV"]
        rows = [
            [name, f"{median(rows, 'ops'):,.0f}", spread(rows, "ops"),
             f"{ratio(rows, lone):.2f}", f"{median(rows, 'p50_ms'):.2f}",
             f"{median(rows, 'p99_ms'):.2f}", f"{median(rows, 'cpu_us'):.1f}",
             f"{ratio(rows, lone, 'cpu_us'):.2f}"]
            for name, rows in servers.items()
        ]
        texts.append(f"**{kind}**\n\n" + table(
            ["server", f"{kind} a second", "rounds", "of one node", "p50 ms", "p99 ms",
             "CPU of all nodes, us an operation", "of one node"], rows))
    return texts


def sync_table(sync):
    rows = [
        [name, f"{median(rows, 'ops'):,.0f}", spread(rows, "ops"), f"{median(rows, 'p50_ms'):.2f}",
         f"{median(rows, 'p99_ms'):.2f}", f"{median(rows, 'cpu_us'):.1f}"]
        for name, rows in (("AegisKV `wal_mode: sync`, HTTP", sync["AegisKV"]),
                           ("Redis `appendfsync always`, its own protocol", sync["Redis"]))
    ]
    return "### Writes fsynced before the answer\n\n" + table(
        ["server", "writes a second", "rounds", "p50 ms", "p99 ms", "server CPU, us an operation"],
        rows)


def memory_table(memory, items):
    rows = [[name, f"{row['resident_over_payload']:.1f}", f"{row['accounted_over_payload']:.1f}"]
            for name, row in memory.items()]
    return (f"### Bytes an item over its payload\n\n{items:,} items, 16-byte keys, 100-byte "
            "values, with TTL.\n\n") + table(
        ["server", "resident memory", "by its own account"], rows)


def restart_table(restart):
    redis = statistics.median(restart["Redis, RDB"])
    rows = [[name, f"{statistics.median(took):.2f}", f"{min(took):.2f} to {max(took):.2f}",
             f"{redis / statistics.median(took):.2f}"] for name, took in restart.items()]
    return "### Seconds from start to serving, with those items\n\n" + table(
        ["start", "median s", "repeats", "times as fast as Redis"], rows)


LADDER = {
    "sizes": ("Sizes of values", "bare hyper"),
    "connections": ("Connections", "bare hyper"),
    "ways": ("Ways of asking", "AegisKV, one by one"),
    "rates": ("Latency at a fixed rate", "bare hyper"),
    "durable": ("Fsynced writes, by clients", "Redis"),
    "growth": ("More items", None),
    "snapshot": ("While snapshots are made", "AegisKV, snapshots"),
}


def ladder_table(title, cases):
    """Cases of `ladder`, AegisKV beside each of its peers."""
    rows = []
    for case in cases:
        for name, rounds in case["rows"].items():
            ours = case["rows"]["AegisKV"]
            compared = [f"{ratio(ours, rounds):.2f}", f"{ratio(ours, rounds, 'cpu_us'):.2f}"]
            late = [f"{median(rounds, each):.2f}" if each in rounds[0] else ""
                    for each in ("p50_ms", "p99_ms", "p999_ms")]
            rows.append([case["case"], case["kind"], name, f"{median(rounds, 'ops'):,.0f}",
                         compared[0], *late, f"{median(rounds, 'cpu_us'):.1f}", compared[1],
                         *([f"{case['resident_bytes']:.0f}"] if "resident_bytes" in case else [])])
    head = ["case", "", "server", "a second", "AegisKV is times this", "p50 ms", "p99 ms", "p99.9 ms",
            "server CPU, us an operation", "AegisKV takes times this"]
    if "resident_bytes" in cases[0]:
        head.append("resident bytes an item")
    return f"### {title}\n\n" + table(head, rows)


def ladder_bars(cases, peer):
    """(label, value) for a picture: AegisKV's operations a second, as times the peer's if any."""
    found = []
    for case in cases:
        ours, theirs = case["rows"]["AegisKV"], case["rows"].get(peer)
        value = ratio(ours, theirs) if theirs else median(ours, "ops")
        found.append((f"{case['case']}, {case['kind']}", value))
    return found


def items_table(cases):
    rows = [[row["case"], row["server"], f"{row['loaded']:.1f}", f"{row['churned']:.1f}"]
            for row in cases]
    return "### Resident bytes an item over its payload\n\n" + table(
        ["items", "server", "as loaded", "after each was written twice more"], rows)


def soak_table(rows):
    parts = [rows[at:at + max(1, len(rows) // 5)] for at in range(0, len(rows), max(1, len(rows) // 5))]
    lines = [[f"{part[-1]['minute']:.1f}", f"{median(part, 'resident_mb'):.0f}",
              f"{median(part, 'files'):.0f}", f"{median(part, 'put_ops'):,.0f}",
              f"{median(part, 'put_p99_ms'):.2f}", f"{median(part, 'get_ops'):,.0f}",
              f"{median(part, 'get_p99_ms'):.2f}"] for part in parts]
    return "### Ten minutes of items that come and go\n\n`max_memory_mb: 256`, full.\n\n" + table(
        ["until minute", "resident MB", "open files", "PUT a second", "p99 ms", "GET a second", "p99 ms"],
        lines)


def ladder_figures(results, folder):
    """{part: text} of `ladder`'s parts; draws their pictures into `folder`."""
    texts = {}

    def picture(part, title, drawn):
        folder.mkdir(exist_ok=True)
        (folder / f"{part}.svg").write_text(drawn)
        return f"![{title}]({folder.name}/{part}.svg)"

    for part, (title, peer) in LADDER.items():
        if part in results:
            what = f"{title}: AegisKV's operations a second" + (f", times those of {peer}" if peer else "")
            shown = picture(part, what, pictures.bars(what, ladder_bars(results[part], peer)))
            texts[part] = f"{ladder_table(title, results[part])}\n\n{shown}"
    if "items" in results:
        bars = [(f"{row['server']}, {row['case']}", row["churned"]) for row in results["items"]]
        what = "Resident bytes an item over its payload, after churn"
        texts["items"] = f"{items_table(results['items'])}\n\n" + picture(
            "items", what, pictures.bars(what, bars))
    if "soak" in results:
        rows = results["soak"]
        what = "Ten minutes of items that come and go, each line as a share of its highest"
        names = ("resident_mb", "files", "put_p99_ms", "get_p99_ms")
        drawn = pictures.lines(what, [row["minute"] for row in rows],
                               {name: [row[name] for row in rows] for name in names})
        texts["soak"] = f"{soak_table(rows)}\n\n" + picture("soak", what, drawn)
    facts = table(["machine", ""], [[name, results["machine"][name]] for name in ("Run", "Commit")])
    return {part: f"{facts}\n\n{text}" for part, text in texts.items()}


def aims(results):
    """(aim, measured, reached) for every aim the run has figures for."""
    found = []

    def aim(text, value, reached):
        found.append([text, f"{value:.2f}", "reached" if reached else "**not reached**"])

    for kind, bare in (("GET", 0.9), ("PUT", 0.8)):
        servers = results.get("http", {}).get(kind, {})
        ours = servers.get("AegisKV")
        for peer, least in (("bare hyper", bare), ("webdis + Redis", 2), ("etcd gateway", 10)):
            if ours and peer in servers:
                value = ratio(ours, servers[peer])
                aim(f"{kind} over HTTP at least {least} of {peer}", value, value >= least)
    if "sync" in results:
        value = ratio(results["sync"]["AegisKV"], results["sync"]["Redis"])
        aim("fsynced PUT at least 1.0 of Redis", value, value >= 1)
    if "memory" in results:
        memory = results["memory"]
        value = (memory["AegisKV"]["resident_over_payload"]
                 / memory["Redis"]["resident_over_payload"])
        aim("bytes over payload at most 0.7 of Redis's", value, value <= 0.7)
    if "restart" in results:
        took = {name: statistics.median(rows) for name, rows in results["restart"].items()}
        value = took["Redis, RDB"] / took["AegisKV after a clean stop"]
        aim("restart at least 1.5 times as fast as Redis from its RDB", value, value >= 1.5)
    return found


def figures(results):
    """What stands between the marks of each part of the document that was measured."""
    texts = {}
    if {"http", "sync", "memory"} & results.keys():
        texts["figures"] = peer_figures(results)
    facts = table(["machine", ""], [[name, value] for name, value in results["machine"].items()])
    if "cluster" in results:
        texts["cluster"] = "\n\n".join([facts, *cluster_tables(results["cluster"])])
    if "hits" in results:
        texts["hits"] = f"{facts}\n\n{results['hits']}"
    return texts


def peer_figures(results):
    facts = [[name, value] for name, value in results["machine"].items()]
    facts.append(["Versions", "; ".join(results["versions"])])
    facts.append(["Load", f"{results['clients']} connections, {results['rounds']} rounds of "
                  f"{results['seconds']} s, order rotated"])
    texts = [table(["machine", ""], facts),
             "### Aims\n\n" + table(["aim", "measured", ""], aims(results))]
    if "http" in results:
        texts += http_tables(results["http"])
    if "sync" in results:
        texts.append(sync_table(results["sync"]))
    if "memory" in results:
        texts.append(memory_table(results["memory"], results["items"]))
    if "restart" in results:
        texts.append(restart_table(results["restart"]))
    return "\n\n".join(texts)


def write(path, texts):
    """Puts each part's figures between its marks in the document, and nowhere else. Figures of
    another commit are not left beside them, nor such of a tree that nobody can check out."""
    document = path.read_text()
    for part, text in texts.items():
        begin, end = (f"<!-- {part}: {word} -->" for word in ("begin", "end"))
        head, rest = document.split(begin)
        tail = rest.split(end)[1]
        document = f"{head}{begin}\n\n{text}\n\n{end}{tail}"
    commits = set(re.findall(r"^\| Commit \| (.*) \|$", document, re.MULTILINE))
    if len(commits) != 1 or not re.fullmatch("[0-9a-f]+", *commits):
        sys.exit(f"{path} is left as it was: its figures would be of {', '.join(sorted(commits))}; "
                 "commit everything, and run all parts")
    path.write_text(document)
