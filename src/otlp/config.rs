//! The section `[otlp]`: where spans go, and of which calls.

use std::{
    fmt, fs, io,
    io::Read as _,
    net::IpAddr,
    path::{Path, PathBuf},
};

use http::{HeaderMap, HeaderName, HeaderValue, Uri};
use serde::{Deserialize, Serialize};
use tokio_rustls::TlsConnector;

use crate::{
    auth,
    types::{Share, Span},
};

/// What is said where the section asks for what the build does not have.
pub const NOT_BUILT_IN: &str = "this build cannot export traces; use one with the cargo feature `otlp`, which the packages \
                                have, or leave the key out";
/// The path of a collector's endpoint for traces (OTLP/HTTP, "OTLP/HTTP Request").
const PATH: &str = "/v1/traces";
/// The bytes of a file of headers.
const HEADERS_FILE_BYTES_MAX: u64 = 64 * 1024;
/// The bytes of the service's name.
const NAME_BYTES_MAX: usize = 255;

/// The section `[otlp]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The collector's base URL; `/v1/traces` is added. Empty: nothing is recorded.
    pub endpoint: String,
    /// How many of the calls that bring no `traceparent` are recorded.
    pub sample_ratio: Share,
    /// What the gateway is called in traces (`service.name`).
    pub service_name: String,
    /// How long one request to the collector may take.
    pub timeout: Span,
    /// The file of headers that each request has, a line each: `name: value`. Empty: none.
    pub headers_file: PathBuf,
    /// The certificates (PEM) of those who vouch for the collector, in place of the system's. Empty: the system's.
    pub ca_file: PathBuf,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            endpoint: String::new(),
            // Whoever traces sends `traceparent`; of the others a few show what is usual, at next to no cost.
            sample_ratio: Share::percent(1),
            service_name: "pushgate".to_owned(),
            // As long as the specification has it (OTLP Exporter Configuration, "Timeout").
            timeout: Span::secs(10),
            headers_file: PathBuf::new(),
            ca_file: PathBuf::new(),
        }
    }
}

/// Where a collector listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Whether TLS is spoken.
    pub secure: bool,
    /// A name or an address, without brackets.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// Where requests go.
    pub path: String,
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.secure { "https" } else { "http" };
        write!(f, "{scheme}://{}{}", self.authority(), self.path)
    }
}

impl Endpoint {
    fn parse(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("`{text}` is no URL such as \"http://127.0.0.1:4318\" or \"https://otel.example.com:4318\"");
        // What stands before an @ may be a password: it is not repeated.
        if text.contains('@') {
            return Err("holds a name or a password, which are not sent; put an authorization header into \
                        otlp.headers_file"
                .to_owned());
        }
        let uri: Uri = text.parse().map_err(|_| wrong())?;
        let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else { return Err(wrong()) };
        let secure = match scheme {
            "https" => true,
            "http" => false,
            _ => return Err(wrong()),
        };
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = authority.port_u16().unwrap_or(if secure { 443 } else { 80 });
        // A port that is none is neither there nor not.
        let bad_port = authority.port_u16().is_none() && authority.as_str() != authority.host();
        if host.is_empty() || bad_port || uri.query().is_some() {
            return Err(wrong());
        }
        let base = uri.path().trim_end_matches('/');
        if base.ends_with(PATH) {
            return Err(format!("`{text}` ends in {PATH}, which is added; leave it out"));
        }
        Ok(Self { secure, host, port, path: format!("{base}{PATH}") })
    }

    /// The value of `Host`.
    pub fn authority(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        if self.port == if self.secure { 443 } else { 80 } { host } else { format!("{host}:{}", self.port) }
    }

    fn is_local(&self) -> bool {
        self.host.eq_ignore_ascii_case("localhost") || self.host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
    }
}

/// What the files of the section hold.
pub struct Files {
    /// The headers of each request.
    pub headers: HeaderMap,
    /// Speaks TLS with the collector, where it does.
    pub tls: Option<TlsConnector>,
}

impl Config {
    /// Where spans go. `None`: nowhere.
    ///
    /// # Errors
    /// What is no URL that spans can go to.
    pub fn endpoint(&self) -> Result<Option<Endpoint>, String> {
        if self.endpoint.is_empty() { Ok(None) } else { Endpoint::parse(&self.endpoint).map(Some) }
    }

    /// What is wrong with the section, by key. No file is read.
    pub fn problems(&self) -> Vec<(&'static str, String)> {
        let mut problems = Vec::new();
        match self.endpoint() {
            Err(why) => problems.push(("otlp.endpoint", why)),
            Ok(Some(_)) if !super::IS_BUILT_IN => problems.push(("otlp.endpoint", NOT_BUILT_IN.to_owned())),
            Ok(Some(endpoint)) if !endpoint.secure && !endpoint.is_local() && self.has_headers() => {
                let text = "would be sent in the clear to another machine; use https in otlp.endpoint, or a collector on \
                            127.0.0.1, [::1] or localhost";
                problems.push(("otlp.headers_file", text.to_owned()));
            }
            Ok(_) => {}
        }
        if self.service_name.is_empty() || self.service_name.len() > NAME_BYTES_MAX {
            problems
                .push(("otlp.service_name", format!("must have 1 to {NAME_BYTES_MAX} bytes, such as \"pushgate\"")));
        }
        problems
    }

