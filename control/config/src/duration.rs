//! Durations as Go writes them (`time.ParseDuration`, `Duration.String`).
//!
//! Consul's files, API and clients use this syntax everywhere, and clients compare the text, so both directions
//! follow Go to the letter, including the error texts and the rounding of fractions.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

const NANOSECOND: u64 = 1;
const MICROSECOND: u64 = 1_000 * NANOSECOND;
const MILLISECOND: u64 = 1_000 * MICROSECOND;
const SECOND: u64 = 1_000 * MILLISECOND;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;

/// A signed span of time in nanoseconds, as Go's `time.Duration`.
///
/// serde reads a string (`"1m30s"`) or an integer of nanoseconds and writes a string. The empty string reads as
/// zero: some clients send it for "not set".
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GoDuration(i64);

/// Why a text is not a duration. The texts are Go's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseDurationError {
    #[error("time: invalid duration {0:?}")]
    Invalid(String),
    #[error("time: missing unit in duration {0:?}")]
    MissingUnit(String),
    #[error("time: unknown unit {unit:?} in duration {text:?}")]
    UnknownUnit { unit: String, text: String },
}

impl GoDuration {
    pub const ZERO: Self = Self(0);

    pub const fn from_nanos(nanos: i64) -> Self {
        Self(nanos)
    }

    /// Whole seconds; saturates at the largest representable duration (about 292 years).
    pub const fn from_secs(seconds: i64) -> Self {
        Self(seconds.saturating_mul(SECOND as i64))
    }

    pub const fn from_millis(millis: i64) -> Self {
        Self(millis.saturating_mul(MILLISECOND as i64))
    }

    pub const fn as_nanos(self) -> i64 {
        self.0
    }

    pub const fn is_zero(&self) -> bool {
        self.0 == 0
    }

    /// The same span as a [`Duration`]; a negative one is zero, as no caller can wait a negative time.
    pub const fn to_std(self) -> Duration {
        if self.0 < 0 {
            Duration::ZERO
        } else {
            Duration::from_nanos(self.0 as u64)
        }
    }
}

impl From<Duration> for GoDuration {
    /// Saturates at the largest representable duration (about 292 years).
    fn from(duration: Duration) -> Self {
        Self(i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX))
    }
}

impl From<GoDuration> for Duration {
    fn from(duration: GoDuration) -> Self {
        duration.to_std()
    }
}

// === parsing ===

impl FromStr for GoDuration {
    type Err = ParseDurationError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || ParseDurationError::Invalid(text.to_owned());
        let (negative, mut rest) = match text.as_bytes().first() {
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            _ => (false, text),
        };
        if rest == "0" {
            return Ok(Self::ZERO);
        }
        if rest.is_empty() {
            return Err(invalid());
        }
        // The magnitude may be 2^63 exactly: the most negative duration.
        let limit = 1u64 << 63;
        let mut total: u64 = 0;
        while !rest.is_empty() {
            let (whole, whole_digits, after) = leading_integer(rest).ok_or_else(invalid)?;
            let (fraction, scale, fraction_digits, after) = match after.strip_prefix('.') {
                Some(after) => leading_fraction(after),
                None => (0, 1.0, 0, after),
            };
            if whole_digits + fraction_digits == 0 {
                return Err(invalid());
            }
            let unit_length = after
                .find(|c: char| c == '.' || c.is_ascii_digit())
                .unwrap_or(after.len());
            let (unit_text, after) = after.split_at(unit_length);
            if unit_text.is_empty() {
                return Err(ParseDurationError::MissingUnit(text.to_owned()));
            }
            let unit = unit(unit_text).ok_or_else(|| ParseDurationError::UnknownUnit {
                unit: unit_text.to_owned(),
                text: text.to_owned(),
            })?;
            let mut part = whole
                .checked_mul(unit)
                .filter(|part| *part <= limit)
                .ok_or_else(invalid)?;
            if fraction > 0 {
                // In floating point, as Go does it: precise enough for nanoseconds, and the same digits.
                part += (fraction as f64 * (unit as f64 / scale)) as u64;
            }
            total = total
                .checked_add(part)
                .filter(|total| *total <= limit)
                .ok_or_else(invalid)?;
            rest = after;
        }
        if negative {
            return Ok(Self((total as i64).wrapping_neg()));
        }
        i64::try_from(total).map(Self).map_err(|_| invalid())
    }
}

