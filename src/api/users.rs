//! `ListUsers`: who is online, and what others may know of him.

use prost::Message as _;

use super::{
    Api, Caller,
    convert::{Checks, timestamp},
    error::ApiError,
    pages::{self, Filter},
    proto,
    scope::Scope,
    values,
};
use crate::{
    hub::{Hub, OnlineUser},
    limits,
    types::UserId,
};

/// The rows that are made in one go.
const ROWS_AT_ONCE: usize = 128;

impl Api {
    /// `ListUsers`.
    pub async fn list_users(
        &self,
        caller: &Caller,
        request: &proto::ListUsersRequest,
    ) -> Result<proto::ListUsersResponse, ApiError> {
        let hub = self.authorise(caller, Scope::Read)?;
        let mut checks = Checks::default();
        let filter = Filter::new("users", &[]);
        let after = checks.page_token(&request.page_token, filter, |after| UserId::parse(after).ok());
        let (after,) = checks.finish((after,))?;
        let rows = pages::rows(request.page_size);
        // One more than asked for tells whether there is a next page.
        let found = hub.online_page(after.as_ref(), rows + 1);
        let mut more = found.len() > rows;
        let (mut users, mut bytes, mut last) = (Vec::new(), 0, None);
        for (at, user) in found.into_iter().take(rows).enumerate() {
            if at % ROWS_AT_ONCE == ROWS_AT_ONCE - 1 {
                tokio::task::yield_now().await;
            }
            if bytes > limits::USERS_PAGE_BYTES_MAX {
                more = true;
                break;
            }
            if let Some(row) = user_row(hub, &user) {
                bytes += row.encoded_len();
                users.push(row);
            }
            last = Some(user);
        }
        let next_page_token = last.filter(|_| more).map(|last| filter.token(last.id.as_str())).unwrap_or_default();
        Ok(proto::ListUsersResponse { users, next_page_token })
    }
}

/// A user; none whose last session has just left.
fn user_row(hub: &Hub, user: &OnlineUser) -> Option<proto::User> {
    let (oldest, latest) = user.ends.as_ref()?;
    let claims = latest.core().claims().only(hub.authenticator().public_claims());
    Some(proto::User {
        user_id: user.id.as_str().to_owned(),
        sessions: u32::try_from(user.sessions).unwrap_or(u32::MAX),
        since: Some(timestamp(oldest.connected_at)),
        claims: Some(values::claims(&claims)).filter(|claims| !claims.fields.is_empty()),
    })
}
