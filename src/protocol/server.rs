//! What the gateway says: every message a client can receive, encoded once into a whole WebSocket frame.
//!
//! A notification is encoded before its offset is known: the offset's place is left open at a fixed width (16
//! characters, as many as the largest offset has) and filled when the offset is assigned, so that no encoding happens
//! under a log's lock. An offset of fewer digits is padded with spaces in front, which JSON allows there.

use std::io::Write as _;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use serde::{Serialize, Serializer};

use super::{auth_code::AuthCode, error_code::ErrorCode, frame::FrameBuilder};
use crate::types::{Notification, Offset, Payload, Topic, UnixMillis};

/// Digits of [`Offset::MAX`].
const OFFSET_WIDTH: usize = 16;
/// Envelope, timestamps and frame header without payload and strings; a hint for the buffer only.
const ENVELOPE_BYTES: usize = 192;

fn json_string(out: &mut Vec<u8>, text: &str) {
    // Most are plain: ids and names.
    if text.bytes().all(|byte| byte >= b' ' && byte != b'"' && byte != b'\\') {
        out.push(b'"');
        out.extend_from_slice(text.as_bytes());
        out.push(b'"');
        return;
    }
    // Writing a str into a Vec cannot fail: neither the serializer nor the writer has an error to give.
    let _ = serde_json::to_writer(out, text);
}

/// A notification's frame with its offset still open.
#[derive(Debug)]
pub struct Draft {
    frame: FrameBuilder,
    /// Where the offset goes, behind the start of the payload.
    hole: Option<usize>,
}

impl Draft {
    /// The text frame: payload inline, bytes as base64.
    pub fn text(notification: &Notification, stored: bool, replayed: bool) -> Self {
        Self::text_as(notification, Manner { stored, replayed, reply_to: None })
    }

    /// The text frame of a `reply` to a client's request with that id.
    pub fn reply(notification: &Notification, reply_to: &str) -> Self {
        Self::text_as(notification, Manner { reply_to: Some(reply_to), ..Manner::default() })
    }

    fn text_as(notification: &Notification, manner: Manner<'_>) -> Self {
        let payload_bytes = match &notification.payload {
            Payload::Json(json) => json.len(),
            Payload::Binary(bytes) => bytes.len().div_ceil(3) * 4,
        };
        let mut frame = FrameBuilder::text(payload_bytes + ENVELOPE_BYTES);
        let out = frame.buf();
        let hole = envelope(out, notification, manner);
        match &notification.payload {
            Payload::Json(json) => {
                out.extend_from_slice(b",\"data\":");
                out.extend_from_slice(json);
            }
            Payload::Binary(bytes) => {
                out.extend_from_slice(b",\"dataBase64\":\"");
                // Base64 has no character that JSON escapes.
                let (start, length) = (out.len(), bytes.len().div_ceil(3) * 4);
                out.resize(start + length, 0);
                // It fits exactly: that is the length of what is padded.
                let written = STANDARD.encode_slice(bytes, &mut out[start..]).unwrap_or_default();
                debug_assert_eq!(written, length);
                out.push(b'"');
            }
        }
        out.push(b'}');
        Self { frame, hole }
    }

    /// The binary frame: a 4-byte big-endian length, the envelope without `data`, the payload.
    pub fn binary(notification: &Notification, stored: bool, replayed: bool) -> Self {
        Self::binary_as(notification, Manner { stored, replayed, reply_to: None })
    }

    /// The same of a `reply`.
    pub fn binary_reply(notification: &Notification, reply_to: &str) -> Self {
        Self::binary_as(notification, Manner { reply_to: Some(reply_to), ..Manner::default() })
    }

    fn binary_as(notification: &Notification, manner: Manner<'_>) -> Self {
        let payload = notification.payload.bytes();
        let mut frame = FrameBuilder::binary(payload.len() + ENVELOPE_BYTES);
        let out = frame.buf();
        let start = out.len();
        out.extend_from_slice(&[0; 4]);
        let hole = envelope(out, notification, manner);
        out.push(b'}');
        close_envelope(out, start);
        out.extend_from_slice(payload);
        Self { frame, hole }
    }

    /// The length of the message, without the frame's header.
    pub fn message_bytes(&self) -> usize {
        self.frame.payload_bytes()
    }

