//! Durations as text: `500ms`, `30s`, `1m30s`, or a bare number of seconds.

use std::time::Duration;

/// Longest duration that any key takes, in seconds: a year.
const SECONDS_MAX: f64 = 366.0 * 24.0 * 3600.0;

/// Reads a duration. `None` if it is none, is negative, or is longer than a year.
pub(super) fn parse(text: &str) -> Option<Duration> {
    let text = text.trim();
    // `f64` would also take "inf", "1e3" and a sign.
    if text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') {
        return from_seconds(text.parse().ok()?);
    }
    let span = humantime::parse_duration(text).ok()?;
    (span.as_secs_f64() <= SECONDS_MAX).then_some(span)
}

/// A number of seconds as a duration, to the microsecond.
pub(super) fn from_seconds(seconds: f64) -> Option<Duration> {
    (0.0..=SECONDS_MAX).contains(&seconds).then(|| {
        let micros = (seconds * 1e6).round();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "bounded by SECONDS_MAX, which is far inside u64"
        )]
        Duration::from_micros(micros as u64)
    })
}

/// The shortest text that [`parse`] reads back as the same duration.
pub(super) fn text(span: Duration) -> String {
    if span.is_zero() {
        return "0s".to_owned();
    }
    let seconds = span.as_secs();
    let parts = [
        (seconds / 3600, "h"),
        (seconds / 60 % 60, "m"),
        (seconds % 60, "s"),
        (u64::from(span.subsec_millis()), "ms"),
        (u64::from(span.subsec_micros() % 1000), "us"),
        (u64::from(span.subsec_nanos() % 1000), "ns"),
    ];
    parts
        .iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, unit)| format!("{count}{unit}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_with_units_and_as_bare_seconds() {
        assert_eq!(parse("500ms"), Some(Duration::from_millis(500)));
        assert_eq!(parse("1m30s"), Some(Duration::from_secs(90)));
        assert_eq!(parse("1m 30s"), Some(Duration::from_secs(90)));
        assert_eq!(parse("30"), Some(Duration::from_secs(30)));
        assert_eq!(parse("1.5"), Some(Duration::from_millis(1500)));
        assert_eq!(parse("2h"), Some(Duration::from_secs(7200)));
        for bad in ["", "-1s", "s", "30 parsecs", "1e3", "inf", "NaN", ".", "9999999999s"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn durations_are_shown_as_they_would_be_written() {
        assert_eq!(text(Duration::from_secs(90)), "1m30s");
        assert_eq!(text(Duration::from_millis(1500)), "1s500ms");
        assert_eq!(text(Duration::from_secs(86_400)), "24h");
        assert_eq!(text(Duration::ZERO), "0s");
        assert_eq!(
            parse(&text(Duration::from_micros(61_000_007))),
            Some(Duration::from_micros(61_000_007))
        );
    }
}
