//! The lines of an export: JSON Lines, one object a row, named by its only key.
//!
//! ```text
//! {"export":{"version":1,"storeFormat":3,"engine":"sled","epoch":"…","mark":…,"exportedAt":"…"}}
//! {"counters":{"log":{"user":"ann"},"last":…,"lost":…}}
//! {"device":{"user":"ann","device":"phone","cursor":…,…}}
//! {"forgotten":{"user":"ann","device":"tablet","at":"…"}}
//! {"member":{"user":"ann","device":"phone","topic":"news","cursor":…,"began":…,"cause":"client"}}
//! {"notification":{"log":{"user":"ann"},"offset":…,"id":"…","type":"…",…,"data":…}}
//! {"id":{"log":"broadcast","id":"…","offset":…,"digest":"…","until":"…"}}
//! {"revocation":{"hash":"…","issuedBefore":"…","expiresAt":"…"}}
//! {"end":{"counters":…,…}}
//! ```
//!
//! A payload stands in `data` as it was written, byte for byte; JSON that would not come back so (line breaks in it,
//! space around it) is the text of `dataText`, and binary ones are `dataBase64`. Numbers are below 2^53; moments are
//! RFC 3339 with milliseconds, or a number of milliseconds where that has no such form. What follows from other rows
//! (pieces, expiry buckets, ends of ids, how much is pending) is not written down.

mod moment;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;
use uuid::Uuid;

pub use self::moment::Moment;

use crate::{
    store::{Counters, DeviceRow, MemberRow, Remembered},
    types::{
        CollapseKey, Device, InvalidId, LogId, Notification, NotificationId, Offset, Payload, Revocation, RevocationId,
        SubscriptionCause, Topic, TypeName, UnixMillis, UserId,
    },
};

/// The version of this form.
pub const VERSION: u32 = 1;

/// One line.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Line {
    Export(Header),
    Counters(CountersLine),
    Device(DeviceLine),
    Forgotten(ForgottenLine),
    Member(MemberLine),
    Notification(Box<NotificationLine>),
    Id(IdLine),
    Revocation(RevocationLine),
    End(End),
}

/// The first line.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Header {
    pub version: u32,
    pub store_format: u32,
    pub engine: String,
    pub epoch: Uuid,
    pub mark: u64,
    pub exported_at: Moment,
    /// Only what is stored of this user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
}

/// The last line: how many of each came before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct End {
    pub counters: u64,
    pub devices: u64,
    pub forgotten: u64,
    #[serde(default)]
    pub members: u64,
    pub notifications: u64,
    pub ids: u64,
    /// Exports of before there were any do not count them.
    #[serde(default)]
    pub revocations: u64,
    /// Rows that could not be read and are left out.
    pub unreadable: u64,
}

/// A log.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum LogName {
    User(String),
    Broadcast,
    Topic(String),
}

/// A log's counters, without those that follow from its notifications.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CountersLine {
    pub log: LogName,
    pub last: u64,
    pub lost: u64,
}

/// A device.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DeviceLine {
    pub user: String,
    pub device: String,
    pub cursor: u64,
    pub broadcast_cursor: u64,
    pub began: u64,
    pub lost: u64,
    pub created_at: Moment,
    pub last_seen: Moment,
}

/// A device that a user had.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ForgottenLine {
    pub user: String,
    pub device: String,
    pub at: Moment,
}

/// A device in a durable topic.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MemberLine {
    pub user: String,
    pub device: String,
    pub topic: String,
    pub cursor: u64,
    pub began: u64,
    pub cause: Cause,
}

/// Who wanted a device in a topic.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Cause {
    Client,
    Token,
    Caller,
}

/// A notification.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NotificationLine {
    pub log: LogName,
    pub offset: u64,
    pub id: String,
    #[serde(rename = "type")]
    pub type_name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topic: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub collapse_key: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_for: Vec<String>,
    pub accepted_at: Moment,
    pub expires_at: Option<Moment>,
    pub remembered: bool,
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "even_null")]
    pub data: Option<Box<RawValue>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_text: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_base64: Option<String>,
}

/// What a caller's own id stands for.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct IdLine {
    pub log: LogName,
    pub id: String,
    pub offset: u64,
    pub digest: String,
    pub until: Moment,
    pub sessions: u32,
}

/// Tokens that are void.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RevocationLine {
    pub hash: String,
    pub issued_before: Moment,
    pub expires_at: Moment,
}

