use super::*;
use crate::entry::Timestamp;

#[test]
fn a_recorded_operation_shows_in_count_errors_and_its_bucket() {
    let metrics = Metrics::new();
    metrics.op(Op::Get).record(Duration::from_millis(250), true);
    metrics.op(Op::Get).record(Duration::from_millis(500), false);
    metrics.miss(Miss::Expired);
    let text = metrics.render(&Readings::default());
    for line in [
        "aegis_ops_total{op=\"get\"} 2",
        "aegis_ops_total{op=\"put\"} 0",
        "aegis_ops_errors_total{op=\"get\"} 1",
        "aegis_op_duration_seconds_bucket{op=\"get\",le=\"0.1\"} 0",
        "aegis_op_duration_seconds_bucket{op=\"get\",le=\"0.25\"} 1",
        "aegis_op_duration_seconds_bucket{op=\"get\",le=\"0.5\"} 2",
        "aegis_op_duration_seconds_bucket{op=\"get\",le=\"+Inf\"} 2",
        "aegis_op_duration_seconds_sum{op=\"get\"} 0.75",
        "aegis_op_duration_seconds_count{op=\"get\"} 2",
        "aegis_misses_total{reason=\"expired\"} 1",
        "aegis_misses_total{reason=\"absent\"} 0",
    ] {
        assert!(text.lines().any(|l| l == line), "missing {line} in\n{text}");
    }
}

#[test]
fn every_operation_and_reason_has_the_handle_of_its_own_name() {
    let metrics = Metrics::new();
    for (n, op) in Op::ALL.into_iter().enumerate() {
        for _ in 0..=n {
            metrics.op(op).record(Duration::ZERO, true);
        }
    }
    for (n, reason) in Miss::ALL.into_iter().enumerate() {
        for _ in 0..=n {
            metrics.miss(reason);
        }
    }
    let text = metrics.render(&Readings::default());
    for (n, op) in Op::ALL.into_iter().enumerate() {
        let line = format!("aegis_ops_total{{op=\"{}\"}} {}\n", op.label(), n + 1);
        assert!(text.contains(&line), "missing {line}");
    }
    for (n, reason) in Miss::ALL.into_iter().enumerate() {
        let line = format!("aegis_misses_total{{reason=\"{}\"}} {}\n", reason.label(), n + 1);
        assert!(text.contains(&line), "missing {line}");
    }
}

#[test]
fn gauges_show_the_readings_and_hide_what_does_not_exist_yet() {
    let metrics = Metrics::new();
    let before = metrics.render(&Readings::default());
    assert!(!before.contains("aegis_tls_cert_expiry_timestamp_seconds"));
    assert!(!before.contains("aegis_snapshot_last_success_timestamp_seconds"));

    let text = metrics.render(&Readings {
        cache_items: 7,
        config_hash: u64::MAX,
        config_reload_success: true,
        shards: ShardCounts { healthy: 255, moving: 1, ..ShardCounts::default() },
        tls_cert_expiry: Some(Timestamp(1_800_000_000_000)),
        snapshot_duration: Some(Duration::from_millis(1500)),
        ..Readings::default()
    });
    for line in [
        "aegis_cache_items 7",
        "aegis_config_hash 281474976710655",
        "aegis_config_reload_success 1",
        "aegis_shards{state=\"healthy\"} 255",
        "aegis_shards{state=\"moving\"} 1",
        "aegis_shards{state=\"unavailable\"} 0",
        "aegis_tls_cert_expiry_timestamp_seconds 1800000000",
        "aegis_snapshot_last_duration_seconds 1.5",
    ] {
        assert!(text.lines().any(|l| l == line), "missing {line} in\n{text}");
    }
}

#[test]
fn the_process_shows_real_figures() {
    let text = Metrics::new().render(&Readings::default());
    let value = |name: &str| -> f64 {
        let line = text.lines().find(|l| l.starts_with(&format!("{name} "))).unwrap();
        line.rsplit_once(' ').unwrap().1.parse().unwrap()
    };
    assert!(value("process_resident_memory_bytes") > 1e6);
    assert!(value("process_open_fds") >= 3.0);
    assert!(value("process_max_fds") >= value("process_open_fds"));
    assert!(value("process_threads") >= 1.0);
    assert!(value("process_start_time_seconds") > 1.7e9);
}

#[test]
fn names_follow_the_rules_of_prometheus() {
    for metric in Metrics::new().declarations() {
        let name = metric.name;
        assert_eq!(metric.kind == Kind::Counter, name.ends_with("_total"), "{name}");
        assert!(name.starts_with("aegis_") || name.starts_with("process_"), "{name}");
        for unit in ["_ms", "_millis", "_mb", "_micros", "_percent"] {
            assert!(!name.ends_with(unit), "{name} is not in a base unit");
        }
        assert!(metric.help.ends_with('.'), "{name}: help is a sentence");
    }
}