    fn has_headers(&self) -> bool {
        !self.headers_file.as_os_str().is_empty()
    }

    /// Reads the files, where they are needed.
    ///
    /// # Errors
    /// The key of the one that cannot be used, and why.
    pub fn read_files(&self) -> Result<Files, (&'static str, String)> {
        let headers = if self.endpoint.is_empty() || !self.has_headers() {
            HeaderMap::new()
        } else {
            let file = &self.headers_file;
            let read = read(file).map_err(|error| error.to_string()).and_then(|text| headers(&text));
            read.map_err(|why| ("otlp.headers_file", format!("{}: {why}", file.display())))?
        };
        let tls = match self.endpoint() {
            Ok(Some(endpoint)) if endpoint.secure => {
                let tls = auth::tls_trusting(&self.ca_file);
                Some(tls.map_err(|why| ("otlp.ca_file", format!("{}: {why}", self.ca_file.display())))?)
            }
            _ => None,
        };
        Ok(Files { headers, tls })
    }
}

fn read(file: &Path) -> io::Result<String> {
    let mut text = String::new();
    fs::File::open(file)?.take(HEADERS_FILE_BYTES_MAX + 1).read_to_string(&mut text)?;
    if text.len() as u64 > HEADERS_FILE_BYTES_MAX {
        return Err(io::Error::other(format!("has more than {HEADERS_FILE_BYTES_MAX} bytes")));
    }
    Ok(text)
}

/// Reads headers; what is wrong is said by its line's number, and nothing of the line, which may be a secret.
fn headers(text: &str) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let read = || {
            let (name, value) = line.split_once(':')?;
            let name = HeaderName::from_bytes(name.trim().as_bytes()).ok()?;
            let mut value = HeaderValue::from_str(value.trim()).ok()?;
            value.set_sensitive(true);
            Some((name, value))
        };
        let (name, value) = read().ok_or_else(|| format!("line {} is no header; write `name: value`", index + 1))?;
        if matches!(name.as_str(), "host" | "content-length" | "content-type" | "transfer-encoding" | "connection") {
            return Err(format!("line {}: `{name}` is the gateway's own to set", index + 1));
        }
        headers.append(name, value);
    }
    Ok(headers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_a_base_url() {
        for (text, shown) in [
            ("http://127.0.0.1:4318", "http://127.0.0.1:4318/v1/traces"),
            ("http://collector:4318/", "http://collector:4318/v1/traces"),
            ("https://otel.example.com/tenant/a/", "https://otel.example.com/tenant/a/v1/traces"),
            ("http://[::1]:4318", "http://[::1]:4318/v1/traces"),
        ] {
            assert_eq!(Endpoint::parse(text).unwrap().to_string(), shown);
        }
        for bad in [
            "collector:4318",
            "127.0.0.1:4318",
            "grpc://127.0.0.1:4317",
            "http://",
            "http://a:99999",
            "http://a/?b=c",
            "http://a/v1/traces",
            "http://user:secret@a/",
        ] {
            let why = Endpoint::parse(bad).unwrap_err();
            assert!(!why.contains("secret"), "{why}");
        }
    }

    #[test]
    fn headers_are_read_and_never_repeated() {
        let read = headers("# a collector's\n\nauthorization: Bearer abc:def\nX-Scope:  a \n").unwrap();
        assert!(read["authorization"] == "Bearer abc:def" && read["x-scope"] == "a");
        assert!(!format!("{read:?}").contains("abc"));
        for bad in ["a: b\nsecret", "a: b\nse cret: x", "a: b\nhost: secret.example", "a: b\nx: \u{7f}secret"] {
            let why = headers(bad).unwrap_err();
            assert!(why.contains("line 2") && !why.contains("secret"), "{why}");
        }
    }

    #[test]
    fn headers_go_to_this_machine_or_by_tls() {
        let with = |endpoint: &str| {
            let config = Config { endpoint: endpoint.into(), headers_file: "h".into(), ..Config::default() };
            config.problems().into_iter().map(|(key, _)| key).collect::<Vec<_>>()
        };
        let built = if super::super::IS_BUILT_IN { None } else { Some("otlp.endpoint") };
        assert_eq!(with(""), [""; 0]);
        for good in ["http://localhost:1", "https://collector:1"] {
            assert_eq!(with(good), Vec::from_iter(built), "{good}");
        }
        assert_eq!(with("http://collector:1"), [built.unwrap_or("otlp.headers_file")]);
    }
}
