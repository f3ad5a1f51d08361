//! The one way to the hub: a caller, and a scope that he has. The hub is private to this file, so that no call can be written
//! that forgets to ask.

use std::sync::Arc;

use super::{
    ApiError, Caller,
    scope::{Scope, ScopeSet},
};
use crate::hub::Hub;

/// What stands between callers and the hub.
pub(super) struct Gate(Hub);

impl Gate {
    /// Before this hub.
    pub(super) fn new(hub: Hub) -> Self {
        Self(hub)
    }

    /// The hub, for who has the scope.
    pub(super) fn open(&self, caller: &Caller, scope: Scope) -> Result<&Hub, ApiError> {
        if caller.scopes.contains(scope) {
            return Ok(&self.0);
        }
        Err(ApiError::PermissionDenied { caller: Arc::clone(&caller.name), scope })
    }

    /// The hub, for what the node does by itself and what is open to whoever reaches a listener: health and figures. No
    /// call of the API is answered by it.
    pub(super) fn of_node(&self) -> &Hub {
        &self.0
    }

    /// Whether a caller may look at the API's own description: any valid token will do.
    pub(super) fn describe(caller: &Caller) -> Result<(), ApiError> {
        if caller.scopes == ScopeSet::NONE {
            return Err(ApiError::PermissionDenied { caller: Arc::clone(&caller.name), scope: Scope::Read });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    /// What is written beside the gate: that nobody goes around it by the door that is the node's own.
    #[test]
    fn only_what_no_call_is_goes_by_the_node_s_own_door() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/api");
        let mut found = Vec::new();
        let mut folders = vec![folder.clone()];
        while let Some(next) = folders.pop() {
            for entry in fs::read_dir(next).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                    continue;
                }
                let text = fs::read_to_string(&path).unwrap();
                let name = path.strip_prefix(&folder).unwrap().to_str().unwrap().to_owned();
                let uses =
                    text.lines().filter(|line| line.contains(".of_node()") && !line.contains("contains")).count();
                if uses > 0 {
                    found.push((name, uses));
                }
            }
        }
        found.sort();
        // Counters, a bound and readiness; and the figures and the survey behind /metrics.
        assert_eq!(found, [("figures.rs".to_owned(), 2), ("mod.rs".to_owned(), 3)]);
    }
}
