//! The WebSocket frame layer (RFC 6455 section 5), the server's side of it: bytes in and messages out, and back.
//!
//! Owns the frame format in both directions: [`FrameReader`] takes what a socket gave, in any cut, and hands out whole
//! messages; [`FrameBuilder`], [`text_frame`], [`binary_frame`] and [`ControlFrame`] make frames ready to be written.
//!
//! Rule: pure. No socket, no clock, no task; nothing is answered here. A peer's ping, close or mistake is told to the
//! caller, who decides what is sent.
//!
//! ```text
//!  0               1               2 ..                        (bytes)
//! +-+-+-+-+-------+-+-------------+-------------------+---------+----------+
//! |F|R|R|R|opcode |M| length      | extended length   | mask    | payload  |
//! |I|S|S|S|  (4)  |A|   (7)       | 126: 2 bytes      | 4 bytes |          |
//! |N|V|V|V|       |S|             | 127: 8 bytes      | if MASK |          |
//! | |1|2|3|       |K|             | else: none        |         |          |
//! +-+-+-+-+-------+-+-------------+-------------------+---------+----------+
//! ```
//!
//! Numbers are big-endian. What a client sends is always masked, what the server sends never. The RSV bits are zero both
//! ways, but for RSV1 in the first frame of a compressed message where permessage-deflate was negotiated (RFC 7692):
//! [`Extensions`] answers the offers, [`Deflated`] holds a frame's compressed forms.

mod deflate;
mod error;
mod extensions;
mod incoming;
mod mask;
mod read;
mod write;

#[cfg(test)]
pub use deflate::{DEFLATED_FRAMES, inflate};
pub use deflate::{Deflated, SharedForms, Window, deflate_frame};
pub use error::ReadError;
pub use extensions::{Extensions, MalformedOffer};
pub use incoming::Incoming;
pub use read::FrameReader;
pub use write::{ControlFrame, FrameBuilder, binary_frame, text_frame, write_header};

/// What a frame carries (RFC 6455 section 5.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Opcode {
    /// A further part of the message that an earlier frame opened.
    Continuation = 0x0,
    /// UTF-8 text.
    Text = 0x1,
    /// Bytes.
    Binary = 0x2,
    /// The closing handshake.
    Close = 0x8,
    /// A question for life.
    Ping = 0x9,
    /// Its answer.
    Pong = 0xA,
}

impl Opcode {
    /// The opcode of a frame's first byte, or `None` for the reserved ones. The upper four bits are not looked at.
    pub fn from_first_byte(first: u8) -> Option<Self> {
        match first & OPCODE_BITS {
            0x0 => Some(Self::Continuation),
            0x1 => Some(Self::Text),
            0x2 => Some(Self::Binary),
            0x8 => Some(Self::Close),
            0x9 => Some(Self::Ping),
            0xA => Some(Self::Pong),
            _ => None,
        }
    }
}

/// The longest payload of a control frame (section 5.5).
pub const CONTROL_PAYLOAD_BYTES_MAX: usize = 125;

const FIN: u8 = 0x80;
const RESERVED_BITS: u8 = 0x70;
/// "Per-message compressed" (RFC 7692 section 6).
const RSV1: u8 = 0x40;
const OPCODE_BITS: u8 = 0x0F;
const MASKED: u8 = 0x80;
const LENGTH_BITS: u8 = 0x7F;
/// The 7-bit length that says: two bytes of length follow.
const LENGTH_16: u8 = 126;
/// The 7-bit length that says: eight bytes of length follow.
const LENGTH_64: u8 = 127;