    /// Fills in the offset and closes the frame.
    pub fn seal(mut self, offset: Offset) -> Bytes {
        if let Some(hole) = self.hole {
            let slot = &mut self.frame.buf()[hole..hole + OFFSET_WIDTH];
            // 16 digits fill the slot exactly; fewer leave its leading spaces.
            let mut digits = [b' '; OFFSET_WIDTH];
            let _ = write!(&mut digits[..], "{:>OFFSET_WIDTH$}", offset.get());
            slot.copy_from_slice(&digits);
        }
        self.frame.finish()
    }
}

fn timestamp(out: &mut Vec<u8>, moment: UnixMillis) {
    out.extend_from_slice(b",\"timestamp\":\"");
    out.extend_from_slice(moment.rfc3339().as_bytes());
    out.push(b'"');
}

/// How a notification comes to a client.
#[derive(Clone, Copy, Default)]
struct Manner<'a> {
    stored: bool,
    replayed: bool,
    /// The id of the client's request that it answers.
    reply_to: Option<&'a str>,
}

/// Writes the envelope without its closing brace; returns where the offset goes.
fn envelope(out: &mut Vec<u8>, notification: &Notification, manner: Manner<'_>) -> Option<usize> {
    let Manner { stored, replayed, reply_to } = manner;
    out.extend_from_slice(b"{\"type\":");
    json_string(out, if reply_to.is_some() { "reply" } else { notification.type_name.as_str() });
    out.extend_from_slice(b",\"id\":");
    json_string(out, notification.id.as_str());
    let hole = stored.then(|| {
        out.extend_from_slice(b",\"offset\":");
        let hole = out.len();
        out.extend_from_slice(&[b' '; OFFSET_WIDTH]);
        hole
    });
    timestamp(out, notification.accepted_at);
    if let Some(id) = reply_to {
        out.extend_from_slice(b",\"replyTo\":");
        json_string(out, id);
    }
    if let Some(user) = &notification.from_user {
        out.extend_from_slice(b",\"fromUserId\":");
        json_string(out, user.as_str());
    }
    if let Some(topic) = &notification.topic {
        out.extend_from_slice(b",\"topic\":");
        json_string(out, topic.as_str());
    }
    if let Some(kind) = &notification.kind {
        out.extend_from_slice(b",\"kind\":");
        json_string(out, kind.as_str());
    }
    if replayed {
        out.extend_from_slice(b",\"replayed\":true");
    }
    hole
}

/// What a session is told when its token was accepted.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "the fields are those of protocol.md's auth_success")]
pub struct AuthSuccess<'a> {
    pub session_id: &'a str,
    pub user_id: &'a str,
    pub device: &'a str,
    pub pending: usize,
    pub gap: bool,
    pub store_epoch: &'a str,
    pub ack_mode: &'static str,
    pub heartbeat_interval_ms: u64,
    pub max_message_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_expires_at: Option<String>,
    /// Those that its token subscribed it to.
    #[serde(skip_serializing_if = "<[Topic]>::is_empty", serialize_with = "names")]
    pub topics: &'a [Topic],
    pub timestamp: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reply_to: Option<&'a str>,
}

fn names<S: Serializer>(topics: &&[Topic], out: S) -> Result<S::Ok, S::Error> {
    out.collect_seq(topics.iter().map(Topic::as_str))
}

/// A message of that type with the fields of `body`.
pub(super) fn message(type_name: &'static str, body: &impl Serialize) -> Bytes {
    #[derive(Serialize)]
    struct Tagged<'a, T> {
        r#type: &'static str,
        #[serde(flatten)]
        body: &'a T,
    }
    let mut frame = FrameBuilder::text(ENVELOPE_BYTES);
    // Only maps with keys that are not strings, and failing writers, make serde_json fail; here is neither.
    let _ = serde_json::to_writer(frame.buf(), &Tagged { r#type: type_name, body });
    frame.finish()
}

/// `auth_success`.
pub fn auth_success(body: &AuthSuccess<'_>) -> Bytes {
    message("auth_success", body)
}

/// `auth_failure`. The message must not hold the token.
pub fn auth_failure(code: AuthCode, text: &str, reply_to: Option<&str>, now: UnixMillis) -> Bytes {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Body<'a> {
        code: &'static str,
        message: &'a str,
        timestamp: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        reply_to: Option<&'a str>,
    }
    let body = Body { code: code.as_str(), message: text, timestamp: now.rfc3339().to_string(), reply_to };
    message("auth_failure", &body)
}

