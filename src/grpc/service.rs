//! The generated trait, filled in: each call finds its caller, keeps its deadline, and asks the `api` floor.

use std::pin::Pin;

use futures_util::{Stream, StreamExt as _};
use tonic::{Request, Response, Status, Streaming};

use crate::api::{
    Api, ApiError, Caller, access,
    proto::{
        BackupRequest, BackupResponse, BroadcastRequest, BroadcastResponse, CloseUserSessionsRequest,
        CloseUserSessionsResponse, DrainRequest, Draining, Event, ForgetDeviceRequest, ForgetDeviceResponse,
        ForgetUserRequest, ForgetUserResponse, GetStatusRequest, GetStatusResponse, ListDevicesRequest,
        ListDevicesResponse, ListPendingRequest, ListPendingResponse, ListSessionsRequest, ListSessionsResponse,
        ListTopicsRequest, ListTopicsResponse, ListUsersRequest, ListUsersResponse, PublishRequest, PublishResponse,
        PurgePendingRequest, PurgePendingResponse, ReloadRequest, ReloadResponse, RevokeTokensRequest,
        RevokeTokensResponse, SendBatchRequest, SendBatchResponse, SendToSessionRequest, SendToSessionResponse,
        SendToUserRequest, SendToUserResponse, SetLogFilterRequest, SetLogFilterResponse, StreamEventsRequest,
        SubscribeRequest, SubscribeResponse, UndrainRequest, UndrainResponse, UnsubscribeRequest, UnsubscribeResponse,
        gateway_server::Gateway,
    },
};
use crate::clock::Instant;

/// The admin API as tonic wants it.
pub struct Service(pub Api);

impl Service {
    /// Answers a call: by what `handle` says, or by DEADLINE_EXCEEDED just before the caller gives up.
    async fn answer<Q, A, F>(
        &self,
        mut request: Request<Q>,
        handle: impl FnOnce(Caller, Option<Instant>, Q) -> F,
    ) -> Result<Response<A>, Status>
    where
        F: Future<Output = Result<A, ApiError>>,
    {
        let answer = match access::call(request.extensions_mut()) {
            Err(error) => Err(error),
            Ok((caller, deadline)) => access::in_time(deadline, handle(caller, deadline, request.into_inner())).await,
        };
        answer.map(Response::new).map_err(|error| error.into_status(self.0.metrics()))
    }
}

#[tonic::async_trait]
impl Gateway for Service {
    async fn send_to_user(&self, request: Request<SendToUserRequest>) -> Result<Response<SendToUserResponse>, Status> {
        self.answer(request, async |caller, deadline, request| self.0.send_to_user(&caller, request, deadline).await)
            .await
    }

    async fn send_to_session(
        &self,
        request: Request<SendToSessionRequest>,
    ) -> Result<Response<SendToSessionResponse>, Status> {
        self.answer(request, async |caller, _, request| self.0.send_to_session(&caller, request)).await
    }

    type SendBatchStream = Pin<Box<dyn Stream<Item = Result<SendBatchResponse, Status>> + Send>>;

    async fn send_batch(
        &self,
        mut request: Request<Streaming<SendBatchRequest>>,
    ) -> Result<Response<Self::SendBatchStream>, Status> {
        let answers = access::call(request.extensions_mut())
            .and_then(|(caller, deadline)| self.0.send_batch(&caller, request.into_inner(), deadline));
        answers.map(Response::new).map_err(|error| error.into_status(self.0.metrics()))
    }

    async fn broadcast(&self, request: Request<BroadcastRequest>) -> Result<Response<BroadcastResponse>, Status> {
        self.answer(request, async |caller, _, request| self.0.broadcast(&caller, request).await).await
    }

    async fn close_user_sessions(
        &self,
        request: Request<CloseUserSessionsRequest>,
    ) -> Result<Response<CloseUserSessionsResponse>, Status> {
        self.answer(request, async |caller, _, request| self.0.close_user_sessions(&caller, request).await).await
    }

    async fn get_status(&self, request: Request<GetStatusRequest>) -> Result<Response<GetStatusResponse>, Status> {
        self.answer(request, async |caller, _, _| self.0.get_status(&caller)).await
    }

    async fn list_sessions(
        &self,
        request: Request<ListSessionsRequest>,
    ) -> Result<Response<ListSessionsResponse>, Status> {
        self.answer(request, async |caller, _, request| self.0.list_sessions(&caller, &request).await).await
    }

    async fn list_users(&self, request: Request<ListUsersRequest>) -> Result<Response<ListUsersResponse>, Status> {
        self.answer(request, async |caller, _, request| self.0.list_users(&caller, &request).await).await
    }

