"""The blocks in a Prometheus' configuration, in whatever form it is written. No hosts are needed."""

import importlib

import pytest
import yaml


@pytest.fixture
def config(collections, monkeypatch):
    monkeypatch.syspath_prepend(str(collections))
    return importlib.import_module("ansible_collections.aegiskv.cluster.plugins.modules.prometheus_config")


OURS = ["- job_name: aegiskv"]
MARKED = ["# BEGIN aegiskv.cluster", *OURS, "# END aegiskv.cluster"]


@pytest.mark.parametrize(
    ("text", "indent", "others"),
    [
        ("scrape_configs:\n  - job_name: a\n", "  ", ["a"]),
        ("scrape_configs:\n- job_name: a\n- job_name: b\n", "", ["a", "b"]),
        ("scrape_configs:\n\n  # one of mine\n    - job_name: a\n", "    ", ["a"]),
        ("scrape_configs:  # none yet\nrule_files:\n- x.yml\n", "  ", []),
        ("global: {}\n", "  ", []),
        ("global: {}\nscrape_configs:", "  ", []),
        ("", "  ", []),
    ],
)
def test_a_block_goes_where_entries_stand_and_comes_out_again(config, text, indent, others):
    done = config.with_block(text, "scrape_configs", OURS)

    jobs = [entry["job_name"] for entry in yaml.safe_load(done)["scrape_configs"]]
    assert jobs == ["aegiskv", *others]
    assert "".join(f"{indent}{line}\n" for line in MARKED) in done
    assert config.with_block(config.without_blocks(done), "scrape_configs", OURS) == done
    if "scrape_configs:\n" in text:
        assert config.without_blocks(done) == text


def test_a_list_in_one_line_is_refused_by_name(config):
    with pytest.raises(ValueError, match="rule_files is written in one line"):
        config.with_block("rule_files: [a.yml]\n", "rule_files", OURS)
