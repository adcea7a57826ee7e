use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, de};

use crate::model::is_default;

/// What a task reserves, or a node has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Resources {
    /// Thousandths of a core. A number, or a text such as `"500m"` or `"1.5"` (cores).
    #[serde(rename = "CPU", deserialize_with = "millicores")]
    pub cpu: u64,
    /// Mebibytes. A number, or a text such as `"256MiB"` or `"2GiB"`.
    #[serde(rename = "MemoryMB", alias = "Memory", deserialize_with = "mebibytes")]
    pub memory_mb: u64,
    /// What a task may use beyond its reservation while the node has it; 0: no more than that.
    #[serde(
        rename = "MemoryMaxMB",
        alias = "MemoryMax",
        deserialize_with = "mebibytes",
        skip_serializing_if = "is_default"
    )]
    pub memory_max_mb: u64,
}

impl Default for Resources {
    /// What a task gets that does not say: Nomad's defaults.
    fn default() -> Self {
        Resources {
            cpu: 100,
            memory_mb: 300,
            memory_max_mb: 0,
        }
    }
}

impl Resources {
    pub const NONE: Resources = Resources {
        cpu: 0,
        memory_mb: 0,
        memory_max_mb: 0,
    };

    /// Both together. A maximum counts from the reservation where none is set.
    pub fn plus(self, other: Resources) -> Resources {
        let max = match (self.memory_max_mb, other.memory_max_mb) {
            (0, 0) => 0,
            _ => self
                .memory_limit_mb()
                .saturating_add(other.memory_limit_mb()),
        };
        Resources {
            cpu: self.cpu.saturating_add(other.cpu),
            memory_mb: self.memory_mb.saturating_add(other.memory_mb),
            memory_max_mb: max,
        }
    }

    /// The memory beyond which a task is killed, in mebibytes.
    pub fn memory_limit_mb(&self) -> u64 {
        self.memory_max_mb.max(self.memory_mb)
    }
}

fn millicores<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    deserializer.deserialize_any(Quantity {
        expected: "thousandths of a core, such as 500 or \"500m\"",
        parse: |text| match text.strip_suffix('m') {
            Some(milli) => milli.trim_end().parse().ok(),
            None => {
                let cores: f64 = text.parse().ok()?;
                let milli = (cores * 1000.0).round();
                (0.0..=1e9).contains(&milli).then_some(milli as u64)
            }
        },
    })
}

fn mebibytes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    deserializer.deserialize_any(Quantity {
        expected: "mebibytes, such as 256 or \"256MiB\"",
        parse: |text| {
            let digits = text.bytes().take_while(u8::is_ascii_digit).count();
            let (number, unit) = text.split_at(digits);
            let number: u64 = number.parse().ok()?;
            match unit.trim().to_ascii_lowercase().as_str() {
                "" | "m" | "mb" | "mi" | "mib" => Some(number),
                "g" | "gb" | "gi" | "gib" => number.checked_mul(1024),
                _ => None,
            }
        },
    })
}

/// A number, or a text with a unit.
struct Quantity {
    expected: &'static str,
    parse: fn(&str) -> Option<u64>,
}

impl de::Visitor<'_> for Quantity {
    type Value = u64;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.expected)
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<u64, E> {
        Ok(number)
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<u64, E> {
        u64::try_from(number).map_err(|_| E::invalid_value(de::Unexpected::Signed(number), &self))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<u64, E> {
        (self.parse)(text).ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
    }
}
