//! Callers who prove by a certificate who they are (mTLS). That it is good, and from an authority that is trusted, was
//! settled in the handshake; here its names become a caller.
//!
//! A caller is the first of the certificate's alternative names (RFC 5280 section 4.2.1.6) that `[[grpc.clients]]` lists, with
//! the scopes that stand there. Where it lists none of them he is the first name there is, and may do nothing: what he tries
//! is refused by his name. A certificate without such names is nobody's.

use crate::{
    api::{Caller, scope::ScopeSet},
    net::tls::x509::Name,
};

/// What callers with a certificate may do, by their names.
#[derive(Debug, Default)]
pub struct Clients(Vec<Caller>);

impl Clients {
    /// These names with their scopes.
    pub fn new<'a>(clients: impl Iterator<Item = (&'a str, ScopeSet)>) -> Self {
        Self(clients.map(|(name, scopes)| Caller { name: name.into(), scopes }).collect())
    }

    /// Whose certificate holds these names.
    pub fn caller(&self, names: &[Name]) -> Option<Caller> {
        let known = |name: &Name| self.0.iter().find(|caller| is_name(name, &caller.name)).cloned();
        names.iter().find_map(known).or_else(|| {
            let first = names.first()?.to_string();
            Some(Caller { name: first.into(), scopes: ScopeSet::NONE })
        })
    }
}

/// DNS names know no case; a name is a text otherwise, with no pattern in it.
fn is_name(name: &Name, written: &str) -> bool {
    match name {
        Name::Dns(name) => name.eq_ignore_ascii_case(written),
        name => name.to_string() == written,
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
}
