//! A client's mask (RFC 6455 section 5.3).

/// Takes the mask off `payload` (section 5.3), eight bytes at a time, and turns it on to the byte that comes next.
pub(super) fn unmask(payload: &mut [u8], mask: &mut [u8; 4]) {
    let [a, b, c, d] = *mask;
    let wide = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let (words, tail) = payload.as_chunks_mut();
    for word in words {
        *word = (u64::from_ne_bytes(*word) ^ wide).to_ne_bytes();
    }
    // Eight is a multiple of four: the tail begins with the mask's first byte.
    for (byte, mask) in tail.iter_mut().zip(mask.iter().cycle()) {
        *byte ^= mask;
    }
    mask.rotate_left(tail.len() % 4);
}
