//! Close codes: which there are, what they tell the client, which a caller may choose.

/// A WebSocket close code (RFC 6455 section 7.4) as the gateway sends or records it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CloseCode(pub u16);

impl CloseCode {
    /// Closed on purpose; the client stays away.
    pub const NORMAL: CloseCode = CloseCode(1000);
    /// RFC 6455 was violated.
    pub const PROTOCOL: CloseCode = CloseCode(1002);
    /// A binary message that is not one of the protocol's.
    pub const UNSUPPORTED: CloseCode = CloseCode(1003);
    /// Recorded where a close frame had no code; never sent.
    pub const NO_STATUS: CloseCode = CloseCode(1005);
    /// Recorded where the connection broke; never sent.
    pub const ABNORMAL: CloseCode = CloseCode(1006);
    /// Text that is not UTF-8.
    pub const INVALID_UTF8: CloseCode = CloseCode(1007);
    /// Against an operator's policy.
    pub const POLICY: CloseCode = CloseCode(1008);
    /// A message over the limit.
    pub const TOO_BIG: CloseCode = CloseCode(1009);
    /// The gateway failed.
    pub const INTERNAL: CloseCode = CloseCode(1011);
    /// The gateway restarts or drains; the client comes back.
    pub const RESTART: CloseCode = CloseCode(1012);
    /// Over a limit; the client tries again later.
    pub const TRY_LATER: CloseCode = CloseCode(1013);
    /// Too many bad messages.
    pub const BAD_MESSAGES: CloseCode = CloseCode(4400);
    /// The token is missing, wrong or has run out.
    pub const UNAUTHORIZED: CloseCode = CloseCode(4401);
    /// Nothing was received, or nothing confirmed, for too long.
    pub const TIMEOUT: CloseCode = CloseCode(4408);
    /// The client does not take what is written to it.
    pub const SLOW_CONSUMER: CloseCode = CloseCode(4409);
    /// The client did not `ack` for too long.
    pub const ACK_TIMEOUT: CloseCode = CloseCode(4410);
    /// The client asks for too much in too short a time.
    pub const RATE_LIMIT: CloseCode = CloseCode(4429);

    /// Whether a peer may send it (RFC 6455 section 7.4.1 and 7.4.2, and the IANA registry up to 1014).
    pub fn is_valid_from_peer(self) -> bool {
        matches!(self.0, 1000..=1003 | 1007..=1014 | 3000..=4999)
    }

    /// Whether a caller of CloseUserSessions may choose it.
    pub fn is_allowed_for_callers(self) -> bool {
        matches!(self.0, 1000 | 1008 | 3000..=3999 | 4000..=4099)
    }

    /// What it asks of a client. One that is not known here comes from a proxy or from a newer gateway: back, with patience.
    pub fn asks(self) -> Next {
        match self {
            CloseCode::UNAUTHORIZED => Next::OtherToken,
            CloseCode::BAD_MESSAGES => Next::Stay,
            code if code.is_allowed_for_callers() => Next::Stay,
            _ => Next::Again,
        }
    }
}

/// What the end of a connection asks of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Come back, after a back-off.
    Again,
    /// Come back with another token.
    OtherToken,
    /// Stay away.
    Stay,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_says_whether_to_come_back() {
        for code in [1000, 1008, 3000, 3999, 4000, 4099, 4400] {
            assert_eq!(CloseCode(code).asks(), Next::Stay, "{code}");
        }
        for code in [1001, 1002, 1003, 1005, 1006, 1007, 1009, 1011, 1012, 1013, 4408, 4409, 4410, 4429] {
            assert_eq!(CloseCode(code).asks(), Next::Again, "{code}");
        }
        assert_eq!(CloseCode(4401).asks(), Next::OtherToken);
        assert_eq!((CloseCode(1014).asks(), CloseCode(4500).asks()), (Next::Again, Next::Again), "unknown here");
    }

    #[test]
    fn callers_may_choose_few_codes_and_peers_may_not_send_the_recorded_ones() {
        for code in [1000, 1008, 3000, 3999, 4000, 4099] {
            assert!(CloseCode(code).is_allowed_for_callers(), "{code}");
        }
        for code in [0, 999, 1001, 1005, 1006, 2999, 4100, 4401, 5000] {
            assert!(!CloseCode(code).is_allowed_for_callers(), "{code}");
        }
        for code in [0, 999, 1004, 1005, 1006, 1015, 2999, 5000] {
            assert!(!CloseCode(code).is_valid_from_peer(), "{code}");
        }
        assert!(CloseCode(1000).is_valid_from_peer() && CloseCode(4999).is_valid_from_peer());
    }
}
