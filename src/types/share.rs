//! A share of all there is, such as of the calls that are traced.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// In millionths.
const WHOLE: u32 = 1_000_000;
/// What one looks like.
const HELP: &str =
    "write a share in quotes, from \"0%\" to \"100%\", with four digits behind the point at most, such as \"0.5%\"";

/// From nothing to all, in steps of a millionth.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Share(u32);

impl Share {
    /// So many hundredths; all, where they are more.
    pub const fn percent(hundredths: u32) -> Self {
        if hundredths >= 100 { Self(WHOLE) } else { Self(hundredths * (WHOLE / 100)) }
    }

    /// Reads a share: `1%`, `0.05%`.
    pub fn parse(text: &str) -> Result<Self, InvalidShare> {
        let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
        let read = || {
            let number = text.trim().strip_suffix('%')?;
            let (whole, part) = number.split_once('.').unwrap_or((number, "0"));
            let fits = (1..=3).contains(&whole.len()) && (1..=4).contains(&part.len());
            if !fits || !digits(whole) || !digits(part) {
                return None;
            }
            let share = whole.parse::<u32>().ok()? * 10_000 + format!("{part:0<4}").parse::<u32>().ok()?;
            (share <= WHOLE).then_some(Self(share))
        };
        read().ok_or_else(|| InvalidShare(text.to_owned()))
    }

    /// From 0 to 1.
    pub fn ratio(self) -> f64 {
        f64::from(self.0) / f64::from(WHOLE)
    }
}

/// A text that is no share.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a share; {HELP}")]
pub struct InvalidShare(String);

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let part = format!("{:04}", self.0 % 10_000);
        let part = part.trim_end_matches('0');
        write!(f, "{}{}{part}%", self.0 / 10_000, if part.is_empty() { "" } else { "." })
    }
}

impl<'de> Deserialize<'de> for Share {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).map_err(D::Error::custom)
    }
}

impl Serialize for Share {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_read_and_written() {
        for (text, ratio) in [("0%", 0.0), ("1%", 0.01), ("0.05%", 0.0005), ("12.5%", 0.125), ("100%", 1.0)] {
            let share = Share::parse(text).unwrap();
            assert_eq!((share.to_string().as_str(), share.ratio()), (text, ratio));
        }
        assert_eq!((Share::percent(1).to_string(), Share::percent(200).ratio()), ("1%".to_owned(), 1.0));
        for bad in ["", "%", "1", "101%", "100.0001%", "-1%", ".5%", "1.%", "0.00001%", "1e2%", "0001%", "é%"] {
            assert!(Share::parse(bad).is_err(), "{bad}");
        }
    }
}
