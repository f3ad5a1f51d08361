//! How a command ends badly: an exit code and one line that says what, which value, and what to do.

use std::{error::Error as _, io, path::Path, process::ExitCode};

use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::config::ConfigError;

/// Something failed.
pub const EXIT_FAILURE: u8 = 1;
/// The command line is wrong.
pub const EXIT_USAGE: u8 = 2;
/// No gateway answers, or it takes no work (`EX_UNAVAILABLE` of sysexits.h).
pub const EXIT_UNAVAILABLE: u8 = 69;
/// The caller may not do that (`EX_NOPERM`).
pub const EXIT_PERMISSION: u8 = 77;
/// The configuration is wrong (`EX_CONFIG`).
pub const EXIT_CONFIG: u8 = 78;

/// Why a command ends, and with which code.
#[derive(Debug)]
pub struct Failure {
    code: u8,
    message: String,
    /// No answer came in time.
    late: bool,
}

/// What a command comes to.
pub type Outcome<T = ()> = Result<T, Failure>;

impl Failure {
    /// Ends with `code`; `message` goes to standard error.
    pub fn new(code: u8, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), late: false }
    }

    /// The command line is wrong in a way that its grammar cannot say.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(EXIT_USAGE, message)
    }

    /// Nobody reads what is printed any more: no failure, but an end.
    pub fn reader_gone() -> Self {
        Self::new(0, "")
    }

    /// A file that cannot be read or written.
    pub fn file(what: &str, path: &Path, error: &io::Error) -> Self {
        let code = if error.kind() == io::ErrorKind::PermissionDenied { EXIT_PERMISSION } else { EXIT_FAILURE };
        Self::new(code, format!("{what} {}: {error}", path.display()))
    }

    /// What a gateway at `place` answered a call with, in a line.
    pub fn status(status: &Status, place: &str, has_token: bool) -> Self {
        // What the connection itself did has a cause; what the gateway said has none.
        if let (Code::Unknown | Code::Unavailable | Code::Internal, Some(cause)) = (status.code(), status.source()) {
            return Self::new(
                EXIT_UNAVAILABLE,
                format!(
                    "the connection to {place} broke: {}; look whether a gateway's gRPC listener is there (pushgate health)",
                    deepest(cause)
                ),
            );
        }
        let details = status.get_error_details();
        let code = match status.code() {
            Code::Unauthenticated | Code::PermissionDenied => EXIT_PERMISSION,
            Code::Unavailable => EXIT_UNAVAILABLE,
            // Its own, which it was to read again.
            Code::FailedPrecondition if details.error_info().is_some_and(|info| info.reason == "CONFIG_INVALID") => {
                EXIT_CONFIG
            }
            _ => EXIT_FAILURE,
        };
        let what = match details.bad_request() {
            Some(bad) if !bad.field_violations.is_empty() => {
                let lines = bad.field_violations.iter().map(|v| format!("{}: {}", v.field, v.description));
                lines.collect::<Vec<_>>().join("; ")
            }
            _ => status.message().to_owned(),
        };
        let mut hint = match status.code() {
            Code::Unauthenticated if has_token => "; the token is not one of grpc.tokens there".to_owned(),
            Code::Unauthenticated => "; give it with --token-file FILE, or use the Unix socket".to_owned(),
            Code::PermissionDenied => "; use a token that has it, or the Unix socket".to_owned(),
            Code::DeadlineExceeded | Code::Cancelled => "; --timeout gives it longer".to_owned(),
            Code::Unimplemented => "; the gateway is of another version".to_owned(),
            _ => String::new(),
        };
        if let Some(delay) = details.retry_info().and_then(|retry| retry.retry_delay) {
            hint.push_str(&format!("; try again in {}", humantime::format_duration(delay)));
        }
        // The client's own timeout is CANCELLED.
        let late = matches!(status.code(), Code::Cancelled | Code::DeadlineExceeded);
        Self { late, ..Self::new(code, format!("{} says {}: {what}{hint}", place, name(status.code()))) }
    }

    /// Whether asking again may help: a gateway that is being restarted comes back, and one that hangs may go on.
    pub fn may_pass(&self) -> bool {
        self.late || self.code == EXIT_UNAVAILABLE
    }

    /// Its exit code.
    pub fn code(&self) -> u8 {
        self.code
    }

    /// Its line.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Tells it, and gives the exit code.
    pub fn report(&self) -> ExitCode {
        if !self.message.is_empty() {
            super::complain(&self.message);
        }
        ExitCode::from(self.code)
    }
}

/// Turns an error of the system or a library into a failure to do `what`.
pub fn failed<E: std::error::Error>(what: &'static str) -> impl FnOnce(E) -> Failure {
    move |error| Failure::new(EXIT_FAILURE, format!("{what}: {error}"))
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::new(EXIT_CONFIG, error.to_string())
    }
}

/// The cause of causes: what the system said, without the layers around it.
pub fn deepest(mut error: &(dyn std::error::Error + 'static)) -> String {
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

/// A status code as gRPC writes it.
fn name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tonic_types::ErrorDetails;

    use super::*;

    #[test]
    fn a_status_is_one_line_with_its_details_and_a_code() {
        let mut details = ErrorDetails::new();
        details.add_bad_request_violation("user_id", "must not be empty");
        details.add_bad_request_violation("reason", "is too long");
        let status = Status::with_error_details(Code::InvalidArgument, "both again", details);
        let failure = Failure::status(&status, "unix:a.sock", false);
        assert_eq!(
            (failure.code(), failure.message()),
            (1, "unix:a.sock says INVALID_ARGUMENT: user_id: must not be empty; reason: is too long")
        );

        let mut details = ErrorDetails::new();
        details.set_retry_info(Some(Duration::from_secs(5)));
        let status = Status::with_error_details(Code::ResourceExhausted, "full", details);
        let failure = Failure::status(&status, "a:1", false);
        assert_eq!(failure.message(), "a:1 says RESOURCE_EXHAUSTED: full; try again in 5s");

        for (code, exit) in
            [(Code::Unauthenticated, 77), (Code::PermissionDenied, 77), (Code::Unavailable, 69), (Code::NotFound, 1)]
        {
            assert_eq!(Failure::status(&Status::new(code, "x"), "a:1", true).code(), exit, "{code:?}");
        }
        for (code, passes) in [
            (Code::Unavailable, true),
            (Code::Cancelled, true),
            (Code::DeadlineExceeded, true),
            (Code::NotFound, false),
            (Code::PermissionDenied, false),
        ] {
            assert_eq!(Failure::status(&Status::new(code, "x"), "a:1", true).may_pass(), passes, "{code:?}");
        }
    }
}
