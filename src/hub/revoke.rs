//! Tokens that are made void: known at once, by sessions within moments, and on disk before the answer.
//!
//! The order is: into memory and the writer's queue under one lock, so that the rows end as memory does; then the sessions
//! that live by such a token; then the disk. Who attaches meanwhile is registered first and asks memory then (`attach.rs`), so
//! that one of the two sees the other. The work goes on where its caller goes away.
//!
//! Which sessions live by a `jti` is found by looking at all of them, in slices; callers that come during a look share the
//! next one, so that there is never more than one.

use std::{collections::HashSet, sync::Arc};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::{CloseFilter, Hub, handle::Handle};
use crate::{
    auth::{AuthCode, RevocationsFull},
    limits,
    protocol::close::CloseCode,
    store::{Op, StoreError},
    types::{ClosedBy, Revocation, RevocationId, TokenId, TokenMark, UnixMillis, UserId},
};

/// Rows that are read, and forgotten, at once.
const ROWS_AT_ONCE: usize = 4096;
/// Sessions that one slice of a look takes up.
const SESSIONS_AT_ONCE: usize = 512;

/// Which tokens are to be void.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Revoked {
    /// That with this `jti`.
    Token(TokenId),
    /// Those of a user that were issued before that moment.
    User(UserId, UnixMillis),
}

/// Why tokens could not be made void.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RevokeError {
    /// [`limits::REVOCATIONS_MAX`] are known already.
    #[error(
        "{} revocations are known already; each is forgotten when its expires_at has passed",
        limits::REVOCATIONS_MAX
    )]
    Full {
        /// When the first of them is.
        until: UnixMillis,
    },
    /// The store failed: they are void until the node stops, and may not be then.
    #[error("{0}; the tokens are void now, and may not be after a restart")]
    Store(StoreError),
}

/// What the revocations under way share.
#[derive(Debug, Default)]
pub(super) struct Revoking {
    /// Held from memory to the writer's queue.
    order: Mutex<()>,
    /// Tokens that are yet to be looked for, and who is told how many sessions they were closed of.
    wanted: Mutex<Vec<(TokenId, oneshot::Sender<u32>)>>,
    /// One look at a time.
    looking: tokio::sync::Mutex<()>,
}

impl Hub {
    /// Brings back what the store has. To be called before anybody is let in.
    ///
    /// # Errors
    /// A store that cannot be read.
    pub async fn load_revocations(&self) -> Result<(), StoreError> {
        let (mut after, mut known) = (None, 0);
        loop {
            let rows = self.0.store.revocations(after, ROWS_AT_ONCE).await?;
            let Some((last, _)) = rows.last() else { break };
            after = Some(*last);
            known += rows.len();
            let now = self.clock().unix_millis();
            if self.authenticator().revocations().add(&rows, now).is_err() {
                // More than any version has written: which of them to leave out nobody can say.
                return Err(StoreError::Failed("the store holds more revocations than a node can know".into()));
            }
        }
        if known > 0 {
            tracing::info!(revocations = known, "tokens that were revoked earlier stay so");
        }
        Ok(())
    }

    /// Forgets what has run out by itself.
    pub(super) fn sweep_revocations(&self) {
        let _order = self.0.revoking.order.lock();
        let expired = self.authenticator().revocations().take_expired(self.clock().unix_millis());
        for ids in expired.chunks(ROWS_AT_ONCE) {
            // One that the store does not take is forgotten after the next start.
            let op = Op::ForgetRevocations { ids: ids.to_vec() };
            let _ = self.0.store.stage_in(self.0.store.generation(), op);
        }
    }

    /// Makes tokens void, whose bearers' sessions are closed (4401); how many were. `expires_at`: when the last of them runs
    /// out; that it is accepted for `auth.leeway` longer is seen to.
    ///
    /// # Errors
    /// No room for one more, or a store that fails.
    pub async fn revoke(&self, revoked: Revoked, expires_at: UnixMillis) -> Result<u32, RevokeError> {
        let (id, issued_before) = match &revoked {
            Revoked::Token(id) => (RevocationId::of_token(*id), UnixMillis(u64::MAX)),
            Revoked::User(user, before) => (RevocationId::of_user(user), *before),
        };
        let written = self.make_void(&[(id, Revocation { issued_before, expires_at: self.until(expires_at) })])?;
        let (told, closed) = oneshot::channel();
        let hub = self.clone();
        self.0.life.spawn(async move {
            let _ = told.send(hub.close_void(&[revoked]).await);
        });
        let closed = closed.await.unwrap_or(0);
        self.stored(written).await?;
        Ok(closed)
    }

