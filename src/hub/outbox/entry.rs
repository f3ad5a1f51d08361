//! What an outbox holds: whole frames, each with what decides its fate.

use std::sync::Arc;

use bytes::Bytes;

use crate::{
    metrics::Class,
    protocol::frame::{SharedForms, Window, deflate_frame},
    types::UnixMillis,
};

const INLINE_BYTES: usize = 22;

/// The bytes of a whole frame. Small control frames lie inline.
#[derive(Clone, Debug)]
pub enum Frame {
    /// Encoded once, shared by every receiver.
    Shared(Bytes),
    /// A control frame.
    Inline(u8, [u8; INLINE_BYTES]),
}

impl Frame {
    /// A control frame from its bytes.
    pub fn control(bytes: &[u8]) -> Self {
        if bytes.len() > INLINE_BYTES {
            return Frame::Shared(Bytes::copy_from_slice(bytes));
        }
        let mut inline = [0; INLINE_BYTES];
        inline[..bytes.len()].copy_from_slice(bytes);
        Frame::Inline(bytes.len() as u8, inline)
    }

    /// Header and payload.
    pub fn as_slice(&self) -> &[u8] {
        match self {
            Frame::Shared(bytes) => bytes,
            Frame::Inline(len, bytes) => &bytes[..usize::from(*len)],
        }
    }

    pub(super) fn len(&self) -> usize {
        self.as_slice().len()
    }
}

/// A frame with what decides its fate.
#[derive(Debug)]
pub struct Entry {
    /// The frame.
    pub frame: Frame,
    /// How many messages it is: none for a control frame.
    pub messages: u16,
    /// Where each of its frames ends, where several were put together once for many sessions.
    pub ends: Option<Arc<[u32]>>,
    /// Not worth writing from then on.
    pub expires_at: Option<UnixMillis>,
    /// Its sequence in the session's window, where it is stored.
    pub sequence: Option<u64>,
    /// Its compressed forms, where others are sent it, too.
    pub forms: Option<SharedForms>,
    /// Whether it is in the form in which it is written.
    pub formed: bool,
    /// What it is counted as.
    pub class: Class,
}

impl Entry {
    /// A control frame.
    pub fn control(bytes: &[u8]) -> Self {
        Self::of_control(Frame::control(bytes))
    }

    pub(super) fn of_control(frame: Frame) -> Self {
        let class = Class::Control;
        Self { frame, messages: 0, ends: None, expires_at: None, sequence: None, forms: None, formed: true, class }
    }

    /// A message of the protocol's own, or another that is not stored and does not expire.
    pub fn message(frame: Bytes) -> Self {
        let (frame, class) = (Frame::Shared(frame), Class::System);
        Self { frame, messages: 1, ends: None, expires_at: None, sequence: None, forms: None, formed: false, class }
    }
}

impl Entry {
    /// Several messages that were put together; each of their frames ends at one of `ends`.
    pub fn together(frames: Bytes, ends: Arc<[u32]>, class: Class) -> Self {
        let messages = u16::try_from(ends.len()).unwrap_or(u16::MAX);
        Self { messages, ends: Some(ends), formed: true, class, ..Self::message(frames) }
    }

    /// Gives it the form in which it is written, before anything of it is. Returns how many bytes that saves.
    pub(super) fn form(&mut self, window: Window) -> usize {
        self.formed = true;
        let Frame::Shared(plain) = &self.frame else { return 0 };
        let deflated = match self.forms.take() {
            Some(forms) => forms.form(plain, window).cloned(),
            None => deflate_frame(plain, window),
        };
        let Some(deflated) = deflated else { return 0 };
        let saved = plain.len().saturating_sub(deflated.len());
        self.frame = Frame::Shared(deflated);
        saved
    }

    /// Leaves out the frames of which nothing was written, where `written` bytes of it, and not all, were.
    pub(super) fn keep_started(&mut self, written: usize) {
        let (Some(ends), Frame::Shared(bytes)) = (self.ends.take(), &mut self.frame) else { return };
        let started = ends.partition_point(|end| (*end as usize) <= written);
        if let Some(end) = ends.get(started) {
            bytes.truncate(*end as usize);
            self.messages = u16::try_from(started + 1).unwrap_or(u16::MAX);
        }
    }

    /// What it counts against the bound on what is not stored.
    pub(super) fn unstored_bytes(&self) -> usize {
        if self.messages > 0 && self.sequence.is_none() { self.frame.len() } else { 0 }
    }
}
