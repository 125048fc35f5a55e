"""The dashboard by the published rules of Grafana's dashboard-linter, and by some of our own.

The linter itself is a Go program that cannot be had everywhere, so its rules are written down here
under their names: https://github.com/grafana/dashboard-linter, docs/rules.
"""

import copy
import re

import pytest

import board

# Rules of the linter that a panel may break, with the reason: (rule, panel).
EXCEPTIONS = {
    (
        "target-instance-rule",
        "Alerts",
    ): "an alert about a cluster has no instance; it must show too",
    ("target-counter-agg-rule", "Unclean recoveries"): "counted at the start, before the first "
    "scrape, so an increase would not show it",
    ("target-counter-agg-rule", "Damage in the log"): "the same",
}

UNITS = set("none short percentunit s ops wps cps iops bytes Bps".split())
# What Grafana brings with it.
PANELS = {"stat", "timeseries", "table"}


def variables(dashboard):
    return {one["name"]: one for one in dashboard["templating"]["list"]}


def lint_variables(dashboard):
    """template-datasource-, -job-, -instance-, -label-promql- and -on-time-change-reload-rule."""
    found = variables(dashboard)
    source = found.get("datasource", {})
    if (source.get("type"), source.get("query"), source.get("label")) != (
        "datasource",
        "prometheus",
        "Data source",
    ):
        yield "template-datasource-rule", "variables", "no choice of the data source"
    for name in ("job", "instance"):
        one = found.get(name, {})
        if not (one.get("type") == "query" and one.get("multi") and one.get("allValue") == ".+"):
            yield f"template-{name}-rule", "variables", f"{name}: a query, several at once, all .+"
        if one.get("label") != name.capitalize():
            yield f"template-{name}-rule", "variables", f"{name} is labelled {one.get('label')}"
    for one in found.values():
        if one["type"] != "query":
            continue
        if one["datasource"]["uid"] != "${datasource}":
            yield f"template-{one['name']}-rule", "variables", "another data source"
        if not re.fullmatch(r"label_values\(\w+(\{.*\})?, \w+\)", one["query"]["query"]):
            yield "template-label-promql-rule", "variables", one["query"]["query"]
        if one["refresh"] != 2:
            yield "template-on-time-change-reload-rule", "variables", one["name"]


def lint_panel(panel):
    """panel-datasource-, -title-description-, -units- and -no-targets-rule."""
    title = panel["title"]
    if panel["datasource"]["uid"] != "${datasource}":
        yield "panel-datasource-rule", title, panel["datasource"]["uid"]
    if not title or not panel["description"]:
        yield "panel-title-description-rule", title, "no title or description"
    if panel["fieldConfig"]["defaults"].get("unit") not in UNITS:
        yield "panel-units-rule", title, panel["fieldConfig"]["defaults"].get("unit")
    if not panel["targets"]:
        yield "panel-no-targets-rule", title, "nothing is asked"


def lint_target(title, target):
    """target-job-, -instance-, -rate-interval-, -counter-agg- and -histogram-rule, by query."""
    query = target["expr"]
    if target["datasource"]["uid"] != "${datasource}":
        yield "panel-datasource-rule", title, query
    selectors = board.SELECTOR.findall(query)
    bare = board.METRIC.findall(board.SELECTOR.sub("", query))
    if bare or not selectors:
        yield "target-job-rule", title, f"{bare} without matchers in {query}"
    for name, matchers in selectors:
        for label in ("job", "cluster", "instance"):
            if not re.search(rf'(^|, ){label}=~"\${label}"(,|$)', matchers):
                yield f"target-{label}-rule", title, f"{name} in {query}"
    for span in re.findall(r"\brate\([^[]*\[([^\]]*)\]", query):
        if span != "$__rate_interval":
            yield "target-rate-interval-rule", title, query
    for function, name in re.findall(r"(\w+)?\(?\b(\w+_total)\{", query):
        if function not in ("rate", "increase"):
            yield "target-counter-agg-rule", title, f"{name} in {query}"
    if "_bucket{" in query and "histogram_quantile(" not in query:
        yield "target-histogram-rule", title, query


def lint(dashboard):
    """(rule, panel, complaint) for all that the linter would complain of."""
    if dashboard["editable"]:
        yield (
            "uneditable-dashboard",
            dashboard["title"],
            "it is provisioned, so edits would be lost",
        )
    yield from lint_variables(dashboard)
    for panel in board.panels(dashboard):
        yield from lint_panel(panel)
    for title, target in board.targets(dashboard):
        yield from lint_target(title, target)


