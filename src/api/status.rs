//! `GetStatus`: one page on the node.

use super::{
    Inner,
    convert::{duration, timestamp},
    events, process, proto,
};
use crate::{
    hub::Hub,
    limits::Limit,
    metrics::{Failure, Rates, Traffic},
    types::DrainState,
};

fn number32(n: u64) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

fn traffic(traffic: &Traffic, bytes: u64, messages_per_second: f64, bytes_per_second: f64) -> proto::Traffic {
    let messages = traffic.messages();
    proto::Traffic { messages, bytes, messages_per_second, bytes_per_second }
}

/// The node as it is now.
pub fn status(inner: &Inner, hub: &Hub) -> proto::GetStatusResponse {
    let (metrics, limits, quotas) = (hub.metrics(), hub.limits(), hub.quotas());
    let now = hub.clock().now();
    let Rates { messages_received, bytes_received, messages_sent, bytes_sent, failures } = metrics.rates(now);
    let latency = metrics.confirm_latency();
    let health = hub.store().health();
    let totals = hub.store().totals();
    let usage = process::usage();
    let calls = *inner.call_limits.lock();
    let none_as_zero = |limit: usize| if limit == usize::MAX { 0 } else { number32(limit as u64) };
    proto::GetStatusResponse {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        node: inner.node.clone(),
        epoch: hub.events().epoch().to_string(),
        store_epoch: hub.store().epoch().to_string(),
        started_at: Some(timestamp(inner.started_at)),
        uptime: Some(duration(now.duration_since(inner.started))),
        listeners: inner
            .listeners
            .get()
            .into_iter()
            .flatten()
            .map(|listener| {
                let expires_at = metrics.certificate_expires_at(listener.name).filter(|_| listener.tls);
                let seconds = |seconds| prost_types::Timestamp { seconds, nanos: 0 };
                proto::Listener {
                    name: listener.name.to_owned(),
                    address: listener.address.clone(),
                    tls: listener.tls,
                    certificate_expires_at: expires_at.map(seconds),
                }
            })
            .collect(),
        connections: Some(proto::ConnectionStatus {
            now: number32(metrics.connections.get()),
            peak: number32(metrics.connections.peak()),
            total: metrics.connections_total.get(),
        }),
        users: number32(hub.users_online()),
        sessions: number32(hub.session_count() as u64),
        received: Some(traffic(&metrics.received, metrics.received_bytes.get(), messages_received, bytes_received)),
        sent: Some(traffic(&metrics.sent, metrics.sent.bytes(), messages_sent, bytes_sent)),
        errors: Failure::ALL.iter().map(|&failure| (failure.as_str().to_owned(), metrics.failures(failure))).collect(),
        errors_per_second: failures,
        confirm_latency: Some(proto::Latency {
            count: latency.count,
            p50: Some(duration(latency.p50)),
            p90: Some(duration(latency.p90)),
            p99: Some(duration(latency.p99)),
            max: Some(duration(latency.max)),
        }),
        pending: Some(proto::PendingStatus { count: totals.count, bytes: totals.bytes }),
        store: Some(proto::StoreStatus {
            engine: hub.store().engine_name().to_owned(),
            healthy: health.is_ok(),
            disk_bytes: hub.store().disk_bytes(),
            reason: health.err().map(|error| error.to_string()).unwrap_or_default(),
        }),
        event_streams: Some(proto::EventStreamStatus {
            open: number32(metrics.event_streams.get()),
            events: hub.events().count(),
            lost: metrics.events_lost.get(),
        }),
        process: Some(proto::ProcessStatus {
            cpu: Some(duration(usage.cpu)),
            rss_bytes: usage.rss_bytes,
            memory_total_bytes: usage.memory_total_bytes,
        }),
        limits: Some(proto::LimitStatus {
            connections: number32(hub.connections_max()),
            connections_per_user: limits.connections_per_user.0,
            message_bytes: limits.message_bytes.0,
            notification_bytes: limits.notification_bytes.0,
            outbox_bytes: limits.outbox_bytes.0,
            max_pending_per_user: none_as_zero(quotas.pending_per_user),
            max_store_bytes: quotas.max_bytes,
            window: hub.settings().delivery.window,
            topics_per_session: limits.topics_per_session.0,
            topic_sessions: limits.topic_sessions.0,
            connections_per_address: limits.connections_per_address.0,
            connections_per_device: limits.connections_per_device.0,
            device_overflow: limits.device_overflow.as_str().to_owned(),
            accepts_per_second: limits.accepts_per_second.0,
            handshakes_per_second: limits.handshakes_per_second.0,
            address_handshakes_per_second: limits.address_handshakes_per_second.0,
            handshake_timeout: Some(duration(limits.handshake_timeout.0)),
            handshake_bytes: limits.handshake_bytes.0,
            messages_per_second: limits.messages_per_second.0,
            bytes_per_second: limits.bytes_per_second.0,
            bad_messages: limits.bad_messages.0,
            reauths_per_minute: limits.reauths_per_minute.0,
            new_devices_per_hour: limits.new_devices_per_hour.0,
            max_devices_per_user: none_as_zero(quotas.devices_per_user),
            write_timeout: Some(duration(limits.write_timeout.0)),
            memory_bytes: process::memory_bound(limits.memory).unwrap_or_default(),
            grpc_max_connections: calls.connections.0,
            grpc_max_streams: calls.streams,
            grpc_max_message_bytes: calls.message_bytes as u64,
            hits: Limit::ALL.iter().map(|&limit| (limit.as_str().to_owned(), metrics.hits(limit))).collect(),
        }),
        alerts: hub.alerts().iter().map(events::alert).collect(),
        draining: hub.drained().state != DrainState::Serving,
    }
}