#[test]
fn two_nodes_in_one_process_count_apart() {
    let (a, b) = (Metrics::new(), Metrics::new());
    a.evictions.inc();
    assert!(a.render(&Readings::default()).contains("aegis_evictions_total 1\n"));
    assert!(b.render(&Readings::default()).contains("aegis_evictions_total 0\n"));
}

/// Where the page of all metrics lies, from the package's directory.
const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/metrics.md");

/// Written over [`PAGE`] when this variable is set.
const UPDATE: &str = "UPDATE_DOCS";

const PREFACE: &str = "\
# Metrics

<!-- Written by `UPDATE_DOCS=1 cargo test --lib metrics::`; edit src/metrics instead. -->

`GET /metrics` on port 7702 answers in Prometheus' text format. This is every metric there is.

- Values are in base units: seconds and bytes. Counters end in `_total` and start anew with the
  process, so ask for their `rate()`. All labels' values show from the start, at 0.
- Histograms have the same buckets throughout, from 50 µs to 10 s.
- Recording costs tens of nanoseconds and no memory; scraping often does no harm.

| metric | type | unit | labels | meaning |
|---|---|---|---|---|
";

#[test]
fn the_page_of_all_metrics_says_what_the_code_says() {
    let mut page = PREFACE.to_owned();
    let metrics = Metrics::new();
    for one in metrics.declarations() {
        let labels: Vec<String> = one.labels.iter().map(|label| format!("`{label}`")).collect();
        let cells = [
            format!("`{}`", one.name),
            one.kind.word().to_owned(),
            one.unit().to_owned(),
            labels.join(", "),
            one.help.to_owned(),
        ];
        page.push_str(&format!("| {} |\n", cells.join(" | ")));
    }
    let labels = |all: &[&str]| -> String {
        all.iter().map(|value| format!("`{value}`")).collect::<Vec<_>>().join(" ")
    };
    page.push_str(&format!(
        "\n- Values of `op`: {}.\n- Values of `reason`: {}.\n- Values of `state`: {}.\n\
         - Values of `what`: `sent` `passed_on` `dropped`.\n",
        labels(&Op::ALL.map(Op::label)),
        labels(&Miss::ALL.map(Miss::label)),
        labels(&ShardCounts::default().by_state().map(|(state, _)| state)),
    ));
    if std::env::var_os(UPDATE).is_some() {
        std::fs::write(PAGE, &page).unwrap();
    }
    let written = std::fs::read_to_string(PAGE).unwrap_or_default();
    assert!(written == page, "docs/metrics.md is behind the code; run with {UPDATE}=1");
}

#[test]
fn the_stop_lease_is_shown_while_it_is_held_and_never_two() {
    let metrics = Metrics::new();
    let shown = |lease: Option<(&str, &str)>| {
        let stop_lease = lease.map(|(node, holder)| (node.to_owned(), holder.to_owned()));
        let text = metrics.render(&Readings { stop_lease, ..Readings::default() });
        let lines = text.lines().filter(|line| line.starts_with("aegis_stop_lease{"));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    assert!(shown(None).is_empty());
    let first = shown(Some(("kv2", "a \"b\"")));
    assert_eq!(first, ["aegis_stop_lease{holder=\"a \\\"b\\\"\",node=\"kv2\"} 1"]);
    assert_eq!(shown(Some(("kv3", "c"))), ["aegis_stop_lease{holder=\"c\",node=\"kv3\"} 1"]);
    assert!(shown(None).is_empty());
}

#[test]
fn what_is_rendered_is_what_is_declared() {
    let metrics = Metrics::new();
    let text = metrics.render(&Readings {
        stop_lease: Some(("kv2".to_owned(), "ops".to_owned())),
        tls_cert_expiry: Some(Timestamp(1)),
        snapshot_duration: Some(Duration::ZERO),
        snapshot_finished_at: Some(Timestamp(1)),
        ..Readings::default()
    });
    let mut rendered: Vec<(&str, &str)> =
        text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' ')).collect();
    let mut declared: Vec<(&str, &str)> =
        metrics.declarations().iter().map(|one| (one.name, one.kind.word())).collect();
    rendered.sort_unstable();
    declared.sort_unstable();
    assert_eq!(rendered, declared);
}

#[test]
fn every_line_parses_as_the_text_format_has_it() {
    let metrics = Metrics::new();
    metrics.op(Op::Put).record(Duration::from_millis(1), true);
    let text = metrics.render(&Readings::default());
    let mut family = "";
    let mut helped = "";
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            helped = rest.split_once(' ').unwrap().0;
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            family = rest.split_once(' ').unwrap().0;
            assert_eq!(family, helped, "help comes before type");
        } else {
            let (series, value) = line.rsplit_once(' ').unwrap();
            value.parse::<f64>().unwrap_or_else(|_| panic!("no number in {line}"));
            let name = series.split('{').next().unwrap();
            let suffix = name.strip_prefix(family).unwrap_or_else(|| panic!("{line} is astray"));
            assert!(["", "_bucket", "_sum", "_count"].contains(&suffix), "{line}");
            assert_eq!(series.contains('{'), series.ends_with('}'), "{line}");
        }
    }
    assert!(text.ends_with('\n'));
}
