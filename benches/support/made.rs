//! What benchmarks that work inside the process are made of: notifications, users, and a hub as the daemon builds it.
#![allow(dead_code, reason = "no benchmark uses all of it")]

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use pushgate::{
    auth::{self, Algorithm, Authenticator, KeyConfig},
    clock::Clock,
    hub::{self, Hub, Parts, Presence, Quotas},
    lifecycle::Lifecycle,
    limits::Limits,
    metrics::Metrics,
    session::{DeliveryConfig, Granted, HeartbeatConfig, Options, Settings},
    store::{self, Overflow, Store},
    types::{Notification, NotificationId, Payload, Secret, TypeName, UserId},
};

const SECRET: &str = "a secret for this measurement only";

/// Whatever goes wrong ends a measurement.
pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// A JSON object of exactly `bytes` bytes, with the quotes and brackets that objects have.
pub fn json(bytes: usize) -> String {
    let mut text = String::from("{\"title\":\"You have mail\",\"unread\":[1,2,3]");
    while text.len() + 40 < bytes {
        text.push_str(",\"from\":\"somebody\"");
    }
    let start = ",\"body\":\"";
    let fill = bytes - text.len() - start.len() - 2;
    text + start + &"x".repeat(fill) + "\"}"
}

/// A notification as one accepted now, to be kept for a day.
pub fn notification(payload: Payload) -> Notification {
    let now = Clock::system().unix_millis();
    Notification {
        id: NotificationId::generate(),
        type_name: TypeName::NOTIFICATION,
        payload,
        from_user: None,
        topic: None,
        kind: None,
        collapse_key: None,
        not_for: [].into(),
        accepted_at: now,
        expires_at: Some(now.saturating_add(Duration::from_secs(24 * 3600))),
    }
}

/// The same, of JSON of so many bytes.
pub fn json_notification(bytes: usize) -> Notification {
    notification(Payload::Json(Bytes::from(json(bytes))))
}

/// A user's id.
pub fn user(name: &str) -> UserId {
    UserId::parse(name).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// A hub as the daemon builds it, with its defaults but for these. [`Hub::start`] has not been called.
pub fn hub(store: Store, limits: Limits, heartbeat: HeartbeatConfig) -> Result<Hub, Error> {
    let clock = Clock::system();
    let key = KeyConfig { secret: Secret::new(SECRET), ..KeyConfig::new(Algorithm::HS256) };
    let config = auth::Config { keys: vec![key], require_exp: false, ..auth::Config::default() };
    let kept = store::Config::default();
    Ok(Hub::new(Parts {
        store,
        authenticator: Arc::new(Authenticator::new(&config, clock.clone())?),
        clock,
        metrics: Metrics::default(),
        life: Lifecycle::new(),
        events: hub::EventsConfig::default(),
        tracer: pushgate::trace::Tracer::default(),
        live: hub::Live {
            settings: Settings::of(&DeliveryConfig::default(), &heartbeat, &limits),
            limits,
            presence: Presence::default(),
            drain: hub::DrainConfig::default(),
            notice: Duration::ZERO,
            clients: hub::Clients::default(),
            alerts: hub::AlertsConfig::default(),
            rules: hub::Rules::default(),
            public_claims: Vec::new(),
            guests_max: pushgate::types::Count(0),
            quotas: Quotas {
                ttl: kept.ttl.0,
                max_ttl: kept.max_ttl.0,
                max_bytes: kept.max_bytes.0,
                pending_per_user: kept.max_pending_per_user.limit(),
                devices_per_user: kept.max_devices_per_user.limit(),
                device_ttl: kept.device_ttl.0,
                overflow: Overflow::Refuse,
                idempotency_window: kept.idempotency_window.0,
            },
        },
    }))
}

/// Somebody who has shown a token, checked as the daemon checks it.
pub fn granted(hub: &Hub, user: &str) -> Result<Granted, Error> {
    let key = jsonwebtoken::EncodingKey::from_secret(SECRET.as_bytes());
    let token = jsonwebtoken::encode(&Default::default(), &serde_json::json!({ "sub": user }), &key)?;
    let identity = hub.authenticator().verify(&token)?;
    Ok(Granted { identity, options: Options::default(), reply_to: None })
}
