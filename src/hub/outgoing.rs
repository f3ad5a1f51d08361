//! A notification as sessions are sent it.

use bytes::Bytes;

use super::outbox::Entry;
use crate::{
    protocol::server::Draft,
    types::{Notification, Offset, Payload, UnixMillis},
};

/// A notification on its way to sessions: encoded at most once a form, whatever the number of receivers.
#[derive(Debug)]
pub struct Outgoing {
    text: Bytes,
    /// The binary form, where the payload is bytes and someone asked for them as such.
    binary: Option<Bytes>,
    expires_at: Option<UnixMillis>,
}

impl Outgoing {
    /// Closes a draft. `binary` says whether some receiver may want the binary form.
    pub fn new(
        draft: Draft,
        notification: &Notification,
        offset: Option<Offset>,
        replayed: bool,
        binary: bool,
    ) -> Self {
        let stored = offset.is_some();
        let offset = offset.unwrap_or_default();
        let binary = (binary && matches!(notification.payload, Payload::Binary(_)))
            .then(|| Draft::binary(notification, stored, replayed).seal(offset));
        Self { text: draft.seal(offset), binary, expires_at: notification.expires_at }
    }

    /// A message that is the same in every form.
    pub fn of(frame: Bytes) -> Self {
        Self { text: frame, binary: None, expires_at: None }
    }

    /// Its bytes, in all its forms.
    pub fn bytes(&self) -> usize {
        self.text.len() + self.binary.as_ref().map_or(0, Bytes::len)
    }

    /// Whether it has one form only and is worth sending whenever.
    pub fn is_plain(&self) -> bool {
        self.binary.is_none() && self.expires_at.is_none()
    }

    /// The frame of the form that a session asked for.
    pub fn frame(&self, binary: bool) -> &Bytes {
        self.binary.as_ref().filter(|_| binary).unwrap_or(&self.text)
    }

    /// The same, as an outbox takes it.
    pub fn entry(&self, binary: bool, sequence: Option<u64>) -> Entry {
        Entry { expires_at: self.expires_at, sequence, ..Entry::message(self.frame(binary).clone()) }
    }
}
