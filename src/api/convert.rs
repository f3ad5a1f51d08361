//! From the proto's types to the house's and back. Every field is checked here, once; all that is wrong with a
//! request is told at once.

use std::time::Duration;

use bytes::Bytes;
use prost_types::value::Kind;

use super::{
    error::{ApiError, Violation},
    proto,
};
use crate::{
    hub::Quotas,
    limits,
    protocol::client::depth_exceeds,
    types::{CollapseKey, Device, InvalidId, Notification, NotificationId, Payload, TypeName, UnixMillis, UserId},
};

/// Collects what is wrong with a request.
#[derive(Debug, Default)]
pub struct Checks(Vec<Violation>);

/// Fields that were checked one by one: all of them, or none.
pub trait AllPresent {
    /// What they are together.
    type Whole;
    /// Them, if each is there.
    fn all(self) -> Option<Self::Whole>;
}

macro_rules! all_present {
    ($($name:ident),+) => {
        impl<$($name),+> AllPresent for ($(Option<$name>,)+) {
            type Whole = ($($name,)+);
            #[allow(non_snake_case)]
            fn all(self) -> Option<Self::Whole> {
                let ($($name,)+) = self;
                Some(($($name?,)+))
            }
        }
    };
}
all_present!(A);
all_present!(A, B);
all_present!(A, B, C);
all_present!(A, B, C, D);
all_present!(A, B, C, D, E);
all_present!(A, B, C, D, E, F);

impl Checks {
    /// Notes what is wrong with a field.
    pub fn violation(&mut self, field: &'static str, description: String) {
        self.0.push(Violation { field: field.into(), description });
    }

    /// Notes what is wrong where `ok` is false.
    pub fn check(&mut self, field: &'static str, ok: bool, describe: impl FnOnce() -> String) {
        if !ok {
            self.violation(field, describe());
        }
    }

    /// A field that was parsed.
    pub fn field<T>(&mut self, field: &'static str, parsed: Result<T, InvalidId>) -> Option<T> {
        parsed.map_err(|error| self.violation(field, error.to_string())).ok()
    }

    /// A field that may be empty.
    pub fn optional<T>(
        &mut self,
        field: &'static str,
        text: &str,
        parse: impl FnOnce(&str) -> Result<T, InvalidId>,
    ) -> Option<Option<T>> {
        if text.is_empty() { Some(None) } else { self.field(field, parse(text)).map(Some) }
    }

    /// A device that may be left out; the unnamed one is an empty text.
    pub fn device(&mut self, device: Option<&str>) -> Option<Option<Device>> {
        self.field("device", device.map(Device::parse).transpose())
    }

    /// All fields, if nothing was wrong.
    pub fn finish<T: AllPresent>(self, fields: T) -> Result<T::Whole, ApiError> {
        match fields.all() {
            Some(whole) if self.0.is_empty() => Ok(whole),
            _ => Err(ApiError::Invalid(self.0)),
        }
    }