/// A `data` that is `null` is there.
fn even_null<'de, D: Deserializer<'de>>(input: D) -> Result<Option<Box<RawValue>>, D::Error> {
    Box::<RawValue>::deserialize(input).map(Some)
}

/// Why a line does not stand for a row.
pub type Wrong = String;

impl LogName {
    pub fn of(log: &LogId) -> Self {
        match log {
            LogId::User(user) => LogName::User(user.as_str().to_owned()),
            LogId::Broadcast => LogName::Broadcast,
            LogId::Topic(topic) => LogName::Topic(topic.as_str().to_owned()),
        }
    }

    pub fn read(&self) -> Result<LogId, Wrong> {
        Ok(match self {
            LogName::User(user) => LogId::User(read(UserId::parse(user))?),
            LogName::Broadcast => LogId::Broadcast,
            LogName::Topic(topic) => LogId::Topic(read(Topic::parse(topic))?),
        })
    }
}

fn read<T>(parsed: Result<T, InvalidId>) -> Result<T, Wrong> {
    parsed.map_err(|error| error.to_string())
}

/// An offset, which must be one that was given: below the mark.
fn offset(number: u64, mark: u64) -> Result<Offset, Wrong> {
    if number < mark {
        return Ok(Offset::new(number));
    }
    Err(format!("the offset {number} is not below the mark {mark}"))
}

impl CountersLine {
    pub fn of(log: &LogId, counters: &Counters) -> Self {
        Self { log: LogName::of(log), last: counters.last.get(), lost: counters.lost.get() }
    }

    /// The log, and its counters with nothing pending.
    pub fn read(&self, mark: u64) -> Result<(LogId, Counters), Wrong> {
        let (last, lost) = (offset(self.last, mark)?, offset(self.lost, mark)?);
        Ok((self.log.read()?, Counters { last, lost, ..Counters::default() }))
    }
}

impl DeviceLine {
    pub fn of(user: &UserId, device: &Device, row: &DeviceRow) -> Self {
        Self {
            user: user.as_str().to_owned(),
            device: device.as_str().to_owned(),
            cursor: row.cursor.get(),
            broadcast_cursor: row.broadcast.get(),
            began: row.began.get(),
            lost: row.lost.get(),
            created_at: Moment(row.created_at),
            last_seen: Moment(row.last_seen),
        }
    }

    pub fn read(&self, mark: u64) -> Result<(UserId, Device, DeviceRow), Wrong> {
        let row = DeviceRow {
            cursor: offset(self.cursor, mark)?,
            broadcast: offset(self.broadcast_cursor, mark)?,
            began: offset(self.began, mark)?,
            lost: offset(self.lost, mark)?,
            created_at: self.created_at.0,
            last_seen: self.last_seen.0,
        };
        Ok((read(UserId::parse(&self.user))?, read(Device::parse(&self.device))?, row))
    }
}

impl ForgottenLine {
    pub fn of(user: &UserId, device: &Device, at: UnixMillis) -> Self {
        Self { user: user.as_str().to_owned(), device: device.as_str().to_owned(), at: Moment(at) }
    }

    pub fn read(&self) -> Result<(UserId, Device, UnixMillis), Wrong> {
        Ok((read(UserId::parse(&self.user))?, read(Device::parse(&self.device))?, self.at.0))
    }
}

impl MemberLine {
    pub fn of(user: &UserId, device: &Device, topic: &Topic, row: &MemberRow) -> Self {
        Self {
            user: user.as_str().to_owned(),
            device: device.as_str().to_owned(),
            topic: topic.as_str().to_owned(),
            cursor: row.cursor.get(),
            began: row.began.get(),
            cause: match row.cause {
                SubscriptionCause::Client => Cause::Client,
                SubscriptionCause::Token => Cause::Token,
                SubscriptionCause::Caller | SubscriptionCause::SessionEnded => Cause::Caller,
            },
        }
    }

    pub fn read(&self, mark: u64) -> Result<(UserId, Device, Topic, MemberRow), Wrong> {
        let cause = match self.cause {
            Cause::Client => SubscriptionCause::Client,
            Cause::Token => SubscriptionCause::Token,
            Cause::Caller => SubscriptionCause::Caller,
        };
        let row = MemberRow { cursor: offset(self.cursor, mark)?, began: offset(self.began, mark)?, cause };
        let (user, device) = (read(UserId::parse(&self.user))?, read(Device::parse(&self.device))?);
        Ok((user, device, read(Topic::parse(&self.topic))?, row))
    }
}

