//! How connections began and ended: handshakes by result, refused tokens by code, sessions by close code.

use super::{Counter, Failure, Metrics};
use crate::{
    protocol::{auth_code::AuthCode, close::CloseCode},
    types::ClosedBy,
};

/// What became of a WebSocket handshake: one for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handshake {
    /// It became a session.
    Opened,
    /// It was upgraded, and brought no token that is taken (4401).
    Unauthorized,
    /// It was none, did not come whole in time, or the first message broke the protocol.
    Malformed,
    /// Of a page whose origin may not connect (403).
    OriginRefused,
    /// Over a limit.
    Limited,
    /// The node stops.
    Draining,
    /// The gateway failed: its store, mostly.
    Failed,
    /// The peer left before it was a session.
    Gone,
}

impl Handshake {
    /// All of them.
    pub const ALL: [Handshake; 8] = [
        Handshake::Opened,
        Handshake::Unauthorized,
        Handshake::Malformed,
        Handshake::OriginRefused,
        Handshake::Limited,
        Handshake::Draining,
        Handshake::Failed,
        Handshake::Gone,
    ];

    /// The name that operators see.
    pub const fn as_str(self) -> &'static str {
        match self {
            Handshake::Opened => "opened",
            Handshake::Unauthorized => "unauthorized",
            Handshake::Malformed => "malformed",
            Handshake::OriginRefused => "origin_refused",
            Handshake::Limited => "limited",
            Handshake::Draining => "draining",
            Handshake::Failed => "failed",
            Handshake::Gone => "gone",
        }
    }
}

/// The close codes that are counted by themselves.
const CODES: [(CloseCode, &str); 16] = [
    (CloseCode::NORMAL, "1000"),
    (CloseCode(1001), "1001"),
    (CloseCode::PROTOCOL, "1002"),
    (CloseCode::UNSUPPORTED, "1003"),
    (CloseCode::NO_STATUS, "1005"),
    (CloseCode::ABNORMAL, "1006"),
    (CloseCode::INVALID_UTF8, "1007"),
    (CloseCode::POLICY, "1008"),
    (CloseCode::TOO_BIG, "1009"),
    (CloseCode::INTERNAL, "1011"),
    (CloseCode::RESTART, "1012"),
    (CloseCode::BAD_MESSAGES, "4400"),
    (CloseCode::UNAUTHORIZED, "4401"),
    (CloseCode::TIMEOUT, "4408"),
    (CloseCode::SLOW_CONSUMER, "4409"),
    (CloseCode::ACK_TIMEOUT, "4410"),
];
/// Those of them that a client may have counted; the others say what the gateway did, whatever a client writes.
const OF_CLIENTS: [CloseCode; 4] = [CloseCode::NORMAL, CloseCode(1001), CloseCode::NO_STATUS, CloseCode::ABNORMAL];
/// Those that follow them: a rate, a limit, and all others, which applications and clients choose.
const RATE: usize = CODES.len();
const LATER: usize = CODES.len() + 1;
const OTHER: usize = CODES.len() + 2;

/// What is counted of beginnings and ends.
#[derive(Debug, Default)]
pub struct Entrances {
    handshakes: [Counter; Handshake::ALL.len()],
    refused: [Counter; AuthCode::ALL.len()],
    opened: Counter,
    closed: [Counter; OTHER + 1],
}

impl Metrics {
    /// A handshake ended so.
    pub fn handshake(&self, result: Handshake) {
        self.entrances.handshakes[result as usize].inc();
    }

    /// Handshakes that ended so.
    pub fn handshakes(&self, result: Handshake) -> u64 {
        self.entrances.handshakes[result as usize].get()
    }

    /// A client was not let in, or not any longer: counted by its code and as the failure that it is.
    pub fn auth_failed(&self, code: AuthCode) {
        self.failure(Failure::AuthFailed);
        if let Some(at) = AuthCode::ALL.iter().position(|known| *known == code) {
            self.entrances.refused[at].inc();
        }
    }

    /// How often clients were not let in, by the code that they heard.
    pub fn auth_failures(&self) -> impl Iterator<Item = (&'static str, u64)> {
        AuthCode::ALL.iter().zip(&self.entrances.refused).map(|(code, count)| (code.as_str(), count.get()))
    }

    /// A session began.
    pub fn session_opened(&self) {
        self.entrances.opened.inc();
    }

    /// Sessions that began.
    pub fn sessions_opened(&self) -> u64 {
        self.entrances.opened.get()
    }

    /// A session ended with that code, which these wrote.
    pub fn session_closed(&self, code: CloseCode, by: ClosedBy) {
        let at = match code {
            code if by == ClosedBy::Client && !OF_CLIENTS.contains(&code) => OTHER,
            CloseCode::RATE_LIMIT => RATE,
            CloseCode::TRY_LATER => LATER,
            code => CODES.iter().position(|(known, _)| *known == code).unwrap_or(OTHER),
        };
        self.entrances.closed[at].inc();
    }

    /// Sessions that ended, by close code; `other` is what applications and clients chose.
    pub fn sessions_closed(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let names = CODES.iter().map(|(_, name)| *name).chain(["4429", "1013", "other"]);
        names.zip(self.entrances.closed.iter().map(Counter::get))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn a_session_is_closed_with_a_code_that_is_known_or_another() {
        let metrics = Metrics::default();
        for code in [1000, 4000, 3999, 4429, 1013, 4409, 4409] {
            metrics.session_closed(CloseCode(code), ClosedBy::Gateway);
        }
        // A client that writes what only the gateway says is no slow consumer for that.
        for code in [1000, 1006, 4409, 1011] {
            metrics.session_closed(CloseCode(code), ClosedBy::Client);
        }
        let closed: BTreeMap<_, _> = metrics.sessions_closed().filter(|(_, count)| *count > 0).collect();
        assert_eq!(closed, [("1000", 2), ("1006", 1), ("1013", 1), ("4409", 2), ("4429", 1), ("other", 4)].into());
        for (code, name) in CODES {
            assert_eq!(code.0.to_string(), name);
        }
    }

    #[test]
    fn who_is_not_let_in_counts_by_code_and_as_a_failure() {
        let metrics = Metrics::default();
        metrics.auth_failed(AuthCode::TokenExpired);
        assert_eq!(metrics.failures(Failure::AuthFailed), 1);
        assert_eq!(metrics.auth_failures().find(|(code, _)| *code == "token_expired"), Some(("token_expired", 1)));
        assert_eq!(metrics.auth_failures().map(|(_, count)| count).sum::<u64>(), 1);
    }
}