def test_the_linter_has_nothing_to_say():
    found = list(lint(board.dashboard()))
    assert [one for one in found if one[:2] not in EXCEPTIONS] == []
    assert {one[:2] for one in found} == set(EXCEPTIONS), "an exception that is not needed"


def break_title(dashboard, panel):
    panel["description"] = ""


def break_unit(dashboard, panel):
    del panel["fieldConfig"]["defaults"]["unit"]


def break_source(dashboard, panel):
    panel["datasource"] = {"type": "prometheus", "uid": "abc"}


def break_job(dashboard, panel):
    panel["targets"][0]["expr"] = 'up{cluster=~"$cluster", instance=~"$instance"}'


def break_instance(dashboard, panel):
    panel["targets"][0]["expr"] = 'up{job=~"$job", cluster=~"$cluster"}'


def break_rate(dashboard, panel):
    panel["targets"][0]["expr"] = panel["targets"][0]["expr"].replace("$__rate_interval", "5m")


def break_counter(dashboard, panel):
    panel["targets"][0]["expr"] = (
        'sum(aegis_evictions_total{job=~"$job", cluster=~"$cluster", instance=~"$instance"})'
    )


def break_bare(dashboard, panel):
    panel["targets"][0]["expr"] = "sum(aegis_cache_items)"


def break_variable(dashboard, panel):
    variables(dashboard)["instance"]["allValue"] = ""


def break_reload(dashboard, panel):
    variables(dashboard)["cluster"]["refresh"] = 1


def break_editable(dashboard, panel):
    dashboard["editable"] = True


@pytest.mark.parametrize(
    "rule, breaks",
    [
        ("panel-title-description-rule", break_title),
        ("panel-units-rule", break_unit),
        ("panel-datasource-rule", break_source),
        ("target-job-rule", break_job),
        ("target-instance-rule", break_instance),
        ("target-rate-interval-rule", break_rate),
        ("target-counter-agg-rule", break_counter),
        ("target-job-rule", break_bare),
        ("template-instance-rule", break_variable),
        ("template-on-time-change-reload-rule", break_reload),
        ("uneditable-dashboard", break_editable),
    ],
)
def test_the_linter_notices_what_it_is_for(rule, breaks):
    dashboard = copy.deepcopy(board.dashboard())
    broken = next(p for p in board.panels(dashboard) if p["title"] == "Operations")
    breaks(dashboard, broken)
    assert {one[0] for one in lint(dashboard) if one[:2] not in EXCEPTIONS} == {rule}


def test_it_needs_no_plugin():
    assert {panel["type"] for panel in board.panels(board.dashboard())} <= PANELS


def test_panels_lie_side_by_side():
    dashboard = board.dashboard()
    ids = [one["id"] for one in [*dashboard["panels"], *board.panels(dashboard)]]
    shown = [one for one in dashboard["panels"] if one["type"] != "row"]
    assert len(set(ids)) == len(ids) - len(shown), "two panels of one id"
    for group in [shown, *(one["panels"] for one in dashboard["panels"] if one["type"] == "row")]:
        taken = set()
        for panel in group:
            at = panel["gridPos"]
            cells = {
                (x, y)
                for x in range(at["x"], at["x"] + at["w"])
                for y in range(at["y"], at["y"] + at["h"])
            }
            assert not cells & taken, f"{panel['title']} lies on another panel"
            assert at["x"] + at["w"] <= 24, f"{panel['title']} is wider than the page"
            taken |= cells


def test_the_overview_is_open_and_the_details_are_closed():
    rows = [one for one in board.dashboard()["panels"] if one["type"] == "row"]
    assert [one["title"] for one in rows if not one["collapsed"]] == ["Overview", "Traffic"]
    assert all(one["panels"] for one in rows if one["collapsed"])


def test_a_panel_that_sends_to_a_row_names_one_that_is_there():
    dashboard = board.dashboard()
    rows = {one["title"].split(":")[0] for one in dashboard["panels"] if one["type"] == "row"}
    for panel in board.panels(dashboard):
        for name in re.findall(r"in the row (\w+)", panel["description"]):
            assert name in rows, f"{panel['title']}: there is no row {name}"