    async fn set_log_filter(
        &self,
        request: Request<SetLogFilterRequest>,
    ) -> Result<Response<SetLogFilterResponse>, Status> {
        self.answer(request, async |caller, _, request| self.0.set_log_filter(&caller, &request)).await
    }

    async fn reload(&self, request: Request<ReloadRequest>) -> Result<Response<ReloadResponse>, Status> {
        self.answer(request, async |caller, _, request| self.0.reload(&caller, request).await).await
    }

    async fn backup(&self, request: Request<BackupRequest>) -> Result<Response<BackupResponse>, Status> {
        self.answer(request, async |caller, _, request| self.0.backup(&caller, request).await).await
    }

    async fn list_pending(
        &self,
        request: Request<ListPendingRequest>,
    ) -> Result<Response<ListPendingResponse>, Status> {
        self.answer(request, async |caller, _, request| self.0.list_pending(&caller, &request).await).await
    }

    async fn purge_pending(
        &self,
        request: Request<PurgePendingRequest>,
    ) -> Result<Response<PurgePendingResponse>, Status> {
        self.answer(request, async |caller, _, request| self.0.purge_pending(&caller, &request).await).await
    }

    async fn list_devices(
        &self,
        request: Request<ListDevicesRequest>,
    ) -> Result<Response<ListDevicesResponse>, Status> {
        self.answer(request, async |caller, _, request| self.0.list_devices(&caller, &request).await).await
    }

    async fn forget_device(
        &self,
        request: Request<ForgetDeviceRequest>,
    ) -> Result<Response<ForgetDeviceResponse>, Status> {
        self.answer(request, async |caller, _, request| self.0.forget_device(&caller, &request).await).await
    }

    async fn forget_user(&self, request: Request<ForgetUserRequest>) -> Result<Response<ForgetUserResponse>, Status> {
        self.answer(request, async |caller, _, request| self.0.forget_user(&caller, &request).await).await
    }

    type StreamEventsStream = Pin<Box<dyn Stream<Item = Result<Event, Status>> + Send>>;

    async fn stream_events(
        &self,
        mut request: Request<StreamEventsRequest>,
    ) -> Result<Response<Self::StreamEventsStream>, Status> {
        // A stream's deadline ends it through the transport; only its opening is answered here.
        let metrics = self.0.metrics().clone();
        let events = access::call(request.extensions_mut())
            .and_then(|(caller, _)| self.0.stream_events(&caller, request.get_ref()))
            .map_err(|error| error.into_status(&metrics))?;
        Ok(Response::new(Box::pin(events.map(move |event| event.map_err(|error| error.into_status(&metrics))))))
    }

    async fn publish(&self, request: Request<PublishRequest>) -> Result<Response<PublishResponse>, Status> {
        self.answer(request, async |caller, _, request| self.0.publish(&caller, request).await).await
    }

    async fn subscribe(&self, request: Request<SubscribeRequest>) -> Result<Response<SubscribeResponse>, Status> {
        self.answer(request, async |caller, _, request| self.0.subscribe(&caller, &request).await).await
    }

    async fn unsubscribe(&self, request: Request<UnsubscribeRequest>) -> Result<Response<UnsubscribeResponse>, Status> {
        self.answer(request, async |caller, _, request| self.0.unsubscribe(&caller, &request).await).await
    }

    async fn list_topics(&self, request: Request<ListTopicsRequest>) -> Result<Response<ListTopicsResponse>, Status> {
        self.answer(request, async |caller, _, request| self.0.list_topics(&caller, &request).await).await
    }

    async fn revoke_tokens(
        &self,
        request: Request<RevokeTokensRequest>,
    ) -> Result<Response<RevokeTokensResponse>, Status> {
        self.answer(request, async |caller, _, request| self.0.revoke_tokens(&caller, request).await).await
    }

    type DrainStream = Pin<Box<dyn Stream<Item = Result<Draining, Status>> + Send>>;

    async fn drain(&self, mut request: Request<DrainRequest>) -> Result<Response<Self::DrainStream>, Status> {
        // A stream's deadline ends it through the transport, and not the drain.
        let metrics = self.0.metrics().clone();
        let steps = access::call(request.extensions_mut())
            .and_then(|(caller, _)| self.0.drain(&caller, request.get_ref()))
            .map_err(|error| error.into_status(&metrics))?;
        Ok(Response::new(Box::pin(steps.map(move |step| step.map_err(|error| error.into_status(&metrics))))))
    }

    async fn undrain(&self, request: Request<UndrainRequest>) -> Result<Response<UndrainResponse>, Status> {
        self.answer(request, async |caller, _, _| self.0.undrain(&caller)).await
    }
}
