//! Points in time and spans as commands print them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use wharf_agent::calendar::civil;

/// Nanoseconds since 1970.
pub(crate) fn now() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// `2026-11-26 14:29:22.123` in UTC; `-` for 0, which means never.
pub(crate) fn utc(nanos: i64) -> String {
    if nanos == 0 {
        return "-".to_owned();
    }
    let (days, rest) = (
        nanos.div_euclid(86_400_000_000_000),
        nanos.rem_euclid(86_400_000_000_000),
    );
    let (year, month, day) = civil(days);
    let millis = rest / 1_000_000;
    let (seconds, millis) = (millis / 1000, millis % 1000);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}.{millis:03}")
}

/// How long ago something was, in one unit or two: `3s`, `2m10s`, `5h3m`, `2d4h`.
pub(crate) fn age(then: i64, now: i64) -> String {
    if then == 0 {
        return "-".to_owned();
    }
    let seconds = now.saturating_sub(then).max(0) / 1_000_000_000;
    let two = |big: i64, big_unit: &str, small: i64, small_unit: &str| match small {
        0 => format!("{big}{big_unit}"),
        _ => format!("{big}{big_unit}{small}{small_unit}"),
    };
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => two(seconds / 60, "m", seconds % 60, "s"),
        3600..86_400 => two(seconds / 3600, "h", seconds % 3600 / 60, "m"),
        _ => two(seconds / 86_400, "d", seconds % 86_400 / 3600, "h"),
    }
}

/// `+1.23s`
pub(crate) fn since(start: i64, then: i64) -> String {
    let span = Duration::from_nanos(u64::try_from(then.saturating_sub(start)).unwrap_or(0));
    format!("+{:.2}s", span.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_gregorian() {
        let second = 1_000_000_000;
        assert_eq!(utc(1), "1970-01-01 00:00:00.000");
        assert_eq!(utc(951_782_400 * second), "2000-02-29 00:00:00.000");
        assert_eq!(
            utc(951_868_799 * second + 999_999_999),
            "2000-02-29 23:59:59.999"
        );
        assert_eq!(utc(4_107_542_400 * second), "2100-03-01 00:00:00.000");
        assert_eq!(utc(1_795_703_362 * second), "2026-11-26 14:29:22.000");
        assert_eq!(utc(0), "-");
    }

    #[test]
    fn ages_have_one_unit_or_two() {
        let second = 1_000_000_000;
        let ages =
            [3, 60, 130, 7200, 18_180, 86_400, 187_200].map(|s| age(second, (s + 1) * second));
        assert_eq!(ages, ["3s", "1m", "2m10s", "2h", "5h3m", "1d", "2d4h"]);
        assert_eq!(age(0, second), "-");
        assert_eq!(age(5 * second, second), "0s");
        assert_eq!(since(second, second + 1_234_000_000), "+1.23s");
    }
}