/// `error`.
pub fn error(code: ErrorCode, text: &str, reply_to: Option<&str>) -> Bytes {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Body<'a> {
        code: &'static str,
        message: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        reply_to: Option<&'a str>,
    }
    message("error", &Body { code: code.as_str(), message: text, reply_to })
}

/// `pong`.
pub fn pong(reply_to: Option<&str>, now: UnixMillis) -> Bytes {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Body<'a> {
        timestamp: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        reply_to: Option<&'a str>,
    }
    message("pong", &Body { timestamp: now.rfc3339().to_string(), reply_to })
}

/// `echo_response`, with the client's `data` as it came.
pub fn echo_response(data: &str, reply_to: Option<&str>, now: UnixMillis) -> Bytes {
    let mut frame = FrameBuilder::text(data.len() + ENVELOPE_BYTES);
    let out = frame.buf();
    out.extend_from_slice(b"{\"type\":\"echo_response\",\"data\":");
    out.extend_from_slice(data.as_bytes());
    echo_end(out, reply_to, now);
    frame.finish()
}

/// The same of bytes, as such where `binary` says that they are wanted so.
pub fn echo_response_of_bytes(bytes: &[u8], binary: bool, reply_to: Option<&str>, now: UnixMillis) -> Bytes {
    let begin = b"{\"type\":\"echo_response\"";
    if !binary {
        let mut frame = FrameBuilder::text(bytes.len().div_ceil(3) * 4 + ENVELOPE_BYTES);
        let out = frame.buf();
        out.extend_from_slice(begin);
        out.extend_from_slice(b",\"dataBase64\":\"");
        out.extend_from_slice(STANDARD.encode(bytes).as_bytes());
        out.push(b'"');
        echo_end(out, reply_to, now);
        return frame.finish();
    }
    let mut frame = FrameBuilder::binary(bytes.len() + ENVELOPE_BYTES);
    let out = frame.buf();
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(begin);
    echo_end(out, reply_to, now);
    close_envelope(out, start);
    out.extend_from_slice(bytes);
    frame.finish()
}

fn echo_end(out: &mut Vec<u8>, reply_to: Option<&str>, now: UnixMillis) {
    timestamp(out, now);
    if let Some(id) = reply_to {
        out.extend_from_slice(b",\"replyTo\":");
        json_string(out, id);
    }
    out.push(b'}');
}

/// Fills in the length of the envelope that began at `start`, behind four bytes for it.
fn close_envelope(out: &mut [u8], start: usize) {
    let length = u32::try_from(out.len() - start - 4).unwrap_or(u32::MAX);
    out[start..start + 4].copy_from_slice(&length.to_be_bytes());
}

/// `token_expiring`.
pub fn token_expiring(expires_at: UnixMillis) -> Bytes {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Body {
        expires_at: String,
    }
    message("token_expiring", &Body { expires_at: expires_at.rfc3339().to_string() })
}

