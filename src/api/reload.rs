//! `Reload`: the configuration read again while the node runs. How that is done is the application's affair, which hands
//! it down.

use futures_util::future::BoxFuture;
use tokio::sync::oneshot;

use super::{
    Api, ApiError, Caller,
    audit::{self, Subject},
    proto,
    scope::Scope,
};

/// Reads the configuration again and takes what it says; or why it is not taken.
pub type ReloadControl = Box<dyn Fn() -> BoxFuture<'static, Result<Reloaded, ReloadRefused>> + Send + Sync>;

/// A key whose value is another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Its full name.
    pub key: &'static str,
    /// What it was, secrets masked.
    pub old: String,
    /// What it is now.
    pub new: String,
}

/// What a reload came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reloaded {
    /// What is in force from now on.
    pub changed: Vec<Change>,
    /// What is not, until the node is started again.
    pub needs_restart: Vec<Change>,
    /// What is in force and will hardly be meant.
    pub warnings: Vec<String>,
}

/// Why a configuration was not taken: one line for each thing that is wrong. The one from before stays.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct ReloadRefused(pub Vec<String>);

impl Api {
    /// Says how the configuration is read again; `None`: not any more.
    pub fn set_reload_control(&self, control: Option<ReloadControl>) {
        *self.0.reload_control.lock() = control;
    }

    /// `Reload`.
    pub async fn reload(
        &self,
        caller: &Caller,
        _request: proto::ReloadRequest,
    ) -> Result<proto::ReloadResponse, ApiError> {
        let line = audit::begin("reload", caller, &Subject(&[("node", Some(&self.0.node))]));
        let outcome = self.reloaded(caller).await;
        line.note(&outcome, |answer| {
            format!("{} changed, {} need a restart", answer.changed.len(), answer.needs_restart.len())
        });
        outcome
    }

    async fn reloaded(&self, caller: &Caller) -> Result<proto::ReloadResponse, ApiError> {
        self.authorise(caller, Scope::Admin)?;
        let reloading = self.0.reload_control.lock().as_ref().map(|control| control());
        let reloading = reloading.ok_or_else(|| ApiError::NotFound {
            reason: "CONFIG_UNKNOWN",
            message: "the process that this gateway is part of has read its configuration by itself".to_owned(),
        })?;
        // Once begun it is done to its end, whether the caller waits or not.
        let (done, told) = oneshot::channel();
        self.0.life.spawn(async move {
            let _ = done.send(reloading.await);
        });
        let done = told.await.map_err(|_| ApiError::Unavailable {
            reason: "DRAINING",
            message: "the node stops; the configuration was not read".to_owned(),
        })?;
        let reloaded = done.map_err(|refused| ApiError::Precondition {
            reason: "CONFIG_INVALID",
            message: format!("the configuration is not taken, and the one from before stays:\n{refused}"),
        })?;
        let shown = |changes: Vec<Change>| {
            let shown = |Change { key, old, new }| proto::ConfigChange { key: key.to_owned(), old, new };
            changes.into_iter().map(shown).collect()
        };
        Ok(proto::ReloadResponse {
            changed: shown(reloaded.changed),
            needs_restart: shown(reloaded.needs_restart),
            warnings: reloaded.warnings,
        })
    }
}
