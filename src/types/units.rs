//! Quantities as configuration writes them: spans (`"30s"`, `"7d"`), sizes (`"64KiB"`, `"8GiB"`) and counts.

use std::{fmt, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// Why a text is not the quantity it was meant to be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidUnit {
    /// Not a span of time.
    #[error(
        "`{0}` is not a duration; write a number and a unit, such as \"500ms\", \"30s\", \"10m\", \"12h\" or \"7d\""
    )]
    Span(String),
    /// Not a size.
    #[error(
        "`{0}` is not a size; write a number and a unit: B, KB, KiB, MB, MiB, GB, GiB, TB or TiB, such as \"64KiB\""
    )]
    Size(String),
    /// Not a level.
    #[error(
        "`{0}` is not a level; write a share, such as \"80%\", a number, such as \"500\", or a size, such as \"4GiB\""
    )]
    Level(String),
}

/// A span of time, written with a unit.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Span(pub Duration);

impl Span {
    /// A span of whole seconds.
    pub const fn secs(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }

    /// Reads a span such as `30s`.
    pub fn parse(text: &str) -> Result<Self, InvalidUnit> {
        humantime::parse_duration(text.trim()).map(Self).map_err(|_| InvalidUnit::Span(text.to_owned()))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = humantime::format_duration(self.0).to_string();
        // `7days` and `1month 2days` are how the library writes them; days and below read better in a configuration.
        let seconds = self.0.as_secs();
        if self.0.subsec_nanos() == 0 && seconds > 0 && seconds.is_multiple_of(86_400) {
            write!(f, "{}d", seconds / 86_400)
        } else {
            f.write_str(&text)
        }
    }
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer
            .deserialize_str(TextVisitor("a duration with a unit, such as \"30s\""))
            .and_then(|text| Self::parse(&text).map_err(D::Error::custom))
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A number of bytes, written with a unit.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct ByteSize(pub u64);

const SIZE_UNITS: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1_000),
    ("B", 1),
];

impl ByteSize {
    /// So many KiB.
    pub const fn kib(n: u64) -> Self {
        Self(n << 10)
    }

    /// So many MiB.
    pub const fn mib(n: u64) -> Self {
        Self(n << 20)
    }

    /// So many GiB.
    pub const fn gib(n: u64) -> Self {
        Self(n << 30)
    }

    /// The size as a length in memory; larger than the address space is taken as its end.
    pub fn as_usize(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }

    /// Reads a size such as `64KiB`. Units are told apart without regard to case; a space may stand before them.
    pub fn parse(text: &str) -> Result<Self, InvalidUnit> {
        let bad = || InvalidUnit::Size(text.to_owned());
        let trimmed = text.trim();
        let digits = trimmed.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?;
        let (number, unit) = trimmed.split_at(digits);
        let unit = unit.trim_start();
        let (_, factor) = SIZE_UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)).ok_or_else(bad)?;
        let number: u64 = number.parse().map_err(|_| bad())?;
        number.checked_mul(*factor).map(Self).ok_or_else(bad)
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, factor) = SIZE_UNITS[..4]
            .iter()
            .find(|(_, factor)| self.0 >= *factor && self.0.is_multiple_of(*factor))
            .unwrap_or(&("B", 1));
        write!(f, "{}{unit}", self.0 / factor)
    }
}

impl fmt::Debug for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer
            .deserialize_str(TextVisitor("a size with a unit, such as \"64KiB\""))
            .and_then(|text| Self::parse(&text).map_err(D::Error::custom))
    }
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A count that is a limit: 0 means none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default, Deserialize, Serialize)]
#[serde(transparent)]
pub struct Count(pub u32);

impl Count {
    /// The limit as a number to compare with: none is the largest there is.
    pub fn limit(self) -> usize {
        if self.0 == 0 { usize::MAX } else { self.0 as usize }
    }
}

/// A level that is watched: a share of what bounds it, or an amount of its own. Zero of any kind is none.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// In hundredths of a bound: 0 to 100.
    Share(u8),
    /// A number.
    Count(u64),
    /// A number of bytes.
    Size(ByteSize),
}

