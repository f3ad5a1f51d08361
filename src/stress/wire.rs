//! The client's side of the wire without a socket: the handshake's request and answer, the gateway's frames, and frames
//! to it (RFC 6455).

use std::io::Cursor;

use tokio_tungstenite::tungstenite::{
    handshake::derive_accept_key,
    protocol::frame::{
        FrameHeader,
        coding::{Control, Data, OpCode},
    },
};

/// The longest head of a handshake's answer that is read.
pub const HEAD_BYTES_MAX: usize = 16 * 1024;
/// The largest frame that is taken.
const FRAME_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Why a peer is no gateway. One line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The answer to the handshake is another one than 101.
    #[error("HTTP {0}")]
    Status(u16),
    /// The answer to the handshake is none of RFC 6455.
    #[error("the handshake's answer is not one of WebSocket: {0}")]
    Handshake(&'static str),
    /// A frame breaks RFC 6455.
    #[error("a frame breaks RFC 6455: {0}")]
    Frame(&'static str),
}

/// Reads the answer to a handshake with this key. `None`: it is not whole yet; else its length.
pub fn answer(bytes: &[u8], key: &str) -> Result<Option<usize>, WireError> {
    let Some(end) = memchr::memmem::find(bytes, b"\r\n\r\n") else {
        let too_long = bytes.len() > HEAD_BYTES_MAX;
        return if too_long { Err(WireError::Handshake("its head has no end")) } else { Ok(None) };
    };
    let head = String::from_utf8_lossy(&bytes[..end]);
    let mut lines = head.split("\r\n");
    let status = lines.next().and_then(|line| line.strip_prefix("HTTP/1.")?.get(2..5)?.parse::<u16>().ok());
    match status {
        Some(101) => {}
        Some(status) => return Err(WireError::Status(status)),
        None => return Err(WireError::Handshake("it is not HTTP/1.1")),
    }
    let accepted = lines.filter_map(|line| line.split_once(':')).any(|(name, value)| {
        name.eq_ignore_ascii_case("sec-websocket-accept") && value.trim() == derive_accept_key(key.as_bytes())
    });
    if accepted { Ok(Some(end + 4)) } else { Err(WireError::Handshake("Sec-WebSocket-Accept is missing or wrong")) }
}

/// A frame from the gateway.
#[derive(Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// What it is.
    pub opcode: OpCode,
    /// Whether its message ends with it.
    pub last: bool,
    /// What it carries.
    pub payload: &'a [u8],
}

/// The frame at the start of `bytes`, and its length with its header. `None`: it is not whole yet.
pub fn frame(bytes: &[u8]) -> Result<Option<(Frame<'_>, usize)>, WireError> {
    let mut cursor = Cursor::new(bytes);
    let parsed = FrameHeader::parse(&mut cursor).map_err(|_| WireError::Frame("its opcode is reserved"))?;
    let Some((header, length)) = parsed else { return Ok(None) };
    if header.mask.is_some() {
        return Err(WireError::Frame("a server's must not be masked"));
    }
    if header.rsv1 || header.rsv2 || header.rsv3 {
        return Err(WireError::Frame("reserved bits are set"));
    }
    if length > FRAME_BYTES_MAX {
        return Err(WireError::Frame("it has more than 64 MiB"));
    }
    let (start, length) = (cursor.position() as usize, length as usize);
    let Some(payload) = bytes.get(start..start + length) else { return Ok(None) };
    Ok(Some((Frame { opcode: header.opcode, last: header.is_final, payload }, start + length)))
}

/// Appends a client's frame. `mask` is its masking key (section 5.3).
pub fn write(out: &mut Vec<u8>, opcode: OpCode, mask: [u8; 4], payload: &[u8]) {
    let header = FrameHeader { opcode, mask: Some(mask), ..FrameHeader::default() };
    // Writing to a vector cannot fail.
    let _ = header.format(payload.len() as u64, out);
    out.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
}

/// `text`.
pub const TEXT: OpCode = OpCode::Data(Data::Text);
/// `pong`.
pub const PONG: OpCode = OpCode::Control(Control::Pong);
/// `close`.
pub const CLOSE: OpCode = OpCode::Control(Control::Close);

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
    const GOOD: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\
                        sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

    #[test]
    fn the_rfcs_own_answer_is_taken_and_no_other() {
        assert_eq!(answer(GOOD.as_bytes(), KEY), Ok(Some(GOOD.len())));
        for cut in 0..GOOD.len() {
            assert_eq!(answer(&GOOD.as_bytes()[..cut], KEY), Ok(None));
        }
        let status = answer(b"HTTP/1.1 503 Service Unavailable\r\n\r\n", KEY).unwrap_err();
        assert_eq!(status.to_string(), "HTTP 503");
        assert!(matches!(answer(GOOD.as_bytes(), "x"), Err(WireError::Handshake(_))));
        assert!(matches!(answer(b"SSH-2.0\r\n\r\n", KEY), Err(WireError::Handshake(_))));
        assert!(matches!(answer(&[b'x'; HEAD_BYTES_MAX + 1], KEY), Err(WireError::Handshake(_))));
    }

    #[test]
    fn frames_are_read_whole_or_not_yet() {
        let bytes = b"\x81\x05Hello\x89\x00";
        let (first, used) = frame(bytes).unwrap().unwrap();
        assert_eq!((first.opcode, first.last, first.payload, used), (TEXT, true, &b"Hello"[..], 7));
        for cut in 0..7 {
            assert_eq!(frame(&bytes[..cut]), Ok(None));
        }
        assert!(matches!(frame(b"\x81\x80\0\0\0\0"), Err(WireError::Frame(_))), "masked");
        assert!(matches!(frame(b"\xc1\x00"), Err(WireError::Frame(_))), "a reserved bit");
        assert!(matches!(frame(b"\x83\x00"), Err(WireError::Frame(_))), "a reserved opcode");
        assert!(matches!(frame(b"\x82\x7f\x01\0\0\0\0\0\0\0"), Err(WireError::Frame(_))), "far too long");
    }

    #[test]
    fn a_client_masks_what_it_sends() {
        let mut out = Vec::new();
        write(&mut out, TEXT, [0x37, 0xfa, 0x21, 0x3d], b"Hello");
        // The example of section 5.7.
        assert_eq!(out, [0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58]);
    }
}
