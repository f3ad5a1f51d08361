//! Why a call failed, and the one table that turns it into a gRPC status with google.rpc details.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use super::scope::Scope;
use crate::metrics::{Failure, Metrics};

/// The `domain` of every ErrorInfo.
const DOMAIN: &str = "pushgate";
/// When a caller who met a quota should come back.
const RETRY_QUOTA: Duration = Duration::from_secs(5);
/// When a caller who met a stopping or failing node should come back.
const RETRY_UNAVAILABLE: Duration = Duration::from_secs(1);

/// A field that a retry cannot mend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Its path in the request.
    pub field: &'static str,
    /// What is wrong with it.
    pub description: String,
}

/// Why a call failed.
#[derive(Clone, Debug)]
pub enum ApiError {
    /// No valid token.
    Unauthenticated(&'static str),
    /// The token does not open this call.
    PermissionDenied {
        /// Whose token.
        caller: Arc<str>,
        /// What it would need.
        scope: Scope,
    },
    /// Fields that a retry cannot mend.
    Invalid(Vec<Violation>),
    /// What the call is about is not there.
    NotFound {
        /// ErrorInfo's reason.
        reason: &'static str,
        /// In words.
        message: String,
    },
    /// What is to be made is there already, and is another.
    AlreadyExists {
        /// ErrorInfo's reason.
        reason: &'static str,
        /// In words.
        message: String,
    },
    /// A quota is used up.
    Quota {
        /// ErrorInfo's reason.
        reason: &'static str,
        /// In words.
        message: String,
    },
    /// The store fails or the node stops.
    Unavailable {
        /// ErrorInfo's reason.
        reason: &'static str,
        /// In words.
        message: String,
    },
    /// The call's deadline came first.
    DeadlineExceeded,
}

impl ApiError {
    /// One field is wrong.
    pub fn invalid(field: &'static str, description: &str) -> Self {
        Self::Invalid(vec![Violation { field, description: description.to_owned() }])
    }

    /// The status that the caller gets; counted.
    pub fn into_status(self, metrics: &Metrics) -> Status {
        let info = |reason: &str| {
            let mut details = ErrorDetails::new();
            details.set_error_info(reason, DOMAIN, HashMap::new());
            details
        };
        let (failure, code, message, details) = match self {
            Self::Unauthenticated(message) => {
                (Failure::GrpcUnauthenticated, Code::Unauthenticated, message.to_owned(), info("UNAUTHENTICATED"))
            }
            Self::PermissionDenied { caller, scope } => {
                let message = format!("caller `{caller}` lacks the scope `{scope}`");
                let mut details = ErrorDetails::new();
                let metadata = HashMap::from([("scope".to_owned(), scope.to_string())]);
                details.set_error_info("SCOPE_MISSING", DOMAIN, metadata);
                (Failure::GrpcPermissionDenied, Code::PermissionDenied, message, details)
            }
            Self::Invalid(violations) => {
                let mut details = info("INVALID_ARGUMENT");
                for violation in &violations {
                    details.add_bad_request_violation(violation.field, violation.description.clone());
                }
                let message: Vec<_> =
                    violations.into_iter().map(|v| format!("{}: {}", v.field, v.description)).collect();
                (Failure::GrpcInvalidArgument, Code::InvalidArgument, message.join("; "), details)
            }
            Self::NotFound { reason, message } => (Failure::NotFound, Code::NotFound, message, info(reason)),
            Self::AlreadyExists { reason, message } => {
                (Failure::AlreadyExists, Code::AlreadyExists, message, info(reason))
            }
            Self::Quota { reason, message } => {
                let mut details = info(reason);
                details.set_retry_info(Some(RETRY_QUOTA));
                (Failure::QuotaExceeded, Code::ResourceExhausted, message, details)
            }
            Self::Unavailable { reason, message } => {
                let mut details = info(reason);
                details.set_retry_info(Some(RETRY_UNAVAILABLE));
                (Failure::Unavailable, Code::Unavailable, message, details)
            }
            Self::DeadlineExceeded => (
                Failure::GrpcDeadlineExceeded,
                Code::DeadlineExceeded,
                "the call's deadline passed; what it asked for may have happened".to_owned(),
                info("DEADLINE_EXCEEDED"),
            ),
        };
        metrics.failure(failure);
        Status::with_error_details(code, message, details)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn details_name_the_field_the_domain_and_when_to_come_back() {
        let metrics = Metrics::default();
        let status = ApiError::invalid("user_id", "must not be empty").into_status(&metrics);
        assert_eq!((status.code(), status.message()), (Code::InvalidArgument, "user_id: must not be empty"));
        let details = status.get_error_details();
        assert_eq!(details.bad_request().unwrap().field_violations[0].field, "user_id");
        assert_eq!(details.error_info().unwrap().domain, "pushgate");
        assert_eq!(metrics.failures(Failure::GrpcInvalidArgument), 1);

        let status = ApiError::Quota { reason: "MAILBOX_FULL", message: "full".into() }.into_status(&metrics);
        assert_eq!(status.get_error_details().retry_info().unwrap().retry_delay, Some(RETRY_QUOTA));
    }
}