impl IdLine {
    pub fn of(log: &LogId, id: &NotificationId, remembered: &Remembered) -> Self {
        Self {
            log: LogName::of(log),
            id: id.as_str().to_owned(),
            offset: remembered.offset.get(),
            digest: format!("{:032x}", u128::from_be_bytes(remembered.digest)),
            until: Moment(remembered.until),
            sessions: remembered.sessions,
        }
    }

    pub fn read(&self, mark: u64) -> Result<(LogId, NotificationId, Remembered), Wrong> {
        let digest = read_hash(&self.digest, "digest")?;
        let (offset, until, sessions) = (offset(self.offset, mark)?, self.until.0, self.sessions);
        let remembered = Remembered { offset, digest, until, sessions };
        Ok((self.log.read()?, read(NotificationId::parse(&self.id))?, remembered))
    }
}

/// 16 bytes, as hexadecimal digits.
fn read_hash(text: &str, what: &str) -> Result<[u8; 16], Wrong> {
    let is_hex = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let number = if is_hex { u128::from_str_radix(text, 16).ok() } else { None };
    number.map(u128::to_be_bytes).ok_or_else(|| format!("the {what} is not 32 hexadecimal digits"))
}

impl RevocationLine {
    pub fn of(id: RevocationId, revocation: &Revocation) -> Self {
        Self {
            hash: format!("{id:?}"),
            issued_before: Moment(revocation.issued_before),
            expires_at: Moment(revocation.expires_at),
        }
    }

    pub fn read(&self) -> Result<(RevocationId, Revocation), Wrong> {
        let id = RevocationId::from_bytes(read_hash(&self.hash, "hash")?);
        Ok((id, Revocation { issued_before: self.issued_before.0, expires_at: self.expires_at.0 }))
    }
}

impl NotificationLine {
    pub fn of(log: &LogId, offset: Offset, notification: &Notification, remembered: bool) -> Self {
        let (mut data, mut data_text, mut data_base64) = (None, None, None);
        match &notification.payload {
            Payload::Binary(bytes) => data_base64 = Some(STANDARD.encode(bytes)),
            // Records with JSON that is not UTF-8 are not read.
            Payload::Json(bytes) => match as_it_is(&String::from_utf8_lossy(bytes)) {
                Ok(raw) => data = Some(raw),
                Err(text) => data_text = Some(text),
            },
        }
        Self {
            log: LogName::of(log),
            offset: offset.get(),
            id: notification.id.as_str().to_owned(),
            type_name: notification.type_name.as_str().to_owned(),
            from: notification.from_user.as_ref().map(|user| user.as_str().to_owned()),
            topic: notification.topic.as_ref().map(|topic| topic.as_str().to_owned()),
            kind: notification.kind.as_ref().map(|kind| kind.as_str().to_owned()),
            collapse_key: notification.collapse_key.as_ref().map(|key| key.as_str().to_owned()),
            not_for: notification.not_for.iter().map(|user| user.as_str().to_owned()).collect(),
            accepted_at: Moment(notification.accepted_at),
            expires_at: notification.expires_at.map(Moment),
            remembered,
            data,
            data_text,
            data_base64,
        }
    }

    pub fn read(self, mark: u64) -> Result<(LogId, Offset, Notification, bool), Wrong> {
        let payload = match (self.data, self.data_text, self.data_base64) {
            (Some(raw), None, None) => Payload::Json(Bytes::from(Box::<str>::from(raw).into_string())),
            (None, Some(text), None) => match serde_json::from_str::<serde::de::IgnoredAny>(&text) {
                Ok(_) => Payload::Json(Bytes::from(text)),
                Err(error) => return Err(format!("dataText is not JSON: {error}")),
            },
            (None, None, Some(text)) => match STANDARD.decode(text) {
                Ok(bytes) => Payload::Binary(bytes.into()),
                Err(error) => return Err(format!("dataBase64: {error}")),
            },
            _ => return Err("there must be one of data, dataText and dataBase64".into()),
        };
        let not_for = self.not_for.iter().map(|user| read(UserId::parse(user))).collect::<Result<Vec<_>, _>>()?;
        let notification = Notification {
            id: read(NotificationId::parse(&self.id))?,
            type_name: read(TypeName::parse(&self.type_name))?,
            payload,
            from_user: read(self.from.as_deref().map(UserId::parse).transpose())?,
            topic: read(self.topic.as_deref().map(Topic::parse).transpose())?,
            kind: read(self.kind.as_deref().map(TypeName::parse).transpose())?,
            collapse_key: read(self.collapse_key.as_deref().map(CollapseKey::parse).transpose())?,
            not_for: not_for.into(),
            accepted_at: self.accepted_at.0,
            expires_at: self.expires_at.map(|moment| moment.0),
        };
        Ok((self.log.read()?, offset(self.offset, mark)?, notification, self.remembered))
    }
}