impl Level {
    /// Reads a level: `80%`, `500` or `4GiB`.
    pub fn parse(text: &str) -> Result<Self, InvalidUnit> {
        let bad = || InvalidUnit::Level(text.to_owned());
        let number = |digits: &str| digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse::<u64>().ok())?;
        let trimmed = text.trim();
        match trimmed.strip_suffix('%') {
            Some(share) => number(share).and_then(|n| u8::try_from(n).ok()).filter(|n| *n <= 100).map(Self::Share),
            None => number(trimmed).map(Self::Count).or_else(|| ByteSize::parse(trimmed).ok().map(Self::Size)),
        }
        .ok_or_else(bad)
    }

    /// The level as an amount, where `bound` is all there can be; `None`: there is none, or it is a share of what has no
    /// bound (0).
    pub fn of(self, bound: u64) -> Option<f64> {
        let amount = match self {
            Self::Share(share) => bound as f64 * f64::from(share) / 100.0,
            Self::Count(amount) | Self::Size(ByteSize(amount)) => amount as f64,
        };
        (amount > 0.0).then_some(amount)
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Share(share) => write!(f, "{share}%"),
            Self::Count(count) => count.fmt(f),
            Self::Size(size) => size.fmt(f),
        }
    }
}

impl fmt::Debug for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl<'de> Deserialize<'de> for Level {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer
            .deserialize_str(TextVisitor("a share, a number or a size in quotes, such as \"80%\""))
            .and_then(|text| Self::parse(&text).map_err(D::Error::custom))
    }
}

impl Serialize for Level {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Takes text only: a bare number where a unit belongs is a mistake worth a message of its own.
struct TextVisitor(&'static str);

impl serde::de::Visitor<'_> for TextVisitor {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<String, E> {
        Ok(text.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_read_and_written_with_units() {
        for (text, seconds) in [("30s", 30), ("5m", 300), ("7d", 604_800), ("12h", 43_200)] {
            assert_eq!(Span::parse(text), Ok(Span::secs(seconds)));
            assert_eq!(Span::secs(seconds).to_string(), text);
        }
        assert_eq!(Span::parse("500ms").unwrap().0, Duration::from_millis(500));
        for bad in ["", "30", "s", "-1s", "1 fortnight"] {
            assert!(Span::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_are_read_and_written_with_units() {
        for (text, bytes) in [("64KiB", 65_536), ("8GiB", 8 << 30), ("1B", 1), ("256KiB", 262_144)] {
            assert_eq!(ByteSize::parse(text), Ok(ByteSize(bytes)));
            assert_eq!(ByteSize(bytes).to_string(), text);
        }
        assert_eq!(ByteSize::parse("10 mb"), Ok(ByteSize(10_000_000)));
        for bad in ["", "64", "KiB", "-1KiB", "1.5GiB", "99999999999999TiB", "1XB"] {
            assert!(ByteSize::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn levels_are_shares_numbers_or_sizes() {
        let gib = Level::Size(ByteSize::gib(4));
        for (text, level, of_1000) in [
            ("80%", Level::Share(80), Some(800.0)),
            ("100%", Level::Share(100), Some(1000.0)),
            ("0%", Level::Share(0), None),
            ("500", Level::Count(500), Some(500.0)),
            ("0", Level::Count(0), None),
            ("4GiB", gib, Some(4_294_967_296.0)),
            ("0B", Level::Size(ByteSize(0)), None),
        ] {
            assert_eq!((Level::parse(text), level.to_string().as_str()), (Ok(level), text));
            assert_eq!(level.of(1000), of_1000, "{text}");
        }
        assert_eq!(Level::Share(80).of(0), None, "a share of what has no bound");
        assert_eq!(Level::Count(5).of(0), Some(5.0));
        for bad in ["", "%", "101%", "-1%", "1.5%", "+5", "5 %", "many", "1XB", "18446744073709551616"] {
            assert!(Level::parse(bad).is_err(), "{bad}");
        }
    }
}
