//! permessage-deflate (RFC 7692), a message at a time: what is compressed refers to nothing before its message, in either
//! direction, so that a session holds no window.
//!
//! Owns the compressed form of a server's frame and the way back of a client's message. Rule: the machines (some 300 KiB
//! to compress, 40 KiB to inflate) belong to the threads, which make them when they first need them; what is inflated is
//! bounded while it is inflated.
//!
//! A compressed message ends in front of the empty stored block of a sync flush, whose last four bytes, always the same,
//! are not sent (section 7.2.1). So whoever inflates appends them.

use std::{
    cell::Cell,
    num::NonZeroU8,
    sync::{Arc, OnceLock},
};

use bytes::Bytes;
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use super::{FIN, LENGTH_16, LENGTH_64, LENGTH_BITS, RSV1, ReadError, write::header};
use crate::limits;

/// The end of a sync flush, which is not sent, and behind it a last block without content: whoever inflates up to its end
/// has met no block that was cut off.
const TAIL: [u8; 9] = [0x00, 0x00, 0xFF, 0xFF, 0x01, 0x00, 0x00, 0xFF, 0xFF];
/// What of [`TAIL`] the compressor writes, and the wire leaves out.
const FLUSHED: usize = 4;
/// The buffer that a thread keeps for the next message.
const KEPT_BYTES: usize = 64 * 1024;

/// How far back what the server compresses may refer: 2^8 to 2^15 bytes (`server_max_window_bits`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Window(NonZeroU8);

impl Window {
    /// 2^15 bytes, which is what a client takes that says nothing.
    pub const LARGEST: Self = Self(NonZeroU8::new(15).unwrap());

    /// A window of 2^`bits` bytes; `None` but for 8 to 15.
    pub fn from_bits(bits: u8) -> Option<Self> {
        NonZeroU8::new(bits).filter(|bits| (8..=15).contains(&bits.get())).map(Self)
    }

    /// The base-2 logarithm of its size.
    pub fn bits(self) -> u8 {
        self.0.get()
    }

    /// The window to compress `bytes` with: nothing in them is further back than they are long.
    fn for_bytes(self, bytes: usize) -> Self {
        if bytes <= 1 << self.bits() { Self::LARGEST } else { self }
    }

    /// The same as the compressor counts. It never refers further back than its window less 262 bytes, so that what it
    /// makes with 2^9 is good for a window of 2^8, which it has no other way to serve.
    fn compressor_bits(self) -> u8 {
        self.bits().max(9)
    }
}

struct Compressor {
    stream: Compress,
    window: u8,
    out: Vec<u8>,
}

thread_local! {
    /// For the largest window, and for the smaller one that was asked for last.
    static COMPRESSORS: [Cell<Option<Box<Compressor>>>; 2] = const { [Cell::new(None), Cell::new(None)] };
    static INFLATER: Cell<Option<Box<Inflater>>> = const { Cell::new(None) };
}

/// The compressed form of a whole data frame of the server. `None`: it is not worth it, below
/// [`limits::DEFLATE_BYTES_MIN`] or not smaller.
pub fn deflate_frame(frame: &[u8], window: Window) -> Option<Bytes> {
    let (first, payload) = payload(frame)?;
    if payload.len() < limits::DEFLATE_BYTES_MIN {
        return None;
    }
    let bits = window.for_bytes(payload.len()).compressor_bits();
    let place = usize::from(bits != Window::LARGEST.bits());
    let kept = COMPRESSORS.with(|kept| kept[place].take()).filter(|made| made.window == bits);
    let mut compressor = kept.unwrap_or_else(|| {
        let stream = Compress::new_with_window_bits(Compression::new(limits::DEFLATE_LEVEL), false, bits);
        Box::new(Compressor { stream, window: bits, out: Vec::new() })
    });
    let deflated = compressor.deflate(payload).map(|deflated| {
        let (header, length) = header(first | RSV1, deflated.len());
        Bytes::from([&header[header.len() - length..], deflated].concat())
    });
    if compressor.out.len() > KEPT_BYTES {
        compressor.out = Vec::new();
    }
    COMPRESSORS.with(|kept| kept[place].set(Some(compressor)));
    deflated
}

impl Compressor {
    fn deflate(&mut self, payload: &[u8]) -> Option<&[u8]> {
        // As long as what it is made of it would be no gain.
        let room = payload.len() + FLUSHED;
        if self.out.len() < room {
            self.out.resize(room, 0);
        }
        let out = &mut self.out[..room];
        self.stream.reset();
        // With room left it has written all there is, flush included.
        let status = self.stream.compress(payload, out, FlushCompress::Sync).ok()?;
        let written = usize::try_from(self.stream.total_out()).ok()?;
        let whole = status == Status::Ok && self.stream.total_in() == payload.len() as u64 && written < room;
        let deflated = whole.then(|| self.out[..written].strip_suffix(&TAIL[..FLUSHED]))??;
        (deflated.len() < payload.len()).then_some(deflated)
    }
}