/// `draining`.
pub fn draining(reconnect_after: std::time::Duration) -> Bytes {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Body {
        reconnect_after_ms: u64,
    }
    message("draining", &Body { reconnect_after_ms: u64::try_from(reconnect_after.as_millis()).unwrap_or(u64::MAX) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{NotificationId, TypeName, UserId};

    fn notification(payload: Payload) -> Notification {
        Notification {
            id: NotificationId::parse("n-\"1\"").unwrap(),
            type_name: TypeName::NOTIFICATION,
            payload,
            from_user: Some(UserId::parse("bob").unwrap()),
            topic: None,
            kind: None,
            collapse_key: None,
            not_for: [].into(),
            accepted_at: UnixMillis(1_769_852_100_123),
            expires_at: None,
        }
    }

    fn text_of(frame: &Bytes) -> &str {
        let header = match frame[1] {
            126 => 4,
            127 => 10,
            _ => 2,
        };
        std::str::from_utf8(&frame[header..]).unwrap()
    }

    #[test]
    fn json_is_passed_on_byte_for_byte() {
        let raw = "{ \"z\" : 1.0e2, \"a\":[ ] }";
        let draft = Draft::text(&notification(Payload::Json(Bytes::from_static(raw.as_bytes()))), true, false);
        let frame = draft.seal(Offset::new(1_769_852_100_123_456));
        assert_eq!(
            text_of(&frame),
            "{\"type\":\"notification\",\"id\":\"n-\\\"1\\\"\",\"offset\":1769852100123456,\
             \"timestamp\":\"2026-01-31T09:35:00.123Z\",\"fromUserId\":\"bob\",\"data\":{ \"z\" : 1.0e2, \"a\":[ ] }}"
        );
    }

    #[test]
    fn every_offset_fits_its_place_and_stays_json() {
        for offset in [0, 7, 999_999, Offset::MAX.get()] {
            let frame = Draft::text(&notification(Payload::NULL), true, true).seal(Offset::new(offset));
            let value: serde_json::Value = serde_json::from_str(text_of(&frame)).unwrap();
            assert_eq!(value["offset"], offset);
            assert_eq!(value["replayed"], true);
        }
    }

    #[test]
    fn what_is_not_stored_has_no_offset() {
        let frame = Draft::text(&notification(Payload::NULL), false, false).seal(Offset::ZERO);
        let value: serde_json::Value = serde_json::from_str(text_of(&frame)).unwrap();
        assert!(value.get("offset").is_none() && value.get("replayed").is_none());
        assert_eq!(value["data"], serde_json::Value::Null);
    }

    #[test]
    fn bytes_travel_as_base64_or_behind_their_envelope() {
        let note = notification(Payload::Binary(Bytes::from_static(&[0, 255, 1])));
        let text = Draft::text(&note, true, false).seal(Offset::new(5));
        let value: serde_json::Value = serde_json::from_str(text_of(&text)).unwrap();
        assert_eq!(value["dataBase64"], "AP8B");

        let binary = Draft::binary(&note, true, false).seal(Offset::new(5));
        assert_eq!(binary[0], 0x82);
        let body = &binary[if binary[1] == 126 { 4 } else { 2 }..];
        let length = u32::from_be_bytes(body[..4].try_into().unwrap()) as usize;
        let envelope: serde_json::Value = serde_json::from_slice(&body[4..4 + length]).unwrap();
        assert_eq!(envelope["offset"], 5);
        assert!(envelope.get("data").is_none() && envelope.get("dataBase64").is_none());
        assert_eq!(&body[4 + length..], &[0, 255, 1]);
    }

    #[test]
    fn a_reply_names_the_request_that_it_answers_and_not_its_own_type() {
        let note = notification(Payload::Binary(Bytes::from_static(b"ab")));
        let text = Draft::reply(&note, "r\"1").seal(Offset::ZERO);
        assert_eq!(
            text_of(&text),
            "{\"type\":\"reply\",\"id\":\"n-\\\"1\\\"\",\"timestamp\":\"2026-01-31T09:35:00.123Z\",\
             \"replyTo\":\"r\\\"1\",\"fromUserId\":\"bob\",\"dataBase64\":\"YWI=\"}"
        );
        let binary = Draft::binary_reply(&note, "r").seal(Offset::ZERO);
        let body = &binary[if binary[1] == 126 { 4 } else { 2 }..];
        let length = u32::from_be_bytes(body[..4].try_into().unwrap()) as usize;
        let envelope: serde_json::Value = serde_json::from_slice(&body[4..4 + length]).unwrap();
        assert_eq!((&envelope["type"], &envelope["replyTo"]), (&"reply".into(), &"r".into()));
        assert_eq!(&body[4 + length..], b"ab");
    }

    #[test]
    fn an_echo_brings_back_the_data_as_it_came() {
        let frame = echo_response("{ \"a\":1 }", Some("7"), UnixMillis(0));
        assert_eq!(
            text_of(&frame),
            "{\"type\":\"echo_response\",\"data\":{ \"a\":1 },\"timestamp\":\"1970-01-01T00:00:00.000Z\",\"replyTo\":\"7\"}"
        );
    }
}
