use super::*;
use crate::entry::Timestamp;

#[test]
fn a_recorded_operation_shows_in_count_errors_and_its_bucket() {
    let metrics = Metrics::new();
    metrics.op(Op::Get).record(Duration::from_millis(250), true);
    metrics
        .op(Op::Get)
        .record(Duration::from_millis(500), false);
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
        let line = format!(
            "aegis_misses_total{{reason=\"{}\"}} {}\n",
            reason.label(),
            n + 1
        );
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
        shards: ShardCounts {
            healthy: 255,
            moving: 1,
            ..ShardCounts::default()
        },
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
        let line = text
            .lines()
            .find(|l| l.starts_with(&format!("{name} ")))
            .unwrap();
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
        assert_eq!(
            metric.kind == Kind::Counter,
            name.ends_with("_total"),
            "{name}"
        );
        assert!(
            name.starts_with("aegis_") || name.starts_with("process_"),
            "{name}"
        );
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
    assert!(
        a.render(&Readings::default())
            .contains("aegis_evictions_total 1\n")
    );
    assert!(
        b.render(&Readings::default())
            .contains("aegis_evictions_total 0\n")
    );
}
