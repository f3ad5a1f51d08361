//! A notification as sessions are sent it.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;

use super::{Hub, outbox::Entry, send::SendError};
use crate::{
    metrics::Class,
    protocol::{
        frame::{SharedForms, Window},
        server::Draft,
    },
    types::{Notification, Offset, Payload, UnixMillis},
};

/// A notification on its way to sessions: encoded at most once a form, whatever the number of receivers.
#[derive(Debug)]
pub struct Outgoing {
    text: Bytes,
    /// The binary form, where the payload is bytes and someone asked for them as such.
    binary: Option<Bytes>,
    expires_at: Option<UnixMillis>,
    /// What it is counted as where it is not stored.
    class: Class,
    /// The compressed forms of both, once some receiver takes such.
    forms: [OnceLock<SharedForms>; 2],
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
        let (expires_at, class) = (notification.expires_at, Class::Transient);
        Self { binary, expires_at, class, ..Self::of(draft.seal(offset)) }
    }

    /// A reply to a client's request with that id, in its text form as `draft`.
    pub fn reply(draft: Draft, notification: &Notification, reply_to: &str) -> Self {
        let binary = matches!(notification.payload, Payload::Binary(_))
            .then(|| Draft::binary_reply(notification, reply_to).seal(Offset::ZERO));
        let (expires_at, class) = (notification.expires_at, Class::Request);
        Self { binary, expires_at, class, ..Self::of(draft.seal(Offset::ZERO)) }
    }

    /// A message of the protocol's own, which is the same in every form.
    pub fn of(frame: Bytes) -> Self {
        Self { text: frame, binary: None, expires_at: None, class: Class::System, forms: Default::default() }
    }

    /// The same, counted as something else where it is not stored.
    pub fn counted_as(self, class: Class) -> Self {
        Self { class, ..self }
    }

    /// What it is counted as where it is not stored.
    pub fn class(&self) -> Class {
        self.class
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

    /// The same, as an outbox takes it; `window` is the receiver's.
    pub fn entry(&self, binary: bool, window: Option<Window>, sequence: Option<u64>) -> Entry {
        let forms = window.map(|_| Arc::clone(self.forms(binary)));
        let class = if sequence.is_some() { Class::Durable } else { self.class };
        Entry { expires_at: self.expires_at, sequence, forms, class, ..Entry::message(self.frame(binary).clone()) }
    }

    fn forms(&self, binary: bool) -> &SharedForms {
        self.forms[usize::from(binary && self.binary.is_some())].get_or_init(Arc::default)
    }

    /// The text frame as a receiver with the largest window gets it: compressed, where that is worth it.
    pub fn deflated(&self) -> &Bytes {
        self.forms(false).form(&self.text, Window::LARGEST).unwrap_or(&self.text)
    }
}

impl Hub {
    /// Encodes but for the offset, and refuses what is too large.
    pub(super) fn draft(&self, notification: &Notification, stored: bool) -> Result<Draft, SendError> {
        // A replay says so, which makes the message a little longer; the limit holds for the first sending.
        self.fitting(Draft::text(notification, stored, false))
    }

    /// Refuses what is too large for a client.
    pub(super) fn fitting(&self, draft: Draft) -> Result<Draft, SendError> {
        let (bytes, limit) = (draft.message_bytes(), self.limits().notification_bytes.as_usize());
        if bytes > limit { Err(SendError::TooLarge { bytes, limit }) } else { Ok(draft) }
    }
}