/// The first byte of a whole, unmasked frame and its payload.
fn payload(frame: &[u8]) -> Option<(u8, &[u8])> {
    let [first, second, rest @ ..] = frame else { return None };
    debug_assert!(first & (FIN | RSV1) == FIN, "neither fragments nor what is compressed is compressed");
    let payload = match second & LENGTH_BITS {
        LENGTH_16 => rest.get(2..)?,
        LENGTH_64 => rest.get(8..)?,
        _ => rest,
    };
    Some((*first, payload))
}

/// A frame's compressed forms, made once each for all who are sent it, when the first of them is.
#[derive(Debug, Default)]
pub struct Deflated {
    /// For the largest window, and for all windows where the message is no longer than they are.
    largest: OnceLock<Option<Bytes>>,
    /// For those of 2^9 to 2^14 bytes, where it is.
    narrow: OnceLock<Box<[OnceLock<Option<Bytes>>; 6]>>,
}

impl Deflated {
    /// The form of `plain`, always the same whole frame, for a receiver with that window. `None`: send it plain.
    pub fn form(&self, plain: &[u8], window: Window) -> Option<&Bytes> {
        let (_, payload) = payload(plain)?;
        let bits = window.for_bytes(payload.len()).compressor_bits();
        let slot = match self.narrow_slot(bits) {
            Some(slot) => slot,
            None => &self.largest,
        };
        slot.get_or_init(|| deflate_frame(plain, window)).as_ref()
    }

    fn narrow_slot(&self, bits: u8) -> Option<&OnceLock<Option<Bytes>>> {
        if bits == Window::LARGEST.bits() {
            return None;
        }
        self.narrow.get_or_init(Box::default).get(usize::from(bits).checked_sub(9)?)
    }
}

/// Frames that share their compressed forms.
pub type SharedForms = Arc<Deflated>;

/// The most bytes that a compressed message of a client may take: what deflate at its clumsiest makes of one that is as
/// long as may be (as zlib's `deflateBound` has it), in whole blocks.
pub(super) fn deflated_bytes_max(message_bytes_max: u32) -> u32 {
    message_bytes_max.saturating_add(message_bytes_max >> 3).saturating_add(256)
}

struct Inflater {
    stream: Decompress,
    out: Vec<u8>,
}

/// Inflates a client's message, of which `deflated` is all that came, and hands it to `take`.
///
/// # Errors
/// [`ReadError::Inflate`], [`ReadError::MessageTooBig`] as soon as it is longer than `limit`.
pub(super) fn inflate<T>(
    deflated: &[u8],
    limit: usize,
    take: impl FnOnce(&[u8]) -> Result<T, ReadError>,
) -> Result<T, ReadError> {
    // Taken out: what `take` does may come here again.
    let mut inflater = INFLATER
        .take()
        .unwrap_or_else(|| Box::new(Inflater { stream: Decompress::new(false), out: Vec::new() }));
    let taken = inflater.inflate(deflated, limit).and_then(|length| take(&inflater.out[..length]));
    if inflater.out.len() > KEPT_BYTES {
        inflater.out = Vec::new();
    }
    INFLATER.set(Some(inflater));
    taken
}

impl Inflater {
    /// The length of the message, which is at the beginning of `out`.
    fn inflate(&mut self, deflated: &[u8], limit: usize) -> Result<usize, ReadError> {
        self.stream.reset(false);
        let mut length = 0;
        // A message without content may come without a block.
        let mut ended = deflated.is_empty();
        for mut input in [deflated, &TAIL[..]] {
            while !input.is_empty() {
                self.make_room(length, limit)?;
                let end = self.out.len().min(limit.saturating_add(1));
                let (read, written) = (self.stream.total_in(), self.stream.total_out());
                let status = self
                    .stream
                    .decompress(input, &mut self.out[length..end], FlushDecompress::None)
                    .map_err(|_| ReadError::Inflate)?;
                // No loss: both are parts of slices.
                let used = (self.stream.total_in() - read) as usize;
                let made = (self.stream.total_out() - written) as usize;
                input = &input[used..];
                length += made;
                if status == Status::StreamEnd {
                    // Its last block; another may follow in the message (section 7.2.3.4).
                    self.stream.reset(false);
                    ended = input.is_empty();
                } else if used == 0 && made == 0 {
                    return Err(ReadError::Inflate);
                }
            }
            if ended {
                return if length <= limit { Ok(length) } else { Err(ReadError::MessageTooBig { limit }) };
            }
        }
        Err(ReadError::Inflate)
    }

    /// Room for at least a byte behind the first `length`, up to one more than there may be.
    fn make_room(&mut self, length: usize, limit: usize) -> Result<(), ReadError> {
        if length > limit {
            return Err(ReadError::MessageTooBig { limit });
        }
        if length == self.out.len() {
            let doubled = (length * 2).max(4096);
            self.out.resize(doubled.min(limit.saturating_add(1)).max(length + 1), 0);
        }
        Ok(())
    }
}
