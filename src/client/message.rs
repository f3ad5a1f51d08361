//! What arrives: the envelope read, the payload left as it came.

use std::{borrow::Cow, fmt, ops::Range, sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::value::RawValue;

use super::{Client, shared::Weaks};
use crate::protocol::ack_mode::AckMode;

/// A message from the gateway: a notification, what another client sent, or the answer to a request. Cheap to clone.
#[derive(Clone)]
pub struct Message(Arc<Inner>);

struct Inner {
    /// The envelope as text.
    text: Text,
    /// Where in it `data` is.
    data: Option<Range<usize>>,
    bytes: Option<Bytes>,
    fields: Fields,
    origin: Option<Origin>,
}

/// Whom to tell that it was handled.
struct Origin {
    client: Weaks,
    /// The number of the session that brought it.
    session: u64,
    /// Whether that is the reader's to say: there is no handler.
    manual: bool,
}

/// Text that shares its buffer with the frame it came in.
#[derive(Clone)]
struct Text(Bytes);

impl Text {
    fn as_str(&self) -> &str {
        // It was checked when it came; what is not text would be nothing.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

/// The fields of the envelope that matter here. Others are ignored.
#[derive(Default)]
pub(super) struct Fields {
    pub type_name: String,
    pub id: Option<Arc<str>>,
    pub offset: Option<u64>,
    pub timestamp: Option<String>,
    pub from_user_id: Option<String>,
    pub topic: Option<String>,
    pub kind: Option<String>,
    pub replayed: bool,
    pub reply_to: Option<String>,
    pub code: Option<String>,
    pub message: Option<String>,
}

/// The envelope on the wire.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Envelope<'a> {
    #[serde(borrow)]
    r#type: Cow<'a, str>,
    #[serde(borrow)]
    id: Option<Cow<'a, str>>,
    offset: Option<u64>,
    #[serde(borrow)]
    timestamp: Option<Cow<'a, str>>,
    #[serde(borrow)]
    from_user_id: Option<Cow<'a, str>>,
    #[serde(borrow)]
    topic: Option<Cow<'a, str>>,
    #[serde(borrow)]
    kind: Option<Cow<'a, str>>,
    #[serde(default)]
    replayed: bool,
    #[serde(borrow)]
    reply_to: Option<Cow<'a, str>>,
    #[serde(borrow)]
    code: Option<Cow<'a, str>>,
    #[serde(borrow)]
    message: Option<Cow<'a, str>>,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
    #[serde(borrow)]
    data_base64: Option<Cow<'a, str>>,
}

impl Message {
    /// Reads a text message. The error says what is wrong and repeats nothing of it.
    pub(super) fn from_text(text: Bytes) -> Result<Self, String> {
        Self::read(text, None)
    }

    /// Reads a binary message: a 4-byte big-endian length, so many bytes of the envelope, the payload.
    pub(super) fn from_binary(frame: &Bytes) -> Result<Self, String> {
        let Some((length, _)) = frame.split_first_chunk::<4>() else {
            return Err(format!("a binary message of {} bytes", frame.len()));
        };
        let length = u32::from_be_bytes(*length) as usize;
        let Some(end) = length.checked_add(4).filter(|end| *end <= frame.len()) else {
            return Err(format!("a binary message of {} bytes whose envelope has {length}", frame.len()));
        };
        Self::read(frame.slice(4..end), Some(frame.slice(end..)))
    }

    fn read(envelope: Bytes, payload: Option<Bytes>) -> Result<Self, String> {
        let text = std::str::from_utf8(&envelope).map_err(|_| "an envelope that is not UTF-8".to_owned())?;
        let read: Envelope<'_> = serde_json::from_str(text).map_err(|error| {
            let what = if error.is_data() { "a field that is missing or of another kind" } else { "not JSON" };
            format!("{what}, at line {} column {}", error.line(), error.column())
        })?;
        let own = |text: Option<Cow<'_, str>>| text.map(Cow::into_owned);
        let data = read.data.map(|data| {
            // A part of the text: the deserializer borrows it.
            let start = data.get().as_ptr() as usize - text.as_ptr() as usize;
            start..start + data.get().len()
        });
        let bytes = match (payload, read.data_base64) {
            (Some(payload), _) => Some(payload),
            (None, Some(encoded)) => Some(
                STANDARD.decode(encoded.as_bytes()).map_err(|_| "`dataBase64` that is not base64".to_owned())?.into(),
            ),
            (None, None) => None,
        };
        let fields = Fields {
            type_name: read.r#type.into_owned(),
            id: read.id.map(|id| Arc::from(&*id)),
            offset: read.offset,
            timestamp: own(read.timestamp),
            from_user_id: own(read.from_user_id),
            topic: own(read.topic),
            kind: own(read.kind),
            replayed: read.replayed,
            reply_to: own(read.reply_to),
            code: own(read.code),
            message: own(read.message),
        };
        Ok(Self(Arc::new(Inner { text: Text(envelope.clone()), data, bytes, fields, origin: None })))
    }

    /// Says whom to tell that it was handled.
    pub(super) fn of_client(mut self, client: Weaks, session: u64, manual: bool) -> Self {
        // Just read, so there is no other owner.
        if let Some(inner) = Arc::get_mut(&mut self.0) {
            inner.origin = Some(Origin { client, session, manual });
        }
        self
    }

    /// The number of the session that brought it.
    pub(super) fn session(&self) -> u64 {
        self.0.origin.as_ref().map_or(0, |origin| origin.session)
    }

    pub(super) fn fields(&self) -> &Fields {
        &self.0.fields
    }

    /// What it weighs in a queue.
    pub(super) fn weight(&self) -> usize {
        self.0.text.0.len() + self.0.bytes.as_ref().map_or(0, Bytes::len)
    }

    /// What its sender called it: `notification` where that was nothing.
    pub fn type_name(&self) -> &str {
        &self.0.fields.type_name
    }

    /// Its id, the same whenever it is delivered.
    pub fn id(&self) -> Option<&str> {
        self.0.fields.id.as_deref()
    }

    /// Its place in its log, where it is stored; what is not stored has none and comes once or never.
    pub fn offset(&self) -> Option<u64> {
        self.0.fields.offset
    }

    /// When the gateway accepted or made it: RFC 3339, UTC.
    pub fn timestamp(&self) -> Option<&str> {
        self.0.fields.timestamp.as_deref()
    }

    /// The user whose client sent it.
    pub fn from_user_id(&self) -> Option<&str> {
        self.0.fields.from_user_id.as_deref()
    }

    /// The topic that it was sent to.
    pub fn topic(&self) -> Option<&str> {
        self.0.fields.topic.as_deref()
    }

    /// What its sender called what he says, where a client sent it.
    pub fn kind(&self) -> Option<&str> {
        self.0.fields.kind.as_deref()
    }

    /// Whether it had to wait for this device, or was sent to it before.
    pub fn replayed(&self) -> bool {
        self.0.fields.replayed
    }

    /// The id of the message that it answers.
    pub fn reply_to(&self) -> Option<&str> {
        self.0.fields.reply_to.as_deref()
    }

    /// The payload as the sender wrote it, JSON; `None` where it is bytes, or nothing.
    pub fn data(&self) -> Option<&str> {
        self.0.data.clone().and_then(|range| self.0.text.as_str().get(range))
    }

    /// The payload as a type of your own. A message without JSON is read as `null`.
    ///
    /// # Errors
    /// The payload is something else.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        serde_json::from_str(self.data().unwrap_or("null"))
    }

    /// The payload where it is bytes, whether they came as such or as base64.
    pub fn bytes(&self) -> Option<&Bytes> {
        self.0.bytes.as_ref()
    }

    /// The whole envelope as it came, JSON: for fields that have no method here.
    pub fn envelope(&self) -> &str {
        self.0.text.as_str()
    }

    /// The client that it came to, to answer from a handler; `None` once that has been dropped.
    pub fn client(&self) -> Option<Client> {
        self.0.origin.as_ref().and_then(|origin| origin.client.upgrade())
    }

    /// Says that it was handled, where the client has no handler and reads [`Client::events`]: the gateway hears so once
    /// everything delivered before it was handled as well. Elsewhere, and a second time, it does nothing.
    pub fn ack(&self) {
        if let Some(origin) = self.0.origin.as_ref().filter(|origin| origin.manual)
            && let Some(shared) = origin.client.shared()
        {
            shared.handled(self);
        }
    }
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Message")
            .field("type", &self.type_name())
            .field("id", &self.id())
            .field("offset", &self.offset())
            .field("data_bytes", &self.data().map_or(0, str::len))
            .field("bytes", &self.bytes().map_or(0, Bytes::len))
            .finish_non_exhaustive()
    }
}