    /// The notification of a request. `stored`: whether one without a TTL gets `store.ttl`.
    pub fn notification(
        &mut self,
        notification: Option<proto::Notification>,
        quotas: Quotas,
        now: UnixMillis,
        stored: bool,
    ) -> Option<Notification> {
        let Some(notification) = notification else {
            self.violation("notification", "is required".to_owned());
            return None;
        };
        let id = match notification.id.as_str() {
            "" => Some(NotificationId::generate()),
            id => self.field("notification.id", NotificationId::parse(id)),
        };
        let type_name = self.field("notification.type", TypeName::parse(&notification.r#type));
        let from_user = self.optional("notification.from_user_id", &notification.from_user_id, UserId::parse);
        let collapse_key = self.optional("notification.collapse_key", &notification.collapse_key, CollapseKey::parse);
        let payload = self.payload(notification.payload);
        let ttl = match notification.ttl {
            None => Some(stored.then_some(quotas.ttl)),
            Some(ttl) => self.ttl(ttl, quotas.max_ttl).map(Some),
        };
        Some(Notification {
            id: id?,
            type_name: type_name?,
            payload: payload?,
            from_user: from_user?,
            topic: None,
            kind: None,
            collapse_key: collapse_key?,
            not_for: [].into(),
            accepted_at: now,
            expires_at: ttl?.map(|ttl| now.saturating_add(ttl)),
        })
    }

    fn ttl(&mut self, ttl: prost_types::Duration, max: Duration) -> Option<Duration> {
        match span(ttl) {
            // Less than a millisecond, and not zero, is a TTL all the same.
            Some(span) if span <= max => Some(if span.is_zero() { span } else { span.max(Duration::from_millis(1)) }),
            _ => {
                let max = humantime::format_duration(max);
                self.violation("notification.ttl", format!("must be from 0 to store.max_ttl, {max}"));
                None
            }
        }
    }

    fn payload(&mut self, payload: Option<proto::notification::Payload>) -> Option<Payload> {
        use proto::notification::Payload as Proto;
        match payload {
            None => Some(Payload::NULL),
            Some(Proto::Binary(bytes)) => Some(Payload::Binary(bytes)),
            Some(Proto::Json(text)) => match check_json(&text) {
                Ok(()) => Some(Payload::Json(Bytes::from(text))),
                Err(problem) => {
                    self.violation("notification.json", problem);
                    None
                }
            },
            Some(Proto::Data(value)) => {
                let mut out = Vec::new();
                match write_value(&mut out, &value) {
                    Ok(()) => Some(Payload::Json(out.into())),
                    Err(NotFinite) => {
                        self.violation("notification.data", "holds NaN or an infinity, which JSON cannot".to_owned());
                        None
                    }
                }
            }
        }
    }
}

/// Whether the text is one JSON value of bounded depth. The answer gives the place and repeats nothing of the text.
fn check_json(text: &str) -> Result<(), String> {
    if depth_exceeds(text.as_bytes(), limits::NOTIFICATION_JSON_DEPTH_MAX) {
        return Err(format!("nests deeper than {} levels", limits::NOTIFICATION_JSON_DEPTH_MAX));
    }
    match serde_json::from_str::<serde::de::IgnoredAny>(text) {
        Ok(_) => Ok(()),
        Err(error) => Err(format!("is not JSON at line {} column {}", error.line(), error.column())),
    }
}

struct NotFinite;

/// Largest magnitude below which every whole double is written as an integer.
const WHOLE_MAX: f64 = 9.0e18;

fn write_value(out: &mut Vec<u8>, value: &prost_types::Value) -> Result<(), NotFinite> {
    // Strings and finite numbers always serialise, and a Vec takes every write.
    fn json(out: &mut Vec<u8>, value: impl serde::Serialize) {
        let _ = serde_json::to_writer(out, &value);
    }
    match &value.kind {
        None | Some(Kind::NullValue(_)) => out.extend_from_slice(b"null"),
        Some(Kind::BoolValue(value)) => json(out, value),
        Some(Kind::StringValue(text)) => json(out, text),
        Some(Kind::NumberValue(number)) if !number.is_finite() => return Err(NotFinite),
        Some(Kind::NumberValue(number)) if number.fract() == 0.0 && number.abs() < WHOLE_MAX => {
            json(out, *number as i64)
        }
        Some(Kind::NumberValue(number)) => json(out, number),
        Some(Kind::ListValue(list)) => {
            out.push(b'[');
            for (index, value) in list.values.iter().enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                write_value(out, value)?;
            }
            out.push(b']');
        }
        Some(Kind::StructValue(fields)) => {
            out.push(b'{');
            for (index, (key, value)) in fields.fields.iter().enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                json(out, key);
                out.push(b':');
                write_value(out, value)?;
            }
            out.push(b'}');
        }
    }
    Ok(())
}

/// A span that a caller gives; `None` where it is negative or malformed.
pub fn span(span: prost_types::Duration) -> Option<Duration> {
    let (seconds, nanos) = (u64::try_from(span.seconds).ok()?, u32::try_from(span.nanos).ok()?);
    (nanos < 1_000_000_000).then(|| Duration::new(seconds, nanos))
}

/// A moment as the proto has it.
pub fn timestamp(at: UnixMillis) -> prost_types::Timestamp {
    prost_types::Timestamp {
        seconds: i64::try_from(at.0 / 1000).unwrap_or(i64::MAX),
        nanos: i32::try_from(at.0 % 1000).unwrap_or_default() * 1_000_000,
    }
}

