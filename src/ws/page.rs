//! A page at `/` of the public listener, for `serve --dev`. It holds a token, so that whoever reads it is that user.
//!
//! On loopback that is every process of the machine, and nobody else may be: a site of another origin cannot read it
//! (no CORS, no framing), nor can one whose name was made to resolve to loopback, because only requests that name a
//! loopback host are answered. Its policy lets it run its own script, connect to this listener, and nothing more.

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;

use super::upgrade::{Reply, text};
use crate::net;

/// What the page is never, wherever it stands.
const ALWAYS: [(&str, &str); 6] = [
    ("content-type", "text/html; charset=utf-8"),
    ("cache-control", "no-store"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
    ("referrer-policy", "no-referrer"),
    ("x-content-type-options", "nosniff"),
];

/// A page that is one file: its style and its script are inside.
pub struct Page {
    /// The style's source in a Content-Security-Policy, such as `'sha256-…'`.
    pub style: String,
    /// The script's.
    pub script: String,
    /// Makes the text, anew for each request: a token runs out.
    pub html: Box<dyn Fn() -> String + Send + Sync>,
}

impl Page {
    /// Answers a request for the page's path.
    pub fn answer<B>(&self, request: &Request<B>) -> Reply {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut reply = text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n".to_owned());
            reply.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
            return reply;
        }
        let host = net::loopback_host(request.headers());
        let policy = host.and_then(|host| HeaderValue::try_from(self.policy(host.as_str())).ok());
        let Some(policy) = policy else {
            return text(StatusCode::FORBIDDEN, "this page is at 127.0.0.1, [::1] and localhost only\n".to_owned());
        };
        let mut reply = Response::new(Full::new(Bytes::from((self.html)())));
        let headers = reply.headers_mut();
        headers.insert(header::CONTENT_SECURITY_POLICY, policy);
        headers.extend(
            ALWAYS.map(|(name, value)| (header::HeaderName::from_static(name), HeaderValue::from_static(value))),
        );
        reply
    }

    /// `connect-src 'self'` does not mean WebSockets in every browser, so the listener is named.
    fn policy(&self, host: &str) -> String {
        format!(
            "default-src 'none'; style-src {}; script-src {}; connect-src ws://{host}; img-src data:; base-uri 'none'; \
             form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
            self.style, self.script
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(method: Method, hosts: &[&str]) -> Reply {
        let page = Page {
            style: "'sha256-a'".to_owned(),
            script: "'sha256-b'".to_owned(),
            html: Box::new(|| "<!doctype html>".to_owned()),
        };
        let mut request = Request::builder().method(method).uri("/");
        for host in hosts {
            request = request.header(header::HOST, *host);
        }
        page.answer(&request.body(()).unwrap())
    }

    #[test]
    fn only_loopback_names_get_the_page() {
        for host in ["127.0.0.1:7000", "127.8.8.8", "[::1]:7000", "localhost:7000", "LocalHost"] {
            let reply = ask(Method::GET, &[host]);
            assert_eq!(reply.status(), 200, "{host}");
            let policy = reply.headers()[header::CONTENT_SECURITY_POLICY].to_str().unwrap();
            assert!(policy.contains(&format!("connect-src ws://{host};")), "{policy}");
            assert!(
                policy.starts_with("default-src 'none'; style-src 'sha256-a'; script-src 'sha256-b'; "),
                "{policy}"
            );
        }
        let others: [&[&str]; 8] = [
            &[],
            &["evil.example"],
            &["evil.example:7000"],
            &["127.0.0.1.evil.example"],
            &["localhost.evil.example:7000"],
            &["a@127.0.0.1"],
            &["10.0.0.1:7000"],
            &["127.0.0.1", "evil.example"],
        ];
        for hosts in others {
            assert_eq!(ask(Method::GET, hosts).status(), 403, "{hosts:?}");
        }
    }

    #[test]
    fn the_page_is_only_read() {
        assert_eq!(ask(Method::HEAD, &["127.0.0.1"]).status(), 200);
        assert_eq!(ask(Method::POST, &["127.0.0.1"]).status(), 405);
    }
}
