//! The socket of a client in tests, and the frames that come through it.

use std::{
    borrow::Cow,
    io::{self, IoSlice},
    sync::Arc,
};

use parking_lot::Mutex;

use super::super::outbox::Wire;
use crate::protocol::frame::inflate;

/// A socket that takes as many bytes as it is told, and keeps them.
#[derive(Clone, Default)]
pub struct Line(pub Arc<Mutex<Taken>>);

#[derive(Default)]
pub struct Taken {
    pub bytes: Vec<u8>,
    /// How often it was written to, and took something.
    pub writes: usize,
    /// How many more it takes; `None`: any number.
    pub room: Option<usize>,
}

impl Wire for Line {
    fn try_write(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut taken = self.0.lock();
        let before = taken.bytes.len();
        for slice in slices {
            let count = taken.room.unwrap_or(usize::MAX).min(slice.len());
            taken.bytes.extend_from_slice(&slice[..count]);
            if let Some(room) = &mut taken.room {
                *room -= count;
            }
        }
        match taken.bytes.len() - before {
            0 => Err(io::ErrorKind::WouldBlock.into()),
            count => {
                taken.writes += 1;
                Ok(count)
            }
        }
    }
}

/// A whole frame of the server's (RFC 6455 section 5.2): opcode, payload, and the bytes it takes.
pub fn frame(bytes: &[u8]) -> Option<(u8, Cow<'_, [u8]>, usize)> {
    let (start, length) = match *bytes {
        [_, length @ ..=125, ..] => (2, usize::from(length)),
        [_, 126, high, low, ..] => (4, usize::from(u16::from_be_bytes([high, low]))),
        [] | [_] | [_, 126, ..] => return None,
        _ => panic!("no frame of these tests is so long"),
    };
    let payload = bytes.get(start..start + length)?;
    let payload = match bytes[0] & 0x40 {
        0 => Cow::Borrowed(payload),
        _ => Cow::Owned(inflate(payload, 1 << 20, |bytes| Ok(bytes.to_vec())).unwrap()),
    };
    Some((bytes[0] & 0x0F, payload, start + length))
}
