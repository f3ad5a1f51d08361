//! Section 4 of RFC 6455 as far as it is a server's, section 9.1, and the negotiation of RFC 7692 (section 7.1).

use crate::support::{Gateway, Raw};

/// A request, and what the response must begin with and hold; what stands behind `!` it must not hold.
struct Row {
    section: &'static str,
    requirement: String,
    request: String,
    status: u16,
    holds: Vec<String>,
}

const KEY: &str = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
const GOOD: [&str; 6] = [
    "GET /ws HTTP/1.1\r\n",
    "Host: gateway\r\n",
    "Upgrade: websocket\r\n",
    "Connection: Upgrade\r\n",
    "Sec-WebSocket-Version: 13\r\n",
    KEY,
];
const TAKEN: &str =
    "sec-websocket-extensions: permessage-deflate; server_no_context_takeover; client_no_context_takeover";

fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    let mut row = |section, requirement: &str, request: String, status, holds: &[&str]| {
        let holds = holds.iter().map(|text| (*text).to_owned()).collect();
        rows.push(Row { section, requirement: requirement.to_owned(), request, status, holds });
    };
    let good = GOOD.concat();
    let end = "\r\n";
    let with = |line: &str| format!("{good}{line}\r\n{end}");
    let instead = |at: usize, line: &str| {
        let mut lines = GOOD;
        lines[at] = line;
        lines.concat() + end
    };
    let upgraded = ["upgrade: websocket", "connection: upgrade", "sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo="];
    row("4.2.2", "the example's key has the example's accept", good.clone() + end, 101, &upgraded);
    row(
        "4.2.2",
        "no sub-protocol is named where none was offered",
        good.clone() + end,
        101,
        &["!sec-websocket-protocol"],
    );
    row(
        "4.2.2",
        "no extension is named where none was offered",
        good.clone() + end,
        101,
        &["!sec-websocket-extensions"],
    );
    let protocol = "sec-websocket-protocol: pushgate.v1.json";
    row(
        "4.2.2",
        "one of the sub-protocols on offer is named",
        with("Sec-WebSocket-Protocol: a, pushgate.v1.json"),
        101,
        &[protocol],
    );
    let two_lines = with("Sec-WebSocket-Protocol: a\r\nSec-WebSocket-Protocol: pushgate.v1.json");
    row("4.1", "sub-protocols may stand in several lines", two_lines, 101, &[protocol]);
    row("4.2.1", "the method is GET", instead(0, "POST /ws HTTP/1.1\r\n"), 426, &[]);
    row("4.2.1", "the version is HTTP/1.1 or higher", instead(0, "GET /ws HTTP/1.0\r\n"), 426, &[]);
    row("4.2.1", "the path is the endpoint's", instead(0, "GET /other HTTP/1.1\r\n"), 404, &[]);
    row("4.2.1", "Host is there (RFC 9112 section 3.2)", instead(1, ""), 400, &["connection: close"]);
    row("4.2.1", "Host is there once", with("Host: gateway"), 400, &["connection: close"]);
    for host in ["", "a b", "user@gateway", "gateway/path", ":80"] {
        let line = format!("Host: {host}\r\n");
        row("4.2.1", &format!("Host names a host, unlike `{host}`"), instead(1, &line), 400, &["connection: close"]);
    }
    for host in ["gateway:443", "10.0.0.1:8080", "[::1]:8080", "[2001:db8::1]", "push.example.org."] {
        let line = format!("Host: {host}\r\n");
        row("4.2.1", &format!("Host may be `{host}`"), instead(1, &line), 101, &upgraded);
    }
    for body in ["Transfer-Encoding: chunked", "Content-Length: 5", "Content-Length: 1"] {
        let request = with(body) + "5\r\nabcde\r\n0\r\n\r\n";
        row(
            "4.1",
            &format!("there is no body, as with `{body}` (RFC 9112 section 6)"),
            request,
            400,
            &["connection: close", "!sec-websocket-accept"],
        );
    }
    row("4.1", "that there is no body may be said", with("Content-Length: 0"), 101, &upgraded);
    row("4.2.1", "Upgrade is there", instead(2, ""), 426, &["upgrade: websocket"]);
    row("4.2.1", "Upgrade holds websocket", instead(2, "Upgrade: h2c\r\n"), 426, &[]);
    row("4.2.1", "Upgrade is no matter of case, nor alone", instead(2, "Upgrade: h2c, WebSocket\r\n"), 101, &upgraded);
    row("4.2.1", "Connection is there", instead(3, ""), 426, &[]);
    row("4.2.1", "Connection holds Upgrade", instead(3, "Connection: keep-alive\r\n"), 426, &[]);
    row(
        "4.2.1",
        "Connection is no matter of case, nor alone",
        instead(3, "Connection: keep-alive, UPGRADE\r\n"),
        101,
        &upgraded,
    );
    row("4.2.1", "the version of WebSocket is there", instead(4, ""), 426, &["sec-websocket-version: 13"]);
    for version in ["8", "0", "12", "14", "013", "13, 8", ""] {
        let line = format!("Sec-WebSocket-Version: {version}\r\n");
        row(
            "4.4",
            &format!("version `{version}` is answered with the one that is spoken"),
            instead(4, &line),
            426,
            &["sec-websocket-version: 13"],
        );
    }
    row("4.2.1", "the key is there", instead(5, ""), 400, &[]);
    row("4.2.1", "the key is there once", with(KEY.trim_end()), 400, &[]);
    for key in ["", "c2hvcnQ=", "!!!!", "dGhlIHNhbXBsZSBub25jZQ", "dGhlIHNhbXBsZSBub25jZSE="] {
        row(
            "4.2.1",
            &format!("the key is 16 bytes in base64, unlike `{key}`"),
            instead(5, &format!("Sec-WebSocket-Key: {key}\r\n")),
            400,
            &[],
        );
    }
    row(
        "4.2.1",
        "header names are no matter of case",
        good.to_ascii_lowercase()
            .replace("get /ws http/1.1", "GET /ws HTTP/1.1")
            .replace(&KEY.to_ascii_lowercase(), KEY)
            + end,
        101,
        &upgraded,
    );
    row("4.1", "a header line is one", with("No colon"), 400, &[]);

    let offer = |value: &str| with(&format!("Sec-WebSocket-Extensions: {value}"));
    row("9.1", "an unknown extension is passed over", offer("foo; bar=1"), 101, &["!sec-websocket-extensions"]);
    for malformed in
        [";", "a;", "a; =b", "a; b=", "a b", "a; b=\"", "a; b=\"c d\"", "a,,;", "permessage-deflate; a=\"b\"c"]
    {
        row("9.1", &format!("`{malformed}` is of no grammar and fails the handshake"), offer(malformed), 400, &[]);
    }
    let split = with("Sec-WebSocket-Extensions: foo\r\nSec-WebSocket-Extensions: permessage-deflate");
    row("9.1", "offers may stand in several lines", split, 101, &[TAKEN]);
    for taken in [
        "permessage-deflate",
        "permessage-deflate; client_max_window_bits",
        "permessage-deflate; client_max_window_bits=9",
        "permessage-deflate; client_max_window_bits=\"15\"",
        "permessage-deflate; server_no_context_takeover",
        "permessage-deflate; client_no_context_takeover; server_no_context_takeover; client_max_window_bits",
        "permessage-deflate; unknown, permessage-deflate",
        "permessage-bzip2, permessage-deflate",
    ] {
        row(
            "7692 7.1",
            &format!("`{taken}` is taken"),
            offer(taken),
            101,
            &[TAKEN, "!client_max_window_bits", "!server_max_window_bits"],
        );
    }
    for bits in 8..=15 {
        let named = format!("{TAKEN}; server_max_window_bits={bits}");
        for value in [format!("{bits}"), format!("\"{bits}\"")] {
            let value = format!("permessage-deflate; server_max_window_bits={value}");
            row("7692 7.1.2.1", &format!("`{value}` is taken, and named"), offer(&value), 101, &[&named]);
        }
    }
    for declined in [
        "unknown",
        "unknown=1",
        "server_no_context_takeover=1",
        "client_no_context_takeover=\"a\"",
        "server_no_context_takeover; server_no_context_takeover",
        "client_no_context_takeover; client_no_context_takeover",
        "server_max_window_bits",
        "server_max_window_bits=7",
        "server_max_window_bits=16",
        "server_max_window_bits=08",
        "server_max_window_bits=9; server_max_window_bits=9",
        "client_max_window_bits=7",
        "client_max_window_bits=16",
        "client_max_window_bits=012",
        "client_max_window_bits; client_max_window_bits=9",
    ] {
        let value = format!("permessage-deflate; {declined}");
        row("7692 7.1", &format!("`{value}` is declined"), offer(&value), 101, &["!sec-websocket-extensions"]);
    }
    rows
}

