//! Calls over gRPC, by method and status code, and how long they took. The methods are given where the API is known; every
//! other one counts as one.

use std::time::Duration;

use super::{
    distribution::{Distribution, WORK_MICROS},
    spread::SpreadCounters,
};

/// The most methods that are told apart, with the one for all others.
const METHODS_MAX: usize = 40;
/// gRPC has these status codes (grpc.io, "Status codes and their use in gRPC"), in the order of their numbers.
pub const CODES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];
/// The name of all methods that are not told apart.
const OTHER: &str = "other";

/// See the module's documentation.
#[derive(Debug)]
pub struct Requests {
    methods: Vec<String>,
    answered: SpreadCounters<{ METHODS_MAX * CODES.len() }>,
    took: Vec<Distribution>,
}

impl Requests {
    /// Of these methods, at most 39 of them, and of all others together.
    pub fn new(methods: impl IntoIterator<Item = String>) -> Self {
        let methods: Vec<_> = methods.into_iter().take(METHODS_MAX - 1).chain([OTHER.to_owned()]).collect();
        let took = methods.iter().map(|_| Distribution::new(&WORK_MICROS)).collect();
        Self { methods, answered: SpreadCounters::default(), took }
    }

    /// The number of a method, for [`Requests::answered`].
    pub fn method(&self, name: &str) -> usize {
        self.methods.iter().position(|known| *known == name).unwrap_or(self.methods.len() - 1)
    }

    /// The name of a method; `None`: of one that is not told apart.
    pub fn name(&self, method: usize) -> Option<&str> {
        let (_other, known) = self.methods.split_last()?;
        known.get(method).map(String::as_str)
    }

    /// A call of that method was answered with that code after so long.
    pub fn answered(&self, method: usize, code: usize, took: Duration) {
        let method = method.min(self.methods.len() - 1);
        self.answered.add(method * CODES.len() + code.min(CODES.len() - 1), 1);
        self.took[method].record_span(took);
    }

    /// How long each method took.
    pub fn took(&self) -> impl Iterator<Item = (&str, &Distribution)> {
        self.methods.iter().map(String::as_str).zip(&self.took)
    }

    /// How often each method was answered with each code: `OK` of all of them, other codes as far as they came.
    pub fn counts(&self) -> impl Iterator<Item = (&str, &'static str, u64)> {
        let all = self.methods.iter().enumerate().flat_map(|(at, method)| {
            let answered = &self.answered;
            let of = CODES.iter().enumerate();
            of.map(move |(code, name)| (method.as_str(), *name, answered.get(at * CODES.len() + code)))
        });
        all.filter(|(_, code, count)| *count > 0 || *code == CODES[0])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_counted_by_method_and_code() {
        let requests = Requests::new(["SendToUser", "GetStatus"].map(str::to_owned));
        let ms = Duration::from_millis(1);
        for (method, code) in [("SendToUser", 0), ("SendToUser", 0), ("GetStatus", 16), ("Check", 0), ("Nothing", 12)] {
            requests.answered(requests.method(method), code, ms);
        }
        let counts: Vec<_> = requests.counts().collect();
        assert_eq!(
            counts,
            [
                ("SendToUser", "OK", 2),
                ("GetStatus", "OK", 0),
                ("GetStatus", "UNAUTHENTICATED", 1),
                ("other", "OK", 1),
                ("other", "UNIMPLEMENTED", 1)
            ]
        );
        let took: Vec<_> = requests.took().map(|(method, took)| (method, took.count(), took.sum())).collect();
        assert_eq!(took, [("SendToUser", 2, 2000), ("GetStatus", 1, 1000), ("other", 2, 2000)]);
    }
}
