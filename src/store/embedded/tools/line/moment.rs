//! Moments, as an export has them.

use std::time::UNIX_EPOCH;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use crate::types::UnixMillis;

/// A moment.
#[derive(Clone, Copy, Debug)]
pub struct Moment(pub UnixMillis);

/// The first moment that RFC 3339 has no form for: the year 10000.
pub(super) const YEAR_10000: u64 = 253_402_300_800_000;

impl Serialize for Moment {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        if self.0.0 < YEAR_10000 { out.collect_str(&self.0.rfc3339()) } else { out.serialize_u64(self.0.0) }
    }
}

impl<'de> Deserialize<'de> for Moment {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Text(String),
            Millis(u64),
        }
        match Written::deserialize(input)? {
            Written::Millis(millis) => Ok(Moment(UnixMillis(millis))),
            Written::Text(text) => {
                let moment = humantime::parse_rfc3339(&text).map_err(D::Error::custom)?;
                let since = moment.duration_since(UNIX_EPOCH).map_err(D::Error::custom)?;
                Ok(Moment(UnixMillis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))))
            }
        }
    }
}
