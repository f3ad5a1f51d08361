//! What waits to be sent, and what waits for an answer; both bounded.
//!
//! A message leaves the queue when it is handed to the socket. From there on it may or may not have arrived, and it is
//! never sent a second time: at most once.

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;
use serde::Serialize;
use serde_json::value::RawValue;
use tokio::sync::oneshot;
use tokio_tungstenite::tungstenite::{Message as Frame, Utf8Bytes};

use super::{
    error::{RequestError, SendError},
    message::Message,
};
use crate::protocol::client::{self, Request};

/// What waits at most while there is a session to take it, where less may wait without one.
const ONLINE_MESSAGES_MIN: usize = 1024;
const ONLINE_BYTES_MIN: usize = 4 * 1024 * 1024;
/// Requests under way at once.
pub const REQUESTS_MAX: usize = 1024;

/// The bounds of the queue while there is no session.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub messages: usize,
    pub bytes: usize,
}

#[derive(Debug)]
struct Entry {
    frame: Frame,
    bytes: usize,
    /// The id of the request that it is.
    request: Option<String>,
}

/// An answer, or why there is none.
pub type Answer = Result<Message, RequestError>;

#[derive(Debug)]
struct Pending {
    tell: oneshot::Sender<Answer>,
    sent: bool,
}

/// See the module.
#[derive(Debug)]
pub struct Outbox {
    entries: VecDeque<Entry>,
    bytes: usize,
    bounds: Bounds,
    pending: HashMap<String, Pending>,
}

