//! Callers who prove by a certificate who they are (mTLS). That it is good, and from an authority that is trusted, was
//! settled in the handshake; here its names become a caller.
//!
//! A caller is the first of the certificate's alternative names (RFC 5280 section 4.2.1.6) that `[[grpc.clients]]` lists, with
//! the scopes that stand there. What stands there is a name of one sort (an address, a URI, an e-mail address or a host), and
//! no name of another sort passes for it: an authority may check whose a host is, and not whose the rest. Where it lists none of them he is the first name there is, and may do nothing: what he tries
//! is refused by his name. A certificate without such names is nobody's.

use crate::{
    api::{Caller, scope::ScopeSet},
    net::tls::x509::Name,
};

/// What callers with a certificate may do, by their names.
#[derive(Debug, Default)]
pub struct Clients(Vec<(Name, Caller)>);

impl Clients {
    /// These names with their scopes.
    pub fn new<'a>(clients: impl Iterator<Item = (&'a str, ScopeSet)>) -> Self {
        Self(clients.map(|(name, scopes)| (sorted(name), Caller { name: name.into(), scopes })).collect())
    }

    /// Whose certificate holds these names.
    pub fn caller(&self, names: &[Name]) -> Option<Caller> {
        let known = |name: &Name| self.0.iter().find(|(listed, _)| is(name, listed)).map(|(_, caller)| caller.clone());
        names.iter().find_map(known).or_else(|| {
            let first = names.first()?.to_string();
            Some(Caller { name: first.into(), scopes: ScopeSet::NONE })
        })
    }
}

/// Of which sort a name is that the configuration lists: an address; what has a scheme (RFC 3986 section 3.1) is a URI; what
/// has an `@` is an e-mail address; a host otherwise.
fn sorted(written: &str) -> Name {
    let has_scheme = written.split_once(':').is_some_and(|(scheme, _)| {
        scheme.starts_with(|first: char| first.is_ascii_alphabetic())
            && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
    });
    match written.parse() {
        Ok(address) => Name::Ip(address),
        Err(_) if has_scheme => Name::Uri(written.to_owned()),
        Err(_) if written.contains('@') => Name::Email(written.to_owned()),
        Err(_) => Name::Dns(written.to_owned()),
    }
}

/// DNS names know no case; a name is a text otherwise, with no pattern in it.
fn is(name: &Name, listed: &Name) -> bool {
    match (name, listed) {
        (Name::Dns(name), Name::Dns(listed)) => name.eq_ignore_ascii_case(listed),
        _ => name == listed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::scope::Scope;

    #[test]
    fn a_certificate_names_its_caller() {
        let clients = [("orders.internal", &[Scope::Send][..]), ("spiffe://a/b", &[Scope::Read])];
        let clients = Clients::new(clients.into_iter().map(|(name, scopes)| (name, scopes.iter().copied().collect())));
        let caller = |names: &[Name]| clients.caller(names).map(|caller| (caller.name.to_string(), caller.scopes));
        let send = [Scope::Send].into_iter().collect();
        let dns = |name: &str| Name::Dns(name.to_owned());
        assert_eq!(caller(&[dns("Orders.Internal")]), Some(("orders.internal".to_owned(), send)));
        assert_eq!(caller(&[dns("other"), dns("orders.internal")]), Some(("orders.internal".to_owned(), send)));
        let uri = |name: &str| Name::Uri(name.to_owned());
        assert!(caller(&[uri("spiffe://a/b")]).unwrap().1.contains(Scope::Read));
        assert_eq!(caller(&[uri("spiffe://A/b")]), Some(("spiffe://A/b".to_owned(), ScopeSet::NONE)));
        assert_eq!(caller(&[dns("*.internal")]), Some(("*.internal".to_owned(), ScopeSet::NONE)));
        assert_eq!(caller(&[]), None);
    }

    #[test]
    fn a_name_of_one_sort_does_not_pass_for_one_of_another() {
        let of_each_sort = |text: &str| {
            let address = text.parse().map_or_else(|_| Name::Dns(text.to_owned()), Name::Ip);
            [Name::Dns(text.to_owned()), Name::Email(text.to_owned()), Name::Uri(text.to_owned()), address]
        };
        type Sort = fn(&Name) -> bool;
        let cases: [(&str, Sort); 8] = [
            ("orders.internal", |name| matches!(name, Name::Dns(_))),
            ("localhost", |name| matches!(name, Name::Dns(_))),
            ("orders@internal", |name| matches!(name, Name::Email(_))),
            ("spiffe://a/b", |name| matches!(name, Name::Uri(_))),
            ("urn:service:orders", |name| matches!(name, Name::Uri(_))),
            ("https://orders@internal/", |name| matches!(name, Name::Uri(_))),
            ("10.0.0.7", |name| matches!(name, Name::Ip(_))),
            ("2001:DB8:0::7", |name| matches!(name, Name::Ip(_))),
        ];
        for (listed, is_right) in cases {
            let clients = Clients::new([(listed, ScopeSet::ALL)].into_iter());
            for name in of_each_sort(listed) {
                let scopes = clients.caller(std::slice::from_ref(&name)).unwrap().scopes;
                assert_eq!(scopes, if is_right(&name) { ScopeSet::ALL } else { ScopeSet::NONE }, "{listed}: {name:?}");
            }
        }
    }
}
