//! The codes of `error` messages, in one table.

macro_rules! error_codes {
    ($($variant:ident = $name:literal, $meaning:literal;)+) => {
        /// The `code` of an `error` message.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum ErrorCode {
            $(#[doc = $meaning] $variant,)+
        }

        impl ErrorCode {
            /// Every code with its name and meaning, for the documentation.
            pub const TABLE: &'static [(ErrorCode, &'static str, &'static str)] =
                &[$((ErrorCode::$variant, $name, $meaning),)+];

            /// The name clients see.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(ErrorCode::$variant => $name,)+
                }
            }
        }
    };
}

error_codes! {
    BadMessage = "bad_message", "Not JSON, not an object, no `type`, nested too deep, or a field of the wrong type.";
    UnknownType = "unknown_type", "Nobody here answers this `type`.";
    Forbidden = "forbidden", "The client may not do this.";
    LimitReached = "limit_reached", "A limit is reached, which the message names: topics of a session, sessions of a topic, a mailbox.";
    TooLarge = "too_large", "The message is larger than a limit, which it names.";
    Unavailable = "unavailable", "The gateway cannot do it now; try again later.";
    RateLimited = "rate_limited", "Too much in too short a time; try again later.";
    NoService = "no_service", "No service listens for this `type`.";
    Timeout = "timeout", "No service answered in time.";
}