impl Outbox {
    pub fn new(bounds: Bounds) -> Self {
        Self { entries: VecDeque::new(), bytes: 0, bounds, pending: HashMap::new() }
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Takes a message to be sent.
    pub fn push(&mut self, frame: Frame, online: bool) -> Result<(), SendError> {
        self.push_entry(frame, None, online)
    }

    fn push_entry(&mut self, frame: Frame, request: Option<String>, online: bool) -> Result<(), SendError> {
        let bytes = frame.len();
        let Bounds { messages, bytes: most } = self.bounds;
        let (messages, most) =
            if online { (messages.max(ONLINE_MESSAGES_MIN), most.max(ONLINE_BYTES_MIN)) } else { (messages, most) };
        // A queue that may hold anything takes one message of any size.
        let fits = self.bytes.saturating_add(bytes) <= most || (self.entries.is_empty() && most > 0);
        if self.entries.len() >= messages || !fits {
            return Err(SendError::Full { messages: self.entries.len(), bytes: self.bytes });
        }
        self.bytes += bytes;
        self.entries.push_back(Entry { frame, bytes, request });
        Ok(())
    }

    /// Takes a request to be sent; what its answer comes by.
    pub fn ask(&mut self, id: &str, frame: Frame, online: bool) -> Result<oneshot::Receiver<Answer>, RequestError> {
        if self.pending.len() >= REQUESTS_MAX {
            return Err(RequestError::TooMany(REQUESTS_MAX));
        }
        self.push_entry(frame, Some(id.to_owned()), online)?;
        let (tell, answer) = oneshot::channel();
        self.pending.insert(id.to_owned(), Pending { tell, sent: false });
        Ok(answer)
    }

    /// Nobody waits for that answer any more; a request that has not left will not.
    pub fn forget(&mut self, id: &str) {
        if self.pending.remove(id).is_some_and(|pending| !pending.sent)
            && let Some(at) = self.entries.iter().position(|entry| entry.request.as_deref() == Some(id))
            && let Some(entry) = self.entries.remove(at)
        {
            self.bytes -= entry.bytes;
        }
    }

    /// The next one to hand to the socket, and its id where it is a request.
    pub fn pop(&mut self) -> Option<(Frame, Option<String>)> {
        let entry = self.entries.pop_front()?;
        self.bytes -= entry.bytes;
        if let Some(pending) = entry.request.as_ref().and_then(|id| self.pending.get_mut(id)) {
            pending.sent = true;
        }
        Some((entry.frame, entry.request))
    }

    /// An answer to a request. `Err`: nobody waits for it, and it is handed back.
    pub fn answer(&mut self, id: &str, answer: Answer) -> Result<(), Answer> {
        match self.pending.remove(id) {
            // Where the caller has just gone, so has his interest.
            Some(pending) => {
                let _ = pending.tell.send(answer);
                Ok(())
            }
            None => Err(answer),
        }
    }

    /// The connection ended: what had been sent of the requests gets no answer.
    pub fn lost(&mut self) {
        let sent = self.pending.extract_if(|_, pending| pending.sent);
        for (_, pending) in sent.collect::<Vec<_>>() {
            let _ = pending.tell.send(Err(RequestError::Lost));
        }
    }

    /// The client ended. How many messages had not left.
    pub fn end(&mut self) -> usize {
        for (_, pending) in self.pending.drain() {
            let _ = pending.tell.send(Err(RequestError::Ended));
        }
        self.bytes = 0;
        std::mem::take(&mut self.entries).len()
    }
}

/// A text message, checked by the gateway's own rules.
pub fn text(text: String) -> Result<Frame, SendError> {
    check(&text)?;
    Ok(Frame::Text(Utf8Bytes::from(text)))
}

/// A binary message: the length of the envelope, the envelope, the payload.
pub fn binary(envelope: &impl Serialize, payload: &[u8]) -> Result<Frame, SendError> {
    let envelope = to_json(envelope)?;
    check(&envelope)?;
    if fields(&envelope)?.contains_key("data") {
        return Err(SendError::NotAMessage("a binary message's payload is its `data`".to_owned()));
    }
    let length = u32::try_from(envelope.len())
        .map_err(|_| SendError::NotAMessage("an envelope of more than 4 GiB".to_owned()))?;
    let mut frame = Vec::with_capacity(4 + envelope.len() + payload.len());
    frame.extend_from_slice(&length.to_be_bytes());
    frame.extend_from_slice(envelope.as_bytes());
    frame.extend_from_slice(payload);
    Ok(Frame::Binary(Bytes::from(frame)))
}

/// An envelope with that `id`.
pub fn with_id(envelope: &impl Serialize, id: &str) -> Result<Frame, SendError> {
    let envelope = to_json(envelope)?;
    let mut fields = fields(&envelope)?;
    fields.insert("id".to_owned(), serde_json::value::to_raw_value(id).map_err(not_json)?);
    text(to_json(&fields)?)
}

/// As JSON text.
pub fn to_json(value: &impl Serialize) -> Result<String, SendError> {
    serde_json::to_string(value).map_err(not_json)
}

fn not_json(error: serde_json::Error) -> SendError {
    SendError::NotAMessage(format!("it cannot be written as JSON: {error}"))
}

/// The fields of an object, each as it was written.
fn fields(envelope: &str) -> Result<std::collections::BTreeMap<String, Box<RawValue>>, SendError> {
    serde_json::from_str(envelope).map_err(|_| SendError::NotAMessage("a message must be one JSON object".to_owned()))
}

fn check(text: &str) -> Result<(), SendError> {
    match client::decode(text) {
        Ok(message) => match message.request {
            Request::Auth(_) => Err(SendError::Reserved("auth")),
            Request::Ack(_) => Err(SendError::Reserved("ack")),
            _ => Ok(()),
        },
        Err(bad) => Err(SendError::NotAMessage(bad.message)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn frame(n: usize) -> Frame {
        text(json!({ "type": "say", "data": n }).to_string()).unwrap()
    }

    #[test]
    fn messages_keep_their_order_and_a_full_queue_says_so() {
        let mut outbox = Outbox::new(Bounds { messages: 2, bytes: 1000 });
        outbox.push(frame(1), false).unwrap();
        outbox.push(frame(2), false).unwrap();
        let full = outbox.push(frame(3), false).unwrap_err();
        assert_eq!(full, SendError::Full { messages: 2, bytes: frame(1).len() * 2 });
        outbox.push(frame(3), true).unwrap();
        assert_eq!(
            std::array::from_fn(|_| outbox.pop()),
            [Some((frame(1), None)), Some((frame(2), None)), Some((frame(3), None)), None]
        );
        assert_eq!(outbox.bytes, 0);
    }

    #[test]
    fn bytes_are_bounded_but_for_the_first_and_nothing_is_kept_where_none_may() {
        let mut outbox = Outbox::new(Bounds { messages: 10, bytes: 30 });
        let large = text(json!({ "type": "say", "data": "x".repeat(100) }).to_string()).unwrap();
        outbox.push(large, false).unwrap();
        assert!(matches!(outbox.push(frame(1), false), Err(SendError::Full { messages: 1, .. })));
        let mut none = Outbox::new(Bounds { messages: 0, bytes: 30 });
        assert_eq!(none.push(frame(1), false), Err(SendError::Full { messages: 0, bytes: 0 }));
        none.push(frame(1), true).unwrap();
    }

    #[tokio::test]
    async fn a_request_that_has_left_is_lost_with_its_connection_and_one_that_waits_is_not() {
        let mut outbox = Outbox::new(Bounds { messages: 10, bytes: 1000 });
        let first = outbox.ask("1", frame(1), false).unwrap();
        let mut second = outbox.ask("2", frame(2), false).unwrap();
        let third = outbox.ask("3", frame(3), false).unwrap();
        outbox.pop().unwrap();
        outbox.lost();
        assert!(matches!(first.await.unwrap(), Err(RequestError::Lost)));
        assert!(second.try_recv().is_err(), "it waits");
        outbox.forget("2");
        assert_eq!(outbox.pop(), Some((frame(3), Some("3".to_owned()))), "the one that nobody waits for is gone");
        let reply = || Message::from_text(r#"{"type":"reply","data":1}"#.into()).unwrap();
        assert!(outbox.answer("3", Ok(reply())).is_ok());
        assert_eq!(third.await.unwrap().unwrap().data(), Some("1"));
        assert!(outbox.answer("3", Ok(reply())).is_err(), "only once");
        assert_eq!((outbox.bytes, outbox.pending.len()), (0, 0));
    }

    #[tokio::test]
    async fn requests_are_bounded_and_end_with_the_client() {
        let mut outbox = Outbox::new(Bounds { messages: 10_000, bytes: 10_000_000 });
        let first = outbox.ask("first", frame(0), false).unwrap();
        for n in 1..REQUESTS_MAX {
            drop(outbox.ask(&n.to_string(), frame(n), false).unwrap());
        }
        assert_eq!(outbox.ask("more", frame(0), false).unwrap_err(), RequestError::TooMany(REQUESTS_MAX));
        assert_eq!(outbox.end(), REQUESTS_MAX);
        assert!(matches!(first.await.unwrap(), Err(RequestError::Ended)));
    }

    #[test]
    fn only_messages_of_the_protocol_are_taken() {
        for bad in ["", "x", "[]", "{}", r#"{"type":""}"#, r#"{"type":"a","id":5}"#] {
            assert!(matches!(text(bad.to_owned()), Err(SendError::NotAMessage(_))), "{bad}");
        }
        assert_eq!(text(r#"{"type":"ack","offset":1}"#.to_owned()), Err(SendError::Reserved("ack")));
        assert_eq!(text(r#"{"type":"auth","token":"t"}"#.to_owned()), Err(SendError::Reserved("auth")));
        assert!(with_id(&json!([1]), "7").is_err());
        let raw = RawValue::from_string(r#"{"type":"a","data":1.0e2,"id":"old"}"#.to_owned()).unwrap();
        assert_eq!(with_id(&raw, "7").unwrap().to_text().unwrap(), r#"{"data":1.0e2,"id":"7","type":"a"}"#);
    }

    #[test]
    fn a_binary_message_is_length_envelope_and_payload() {
        let frame = binary(&json!({ "type": "b" }), &[0, 255]).unwrap();
        assert_eq!(frame.into_data()[..], *b"\0\0\0\x0c{\"type\":\"b\"}\0\xff");
        assert!(binary(&json!({ "type": "b", "data": 1 }), &[]).is_err());
        assert!(binary(&json!("b"), &[]).is_err());
    }
}
