//! Callers who prove by a certificate who they are (mTLS). That it is good, and from an authority that is trusted, was
//! settled in the handshake; here its names become a caller.
//!
//! A caller is the first of the certificate's alternative names (RFC 5280 section 4.2.1.6) that `[[grpc.clients]]` lists, with
//! the scopes that stand there. What stands there is a name of one sort (an address, a URI, an e-mail address or a host), and
//! no name of another sort passes for it: an authority may check whose a host is, and not whose the rest. Where it lists none of them he is the first name there is, and may do nothing: what he tries
//! is refused by his name. A certificate without such names is nobody's.

use std::{borrow::Cow, sync::Arc};

use arc_swap::ArcSwap;

use crate::{
    api::{Caller, scope::ScopeSet},
    net::tls::x509::Name,
};

/// Who is listed: a name of one sort, and its caller.
type Listed = Vec<(Name, Caller)>;

/// What callers with a certificate may do, by their names.
#[derive(Debug, Default)]
pub struct Clients(ArcSwap<Listed>);

/// What the names of a connection's certificate came to.
#[derive(Clone, Debug)]
pub struct Certified {
    names: Arc<[Name]>,
    caller: Caller,
    /// By which list.
    by: Arc<Listed>,
}

impl Clients {
    /// These names with their scopes.
    pub fn new<'a>(clients: impl Iterator<Item = (&'a str, ScopeSet)>) -> Self {
        Self(ArcSwap::from_pointee(clients.map(|(name, scopes)| (sorted(name), Caller::new(name, scopes))).collect()))
    }

    /// These from now on. The standing of those that are not there any more, or may do less, ends.
    pub fn replace<'a>(&self, clients: impl Iterator<Item = (&'a str, ScopeSet)>) {
        let before = self.0.load_full();
        let going_on = |caller: Caller| {
            let same = before.iter().find(|(_, old)| old.goes_on_as(&caller));
            let standing = same.map_or_else(|| caller.standing.clone(), |(_, old)| old.standing.clone());
            Caller { standing, ..caller }
        };
        let now: Vec<_> = clients.map(|(name, scopes)| (sorted(name), going_on(Caller::new(name, scopes)))).collect();
        let goes_on = |old: &Caller| now.iter().any(|(_, new)| new.standing.is(&old.standing));
        let over: Vec<_> = before.iter().map(|(_, old)| old).filter(|old| !goes_on(old)).cloned().collect();
        self.0.store(Arc::new(now));
        // Not before, so that whoever comes back may do less.
        over.into_iter().for_each(|old| old.standing.end());
    }

    /// Whose certificate holds these names. `None`: nobody's.
    pub fn certified(&self, names: Vec<Name>) -> Option<Certified> {
        let by = self.0.load_full();
        let caller = caller(&by, &names)?;
        Some(Certified { names: names.into(), caller, by })
    }

    /// Who it is by now: the list may be another than when he came.
    pub fn present<'a>(&self, certified: &'a Certified) -> Cow<'a, Caller> {
        let now = self.0.load();
        if Arc::ptr_eq(&now, &certified.by) {
            return Cow::Borrowed(&certified.caller);
        }
        caller(&now, &certified.names).map_or(Cow::Borrowed(&certified.caller), Cow::Owned)
    }
}

fn caller(known: &Listed, names: &[Name]) -> Option<Caller> {
    let listed = |name: &Name| known.iter().find(|(listed, _)| is(name, listed)).map(|(_, caller)| caller.clone());
    names.iter().find_map(listed).or_else(|| Some(Caller::new(&names.first()?.to_string(), ScopeSet::NONE)))
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
        let caller = |names: &[Name]| {
            let certified = clients.certified(names.to_vec())?;
            let caller = clients.present(&certified).into_owned();
            Some((caller.name.to_string(), caller.scopes))
        };
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
    fn a_connection_s_caller_is_who_the_list_says_now() {
        let scopes = |scopes: &[Scope]| scopes.iter().copied().collect::<ScopeSet>();
        let clients = Clients::new([("a", scopes(&[Scope::Send]))].into_iter());
        let certified = clients.certified(vec![Name::Dns("a".to_owned())]).unwrap();
        let first = clients.present(&certified).into_owned();
        clients.replace([("a", scopes(&[Scope::Send, Scope::Read]))].into_iter());
        assert!(clients.present(&certified).scopes.contains(Scope::Read) && !first.standing.has_ended());
        clients.replace([("a", scopes(&[Scope::Read]))].into_iter());
        assert!(!clients.present(&certified).scopes.contains(Scope::Send) && first.standing.has_ended());
        assert!(!clients.present(&certified).standing.has_ended());
        clients.replace(std::iter::empty());
        assert_eq!(clients.present(&certified).scopes, ScopeSet::NONE);
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
                let scopes = clients.certified(vec![name.clone()]).unwrap().caller.scopes;
                assert_eq!(scopes, if is_right(&name) { ScopeSet::ALL } else { ScopeSet::NONE }, "{listed}: {name:?}");
            }
        }
    }
}
