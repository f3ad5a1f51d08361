//! Why a call failed, and the one table that turns it into a gRPC status with google.rpc details.

use std::{borrow::Cow, collections::HashMap, sync::Arc, time::Duration};

use prost::Message as _;
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
    pub field: Cow<'static, str>,
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
    /// The node is not in a state for it, and no retry mends that.
    Precondition {
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
    /// A request over HTTP that is no call that could be answered.
    Refused {
        /// What it comes nearest to.
        code: Code,
        /// ErrorInfo's reason.
        reason: &'static str,
        /// In words.
        message: String,
    },
}

impl ApiError {
    /// One field is wrong.
    pub fn invalid(field: &'static str, description: &str) -> Self {
        Self::Invalid(vec![Violation { field: field.into(), description: description.to_owned() }])
    }

    /// What a log line says of it: the name of its code.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Unauthenticated(_) => "UNAUTHENTICATED",
            Self::PermissionDenied { .. } => "PERMISSION_DENIED",
            Self::Invalid(_) => "INVALID_ARGUMENT",
            Self::NotFound { .. } => "NOT_FOUND",
            Self::AlreadyExists { .. } => "ALREADY_EXISTS",
            Self::Precondition { .. } => "FAILED_PRECONDITION",
            Self::Quota { .. } => "RESOURCE_EXHAUSTED",
            Self::Unavailable { .. } => "UNAVAILABLE",
            Self::DeadlineExceeded => "DEADLINE_EXCEEDED",
            Self::Refused { reason, .. } => reason,
        }
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
                    details.add_bad_request_violation(violation.field.as_ref(), violation.description.as_str());
                }
                let message: Vec<_> =
                    violations.into_iter().map(|v| format!("{}: {}", v.field, v.description)).collect();
                (Failure::GrpcInvalidArgument, Code::InvalidArgument, message.join("; "), details)
            }
            Self::NotFound { reason, message } => (Failure::NotFound, Code::NotFound, message, info(reason)),
            Self::AlreadyExists { reason, message } => {
                (Failure::AlreadyExists, Code::AlreadyExists, message, info(reason))
            }
            Self::Precondition { reason, message } => {
                (Failure::ReloadRefused, Code::FailedPrecondition, message, info(reason))
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
            Self::Refused { code, reason, message } => (Failure::HttpRefused, code, message, info(reason)),
        };
        metrics.failure(failure);
        Status::with_error_details(code, message, details)
    }
}

/// A status as a message of its own. That with details carries itself, encoded.
pub fn embedded(status: &Status) -> tonic_types::pb::Status {
    let plain = || tonic_types::pb::Status {
        code: status.code().into(),
        message: status.message().to_owned(),
        details: Vec::new(),
    };
    match tonic_types::pb::Status::decode(status.details()) {
        Ok(decoded) if !status.details().is_empty() => decoded,
        _ => plain(),
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

    #[test]
    fn a_status_keeps_its_details_when_it_is_embedded() {
        let status = ApiError::invalid("user_id", "must not be empty").into_status(&Metrics::default());
        let embedded = embedded(&status);
        assert_eq!((embedded.code, embedded.message.as_str()), (3, "user_id: must not be empty"));
        assert_eq!(embedded.details.len(), 2);
        let again = Status::with_details(Code::InvalidArgument, "", embedded.encode_to_vec().into());
        assert_eq!(again.get_error_details().bad_request().unwrap().field_violations[0].field, "user_id");
        let plain = super::embedded(&Status::not_found("x"));
        assert_eq!((plain.code, plain.details.len()), (5, 0));
    }
}
