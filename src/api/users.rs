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
    hub::{Handle, Hub},
    limits,
    types::UserId,
};

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
        let found = hub.online_page(after.as_ref(), rows + 1).await;
        let mut more = found.len() > rows;
        let (mut users, mut bytes, mut last) = (Vec::new(), 0, None);
        for (id, sessions) in found.into_iter().take(rows) {
            if bytes > limits::USERS_PAGE_BYTES_MAX {
                more = true;
                break;
            }
            if let Some(user) = user_row(hub, &id, &sessions) {
                bytes += user.encoded_len();
                users.push(user);
            }
            last = Some(id);
        }
        let next_page_token = last.filter(|_| more).map(|last| filter.token(last.as_str())).unwrap_or_default();
        Ok(proto::ListUsersResponse { users, next_page_token })
    }
}

/// A user with his sessions in the order in which they began; none is no user who is online.
fn user_row(hub: &Hub, id: &UserId, sessions: &[std::sync::Arc<Handle>]) -> Option<proto::User> {
    let (first, latest) = (sessions.first()?, sessions.last()?);
    let claims = latest.core().claims().only(hub.authenticator().public_claims());
    Some(proto::User {
        user_id: id.as_str().to_owned(),
        sessions: u32::try_from(sessions.len()).unwrap_or(u32::MAX),
        since: Some(timestamp(first.connected_at)),
        claims: Some(values::claims(&claims)).filter(|claims| !claims.fields.is_empty()),
    })
}
