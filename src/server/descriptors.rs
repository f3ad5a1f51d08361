//! The process's limit on descriptors, which each connection needs one of.

use crate::{config::Config, limits, net, types::ListenAddress};

/// Raises the soft limit on descriptors to the hard one, and says so where that is still too low for the clients that
/// the configuration allows. The limit, where there is one.
pub(super) fn raise_limit(config: &Config) -> Option<u64> {
    let (limit, raised) = net::raise_descriptor_limit();
    if let Err(error) = raised {
        tracing::warn!(%error, "the limit on descriptors could not be raised");
    }
    let connections = u64::from(config.limits.connections.0);
    // A machine's own users do not come in such numbers. Nor is a limit that is not there one to warn of.
    let public = |text: &String| ListenAddress::parse(text).is_ok_and(|address| !address.is_local());
    if let Some(limit) = limit
        && config.http.listen.iter().any(public)
        && limits::room_for_clients(limit) < connections
    {
        tracing::warn!(
            limit,
            connections,
            "the descriptor limit is too low for limits.connections; raise it (LimitNOFILE=) or lower that"
        );
    }
    limit
}
