//! What is said at the start about pages that may connect.

use crate::{config::Config, types::ListenAddress};

/// Says where pages of every site may connect from browsers of others.
pub fn warn(config: &Config) {
    let public = |text: &String| ListenAddress::parse(text).is_ok_and(|address| !address.is_local());
    if config.http.origins.is_empty() && config.http.listen.iter().any(public) {
        tracing::warn!(
            "http.origins is empty: pages of every site may connect; list your own, such as [\"https://app.example.com\"]"
        );
    }
}