    /// Closes sessions of a user as [`Hub::close_sessions`] does, and makes the tokens void that they were let in with:
    /// by their `jti`; one that has none by its user and when it was issued, and with it all that were issued no later. So
    /// further sessions may be closed, with 4401. How many of either.
    ///
    /// # Errors
    /// As [`Hub::revoke`]; where there is no room, no session is closed, but for a token that came while they were closed.
    pub async fn close_and_revoke(
        &self,
        user: &UserId,
        filter: &CloseFilter,
        code: CloseCode,
        reason: &str,
    ) -> Result<u32, RevokeError> {
        let sessions = self.matching_sessions(user, filter);
        let tokens_now = || sessions.iter().map(|handle| handle.core().session.token()).collect::<Vec<TokenMark>>();
        let tokens = tokens_now();
        let mut revoked: Vec<(Revoked, Revocation)> =
            tokens.iter().map(|token| self.revocation_of(user, token)).collect();
        let rows: Vec<_> = revoked.iter().map(|(which, row)| (which.id(), *row)).collect();
        let written = self.make_void(&rows)?;
        let closed = sessions.iter().filter(|handle| handle.close(code, reason, ClosedBy::Caller)).count();
        // Until it was closed one may have taken a newer token, by which its bearer would come back.
        let newer = tokens_now().into_iter().zip(tokens).filter(|(now, before)| now != before);
        let newer: Vec<_> = newer.map(|(now, _)| self.revocation_of(user, &now)).collect();
        let newer_written = self.make_void(&newer.iter().map(|(which, row)| (which.id(), *row)).collect::<Vec<_>>());
        revoked.extend(newer);
        let (told, further) = oneshot::channel();
        let (hub, which) = (self.clone(), revoked.into_iter().map(|(which, _)| which).collect::<Vec<_>>());
        self.0.life.spawn(async move {
            let _ = told.send(hub.close_void(&which).await);
        });
        let further = further.await.unwrap_or(0);
        self.stored(written).await?;
        self.stored(newer_written?).await?;
        Ok(u32::try_from(closed).unwrap_or(u32::MAX).saturating_add(further))
    }

    fn revocation_of(&self, user: &UserId, token: &TokenMark) -> (Revoked, Revocation) {
        let expires_at = self.until(token.expires_at());
        match token.id {
            Some(id) => (Revoked::Token(id), Revocation::whole(expires_at)),
            None => {
                let issued_before = UnixMillis(u64::from(token.issued_at_secs) * 1000 + 1);
                (Revoked::User(user.clone(), issued_before), Revocation { issued_before, expires_at })
            }
        }
    }

    /// A token is accepted for the leeway longer than it is good.
    fn until(&self, expires_at: UnixMillis) -> UnixMillis {
        UnixMillis(expires_at.0.saturating_add(self.authenticator().leeway_millis()))
    }

    /// Into memory and the writer's queue.
    fn make_void(
        &self,
        rows: &[(RevocationId, Revocation)],
    ) -> Result<oneshot::Receiver<Result<(), StoreError>>, RevokeError> {
        let (done, written) = oneshot::channel();
        let _order = self.0.revoking.order.lock();
        let authenticator = self.authenticator();
        let revocations = authenticator.revocations();
        let revoked = revocations
            .add(rows, self.clock().unix_millis())
            .map_err(|RevocationsFull| RevokeError::Full { until: revocations.earliest_end() })?;
        if revoked.is_empty() {
            let _ = done.send(Ok(()));
        } else {
            self.0.store.stage_in(self.0.store.generation(), Op::Revoke { revoked, done });
        }
        Ok(written)
    }

    async fn stored(&self, written: oneshot::Receiver<Result<(), StoreError>>) -> Result<(), RevokeError> {
        let written = written.await.unwrap_or(Err(StoreError::Closed));
        written.inspect_err(|error| self.store_error(error)).map_err(RevokeError::Store)
    }

    /// Closes the sessions that live by what is void now; how many.
    async fn close_void(&self, revoked: &[Revoked]) -> u32 {
        let mut closed = 0u32;
        let mut tokens = Vec::new();
        for one in revoked {
            match one {
                Revoked::User(user, before) => {
                    let void = Revocation { issued_before: *before, expires_at: UnixMillis(u64::MAX) };
                    for handle in self.user_sessions(user) {
                        let issued_at = handle.core().session.token().issued_at_secs;
                        closed += u32::from(void.covers(issued_at) && close(&handle));
                    }
                }
                Revoked::Token(id) => {
                    let (told, count) = oneshot::channel();
                    self.0.revoking.wanted.lock().push((*id, told));
                    tokens.push(count);
                }
            }
        }
        if !tokens.is_empty() {
            let _one_at_a_time = self.0.revoking.looking.lock().await;
            self.look_for_wanted().await;
        }
        for count in tokens {
            closed += count.await.unwrap_or(0);
        }
        closed
    }

    /// Closes the sessions that live by the tokens that are wanted by now.
    async fn look_for_wanted(&self) {
        let wanted = std::mem::take(&mut *self.0.revoking.wanted.lock());
        if wanted.is_empty() {
            return;
        }
        let ids: HashSet<TokenId> = wanted.iter().map(|(id, _)| *id).collect();
        let mut closed: Vec<TokenId> = Vec::new();
        let mut after = None;
        loop {
            let slice = self.session_page(after, SESSIONS_AT_ONCE);
            let Some(last) = slice.last() else { break };
            after = Some(last.id);
            for handle in &slice {
                let id = handle.core().session.token().id;
                if let Some(id) = id.filter(|id| ids.contains(id))
                    && close(handle)
                {
                    closed.push(id);
                }
            }
            tokio::task::yield_now().await;
        }
        for (id, told) in wanted {
            let count = closed.extract_if(.., |one| *one == id).count();
            let _ = told.send(u32::try_from(count).unwrap_or(u32::MAX));
        }
    }
}

impl Revoked {
    fn id(&self) -> RevocationId {
        match self {
            Revoked::Token(id) => RevocationId::of_token(*id),
            Revoked::User(user, _) => RevocationId::of_user(user),
        }
    }
}

fn close(handle: &Arc<Handle>) -> bool {
    handle.close(CloseCode::UNAUTHORIZED, AuthCode::TokenRevoked.as_str(), ClosedBy::Caller)
}
