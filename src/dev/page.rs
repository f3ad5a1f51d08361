//! The page of `serve --dev`: `page.html`, with the values of this run in it.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use sha2::{Digest as _, Sha256};

use crate::ws::Page;

/// One file: nothing of it comes from elsewhere, so that it works offline.
const HTML: &str = include_str!("page.html");

/// What differs between runs.
pub struct Values<'a> {
    pub user: &'a str,
    pub token: &'a str,
    /// The path of the WebSocket endpoint.
    pub path: &'a str,
    /// Lines that send something to the user: with this program, and with grpcurl.
    pub send: [&'a str; 2],
}

impl Values<'_> {
    /// The page's text.
    pub fn html(&self) -> String {
        let values = [
            ("{{user}}", self.user),
            ("{{token}}", self.token),
            ("{{path}}", self.path),
            ("{{send}}", self.send[0]),
            ("{{grpcurl}}", self.send[1]),
            ("{{version}}", env!("CARGO_PKG_VERSION")),
        ];
        values.iter().fold(HTML.to_owned(), |html, (name, value)| html.replace(name, &escaped(value)))
    }
}

/// The page, and what its policy allows: the style and the script that are in it, by their hashes (CSP level 2).
pub fn page(html: impl Fn() -> String + Send + Sync + 'static) -> Page {
    Page { style: hash_of("style"), script: hash_of("script"), html: Box::new(html) }
}

fn hash_of(element: &str) -> String {
    let inside =
        HTML.split_once(&format!("<{element}>")).and_then(|(_, rest)| rest.split_once(&format!("</{element}>")));
    format!("'sha256-{}'", STANDARD.encode(Sha256::digest(inside.map_or("", |(inside, _)| inside))))
}

/// As text or in a quoted attribute (HTML, section 13.1.2).
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;").replace('\'', "&#39;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_stand_in_attributes_and_break_out_of_none() {
        let path = "/\"><script>alert(1)</script>";
        let html = Values { user: "alice", token: "a.b.c", path, send: ["x 'y'", "z"] }.html();
        assert!(html.contains("a.b.c") && html.contains("/&quot;&gt;&lt;script&gt;alert(1)"));
        assert_eq!(html.matches("<script>").count(), 1);
        for name in ["{{user}}", "{{token}}", "{{path}}", "{{send}}", "{{grpcurl}}", "{{version}}"] {
            assert!(HTML.contains(name) && !html.contains(name), "{name}");
        }
        // What the hashes are of stays as it is.
        for element in ["<style>", "<script>"] {
            let inside = |text: &str| text.split_once(element).unwrap().1.split("</").next().unwrap().to_owned();
            assert_eq!(inside(&html), inside(HTML));
        }
    }

    #[test]
    fn nothing_comes_from_elsewhere_and_nothing_escapes_the_policy() {
        for elsewhere in ["src=", "@import", "url(", "http://", "https://", " style=", " onclick", "innerHTML", "eval("]
        {
            assert!(!HTML.contains(elsewhere), "{elsewhere}");
        }
        assert_eq!((HTML.matches("<style>").count(), HTML.matches("<script>").count()), (1, 1));
    }
}