/// An authenticated session, as `auth_success` describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Session {
    /// Which session of this client it is, from 1.
    pub number: u64,
    /// Its id.
    pub id: String,
    /// The user whom the token names.
    pub user_id: String,
    /// The device; empty for the user's unnamed one.
    pub device: String,
    /// How many stored notifications waited for the device.
    pub pending: u64,
    /// Whether something that was meant for the device was dropped, so that the application must fetch its state anew.
    pub gap: bool,
    /// The age of the gateway's store: another one means that it began anew, and that offsets do not compare.
    pub store_epoch: String,
    /// How notifications are confirmed.
    pub ack_mode: AckMode,
    /// How long the gateway lets a session be silent.
    pub heartbeat_interval: Duration,
    /// The largest message that the gateway takes.
    pub max_message_bytes: u64,
    /// When the token runs out: RFC 3339, UTC. Newer than what the session began with where it was renewed.
    pub token_expires_at: Option<String>,
    /// The gateway's time at the start.
    pub timestamp: String,
}

/// `auth_success` on the wire.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Welcome {
    session_id: String,
    user_id: String,
    device: String,
    pending: u64,
    gap: bool,
    store_epoch: String,
    ack_mode: Option<AckMode>,
    heartbeat_interval_ms: u64,
    max_message_bytes: u64,
    token_expires_at: Option<String>,
    timestamp: String,
}