/// JSON text that comes back byte for byte from the middle of a line; else the text.
fn as_it_is(text: &str) -> Result<Box<RawValue>, String> {
    let is_space = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_whitespace);
    let bytes = text.as_bytes();
    if is_space(bytes.first()) || is_space(bytes.last()) || bytes.iter().any(|byte| matches!(byte, b'\n' | b'\r')) {
        return Err(text.to_owned());
    }
    RawValue::from_string(text.to_owned()).map_err(|_| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(payload: Payload) -> Notification {
        Notification {
            id: NotificationId::parse("n1").unwrap(),
            type_name: TypeName::parse("order").unwrap(),
            payload,
            from_user: None,
            topic: None,
            kind: None,
            collapse_key: None,
            not_for: [].into(),
            accepted_at: UnixMillis(1_769_852_100_123),
            expires_at: None,
        }
    }

    fn written(payload: Payload) -> String {
        let line = NotificationLine::of(&LogId::Broadcast, Offset::new(7), &with(payload), true);
        serde_json::to_string(&Line::Notification(Box::new(line))).unwrap()
    }

    fn read_back(text: &str) -> Payload {
        match serde_json::from_str(text).unwrap() {
            Line::Notification(line) => line.read(8).unwrap().2.payload,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_line_reads_as_documented() {
        assert_eq!(
            written(Payload::Json(Bytes::from_static(b"{\"a\": 1.0}"))),
            r#"{"notification":{"log":"broadcast","offset":7,"id":"n1","type":"order","acceptedAt":"2026-01-31T09:35:00.123Z","expiresAt":null,"remembered":true,"data":{"a": 1.0}}}"#
        );
    }

    #[test]
    fn payloads_come_back_byte_for_byte_in_one_line() {
        let deep = "[".repeat(128) + &"]".repeat(128);
        for (text, field) in [
            ("1.0", "data"),
            ("null", "data"),
            ("{\"a\":1,\"a\":2}", "data"),
            ("[9007199254740993, 1e400, -0]", "data"),
            ("\"\\u00e4\u{2028}\"", "data"),
            (&deep, "data"),
            (" [1.0] ", "dataText"),
            ("{\n  \"a\": 1\r\n}", "dataText"),
        ] {
            let payload = Payload::Json(Bytes::from(text.to_owned()));
            let line = written(payload.clone());
            assert!(line.contains(&format!("\"{field}\":")) && !line.contains('\n'), "{line}");
            assert_eq!(read_back(&line), payload);
        }
        let payload = Payload::Binary(Bytes::from_static(&[0, 159, 255]));
        assert_eq!(read_back(&written(payload.clone())), payload);
    }

    #[test]
    fn moments_come_back_whenever_they_are() {
        for millis in [0, 1_769_852_100_123, moment::YEAR_10000 - 1, moment::YEAR_10000, u64::MAX] {
            let text = serde_json::to_string(&Moment(UnixMillis(millis))).unwrap();
            assert_eq!(serde_json::from_str::<Moment>(&text).unwrap().0, UnixMillis(millis), "{text}");
        }
    }

    #[test]
    fn a_notification_with_no_payload_or_two_is_refused() {
        let line = written(Payload::Json(Bytes::from_static(b"1")));
        for bad in [line.replace(",\"data\":1", ""), line.replace("\"data\":1", "\"data\":1,\"dataText\":\"1\"")] {
            match serde_json::from_str(&bad).unwrap() {
                Line::Notification(line) => assert!(line.read(8).unwrap_err().contains("one of data")),
                other => panic!("{other:?}"),
            }
        }
        let Line::Notification(line) = serde_json::from_str(&line).unwrap() else { panic!() };
        assert_eq!(line.read(7).unwrap_err(), "the offset 7 is not below the mark 7");
    }
}
