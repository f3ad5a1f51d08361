//! `Backup`: a copy of the running store.

use std::path::Path;

use super::{Api, ApiError, Caller, convert::Checks, proto, scope::Scope};
use crate::{limits, store::BackupError};

impl Api {
    /// `Backup`.
    pub async fn backup(
        &self,
        caller: &Caller,
        request: proto::BackupRequest,
    ) -> Result<proto::BackupResponse, ApiError> {
        let hub = self.authorise(caller, Scope::Admin)?;
        let mut checks = Checks::default();
        let sound = (1..=limits::PATH_BYTES_MAX).contains(&request.path.len()) && !request.path.contains('\0');
        checks.check("path", sound, || format!("must have 1 to {} bytes, none of them 0", limits::PATH_BYTES_MAX));
        let (path,) = checks.finish((Some(Path::new(&request.path)),))?;
        let made = hub.store().backup(path).await?;
        tracing::info!(
            caller = %caller.name, path = %path.display(), bytes = made.bytes, records = made.records,
            "the store was copied for a caller"
        );
        Ok(proto::BackupResponse { bytes: made.bytes, records: made.records })
    }
}

impl From<BackupError> for ApiError {
    fn from(error: BackupError) -> Self {
        let message = error.to_string();
        match error {
            BackupError::Path(why) => ApiError::invalid("path", &why),
            BackupError::Exists(_) => ApiError::AlreadyExists { reason: "PATH_EXISTS", message },
            BackupError::Running => ApiError::Quota { reason: "BACKUP_RUNNING", message },
            BackupError::NoSpace { .. } => ApiError::Quota { reason: "NO_SPACE", message },
            BackupError::TooFast => ApiError::Quota { reason: "STORE_BUSY", message },
            BackupError::Failed(_) => ApiError::Unavailable { reason: "BACKUP_FAILED", message },
            BackupError::Store(_) => ApiError::Unavailable { reason: "STORE_FAILED", message },
        }
    }
}
