//! Which requests are nobody's but a browser's that was talked into them, and so are no calls.
//!
//! A browser sends what a page of any site tells it to, to wherever that leads, loopback included. What keeps such a page
//! from calling:
//!
//! * Nothing that a browser adds by itself opens a call: there are no cookies, and a token stands in a header that a page
//!   must set, which it may across origins only after a preflight.
//! * What changes anything is a POST of `application/json`, which needs a preflight as well. No preflight ever succeeds:
//!   OPTIONS is 405, and no answer carries a header of CORS. So no answer can be read across origins either.
//! * A POST whose `Origin` is not the host that it names is refused all the same, should a browser have skipped that.
//! * Where no token is needed (`grpc.insecure`), only requests that name this machine are answered. A site whose name was
//!   made to resolve to 127.0.0.1 is of the listener's own origin for its browser, and all of the above is void.

use http::{HeaderMap, Method, StatusCode, header};
use tonic::Code;

use super::reply::Refusal;
use crate::net;

/// Refuses what no caller sends. `open`: no token is asked for.
pub fn check(method: &Method, headers: &HeaderMap, open: bool) -> Result<(), Refusal> {
    if open && net::loopback_host(headers).is_none() {
        let message = "without a token, calls are answered at 127.0.0.1, [::1] and localhost only (the Host header)";
        return Err(Refusal::new(StatusCode::FORBIDDEN, Code::PermissionDenied, "HOST_REFUSED", message));
    }
    if *method == Method::POST && headers.contains_key(header::ORIGIN) && !net::is_same_origin(headers) {
        let message = "a page of another origin (the Origin header) cannot call";
        return Err(Refusal::new(StatusCode::FORBIDDEN, Code::PermissionDenied, "ORIGIN_REFUSED", message));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(method: Method, headers: &[(&str, &str)], open: bool) -> bool {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(header::HeaderName::try_from(*name).unwrap(), value.parse().unwrap());
        }
        check(&method, &map, open).is_ok()
    }

    #[test]
    fn a_page_of_another_origin_changes_nothing() {
        let at = ("host", "127.0.0.1:7002");
        for open in [true, false] {
            assert!(checked(Method::POST, &[at], open), "callers who are no browsers");
            assert!(checked(Method::POST, &[at, ("origin", "http://127.0.0.1:7002")], open));
            for origin in ["http://evil.example", "null", "http://127.0.0.1:7000", "127.0.0.1:7002", "file://"] {
                assert!(!checked(Method::POST, &[at, ("origin", origin)], open), "{origin}");
                assert!(checked(Method::GET, &[at, ("origin", origin)], open), "it cannot read the answer");
            }
        }
        let both = [at, ("origin", "http://127.0.0.1:7002"), ("origin", "http://evil.example")];
        assert!(!checked(Method::POST, &both, false));
    }

    #[test]
    fn without_tokens_only_this_machine_s_names_are_answered() {
        for host in ["evil.example", "evil.example:7002", "10.0.0.1:7002"] {
            for method in [Method::GET, Method::POST] {
                assert!(!checked(method.clone(), &[("host", host)], true), "{host}");
                assert!(checked(method, &[("host", host)], false), "{host}");
            }
        }
        assert!(!checked(Method::GET, &[], true));
        for host in ["127.0.0.1:7002", "[::1]:7002", "localhost"] {
            assert!(checked(Method::GET, &[("host", host)], true), "{host}");
        }
    }
}