impl Default for Welcome {
    fn default() -> Self {
        Self {
            session_id: String::new(),
            user_id: String::new(),
            device: String::new(),
            pending: 0,
            gap: false,
            store_epoch: String::new(),
            ack_mode: None,
            heartbeat_interval_ms: 30_000,
            max_message_bytes: u64::MAX,
            token_expires_at: None,
            timestamp: String::new(),
        }
    }
}

impl Session {
    /// Reads `auth_success`.
    pub(super) fn read(envelope: &str, number: u64, asked: AckMode) -> Result<Self, String> {
        let read: Welcome = serde_json::from_str(envelope)
            .map_err(|error| format!("an `auth_success` with a field of another kind, at column {}", error.column()))?;
        Ok(Self {
            number,
            id: read.session_id,
            user_id: read.user_id,
            device: read.device,
            pending: read.pending,
            gap: read.gap,
            store_epoch: read.store_epoch,
            ack_mode: read.ack_mode.unwrap_or(asked),
            heartbeat_interval: Duration::from_millis(read.heartbeat_interval_ms),
            max_message_bytes: read.max_message_bytes,
            token_expires_at: read.token_expires_at,
            timestamp: read.timestamp,
        })
    }

    /// How long the token is good, seen from the gateway's own clock at the start or renewal.
    pub(super) fn token_lasts(&self) -> Option<Duration> {
        let end = humantime::parse_rfc3339(self.token_expires_at.as_deref()?).ok()?;
        let now = humantime::parse_rfc3339(&self.timestamp).unwrap_or_else(|_| std::time::SystemTime::now());
        Some(end.duration_since(now).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &'static str) -> Result<Message, String> {
        Message::from_text(Bytes::from_static(text.as_bytes()))
    }

    #[test]
    fn an_envelope_is_read_and_the_payload_left_as_it_came() {
        let message = text(
            r#"{"type":"order.created","id":"a\u0041","offset": 7,"timestamp":"T","fromUserId":"bob","topic":"t",
               "replayed":true,"new":{"x":[1]},"data":{ "z" : 1.0e2, "n":12345678901234567890123 }}"#,
        )
        .unwrap();
        assert_eq!((message.type_name(), message.id(), message.offset()), ("order.created", Some("aA"), Some(7)));
        assert_eq!((message.from_user_id(), message.topic(), message.replayed()), (Some("bob"), Some("t"), true));
        assert_eq!(message.data(), Some(r#"{ "z" : 1.0e2, "n":12345678901234567890123 }"#));
        assert_eq!(message.json::<serde_json::Value>().unwrap()["z"], 100.0);
        assert!(message.json::<Vec<u8>>().is_err() && message.bytes().is_none());
        let empty = text(r#"{"type":"pong"}"#).unwrap();
        assert_eq!((empty.id(), empty.data(), empty.json::<Option<u8>>().unwrap()), (None, None, None));
        empty.ack();
    }

    #[test]
    fn bytes_come_as_base64_or_behind_their_envelope() {
        assert_eq!(text(r#"{"type":"b","dataBase64":"AP8B"}"#).unwrap().bytes().unwrap()[..], [0, 255, 1]);
        let envelope = br#"{"type":"b","offset":5}"#;
        let mut frame = (envelope.len() as u32).to_be_bytes().to_vec();
        frame.extend_from_slice(envelope);
        frame.extend_from_slice(&[0, 255, 1]);
        let message = Message::from_binary(&frame.into()).unwrap();
        assert_eq!((message.offset(), &message.bytes().unwrap()[..]), (Some(5), &[0, 255, 1][..]));
    }

    #[test]
    fn what_is_no_message_is_refused_without_repeating_it() {
        for bad in ["", "secret", "[]", "{}", r#"{"type":5}"#, r#"{"type":"a","offset":-1}"#, r#"{"type":"a","id":{}}"#]
        {
            let error = text(bad).unwrap_err();
            assert!(!error.contains("secret"), "{error}");
        }
        assert!(text(r#"{"type":"a","dataBase64":"!"}"#).is_err());
        for bad in [&b""[..], b"\0\0\0", b"\0\0\0\x05{}", b"\xff\xff\xff\xff{}", b"\0\0\0\x02\xff\xff", b"\0\0\0\0"] {
            assert!(Message::from_binary(&Bytes::copy_from_slice(bad)).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_session_is_read_leniently_and_knows_how_long_its_token_is_good() {
        let session = Session::read(
            r#"{"type":"auth_success","sessionId":"s","userId":"u","device":"d","pending":2,"gap":true,"storeEpoch":"e",
               "ackMode":"transport","heartbeatIntervalMs":100,"maxMessageBytes":9,"new":1,
               "tokenExpiresAt":"2026-01-31T09:36:00.000Z","timestamp":"2026-01-31T09:35:00.000Z"}"#,
            3,
            AckMode::Client,
        )
        .unwrap();
        assert_eq!((session.ack_mode, session.pending, session.gap), (AckMode::Transport, 2, true));
        assert_eq!(session.token_lasts(), Some(Duration::from_secs(60)));
        let bare = Session::read(r#"{"type":"auth_success"}"#, 1, AckMode::Client).unwrap();
        assert_eq!((bare.ack_mode, bare.token_lasts()), (AckMode::Client, None));
        assert_eq!(bare.heartbeat_interval, Duration::from_secs(30));
    }
}