/// Sends a request in these pieces; the head of the response, or what was wrong with it.
async fn play(gateway: &Gateway, row: &Row, ends: &[usize]) -> Result<(), String> {
    let mut raw = Raw::connect(gateway.http).await;
    let bytes = row.request.as_bytes();
    let mut sent = 0;
    for end in ends.iter().copied().chain([bytes.len()]) {
        raw.write(&bytes[sent..end]).await;
        sent = end;
        tokio::task::yield_now().await;
    }
    let head = raw.head().await.to_ascii_lowercase();
    let status = head.split(' ').nth(1).unwrap_or_default();
    if status != row.status.to_string() {
        return Err(format!("expected {}, but there came {head}", row.status));
    }
    for text in &row.holds {
        let (text, expected) = text.strip_prefix('!').map_or((&text[..], true), |text| (text, false));
        // A whole line, or where it is a name, any line of it.
        let found = head.lines().any(|line| if expected { line == text } else { line.contains(text) });
        if found != expected {
            return Err(format!("{} `{text}` in {head}", if expected { "no" } else { "there is" }));
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_requirement_of_the_handshake_holds_however_it_is_cut() {
    let gateway = Gateway::start().await;
    let rows = rows();
    let mut wrong = Vec::new();
    for row in &rows {
        let mut result = play(&gateway, row, &[]).await;
        let every: Vec<usize> = (1..row.request.len()).collect();
        if result.is_ok() {
            result = play(&gateway, row, &every).await.map_err(|text| format!("byte by byte: {text}"));
        }
        for at in every {
            if result.is_ok() {
                result = play(&gateway, row, &[at]).await.map_err(|text| format!("cut at {at}: {text}"));
            }
        }
        wrong.extend(result.err().map(|text| format!("section {}: {}: {text}", row.section, row.requirement)));
    }
    println!("RFC 6455 section 4, RFC 7692 section 7.1: {} of {} rows passed", rows.len() - wrong.len(), rows.len());
    assert!(wrong.is_empty(), "{} of {} rows failed:\n{}", wrong.len(), rows.len(), wrong.join("\n"));
    assert_eq!(gateway.errors("panic").await, 0);
}
