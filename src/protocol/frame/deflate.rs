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

/// The end of a sync flush, which the compressor writes and the wire leaves out.
const FLUSHED: [u8; 4] = [0x00, 0x00, 0xFF, 0xFF];
/// A last block that holds [`PROBE`] as it is. Whoever inflates it behind a message, and gets just that and the end, has
/// met no block that was cut off: inside one it would be taken for that one's data.
const LAST: [u8; 13] = [0x01, 0x08, 0x00, 0xF7, 0xFF, b'p', b'u', b's', b'h', b'g', b'a', b't', b'e'];
const PROBE: &[u8; 8] = b"pushgate";
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

#[cfg(test)]
thread_local! {
    /// How often something was compressed on this thread.
    pub static DEFLATED_FRAMES: Cell<usize> = const { Cell::new(0) };
}

/// The compressed form of a whole data frame of the server. `None`: it is not worth it, below
/// [`limits::DEFLATE_BYTES_MIN`] or not smaller.
pub fn deflate_frame(frame: &[u8], window: Window) -> Option<Bytes> {
    let (first, payload) = payload(frame)?;
    if payload.len() < limits::DEFLATE_BYTES_MIN {
        return None;
    }
    #[cfg(test)]
    DEFLATED_FRAMES.with(|count| count.set(count.get() + 1));
    let bits = window.for_bytes(payload.len()).compressor_bits();
    let place = usize::from(bits != Window::LARGEST.bits());
    let kept = COMPRESSORS.with(|kept| kept[place].take()).filter(|made| made.window == bits);
    let mut compressor = kept.unwrap_or_else(|| {
        let stream = Compress::new_with_window_bits(Compression::new(limits::DEFLATE_LEVEL), false, bits);
        Box::new(Compressor { stream, window: bits, out: Vec::new() })
    });
    let whole = compressor.deflate(payload)?;
    let deflated = compressor.out[..whole].strip_suffix(&FLUSHED).filter(|made| made.len() < payload.len());
    let frame = deflated.map(|deflated| {
        let (header, length) = header(first | RSV1, deflated.len());
        Bytes::from([&header[header.len() - length..], deflated].concat())
    });
    if compressor.out.len() > KEPT_BYTES {
        compressor.out = Vec::new();
    }
    COMPRESSORS.with(|kept| kept[place].set(Some(compressor)));
    frame
}

