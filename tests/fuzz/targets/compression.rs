//! Both ways of permessage-deflate, against a reader of deflate data of its own.

use std::ops::ControlFlow;

use pushgate::{
    limits,
    protocol::frame::{Deflated, FrameReader, Incoming, Window, binary_frame, deflate_frame},
};

use super::{kind, size};
use crate::{
    inflate::{self, Bad},
    memory,
};

pub const WORDS: &[&[u8]] = &[
    b"\x00\x00\x00\xff\xff",
    b"\x01\x00\x00\xff\xff",
    b"\xf2\x48\xcd\xc9\xc9\x07\x00",
    b"\x03\x00",
    b"\x02\x02\x00\x00",
    b"\x00\x05\x00\xfa\xffHello",
    b"\x62\x60\xa0\x3d\x00",
];

/// An unmasked frame as a client would send it: with a mask of zeros.
fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first, 0x80 | 127];
    match payload.len() {
        short @ 0..126 => frame[1] = 0x80 | short as u8,
        medium @ 126..=0xFFFF => {
            frame[1] = 0x80 | 126;
            frame.extend_from_slice(&(medium as u16).to_be_bytes());
        }
        long => frame.extend_from_slice(&(long as u64).to_be_bytes()),
    }
    frame.extend_from_slice(&[0; 4]);
    frame.extend_from_slice(payload);
    frame
}

fn read(frame: &mut [u8], limit: usize) -> Result<Option<Vec<u8>>, u16> {
    let mut heard = None;
    let read = FrameReader::inflating(limit).feed(frame, &mut |incoming| {
        if let Incoming::Binary(bytes) = incoming {
            heard = Some(bytes.to_vec());
        }
        ControlFlow::Continue(())
    });
    read.map(|_| heard).map_err(|error| error.close_code().0)
}

/// The first byte says the limit, the rest is a compressed message.
pub fn inflate(input: &[u8]) -> u64 {
    let Some((&how, deflated)) = input.split_first() else { return 0 };
    let limit = [0, 1, 100, 258, 5000, 8192, 70_000, 1 << 20][usize::from(how & 7)];
    let mut frame = masked(0xC2, deflated);
    let (came, peak) = memory::peak_of(|| read(&mut frame, limit));
    // The machine of this thread, and the message twice.
    assert!(peak <= 3 * limit + 300_000, "held {peak} bytes with a limit of {limit}");
    let too_big = deflated.len() > limit + limit / 8 + 256;
    let expected = match inflate::message(deflated, limit) {
        _ if too_big => Err(1009),
        Ok(inflated) => Ok(Some(inflated.bytes)),
        Err(Bad::TooLong) => Err(1009),
        Err(_) => Err(1007),
    };
    assert!(came == expected || both_hold(&came, &expected, deflated), "{came:?}, and not {expected:?}");
    if let Ok(Some(bytes)) = &came {
        // Whatever room the thread's machine has of messages before it, it is the same message.
        let room = (bytes.len() * usize::from(how >> 3) / 31).clamp(1, 4096);
        make_room_for(room);
        assert_eq!(read(&mut masked(0xC2, deflated), limit), came, "with room for {room} at first");
    }
    kind((came.map(|bytes| bytes.map(|bytes| size(bytes.len()))), size(deflated.len()), how & 7, blocks(deflated)))
}

/// Leaves this thread's machine with a buffer of so many bytes, 4,096 at most: one that has grown large is let go, and a new
/// one is no larger than the limit asks for.
fn make_room_for(bytes: usize) {
    const LARGE: usize = 65_535;
    let stored = [&[0, 0xFF, 0xFF, 0, 0][..], &[0; LARGE], &[0, 2, 0, 0xFD, 0xFF, 1, 1, 0]].concat();
    let large = read(&mut masked(0xC2, &stored), 2 * LARGE);
    assert_eq!(large.map(|bytes| bytes.map(|bytes| bytes.len())), Ok(Some(LARGE + 2)));
    assert_eq!(read(&mut masked(0xC2, &[0]), bytes - 1), Ok(Some(Vec::new())));
}

/// What is too long and bad a little further on is refused for either; and so is what is cut off, and too long with what
/// stands behind it to find that out.
fn both_hold(came: &Result<Option<Vec<u8>>, u16>, expected: &Result<Option<Vec<u8>>, u16>, deflated: &[u8]) -> bool {
    match (came, expected, inflate::message(deflated, 1 << 24)) {
        (Err(1007), Err(1009), Err(why)) => why != Bad::TooLong,
        (Err(1009), Err(1007), Err(why)) => why == Bad::CutOff,
        _ => false,
    }
}

/// Something of what is in it, for there is more to see in what has blocks of other kinds.
fn blocks(deflated: &[u8]) -> u64 {
    deflated.first().map_or(0, |byte| u64::from(byte & 7))
}

/// The first byte says the window, the rest is a message of the server.
pub fn deflate(input: &[u8]) -> u64 {
    let Some((&how, plain)) = input.split_first() else { return 0 };
    let window = Window::from_bits(8 + how % 8).unwrap();
    // The inputs are short; what is compressed is not.
    let plain = plain.repeat(1 + usize::from(how >> 3) % 16);
    let frame = binary_frame(&plain);
    let forms = Deflated::default();
    let form = forms.form(&frame, window);
    assert_eq!(form.cloned(), deflate_frame(&frame, window), "a shared form and one made alone");
    // A byte over and over is small in any window; noise need not be.
    let even = plain.windows(2).all(|pair| pair[0] == pair[1]);
    assert!(form.is_some() || !even || plain.len() < limits::DEFLATE_BYTES_MIN, "{} equal bytes stay", plain.len());
    let Some(form) = form else { return kind((size(plain.len()), how % 8)) };
    assert_eq!(form[0], 0xC2);
    assert!(form.len() < frame.len(), "{} bytes of {}", form.len(), frame.len());
    let start = match form[1] {
        126 => 4,
        127 => 10,
        _ => 2,
    };
    let inflated = inflate::message(&form[start..], plain.len()).unwrap();
    assert_eq!(inflated.bytes, plain);
    assert!(inflated.furthest <= 1 << window.bits(), "{} back in 2^{}", inflated.furthest, window.bits());
    assert_eq!(read(&mut masked(0xC2, &form[start..]), plain.len()), Ok(Some(plain.clone())));
    kind((size(plain.len()), how % 8, size(form.len()), size(inflated.furthest)))
}
