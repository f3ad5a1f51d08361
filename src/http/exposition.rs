//! `/metrics`: what is counted, as OpenMetrics text (openmetrics.io, version 1.0.0), made anew for each scrape. Names begin
//! with `pushgate_` and end with their unit; labels are of a few values that are known beforehand, and never of a user.
//!
//! `format.rs` is the older text format, for who asks for that. `families.rs` says which there are; `docs/metrics.md` is their table, which a test holds against what is written here.

mod families;
mod format;

use std::{fmt, sync::Arc, time::Duration};

use parking_lot::Mutex;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, MetricEncoder, text},
    metrics::{MetricType, exemplar::Exemplar},
    registry::Registry,
};

pub use self::format::Format;
use crate::{
    api::Api,
    hub::Survey,
    metrics::{Distribution, Spans},
};

/// The bounds of histograms, in milliseconds: from a round trip within a machine to a confirmation that comes too late.
const BOUNDS_MS: [u64; 15] = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 30_000, 300_000];

/// Writes the metrics of a node down.
pub struct Exposition {
    api: Api,
    /// The latest, for the collector.
    survey: Arc<Mutex<Survey>>,
    registry: Registry,
}

impl Exposition {
    /// Of this node.
    pub fn new(api: Api) -> Self {
        let (mut registry, survey) = (Registry::with_prefix("pushgate"), Arc::default());
        registry.register_collector(Box::new(Node(api.clone(), Arc::clone(&survey))));
        Self { api, survey, registry }
    }

    /// The text. `None` where it cannot be written, which a test shows that it can.
    pub async fn text(&self, format: Format) -> Option<String> {
        let survey = self.api.survey().await;
        *self.survey.lock() = survey;
        let mut out = String::new();
        text::encode(&mut out, &self.registry).ok()?;
        Some(format.write(out))
    }
}

struct Node(Api, Arc<Mutex<Survey>>);

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Node")
    }
}

/// Labels, where there are any.
type Labels<'a> = &'a [(&'static str, &'a str)];

/// Writes one metric after the other.
struct Out<'a>(DescriptorEncoder<'a>);

impl Out<'_> {
    fn family<'s>(&'s mut self, name: &'s str, help: &str, of: MetricType) -> Result<MetricEncoder<'s>, fmt::Error> {
        self.0.encode_descriptor(name, help, None, of)
    }

    fn gauge(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        self.family(name, help, MetricType::Gauge)?.encode_gauge(&value)
    }

    /// `_total` is added to its name.
    fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        count(&mut self.family(name, help, MetricType::Counter)?, value)
    }

    /// A family with a label: a value each.
    fn labelled<'v>(
        &mut self,
        name: &str,
        help: &str,
        of: MetricType,
        label: &'static str,
        values: impl Iterator<Item = (&'v str, u64)>,
    ) -> fmt::Result {
        self.labelled_twice(name, help, of, [label, ""], values.map(|(value, n)| ([value, ""], n)))
    }

    /// The same with two labels. One without a name is left out.
    fn labelled_twice<'v>(
        &mut self,
        name: &str,
        help: &str,
        of: MetricType,
        [label, other]: [&'static str; 2],
        values: impl Iterator<Item = ([&'v str; 2], u64)>,
    ) -> fmt::Result {
        let mut family = self.family(name, help, of)?;
        for ([value, also], n) in values {
            let labels = [(label, value), (other, also)];
            let labels: Labels<'_> = if other.is_empty() { &labels[..1] } else { &labels };
            let mut one = family.encode_family(&labels)?;
            match of {
                MetricType::Counter => count(&mut one, n)?,
                _ => one.encode_gauge(&n)?,
            }
        }
        Ok(())
    }

    /// Seconds that add up, by a label.
    fn seconds<'v>(
        &mut self,
        name: &str,
        help: &str,
        label: &'static str,
        values: impl Iterator<Item = (&'v str, Duration)>,
    ) -> fmt::Result {
        let mut family = self.family(name, help, MetricType::Counter)?;
        for (value, span) in values {
            let labels: Labels<'_> = &[(label, value)];
            family
                .encode_family(&labels)?
                .encode_counter::<NoLabels, _, u64>(&span.as_secs_f64(), None::<&Exemplar<NoLabels, u64>>)?;
        }
        Ok(())
    }

    /// A distribution, its values divided by so much: by a million where they are µs.
    fn distribution(&mut self, name: &str, help: &str, of: &Distribution, per: f64) -> fmt::Result {
        distributed(&mut self.family(name, help, MetricType::Histogram)?, of, per)
    }

    /// Distributions of µs by a label.
    fn distributions<'v>(
        &mut self,
        name: &str,
        help: &str,
        label: &'static str,
        values: impl Iterator<Item = (&'v str, &'v Distribution)>,
    ) -> fmt::Result {
        let mut family = self.family(name, help, MetricType::Histogram)?;
        for (value, of) in values {
            let labels: Labels<'_> = &[(label, value)];
            distributed(&mut family.encode_family(&labels)?, of, MICROS)?;
        }
        Ok(())
    }

    fn histogram(&mut self, name: &str, help: &str, spans: &Spans) -> fmt::Result {
        distribution(&mut self.family(name, help, MetricType::Histogram)?, spans)
    }

    /// The same with a label.
    fn histograms(&mut self, name: &str, help: &str, label: &'static str, values: &[(&str, &Spans)]) -> fmt::Result {
        let mut family = self.family(name, help, MetricType::Histogram)?;
        for (value, spans) in values {
            let labels: Labels<'_> = &[(label, *value)];
            distribution(&mut family.encode_family(&labels)?, spans)?;
        }
        Ok(())
    }
}

fn distribution(encoder: &mut MetricEncoder<'_>, spans: &Spans) -> fmt::Result {
    let recorded = spans.buckets(&BOUNDS_MS.map(Duration::from_millis));
    let bounds = BOUNDS_MS.iter().map(|ms| *ms as f64 / 1000.0).chain([f64::INFINITY]);
    let counts = recorded.counts.into_iter().chain([recorded.above]);
    let buckets: Vec<(f64, u64)> = bounds.zip(counts).collect();
    let count = buckets.iter().map(|(_, count)| count).sum();
    encoder.encode_histogram::<NoLabels>(recorded.sum.as_secs_f64(), count, &buckets, None)
}

/// What a value in µs is divided by to be one in seconds.
const MICROS: f64 = 1_000_000.0;

fn distributed(encoder: &mut MetricEncoder<'_>, of: &Distribution, per: f64) -> fmt::Result {
    let (buckets, above) = of.buckets();
    let buckets = buckets.into_iter().map(|(bound, count)| (bound as f64 / per, count));
    let buckets: Vec<(f64, u64)> = buckets.chain([(f64::INFINITY, above)]).collect();
    let count = buckets.iter().map(|(_, count)| count).sum();
    encoder.encode_histogram::<NoLabels>(of.sum() as f64 / per, count, &buckets, None)
}

fn count(encoder: &mut MetricEncoder<'_>, value: u64) -> fmt::Result {
    encoder.encode_counter::<NoLabels, _, u64>(&value, None::<&Exemplar<NoLabels, u64>>)
}

/// The labels of exemplars, of which there are none.
type NoLabels = [(&'static str, &'static str); 0];

impl Collector for Node {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let survey = *self.1.lock();
        families::write(&mut Out(encoder), &self.0, &survey)
    }
}