/// A span as the proto has it.
pub fn duration(span: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(span.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(span.subsec_nanos()).unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUOTAS: Quotas = Quotas {
        ttl: Duration::from_secs(60),
        max_ttl: Duration::from_secs(3600),
        max_bytes: 0,
        pending_per_user: 10,
        devices_per_user: 2,
        device_ttl: Duration::from_secs(3600),
        overflow: crate::store::Overflow::Refuse,
        idempotency_window: Duration::from_secs(600),
    };

    fn parse(notification: proto::Notification) -> Result<Notification, ApiError> {
        let mut checks = Checks::default();
        let parsed = checks.notification(Some(notification), QUOTAS, UnixMillis(1000), true);
        checks.finish((parsed,)).map(|(notification,)| notification)
    }

    fn number(value: f64) -> proto::Notification {
        let kind = Some(Kind::NumberValue(value));
        let payload = Some(proto::notification::Payload::Data(prost_types::Value { kind }));
        proto::Notification { payload, ..Default::default() }
    }

    fn text(value: f64) -> String {
        String::from_utf8(parse(number(value)).unwrap().payload.bytes().to_vec()).unwrap()
    }

    fn fields(error: ApiError) -> Vec<String> {
        let ApiError::Invalid(violations) = error else { panic!("{error:?}") };
        violations.into_iter().map(|violation| violation.field.into_owned()).collect()
    }

    #[test]
    fn whole_doubles_are_written_without_a_fraction() {
        assert_eq!(text(1.0), "1");
        assert_eq!(text(-3.0), "-3");
        assert_eq!(text(9_007_199_254_740_991.0), "9007199254740991");
        assert_eq!(text(1.5), "1.5");
        assert_eq!(text(1e300), "1e+300");
    }

    #[test]
    fn what_json_cannot_hold_is_refused() {
        for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            assert_eq!(fields(parse(number(value)).unwrap_err()), ["notification.data"]);
        }
    }

    #[test]
    fn json_is_checked_and_kept_as_it_is() {
        let json = |text: &str| proto::Notification {
            payload: Some(proto::notification::Payload::Json(text.to_owned())),
            ..Default::default()
        };
        assert_eq!(parse(json(" [1.0] ")).unwrap().payload.bytes(), " [1.0] ");
        for bad in ["", "{", "[1,]", "nul", "1 2", "NaN"] {
            assert_eq!(fields(parse(json(bad)).unwrap_err()), ["notification.json"], "{bad}");
        }
        let deep = "[".repeat(200) + &"]".repeat(200);
        assert_eq!(fields(parse(json(&deep)).unwrap_err()), ["notification.json"]);
    }

    #[test]
    fn all_that_is_wrong_is_told_at_once() {
        let bad = proto::Notification {
            id: "i".repeat(129),
            r#type: "auth_success".into(),
            from_user_id: "\n".into(),
            collapse_key: "k".repeat(129),
            ttl: Some(prost_types::Duration { seconds: 3601, nanos: 0 }),
            ..Default::default()
        };
        let expected = [
            "notification.id",
            "notification.type",
            "notification.from_user_id",
            "notification.collapse_key",
            "notification.ttl",
        ];
        assert_eq!(fields(parse(bad).unwrap_err()), expected);
    }

    #[test]
    fn ttls_are_bounded_and_default_to_the_stores() {
        let ttl = |seconds, nanos| {
            let ttl = Some(prost_types::Duration { seconds, nanos });
            parse(proto::Notification { ttl, ..Default::default() })
        };
        assert_eq!(parse(proto::Notification::default()).unwrap().expires_at, Some(UnixMillis(61_000)));
        assert_eq!(ttl(0, 0).unwrap().expires_at, Some(UnixMillis(1000)), "now or never");
        assert_eq!(ttl(0, 1).unwrap().expires_at, Some(UnixMillis(1001)));
        assert_eq!(ttl(3600, 0).unwrap().expires_at, Some(UnixMillis(3_601_000)));
        for (seconds, nanos) in [(-1, 0), (0, -1), (3600, 1), (i64::MAX, 0), (0, i32::MAX)] {
            assert_eq!(fields(ttl(seconds, nanos).unwrap_err()), ["notification.ttl"], "{seconds} {nanos}");
        }
    }
}
