"""What systemd does for a node that hangs, and does not do to one that is slow to start."""

import os
import re
import time

import kv

# Larger is more like what operators have; this much takes a few seconds to write and to replay.
WAL_GIB = int(os.environ.get("AEGIS_TEST_WAL_GIB", "2"))
VALUE_BYTES = 8192

REPLAY = re.compile(r"data loaded .* replayed=(\d+) .* took=([\d.]+)s\b")


def test_the_watchdog_restarts_a_node_that_hangs(kv1):
    kv.drop_in(kv1, "WatchdogSec=1s\nTimeoutAbortSec=1s\nRestartSec=100ms")
    kv1.run("systemctl restart aegiskv")
    kv.put(kv1, "user:1", "Ann")
    pid = kv.unit(kv1, "MainPID")

    kv1.run(f"kill -STOP {pid}")

    assert kv.eventually(lambda: kv.unit(kv1, "NRestarts") == "1")
    assert kv.eventually(lambda: kv.unit(kv1, "ActiveState") == "active")
    assert "Failed with result 'watchdog'" in kv.journal(kv1)
    assert kv.unit(kv1, "MainPID") != pid
    assert kv.get(kv1, "user:1") == "Ann"


def test_a_host_that_crashed_serves_again_when_it_is_up(kv1):
    kv.put(kv1, "user:2", "Bob")

    kv1.crash()
    kv1.boot()

    assert kv.unit(kv1, "ActiveState") == "active"
    assert kv.get(kv1, "user:2") == "Bob"


def test_a_replay_of_gigabytes_may_take_longer_than_a_start(kv1):
    kv.setting(kv1, "50-memory", f'{{"max_memory_mb": {WAL_GIB * 2048}}}')
    kv.drop_in(kv1, "TimeoutStartSec=1s\nRestartSec=100ms")
    kv1.run("systemctl restart aegiskv")
    values = (WAL_GIB << 30) // VALUE_BYTES
    kv1.run(
        f"AEGISKV_TOKEN_FILE=/etc/aegiskv/token aegiskv bench --keys {values}"
        f" --value-size {VALUE_BYTES} --duration 1s --warmup 0s",
        seconds_max=300,
    )
    assert int(kv1.run("du -sB1 /var/lib/aegiskv/wal").split()[0]) > WAL_GIB << 30

    kv1.run("systemctl kill -s KILL aegiskv")

    assert kv.eventually(lambda: kv.unit(kv1, "NRestarts") == "1")
    said = set()
    while kv.unit(kv1, "ActiveState") == "activating":
        said.add(kv.unit(kv1, "StatusText"))
        time.sleep(0.1)
    assert kv.unit(kv1, "ActiveState") == "active"
    assert kv.unit(kv1, "NRestarts") == "1"
    replayed, seconds = REPLAY.findall(kv.journal(kv1))[-1]
    assert int(replayed) >= values
    assert float(seconds) > 1, "in time without asking for more: set AEGIS_TEST_WAL_GIB higher"
    assert any("replaying the log" in status for status in said)
