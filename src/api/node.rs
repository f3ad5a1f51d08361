//! What is done to the node itself: `SetLogFilter`, and the clean-up that HTTP offers.

use serde::Serialize;

use super::{
    Api, ApiError, Caller,
    audit::{self, Subject},
    convert::Checks,
    proto,
    scope::Scope,
};
use crate::{limits, store::StoreError};

/// Sets what the process logs, and says what it logged before; or what is wrong with the directives. It is handed down by
/// whoever set logging up.
pub type LogControl = Box<dyn Fn(&str) -> Result<String, String> + Send + Sync>;

/// What a clean-up came to. HTTP alone has it, so it is no message of the proto.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct CleanedUp {
    /// Sessions that were closed: no heartbeat, nothing confirmed, a token that ran out.
    pub closed: u32,
    /// Stored notifications whose TTL had run out.
    pub expired: u32,
}

impl Api {
    /// Says how the process's log is set.
    pub fn set_log_control(&self, control: LogControl) {
        let _ = self.0.log_control.set(control);
    }

    /// How the process's log is set, where that was said.
    pub fn log_control(&self) -> Option<&LogControl> {
        self.0.log_control.get()
    }

    /// `SetLogFilter`.
    pub fn set_log_filter(
        &self,
        caller: &Caller,
        request: &proto::SetLogFilterRequest,
    ) -> Result<proto::SetLogFilterResponse, ApiError> {
        self.authorise(caller, Scope::Admin)?;
        let filter = request.filter.trim();
        let mut checks = Checks::default();
        checks.check("filter", !filter.is_empty(), || "is required; a level or directives of tracing".to_owned());
        checks.check("filter", filter.len() <= limits::LOG_FILTER_BYTES_MAX, || {
            format!("must have at most {} bytes, this has {}", limits::LOG_FILTER_BYTES_MAX, filter.len())
        });
        checks.finish((Some(()),))?;
        let control = self.0.log_control.get().ok_or_else(|| ApiError::NotFound {
            reason: "LOG_UNKNOWN",
            message: "the process that this gateway is part of has set its logs up by itself".to_owned(),
        })?;
        // Before it may be too quiet for that: who reads the log has to know why it changes.
        tracing::warn!(caller = %caller.name, filter, "a caller sets the log filter");
        let previous = control(filter).map_err(|problem| ApiError::invalid("filter", &problem))?;
        Ok(proto::SetLogFilterResponse { previous })
    }

    /// Closes the sessions whose time is over, and deletes what has expired, now. Scope: admin.
    pub async fn clean_up(&self, caller: &Caller) -> Result<CleanedUp, ApiError> {
        let line = audit::begin("clean up", caller, &Subject(&[("node", Some(&self.0.node))]));
        let outcome = self.clean(caller).await;
        line.note(&outcome, |cleaned| format!("{} closed, {} expired", cleaned.closed, cleaned.expired));
        outcome
    }

    async fn clean(&self, caller: &Caller) -> Result<CleanedUp, ApiError> {
        let hub = self.authorise(caller, Scope::Admin)?;
        let done = hub.clean_up().await.map_err(|error: StoreError| ApiError::Unavailable {
            reason: "STORE_FAILED",
            message: error.to_string(),
        })?;
        let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        Ok(CleanedUp { closed: number(done.closed), expired: number(done.expired) })
    }
}
