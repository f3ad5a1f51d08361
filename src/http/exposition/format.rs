//! In which format `/metrics` answers: OpenMetrics, or Prometheus' older text format, 0.0.4, for whoever reads only that
//! (promtool, and agents that are older than OpenMetrics).
//! <https://prometheus.io/docs/instrumenting/exposition_formats/>

use http::{HeaderMap, header};

/// A format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// OpenMetrics 1.0.0.
    OpenMetrics,
    /// Prometheus' text format 0.0.4.
    Text,
}

impl Format {
    /// The one to answer with (RFC 9110 section 12.5.1): OpenMetrics, unless `text/plain` is named and that is not. Who names
    /// both reads both, whichever he likes better.
    pub fn accepted(headers: &HeaderMap) -> Self {
        let values = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
        let (mut open, mut text) = (false, false);
        for range in values.flat_map(|value| value.split(',')) {
            let mut parts = range.split(';').map(str::trim);
            let name = parts.next().unwrap_or_default();
            // A weight of 0 is not acceptable.
            let refused = parts
                .filter_map(|part| part.split_once('='))
                .any(|(name, weight)| name.eq_ignore_ascii_case("q") && weight.parse() == Ok(0.0));
            open |= !refused && name.eq_ignore_ascii_case("application/openmetrics-text");
            text |= !refused && name.eq_ignore_ascii_case("text/plain");
        }
        if text && !open { Format::Text } else { Format::OpenMetrics }
    }

    /// What it is sent as.
    pub fn content_type(self) -> &'static str {
        match self {
            Format::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Format::Text => "text/plain; version=0.0.4; charset=utf-8",
        }
    }

    /// What is OpenMetrics, in this format.
    pub fn write(self, open: String) -> String {
        match self {
            Format::OpenMetrics => open,
            Format::Text => older(&open),
        }
    }
}

/// In the older format a family's head has the name of its samples, there is no info, no unit and no end. HELP comes before TYPE
/// in what is written here, so it waits for the type.
fn older(open: &str) -> String {
    let mut out = String::with_capacity(open.len() + open.len() / 16);
    let mut help = None;
    for line in open.lines() {
        let mut words = line.splitn(4, ' ');
        match [words.next(), words.next(), words.next(), words.next()] {
            [Some("#"), Some("HELP"), Some(_), Some(text)] => help = Some(text),
            [Some("#"), Some("TYPE"), Some(name), Some(kind)] => {
                let (suffix, kind) = match kind {
                    "counter" => ("_total", kind),
                    "info" => ("_info", "gauge"),
                    "unknown" => ("", "untyped"),
                    _ => ("", kind),
                };
                if let Some(help) = help.take() {
                    out.push_str(&format!("# HELP {name}{suffix} {help}\n"));
                }
                out.push_str(&format!("# TYPE {name}{suffix} {kind}\n"));
            }
            [Some("#"), Some("EOF" | "UNIT"), ..] => {}
            _ => {
                out.push_str(line);
                out.push('\n');
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_older_format_is_for_who_names_it_alone() {
        for (accept, format) in [
            (&[][..], Format::OpenMetrics),
            (&["*/*"], Format::OpenMetrics),
            (&["text/html,application/xml;q=0.9,*/*;q=0.8"], Format::OpenMetrics),
            (&["text/plain;version=0.0.4"], Format::Text),
            (&["TEXT/Plain; version=0.0.4; q=0.5, */*;q=0.1"], Format::Text),
            (&["application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.2"], Format::OpenMetrics),
            (&["text/plain", "application/openmetrics-text"], Format::OpenMetrics),
            (&["text/plain, application/openmetrics-text;q=0"], Format::Text),
            (&["text/plain;q=0"], Format::OpenMetrics),
        ] {
            let mut headers = HeaderMap::new();
            for value in accept {
                headers.append(header::ACCEPT, value.parse().unwrap());
            }
            assert_eq!(Format::accepted(&headers), format, "{accept:?}");
        }
    }

    #[test]
    fn the_older_format_has_heads_of_samples_and_no_end() {
        let open = "# HELP a_build Which.\n# TYPE a_build info\na_build_info{v=\"# TYPE x y\"} 1\n\
                    # HELP a_calls How many.\n# TYPE a_calls counter\n# UNIT a_calls calls\na_calls_total 2\n\
                    # TYPE a_now gauge\na_now 3\n# EOF\n";
        let text = "# HELP a_build_info Which.\n# TYPE a_build_info gauge\na_build_info{v=\"# TYPE x y\"} 1\n\
                    # HELP a_calls_total How many.\n# TYPE a_calls_total counter\na_calls_total 2\n\
                    # TYPE a_now gauge\na_now 3\n";
        assert_eq!(Format::Text.write(open.to_owned()), text);
        assert_eq!(Format::OpenMetrics.write(open.to_owned()), open);
    }
}
