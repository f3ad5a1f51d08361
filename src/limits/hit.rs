//! The limits by name: what `pushgate_limits_hit_total` and `GetStatus.limits.hits` count by.

macro_rules! names {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal,)+) => {
        /// A limit that somebody can run into. The names are those of its key; those of `[limits]` without the section.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Limit {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl Limit {
            /// All of them.
            pub const ALL: &'static [Limit] = &[$(Limit::$variant,)+];

            /// The name callers see.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Limit::$variant => $name,)+
                }
            }
        }
    };
}

names! {
    /// A connection was refused.
    Connections = "connections",
    /// A session was refused.
    ConnectionsPerUser = "connections_per_user",
    /// A connection was refused, or dropped unheard.
    ConnectionsPerAddress = "connections_per_address",
    /// A session made room for a newer one, or was refused.
    ConnectionsPerDevice = "connections_per_device",
    /// Connections had to wait to be accepted.
    AcceptsPerSecond = "accepts_per_second",
    /// A handshake was refused.
    HandshakesPerSecond = "handshakes_per_second",
    /// A handshake was refused for how many came from its address.
    AddressHandshakesPerSecond = "address_handshakes_per_second",
    /// A handshake took too long.
    HandshakeTimeout = "handshake_timeout",
    /// A handshake's head, or what came before `auth`, was too large.
    HandshakeBytes = "handshake_bytes",
    /// A session was warned, or closed.
    MessagesPerSecond = "messages_per_second",
    /// A session was warned, or closed.
    BytesPerSecond = "bytes_per_second",
    /// A session was closed for a message that is too large.
    MessageBytes = "message_bytes",
    /// A session was closed for what waited for its socket.
    OutboxBytes = "outbox_bytes",
    /// A session was closed for bytes that made no progress.
    WriteTimeout = "write_timeout",
    /// A session was closed for bad messages.
    BadMessages = "bad_messages",
    /// A new token was not looked at.
    ReauthsPerMinute = "reauths_per_minute",
    /// A new device was refused.
    NewDevicesPerHour = "new_devices_per_hour",
    /// A new device was refused.
    Devices = "store.max_devices_per_user",
    /// A topic was refused to a session.
    TopicsPerSession = "topics_per_session",
    /// A topic had no place for a session.
    TopicSessions = "topic_sessions",
    /// Topics were joined and left too often.
    MembershipChanges = "membership_changes",
    /// Too many lists of users were asked for.
    UserLists = "user_lists",
    /// A TLS handshake made room for a newer one.
    TlsHandshakes = "tls_handshakes",
    /// A connection was refused for want of memory.
    Memory = "memory",
    /// Connections to the admin API had to wait.
    GrpcConnections = "grpc.max_connections",
    /// A call was refused for the size of its message.
    GrpcMessageBytes = "grpc.max_message_bytes",
    /// A connection to the admin API had as many calls under way as it may.
    GrpcStreams = "grpc.max_streams",
    /// A connection to the admin API was closed, for its peer answered no ping.
    GrpcKeepalive = "grpc.keepalive_timeout",
    /// A connection to the admin API over which nobody called in time was closed.
    GrpcFirstCall = "grpc.first_call",
    /// Connections to an ops listener had to wait.
    OpsConnections = "ops.connections",
    /// A connection to the admin API was cut off: streams reset over and over, or headers without end.
    GrpcExcess = "grpc.excess",
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_apart() {
        let names: std::collections::BTreeSet<_> = Limit::ALL.iter().map(|limit| limit.as_str()).collect();
        assert_eq!(names.len(), Limit::ALL.len());
    }
}