fn unit(text: &str) -> Option<u64> {
    Some(match text {
        "ns" => NANOSECOND,
        // U+00B5 is the micro sign, U+03BC the Greek letter.
        "us" | "\u{b5}s" | "\u{3bc}s" => MICROSECOND,
        "ms" => MILLISECOND,
        "s" => SECOND,
        "m" => MINUTE,
        "h" => HOUR,
        _ => return None,
    })
}

/// The leading digits as a number, how many there were, and the rest; `None` when over 2^63.
fn leading_integer(text: &str) -> Option<(u64, usize, &str)> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let value = text.bytes().take(digits).try_fold(0u64, |value, digit| {
        let value = value
            .checked_mul(10)?
            .checked_add(u64::from(digit - b'0'))?;
        (value <= 1 << 63).then_some(value)
    })?;
    Some((value, digits, &text[digits..]))
}

/// The digits after a decimal point as (value, 10^digits, digits, rest). Digits beyond the precision are dropped.
fn leading_fraction(text: &str) -> (u64, f64, usize, &str) {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (mut value, mut scale) = (0u64, 1.0);
    for digit in text.bytes().take(digits) {
        let next = value
            .checked_mul(10)
            .and_then(|v| v.checked_add(u64::from(digit - b'0')));
        match next.filter(|next| *next <= i64::MAX as u64) {
            Some(next) => value = next,
            None => break,
        }
        scale *= 10.0;
    }
    (value, scale, digits, &text[digits..])
}

// === writing ===

impl fmt::Display for GoDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let magnitude = self.0.unsigned_abs();
        if magnitude == 0 {
            return f.write_str("0s");
        }
        if self.0 < 0 {
            f.write_str("-")?;
        }
        match magnitude {
            0..MICROSECOND => write!(f, "{magnitude}ns"),
            MICROSECOND..MILLISECOND => write_decimal(f, magnitude, MICROSECOND, "\u{b5}s"),
            MILLISECOND..SECOND => write_decimal(f, magnitude, MILLISECOND, "ms"),
            _ => {
                if magnitude >= HOUR {
                    write!(f, "{}h", magnitude / HOUR)?;
                }
                if magnitude >= MINUTE {
                    write!(f, "{}m", magnitude % HOUR / MINUTE)?;
                }
                write_decimal(f, magnitude % MINUTE, SECOND, "s")
            }
        }
    }
}

/// `nanos` in units of `unit`, with as many decimals as it needs.
fn write_decimal(f: &mut fmt::Formatter<'_>, nanos: u64, unit: u64, name: &str) -> fmt::Result {
    write!(f, "{}", nanos / unit)?;
    let fraction = nanos % unit;
    if fraction != 0 {
        let width = unit.ilog10() as usize;
        let digits = format!("{fraction:0width$}");
        write!(f, ".{}", digits.trim_end_matches('0'))?;
    }
    f.write_str(name)
}

impl fmt::Debug for GoDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

// === serde ===

