//! What is known of the listeners' certificates.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use super::Metrics;

/// The listeners that may have one.
pub const LISTENERS: [&str; 3] = ["http", "grpc", "ops"];

/// How each listener's certificate stands, in the order of [`LISTENERS`].
#[derive(Debug, Default)]
pub struct Certificates([Certificate; LISTENERS.len()]);

#[derive(Debug, Default)]
struct Certificate {
    /// There is one.
    is_set: AtomicBool,
    expires_at: AtomicI64,
    /// Its files changed to what cannot be used.
    refused: AtomicBool,
}

impl Metrics {
    fn certificate(&self, listener: &str) -> Option<&Certificate> {
        let at = LISTENERS.iter().position(|known| *known == listener)?;
        Some(&self.certificates.0[at])
    }

    /// A listener uses a certificate from now on that expires then, in seconds since the Unix epoch.
    pub fn set_certificate(&self, listener: &str, expires_at: i64) {
        if let Some(certificate) = self.certificate(listener) {
            certificate.expires_at.store(expires_at, Ordering::Relaxed);
            certificate.refused.store(false, Ordering::Relaxed);
            certificate.is_set.store(true, Ordering::Release);
        }
    }

    /// What a listener's files hold now cannot be used; it goes on with what it has.
    pub fn certificate_refused(&self, listener: &str) {
        if let Some(certificate) = self.certificate(listener) {
            certificate.refused.store(true, Ordering::Relaxed);
        }
    }

    /// When a listener's certificate expires, in seconds since the Unix epoch; `None`: it has none.
    pub fn certificate_expires_at(&self, listener: &str) -> Option<i64> {
        let certificate = self.certificate(listener)?;
        certificate.is_set.load(Ordering::Acquire).then(|| certificate.expires_at.load(Ordering::Relaxed))
    }

    /// Listeners whose files hold what cannot be used.
    pub fn certificates_refused(&self) -> usize {
        self.certificates.0.iter().filter(|certificate| certificate.refused.load(Ordering::Relaxed)).count()
    }
}
