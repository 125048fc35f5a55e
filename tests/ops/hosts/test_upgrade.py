"""A package's life on a host: upgraded, downgraded, removed, installed again, purged."""

import shutil

import pytest

import host
import kv

# A question would be asked of a terminal, and nobody answers it.
APT = "script -qec 'apt-get -y {0}' /dev/null </dev/null"


