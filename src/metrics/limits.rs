//! How often somebody ran into a limit, and as what failure that counts.

use super::{Counter, Failure, Metrics};
use crate::limits::Limit;

/// How often each was reached, in the order of [`Limit::ALL`].
#[derive(Debug)]
pub struct Hits([Counter; Limit::ALL.len()]);

impl Default for Hits {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Counter::default()))
    }
}

/// What it is among the failures; nothing where another failure is counted for the same, or where somebody waits only.
const fn failure_of(limit: Limit) -> Option<Failure> {
    match limit {
        Limit::Connections => Some(Failure::ConnectionLimit),
        Limit::ConnectionsPerUser => Some(Failure::UserConnectionLimit),
        Limit::ConnectionsPerAddress => Some(Failure::AddressConnectionLimit),
        Limit::ConnectionsPerDevice => Some(Failure::DeviceConnectionLimit),
        Limit::HandshakesPerSecond | Limit::AddressHandshakesPerSecond => Some(Failure::HandshakeRate),
        Limit::HandshakeTimeout | Limit::HandshakeBytes => Some(Failure::BadHandshake),
        Limit::MessagesPerSecond
        | Limit::BytesPerSecond
        | Limit::ReauthsPerMinute
        | Limit::MembershipChanges
        | Limit::UserLists => Some(Failure::RateLimited),
        Limit::MessageBytes => Some(Failure::MessageTooBig),
        Limit::OutboxBytes | Limit::WriteTimeout => Some(Failure::SlowConsumer),
        Limit::BadMessages => Some(Failure::TooManyBadMessages),
        Limit::TopicsPerSession | Limit::TopicSessions => Some(Failure::LimitReached),
        Limit::Memory => Some(Failure::MemoryLimit),
        Limit::GrpcMessageBytes | Limit::GrpcExcess => Some(Failure::GrpcRefused),
        Limit::TlsHandshakes => Some(Failure::TlsHandshake),
        // The client is told so by `auth_failure`, which counts as that.
        Limit::NewDevicesPerHour | Limit::Devices => None,
        // Nobody is refused: they wait, or come again once they have something to ask.
        Limit::AcceptsPerSecond
        | Limit::GrpcConnections
        | Limit::GrpcStreams
        | Limit::GrpcFirstCall
        | Limit::GrpcKeepalive
        | Limit::OpsConnections => None,
    }
}

impl Metrics {
    /// Somebody ran into a limit: counted as that, and as the failure that it is.
    pub fn hit(&self, limit: Limit) {
        self.hits.0[limit as usize].inc();
        if let Some(failure) = failure_of(limit) {
            self.failure(failure);
        }
    }

    /// A TLS handshake failed, over that limit where one is named.
    pub fn handshake_failed(&self, limit: Option<Limit>) {
        match limit {
            Some(limit) => self.hit(limit),
            None => self.failure(Failure::TlsHandshake),
        }
    }

    /// How often somebody ran into it.
    pub fn hits(&self, limit: Limit) -> u64 {
        self.hits.0[limit as usize].get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_counts_by_its_name_and_as_one_failure() {
        let metrics = Metrics::default();
        for (done, limit) in (1..).zip(Limit::ALL) {
            let before = metrics.failures_total();
            metrics.hit(*limit);
            assert_eq!(metrics.hits(*limit), 1, "{limit:?}");
            let failures = metrics.failures_total() - before;
            assert_eq!(failures, u64::from(failure_of(*limit).is_some()), "{limit:?}");
            assert_eq!(Limit::ALL.iter().map(|limit| metrics.hits(*limit)).sum::<u64>(), done);
        }
    }
}