impl Compressor {
    /// Compresses into `out`, up to and with a sync flush; how long that is. `None`: it came to no end, and this machine is
    /// not to be used again. zlib-rs 0.6.8 does not forget, with its reset, where in its buffer stood what it could not get
    /// rid of; the next message would find less room in it and panic. So there is room here for whatever it makes.
    fn deflate(&mut self, payload: &[u8]) -> Option<usize> {
        // Nine bits a byte at worst, and the flush.
        let room = payload.len() + payload.len() / 8 + 64;
        if self.out.len() < room {
            self.out.resize(room, 0);
        }
        self.stream.reset();
        let status = self.stream.compress(payload, &mut self.out, FlushCompress::Sync).ok()?;
        let written = usize::try_from(self.stream.total_out()).ok()?;
        // With room left it has written all there is.
        let ended = status == Status::Ok && self.stream.total_in() == payload.len() as u64 && written < self.out.len();
        ended.then_some(written)
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
pub fn inflate<T>(
    deflated: &[u8],
    limit: usize,
    take: impl FnOnce(&[u8]) -> Result<T, ReadError>,
) -> Result<T, ReadError> {
    // Taken out: what `take` does may come here again.
    let mut inflater =
        INFLATER.take().unwrap_or_else(|| Box::new(Inflater { stream: Decompress::new(false), out: Vec::new() }));
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
        for mut input in [deflated, &FLUSHED[..]] {
            // The room ended before what was read had all been written: there may be more of it, the last block's end too.
            let mut full = false;
            while full || !input.is_empty() {
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
                full = status != Status::StreamEnd && length == end && made > 0;
                if status == Status::StreamEnd {
                    // Its last block; another may follow in the message (section 7.2.3.4).
                    self.stream.reset(false);
                    ended = input.is_empty();
                } else if used == 0 && made == 0 && !input.is_empty() {
                    return Err(ReadError::Inflate);
                }
            }
            if ended {
                break;
            }
        }
        if length > limit {
            return Err(ReadError::MessageTooBig { limit });
        }
        if ended || self.is_between_blocks() { Ok(length) } else { Err(ReadError::Inflate) }
    }

    /// Whether the last block that was begun has been read whole. Nothing can be inflated after that.
    fn is_between_blocks(&mut self) -> bool {
        let (read, written, mut out) = (self.stream.total_in(), self.stream.total_out(), [0; LAST.len()]);
        let status = self.stream.decompress(&LAST, &mut out, FlushDecompress::None);
        let (used, made) = (self.stream.total_in() - read, self.stream.total_out() - written);
        matches!(status, Ok(Status::StreamEnd))
            && (used, made) == (LAST.len() as u64, PROBE.len() as u64)
            && out.starts_with(PROBE)
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

#[cfg(test)]
#[path = "../../../tests/support/inflate.rs"]
mod reference;

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;

    use proptest::{collection::vec, prelude::*};

    use super::{
        super::{FrameReader, Incoming, text_frame},
        *,
    };

    const LIMIT: usize = 64 * 1024;

    fn reading(deflated: &[u8], limit: usize) -> Result<Vec<u8>, ReadError> {
        inflate(deflated, limit, |bytes| Ok(bytes.to_vec()))
    }

    /// JSON as services send it.
    fn json(bytes: usize) -> Vec<u8> {
        let mut text = String::from("{\"items\":[");
        for n in 0_u64.. {
            let some = n.wrapping_mul(0x9E37_79B9_7F4A_7C15);
            text.push_str(&format!(
                "{{\"orderId\":{},\"status\":\"shipped\",\"of\":\"user{}\"}},",
                some % 99_991,
                some % 97
            ));
            if text.len() >= bytes {
                break;
            }
        }
        text.truncate(bytes);
        text.into_bytes()
    }

    #[test]
    fn the_examples_of_section_7_2_3_are_read() {
        // A block with a fixed code; stored; the last one of a stream; two blocks.
        for deflated in [
            &[0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00][..],
            &[0x00, 0x05, 0x00, 0xfa, 0xff, 0x48, 0x65, 0x6c, 0x6c, 0x6f, 0x00],
            &[0xf3, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00, 0x00],
            &[0xf2, 0x48, 0x05, 0x00, 0x00, 0x00, 0xff, 0xff, 0xca, 0xc9, 0xc9, 0x07, 0x00],
        ] {
            assert_eq!(reading(deflated, LIMIT).unwrap(), b"Hello", "{deflated:02x?}");
        }
        assert_eq!(reading(&[0x00], LIMIT).unwrap(), b"", "section 7.2.3.6");
        assert_eq!(reading(&[], LIMIT).unwrap(), b"");
    }

    #[test]
    fn what_refers_to_an_earlier_message_is_refused() {
        // Section 7.2.3.2: the second "Hello" of a client that keeps its window.
        assert_eq!(reading(&[0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00], LIMIT).unwrap(), b"Hello");
        assert_eq!(reading(&[0xf2, 0x00, 0x11, 0x00, 0x00], LIMIT), Err(ReadError::Inflate));
    }

    #[test]
    fn what_was_cut_off_is_refused() {
        let mut whole = deflate_frame(&text_frame(&json(2000)), Window::LARGEST).unwrap().to_vec();
        let deflated = whole.split_off(4);
        assert_eq!(reading(&deflated, LIMIT).unwrap(), json(2000));
        for length in 1..deflated.len() {
            assert_eq!(reading(&deflated[..length], LIMIT), Err(ReadError::Inflate), "{length}");
        }
    }

    #[test]
    fn what_stands_behind_a_message_is_none_of_it() {
        // A stored block, once the last one, that lacks all that could be behind it: it is cut off, for its sender has no more.
        for (first, missing) in [0, 1].into_iter().flat_map(|first| (1..=20).map(move |missing| (first, missing))) {
            let length: u8 = 5 + missing;
            let stored = [&[first, length, 0, !length, 0xFF][..], b"Hello"].concat();
            // Four bytes are behind every message, by section 7.2.2; what they then are is its sender's affair.
            let expected = if missing == 4 { Ok([b"Hello", &FLUSHED[..]].concat()) } else { Err(ReadError::Inflate) };
            assert_eq!(reading(&stored, LIMIT), expected, "{first}, {missing} bytes missing");
        }
    }

    #[test]
    fn a_last_block_may_end_where_the_room_does() {
        // Section 7.2.3.4: a message that ends with a last block, all read before it is all written.
        // The code for the end of a block has seven bits or more: only some messages have all of it in their last match's byte.
        for bytes in (1..4).chain(280..320).chain(4090..4100) {
            let plain: Vec<u8> = (0..bytes).map(|n| if n < bytes / 9 { (n * 7) as u8 } else { 0 }).collect();
            let mut stream = Compress::new(Compression::best(), false);
            let mut last = vec![0; bytes + 100];
            let status = stream.compress(&plain, &mut last, FlushCompress::Finish).unwrap();
            assert_eq!(status, Status::StreamEnd);
            last.truncate(stream.total_out() as usize);
            for room in [0, 1].into_iter().chain(bytes.saturating_sub(260)..=bytes + 1) {
                for limit in [bytes, LIMIT] {
                    let mut inflater = Inflater { stream: Decompress::new(false), out: vec![0; room] };
                    let length = inflater.inflate(&last, limit);
                    assert_eq!(length, Ok(bytes), "room for {room} at first, {limit} at most");
                    assert!(inflater.out[..bytes] == plain);
                }
            }
        }
    }

    #[test]
    fn a_bomb_costs_no_more_than_the_limit() {
        let mut stream = Compress::new(Compression::best(), false);
        let mut bomb = vec![0; 64 * 1024];
        stream.compress(&vec![0; 32 * 1024 * 1024], &mut bomb, FlushCompress::Sync).unwrap();
        bomb.truncate(stream.total_out() as usize);
        for limit in [0, 1, 100, LIMIT, 300_000] {
            let mut inflater = Inflater { stream: Decompress::new(false), out: Vec::new() };
            assert_eq!(inflater.inflate(&bomb, limit), Err(ReadError::MessageTooBig { limit }));
            assert!(inflater.stream.total_out() <= limit as u64 + 1, "{} made", inflater.stream.total_out());
            assert!(inflater.out.capacity() <= (2 * (limit + 1)).max(16), "{} held", inflater.out.capacity());
        }
        // What a thread keeps for the next message is bounded, too.
        assert_eq!(reading(&bomb, 1 << 20), Err(ReadError::MessageTooBig { limit: 1 << 20 }));
        let kept = INFLATER.take().unwrap();
        assert!(kept.out.capacity() <= KEPT_BYTES, "{}", kept.out.capacity());
    }

    #[test]
    fn the_limit_holds_to_the_byte() {
        for length in [300, 4096, 8192, 100_000] {
            let mut frame = deflate_frame(&text_frame(&vec![b'x'; length]), Window::LARGEST).unwrap().to_vec();
            let deflated = frame.split_off(if frame[1] == 126 { 4 } else { 2 });
            assert_eq!(reading(&deflated, length).unwrap().len(), length);
            assert_eq!(reading(&deflated, length - 1), Err(ReadError::MessageTooBig { limit: length - 1 }));
        }
    }

    #[test]
    fn little_and_what_gets_no_smaller_stay_plain() {
        let few = json(limits::DEFLATE_BYTES_MIN - 1);
        assert_eq!(deflate_frame(&text_frame(&few), Window::LARGEST), None);
        assert!(deflate_frame(&text_frame(&json(limits::DEFLATE_BYTES_MIN)), Window::LARGEST).is_some());
        let mut state = 1_u64;
        let mut noise = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        };
        let noise: Vec<u8> = (0..4000).map(|_| noise()).collect();
        assert_eq!(deflate_frame(&super::super::binary_frame(&noise), Window::LARGEST), None);
    }

    #[test]
    fn what_does_not_shrink_leaves_the_machine_as_good_as_new() {
        let mut state = 1_u64;
        let mut noise = |bytes: usize| -> Vec<u8> {
            let mut next = || {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (state >> 33) as u8
            };
            (0..bytes).map(|_| next()).collect()
        };
        // Each of these would take away from the room inside, were its end never fetched.
        for _ in 0..40 {
            assert_eq!(deflate_frame(&text_frame(&noise(60_000)), Window::LARGEST), None);
            let (mut frame, plain) =
                (deflate_frame(&text_frame(&json(60_000)), Window::LARGEST).unwrap().to_vec(), json(60_000));
            let deflated = frame.split_off(4);
            assert_eq!(reading(&deflated, 60_000).unwrap(), plain);
        }
    }

    #[test]
    fn no_window_is_exceeded() {
        for bits in 8..=15 {
            let window = Window::from_bits(bits).unwrap();
            for length in [256, 257, 300, 512, 513, 5000, 40_000, 200_000] {
                let plain = json(length);
                let Some(frame) = deflate_frame(&text_frame(&plain), window) else { continue };
                assert_eq!(frame[0], 0xC1);
                let (_, deflated) = payload(&[&[0x81], &frame[1..]].concat()).map(|(f, p)| (f, p.to_vec())).unwrap();
                let inflated = reference::message(&deflated, length).unwrap();
                assert_eq!(inflated.bytes, plain);
                assert!(inflated.furthest <= 1 << bits, "{} back in a window of 2^{bits}", inflated.furthest);
            }
        }
    }

    #[test]
    fn a_frame_is_compressed_once_for_all_who_may_share_it() {
        let forms = Deflated::default();
        let window = |bits| Window::from_bits(bits).unwrap();
        let short = text_frame(&json(1000));
        let first = forms.form(&short, Window::LARGEST).unwrap().as_ptr();
        assert_eq!(forms.form(&short, Window::LARGEST).unwrap().as_ptr(), first);
        assert_eq!(forms.form(&short, window(10)).unwrap().as_ptr(), first, "no longer than the window");
        let narrow = forms.form(&short, window(9)).unwrap().as_ptr();
        assert_ne!(narrow, first);
        assert_eq!(forms.form(&short, window(8)).unwrap().as_ptr(), narrow);
    }

    #[test]
    fn a_reader_tells_what_is_compressed_from_what_is_not() {
        let masked = |first: u8, payload: &[u8]| {
            let mut frame = vec![first, 0x80 | payload.len() as u8, 0, 0, 0, 0];
            frame.extend_from_slice(payload);
            frame
        };
        let hello = [0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00];
        let mut input = [
            masked(0xC1, &hello),
            masked(0x81, b"plain"),
            masked(0x41, &hello[..3]),
            masked(0x89, b"?"),
            masked(0x80, &hello[3..]),
            masked(0xC2, &hello),
        ]
        .concat();
        let mut heard = Vec::new();
        let read = FrameReader::inflating(LIMIT).feed(&mut input.clone(), &mut |incoming| {
            heard.push(match incoming {
                Incoming::Text(text) => text.to_owned(),
                Incoming::Binary(bytes) => format!("{} bytes", bytes.len()),
                other => format!("{other:?}"),
            });
            ControlFlow::Continue(())
        });
        assert_eq!(read, Ok(ControlFlow::Continue(())));
        assert_eq!(heard, ["Hello", "plain", "Ping(1 bytes)", "Hello", "5 bytes"]);
        let read = FrameReader::new(LIMIT).feed(&mut input, &mut |_| ControlFlow::Continue(()));
        assert_eq!(read, Err(ReadError::ReservedBits));
    }

    proptest! {
        #[test]
        fn what_is_compressed_is_what_others_inflate(
            parts in vec(vec(any::<u8>(), 1..60), 1..20),
            repeats in 1usize..200,
            bits in 8u8..=15,
        ) {
            let plain = parts.concat().repeat(repeats);
            let frame = deflate_frame(&super::super::binary_frame(&plain), Window::from_bits(bits).unwrap());
            if let Some(frame) = frame {
                let start = match frame[1] { 126 => 4, 127 => 10, _ => 2 };
                prop_assert!(frame.len() < super::super::binary_frame(&plain).len());
                prop_assert_eq!(&reading(&frame[start..], plain.len()).unwrap(), &plain);
                let inflated = reference::message(&frame[start..], plain.len()).unwrap();
                prop_assert_eq!(inflated.bytes, plain);
                prop_assert!(inflated.furthest <= 1 << bits);
            }
        }
    }
}