impl Serialize for GoDuration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for GoDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl de::Visitor<'_> for Visitor {
            type Value = GoDuration;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a duration such as \"10s\"")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<GoDuration, E> {
                if text.is_empty() {
                    return Ok(GoDuration::ZERO);
                }
                text.parse().map_err(E::custom)
            }

            fn visit_i64<E: de::Error>(self, nanos: i64) -> Result<GoDuration, E> {
                Ok(GoDuration(nanos))
            }

            fn visit_u64<E: de::Error>(self, nanos: u64) -> Result<GoDuration, E> {
                i64::try_from(nanos)
                    .map(GoDuration)
                    .map_err(|_| E::invalid_value(de::Unexpected::Unsigned(nanos), &self))
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_what_go_reads() {
        let cases: &[(&str, i64)] = &[
            ("0", 0),
            ("+0", 0),
            ("-0", 0),
            ("5s", 5_000_000_000),
            ("10s", 10_000_000_000),
            ("300ms", 300_000_000),
            ("-1s", -1_000_000_000),
            ("+5s", 5_000_000_000),
            ("1.5h", 5_400_000_000_000),
            ("5.s", 5_000_000_000),
            (".5s", 500_000_000),
            ("1.004s", 1_004_000_000),
            ("100.00100s", 100_001_000_000),
            ("12\u{b5}s", 12_000),
            ("12\u{3bc}s", 12_000),
            ("1h2m3.5s", 3_723_500_000_000),
            ("39h9m14.425s", 140_954_425_000_000),
            ("3h30m", 12_600_000_000_000),
            ("0.3333333333333333333h", 1_200_000_000_000),
            ("0.100000000000000000000h", 360_000_000_000),
            ("0.9223372036854775807h", 3_320_413_933_267),
            ("9223372036854775807ns", i64::MAX),
            ("-9223372036854775808ns", i64::MIN),
            ("-9223372036854775.808us", i64::MIN),
        ];
        for (text, nanos) in cases {
            assert_eq!(text.parse(), Ok(GoDuration(*nanos)), "{text}");
        }
    }

    #[test]
    fn refuses_with_the_texts_of_go() {
        let cases = [
            ("", r#"time: invalid duration """#),
            ("x", r#"time: invalid duration "x""#),
            ("10", r#"time: missing unit in duration "10""#),
            ("80a", r#"time: unknown unit "a" in duration "80a""#),
            ("1 s", r#"time: unknown unit " s" in duration "1 s""#),
            ("-", r#"time: invalid duration "-""#),
            (".s", r#"time: invalid duration ".s""#),
            ("--1s", r#"time: invalid duration "--1s""#),
            ("3000000h", r#"time: invalid duration "3000000h""#),
            (
                "9223372036854775808ns",
                r#"time: invalid duration "9223372036854775808ns""#,
            ),
            (
                "-9223372036854775809ns",
                r#"time: invalid duration "-9223372036854775809ns""#,
            ),
        ];
        for (text, message) in cases {
            let error = text.parse::<GoDuration>().expect_err(text);
            assert_eq!(error.to_string(), message);
        }
    }

    #[test]
    fn writes_what_go_writes() {
        let cases = [
            (0, "0s"),
            (1, "1ns"),
            (1_100, "1.1\u{b5}s"),
            (2_200_000, "2.2ms"),
            (300_000_000, "300ms"),
            (3_300_000_000, "3.3s"),
            (90_000_000_000, "1m30s"),
            (245_000_000_000, "4m5s"),
            (245_001_000_000, "4m5.001s"),
            (18_367_001_000_000, "5h6m7.001s"),
            (3_600_000_000_000, "1h0m0s"),
            (-1_500_000_000, "-1.5s"),
            (i64::MAX, "2562047h47m16.854775807s"),
            (i64::MIN, "-2562047h47m16.854775808s"),
        ];
        for (nanos, text) in cases {
            assert_eq!(GoDuration(nanos).to_string(), text);
        }
    }

    #[test]
    fn serde_takes_text_or_nanoseconds_and_gives_text() {
        let read = |json: &str| serde_json::from_str::<GoDuration>(json);
        assert_eq!(read("\"10s\"").unwrap(), GoDuration::from_secs(10));
        assert_eq!(read("10000000000").unwrap(), GoDuration::from_secs(10));
        assert_eq!(read("\"\"").unwrap(), GoDuration::ZERO);
        assert!(
            read("\"ten\"")
                .unwrap_err()
                .to_string()
                .contains("time: invalid duration \"ten\"")
        );
        assert!(read("true").is_err());
        assert_eq!(
            serde_json::to_string(&GoDuration::from_secs(90)).unwrap(),
            "\"1m30s\""
        );
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(nanos: i64) {
            // Go's own String loses nothing below a second; above, seconds carry all nine decimals.
            let duration = GoDuration(nanos);
            prop_assert_eq!(duration.to_string().parse(), Ok(duration));
        }

        #[test]
        fn any_text_is_an_answer_not_a_panic(text in "[-+]?[0-9.hmsnuµ ]{0,24}") {
            let _ = text.parse::<GoDuration>();
        }
    }
}
