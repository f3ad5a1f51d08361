//! Where the daemon may listen.

use super::{Config, Found, Problem, tls::knows_callers};
use crate::types::ListenAddress;

/// Addresses that cannot be listened on, and those that would be open to too many.
pub(super) fn check(config: &Config, found: &mut Found) {
    found.require(!config.http.listen.is_empty(), "http.listen", || {
        "is empty, and without it no client can connect; write host:port, such as [\"0.0.0.0:7000\"]".to_owned()
    });
    found.require(!config.grpc.listen.is_empty(), "grpc.listen", || {
        "is empty, and without it nothing can be sent; write [\"unix:/run/pushgate/admin.sock\"] or [\"127.0.0.1:7001\"]"
            .to_owned()
    });
    let path = &config.http.path;
    found.require(path.starts_with('/') && path.bytes().all(|b| b.is_ascii_graphic() && b != b'?' && b != b'#'), "http.path", || {
        format!("`{path}` is not allowed; write a path that begins with `/`, without spaces, `?` and `#`, such as \"/ws\"")
    });
    found.require(!matches!(path.as_str(), "/livez" | "/readyz"), "http.path", || {
        format!("`{path}` is the gateway's own; write another path, such as \"/ws\"")
    });
    let mut seen: Vec<ListenAddress> = Vec::new();
    for (section, listen) in [("http", &config.http.listen), ("grpc", &config.grpc.listen), ("ops", &config.ops.listen)]
    {
        for (index, text) in listen.iter().enumerate() {
            let key = format!("{section}.listen[{index}]");
            match ListenAddress::parse(text) {
                Err(error) => found.add(key, error.to_string()),
                Ok(ListenAddress::Unix(_)) if section != "grpc" => {
                    found.add(
                        key,
                        format!("`{text}` is for grpc.listen only; write host:port, such as \"127.0.0.1:7000\""),
                    );
                }
                Ok(address) => {
                    let any_port = matches!(address, ListenAddress::Tcp { port: 0, .. });
                    if seen.contains(&address) && !any_port {
                        found.add(key, format!("`{text}` is listed twice; give each listener an address of its own"));
                        continue;
                    }
                    if section == "grpc" {
                        grpc_listener(config, &key, text, &address, found);
                    }
                    seen.push(address);
                }
            }
        }
    }
}

/// The admin API is closed by default: the Unix socket is guarded by its mode, loopback by tokens or an explicit
/// `insecure`, everything else by TLS.
fn grpc_listener(config: &Config, key: &str, text: &str, address: &ListenAddress, found: &mut Found) {
    let grpc = &config.grpc;
    if matches!(address, ListenAddress::Unix(_)) {
        return;
    }
    if address.is_local() {
        if !knows_callers(config) && !grpc.insecure {
            found.add(
                key,
                format!(
                    "`{text}` would be open to every process of this machine; add [[grpc.tokens]], or set \
                     grpc.insecure = true if that is meant, or listen on a Unix socket"
                ),
            );
        }
    } else if grpc.insecure {
        found.add(
            key,
            format!(
                "`{text}` can be reached from other machines, and grpc.insecure = true is for loopback only; listen \
                 on 127.0.0.1, [::1] or a Unix socket, or set it to false"
            ),
        );
    } else if !grpc.tls.is_set() {
        found.add(
            key,
            format!(
                "`{text}` can be reached from other machines, where tokens need TLS; set grpc.tls.certificate_file and \
                 grpc.tls.key_file, or listen on 127.0.0.1, [::1] or a Unix socket"
            ),
        );
    } else if !knows_callers(config) {
        found.add(
            key,
            format!(
                "`{text}` would let nobody in; add [[grpc.tokens]], or grpc.tls.client_ca_file and [[grpc.clients]]"
            ),
        );
    }
}

/// What `serve --dev` cannot run with: its page hands out a token and its admin API asks for none, so that only this
/// machine may reach it.
pub(in crate::config) fn dev_problems(config: &Config) -> Vec<Problem> {
    let mut found = Found(Vec::new());
    for (section, listen) in [("http", &config.http.listen), ("grpc", &config.grpc.listen), ("ops", &config.ops.listen)]
    {
        for (index, text) in listen.iter().enumerate() {
            // What is no address at all is refused elsewhere.
            let beyond = ListenAddress::parse(text).is_ok_and(|address| !address.is_local());
            found.require(!beyond, &format!("{section}.listen[{index}]"), || {
                format!(
                    "`{text}` can be reached from other machines, and --dev is for loopback only; listen on 127.0.0.1 \
                     or [::1], or leave out --dev"
                )
            });
        }
    }
    for (section, tls) in [("http", &config.http.tls), ("grpc", &config.grpc.tls)] {
        found.require(!tls.is_set(), &format!("{section}.tls.certificate_file"), || {
            "is for a gateway in earnest: what --dev shows speaks plain text; leave it empty, or leave out --dev"
                .to_owned()
        });
    }
    found.require(config.http.path != "/", "http.path", || {
        "`/` is where --dev has its page; write another path, such as \"/ws\"".to_owned()
    });
    found.0
}
