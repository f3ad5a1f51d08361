//! What a client can do wrong on the frame layer, and how it is told.
//!
//! Owns the close code and the reason of each mistake. Rule: a reason names what was wrong and never quotes a payload.

use crate::protocol::close::CloseCode;

/// How a client broke RFC 6455 or a limit. [`close_code`](Self::close_code) is the code of the close frame that answers
/// it, the `Display` text its reason (at most 123 bytes; no byte of the client's payload is in it).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// An RSV bit is set to which no negotiated extension gives a meaning (section 5.2): any of them but RSV1 in the first
    /// frame of a message where permessage-deflate was negotiated (RFC 7692 section 6).
    #[error("reserved bits are set that no negotiated extension uses here")]
    ReservedBits,
    /// Opcodes 3–7 and 11–15 (section 5.2).
    #[error("opcode {0} is reserved")]
    ReservedOpcode(u8),
    /// A control frame without FIN (section 5.5).
    #[error("a control frame must not be fragmented")]
    ControlFragmented,
    /// A control frame of more than 125 bytes (section 5.5).
    #[error("a control frame carries at most 125 bytes")]
    ControlTooLong,
    /// A continuation without a message to continue (section 5.4).
    #[error("a continuation frame without a message to continue")]
    ContinuationWithoutStart,
    /// A text or binary frame before the fragmented message ended (section 5.4).
    #[error("a new message began before the fragmented one ended")]
    MessageInterrupted,
    /// A client's frame without a mask (section 5.1).
    #[error("frames of a client must be masked")]
    Unmasked,
    /// A length in more bytes than it needs (section 5.2).
    #[error("a length of {0} must be written in its shortest form")]
    LengthNotMinimal(u64),
    /// A 64-bit length whose top bit is set (section 5.2).
    #[error("the top bit of a 64-bit length must be zero")]
    LengthTopBit,
    /// A message, or the sum of its fragments, over the limit.
    #[error("a message has at most {limit} bytes here")]
    MessageTooBig {
        /// The limit in force, in bytes.
        limit: usize,
    },
    /// A compressed message that cannot be inflated (RFC 7692 section 7.2.2).
    #[error("a compressed message is not valid deflate data")]
    Inflate,
    /// A text message that is not UTF-8 (section 8.1).
    #[error("a text message must be UTF-8")]
    TextNotUtf8,
    /// A close frame of one byte: neither empty nor a code (section 5.5.1).
    #[error("a close frame is empty or begins with a code of 2 bytes")]
    CloseCodeCut,
    /// A close code that must not be sent (section 7.4).
    #[error("close code {0} must not be sent")]
    CloseCodeInvalid(u16),
    /// A close reason that is not UTF-8 (section 5.5.1).
    #[error("a close reason must be UTF-8")]
    CloseReasonNotUtf8,
}

impl ReadError {
    /// The code to close with: 1007 for bad UTF-8 and bad deflate data, 1009 for size, 1002 for everything else.
    pub fn close_code(&self) -> CloseCode {
        match self {
            Self::TextNotUtf8 | Self::CloseReasonNotUtf8 | Self::Inflate => CloseCode::INVALID_UTF8,
            Self::MessageTooBig { .. } => CloseCode::TOO_BIG,
            Self::ReservedBits
            | Self::ReservedOpcode(_)
            | Self::ControlFragmented
            | Self::ControlTooLong
            | Self::ContinuationWithoutStart
            | Self::MessageInterrupted
            | Self::Unmasked
            | Self::LengthNotMinimal(_)
            | Self::LengthTopBit
            | Self::CloseCodeCut
            | Self::CloseCodeInvalid(_) => CloseCode::PROTOCOL,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::CLOSE_REASON_BYTES_MAX;

    #[test]
    fn every_reason_fits_into_a_close_frame() {
        let all = [
            ReadError::ReservedBits,
            ReadError::ReservedOpcode(15),
            ReadError::ControlFragmented,
            ReadError::ControlTooLong,
            ReadError::ContinuationWithoutStart,
            ReadError::MessageInterrupted,
            ReadError::Unmasked,
            ReadError::LengthNotMinimal(u64::MAX),
            ReadError::LengthTopBit,
            ReadError::MessageTooBig { limit: usize::MAX },
            ReadError::Inflate,
            ReadError::TextNotUtf8,
            ReadError::CloseCodeCut,
            ReadError::CloseCodeInvalid(u16::MAX),
            ReadError::CloseReasonNotUtf8,
        ];
        for error in all {
            assert!(error.to_string().len() <= CLOSE_REASON_BYTES_MAX, "{error}");
        }
    }
}
