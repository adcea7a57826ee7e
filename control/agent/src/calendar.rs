//! Points in time as dates, in UTC.

use std::time::{SystemTime, UNIX_EPOCH};

/// The year, month and day so many days after 1970-01-01, in the Gregorian calendar: years are counted from a first
/// of March, so that the leap day is the last of its year.
pub fn civil(days: i64) -> (i64, i64, i64) {
    const DAYS_OF_400_YEARS: i64 = 146_097;
    // 0000-03-01 was 719,468 days before 1970-01-01.
    let days = days + 719_468;
    let (era, day_of_era) = (
        days.div_euclid(DAYS_OF_400_YEARS),
        days.rem_euclid(DAYS_OF_400_YEARS),
    );
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    // March is month 0; months have 30.6 days in groups of five.
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 {
        shifted + 3
    } else {
        shifted - 9
    };
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    (year, month, day)
}

/// `2026-11-26` and `14:29:22`.
fn date_and_time(time: SystemTime) -> (String, String) {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let seconds = i64::try_from(since.as_secs()).unwrap_or(i64::MAX);
    let (year, month, day) = civil(seconds / 86_400);
    let rest = seconds % 86_400;
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    (
        format!("{year:04}-{month:02}-{day:02}"),
        format!("{hour:02}:{minute:02}:{second:02}"),
    )
}

/// `2026-11-26T14:29:22Z`, as RFC 3339 has it.
pub(crate) fn rfc3339(time: SystemTime) -> String {
    let (date, time) = date_and_time(time);
    format!("{date}T{time}Z")
}

/// `2026-11-26 14:29:22 +0000 UTC`, as Go prints it, to the second.
pub(crate) fn go_utc(time: SystemTime) -> String {
    let (date, time) = date_and_time(time);
    format!("{date} {time} +0000 UTC")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn leap_days_and_the_beginning() {
        let at = |seconds| rfc3339(UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(0), "1970-01-01T00:00:00Z");
        assert_eq!(at(951_782_399), "2000-02-28T23:59:59Z");
        assert_eq!(at(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(at(1_795_703_362), "2026-11-26T14:29:22Z");
    }

    #[test]
    fn times_are_printed_as_go_prints_them() {
        let at = |seconds| go_utc(UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(0), "1970-01-01 00:00:00 +0000 UTC");
        assert_eq!(at(951_782_400), "2000-02-29 00:00:00 +0000 UTC");
        assert_eq!(at(1_795_694_400), "2026-11-26 12:00:00 +0000 UTC");
        assert_eq!(at(4_107_542_399), "2100-02-28 23:59:59 +0000 UTC");
    }
}
