//! TLS of the listeners, who is known by a certificate, and who is believed about addresses. Files are read where that is asked for.

use super::{Config, Found, Problem, no_scopes};
use crate::{
    net::tls::{Speaks, Terms, Tls},
    types::{Network, OriginPattern, TlsFiles},
};

pub(super) fn check(config: &Config, found: &mut Found) {
    for (section, tls) in [("http", &config.http.tls), ("grpc", &config.grpc.tls), ("ops", &config.ops.tls)] {
        files(section, tls, found);
    }
    clients(config, found);
    addresses(config, found);
}

fn files(section: &str, tls: &TlsFiles, found: &mut Found) {
    let empty = |file: &std::path::Path| file.as_os_str().is_empty();
    let (certificate, key) = (empty(&tls.certificate_file), empty(&tls.key_file));
    found.require(certificate || !key, &format!("{section}.tls.key_file"), || {
        "is empty, and the certificate needs its private key; write the file that holds it, PEM".to_owned()
    });
    found.require(key || !certificate, &format!("{section}.tls.certificate_file"), || {
        "is empty, and the key is of no use without its certificate; write the file that holds the chain, PEM"
            .to_owned()
    });
    if empty(&tls.client_ca_file) {
        return;
    }
    let place = format!("{section}.tls.client_ca_file");
    if section != "grpc" {
        found.add(place, "is for grpc.tls only: clients and probes have no certificates; leave it empty");
    } else if certificate {
        found.add(place, "needs grpc.tls.certificate_file and grpc.tls.key_file beside it");
    }
}

fn clients(config: &Config, found: &mut Found) {
    let clients = &config.grpc.clients;
    found.require(clients.is_empty() || config.grpc.tls.has_authorities(), "grpc.clients", || {
        "need grpc.tls.client_ca_file, the authorities that their certificates are from; set it, or leave them out"
            .to_owned()
    });
    for (index, client) in clients.iter().enumerate() {
        let (key, name) = (format!("grpc.clients[{index}]"), &client.name);
        let usable = !name.is_empty() && name.len() <= 2048 && name.bytes().all(|byte| byte.is_ascii_graphic());
        if !usable {
            found.add(
                format!("{key}.name"),
                "is missing or unusable; write a name that the caller's certificate holds (subjectAltName): a DNS name, \
                 URI, e-mail or IP address",
            );
        } else if clients[..index].iter().any(|earlier| earlier.name.eq_ignore_ascii_case(name)) {
            found.add(
                format!("{key}.name"),
                format!("`{name}` is taken by an earlier client; give each a name of its own"),
            );
        }
        if client.scopes.is_empty() {
            found.add(format!("{key}.scopes"), no_scopes("certificate"));
        }
    }
}

fn addresses(config: &Config, found: &mut Found) {
    for (index, text) in config.http.origins.iter().enumerate() {
        if let Err(error) = text.parse::<OriginPattern>() {
            found.add(format!("http.origins[{index}]"), format!("`{text}` {error}"));
        }
    }
    for (index, text) in config.http.trusted_proxies.iter().enumerate() {
        if let Err(error) = text.parse::<Network>() {
            found.add(format!("http.trusted_proxies[{index}]"), format!("`{text}` {error}"));
        }
    }
    found.require(
        !config.http.proxy_protocol || !config.http.trusted_proxies.is_empty(),
        "http.proxy_protocol",
        || {
            "is true, and nobody is believed; list the proxies in http.trusted_proxies, such as [\"10.0.0.0/8\"]"
                .to_owned()
        },
    );
}

/// Whether some caller could get in at a TCP listener.
pub(super) fn knows_callers(config: &Config) -> bool {
    !config.grpc.tokens.is_empty() || config.grpc.tls.has_authorities()
}

/// What keeps a listener's files from being used.
pub(in crate::config) fn certificate_problem(section: &'static str, files: &TlsFiles) -> Option<Problem> {
    let terms = Terms {
        listener: section,
        files: files.clone(),
        speaks: Speaks::Http1,
        anonymous: true,
        handshakes: crate::types::Count(0),
    };
    let error = files.is_set().then(|| Tls::open(terms).err()).flatten()?;
    Some(Problem::new(format!("{section}.tls"), error.to_string()))
}
