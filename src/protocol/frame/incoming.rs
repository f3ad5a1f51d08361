//! What a client can say on the frame layer, borrowed from the buffer it was read into.
//!
//! Owns the split of a close frame's payload. Rule: whoever holds an [`Incoming`] need check nothing of RFC 6455 again.

use std::{fmt, str};

use super::ReadError;
use crate::protocol::close::CloseCode;

/// A message or control frame of a client, whole, unmasked and checked.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Incoming<'a> {
    /// A text message.
    Text(&'a str),
    /// A binary message.
    Binary(&'a [u8]),
    /// A ping, to be answered by a pong with the same payload of at most 125 bytes.
    Ping(&'a [u8]),
    /// A pong, whether asked for or not.
    Pong(&'a [u8]),
    /// The peer closes: its code and reason where it gave them. Nothing comes after it.
    Close(Option<(CloseCode, &'a str)>),
}

/// What a data message says that it is.
#[derive(Clone, Copy, Debug)]
pub(super) enum MessageKind {
    Text,
    Binary,
}

/// Control frames.
#[derive(Clone, Copy, Debug)]
pub(super) enum ControlKind {
    Close,
    Ping,
    Pong,
}

impl<'a> Incoming<'a> {
    /// Checks a whole message.
    pub(super) fn message(kind: MessageKind, bytes: &'a [u8]) -> Result<Self, ReadError> {
        Ok(match kind {
            MessageKind::Text => Self::Text(str::from_utf8(bytes).map_err(|_| ReadError::TextNotUtf8)?),
            MessageKind::Binary => Self::Binary(bytes),
        })
    }

    /// Checks a whole control frame's payload.
    pub(super) fn control(kind: ControlKind, payload: &'a [u8]) -> Result<Self, ReadError> {
        match kind {
            ControlKind::Ping => Ok(Self::Ping(payload)),
            ControlKind::Pong => Ok(Self::Pong(payload)),
            ControlKind::Close => Self::close(payload),
        }
    }

    /// Reads the payload of a close frame (section 5.5.1): nothing, or a code of two bytes and a reason.
    pub(super) fn close(payload: &'a [u8]) -> Result<Self, ReadError> {
        if payload.is_empty() {
            return Ok(Self::Close(None));
        }
        let (&code, reason) = payload.split_first_chunk().ok_or(ReadError::CloseCodeCut)?;
        let code = CloseCode(u16::from_be_bytes(code));
        if !code.is_valid_from_peer() {
            return Err(ReadError::CloseCodeInvalid(code.0));
        }
        let reason = str::from_utf8(reason).map_err(|_| ReadError::CloseReasonNotUtf8)?;
        Ok(Self::Close(Some((code, reason))))
    }
}

impl fmt::Debug for Incoming<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Sizes only: payloads must not reach a log.
        match self {
            Self::Text(text) => write!(f, "Text({} bytes)", text.len()),
            Self::Binary(bytes) => write!(f, "Binary({} bytes)", bytes.len()),
            Self::Ping(bytes) => write!(f, "Ping({} bytes)", bytes.len()),
            Self::Pong(bytes) => write!(f, "Pong({} bytes)", bytes.len()),
            Self::Close(None) => f.write_str("Close"),
            Self::Close(Some((code, reason))) => write!(f, "Close({}, {} bytes)", code.0, reason.len()),
        }
    }
}
