//! A plain HTTP client: what goes over the wire is exactly what a test says.

use std::collections::BTreeMap;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

/// An answer; names of headers in lower case.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub headers: BTreeMap<String, String>,
    pub body: String,
}

impl Answer {
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("no JSON ({e}): {}", self.body))
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }
}

/// A port that nobody listens on at this moment.
pub fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port").port()
}

/// Status and body of a GET.
pub async fn get(port: u16, path: &str) -> Result<(u16, String), String> {
    let answer = ask(port, "GET", path, &[], "").await?;
    Ok((answer.status, answer.body))
}

/// Every address that shows something of the database, with what it says; of each of `tables` its own. Fails unless all
/// answer 200, so that what is not on them was looked for.
pub async fn all_pages(port: u16, tables: &[&str]) -> Vec<(String, String)> {
    let fixed = [
        "/",
        "/tables",
        "/graph",
        "/recovery",
        "/metrics",
        "/api/v1/overview",
        "/api/v1/findings",
        "/api/v1/slots",
        "/api/v1/ladder",
        "/api/v1/stream_tables",
        "/api/v1/graph",
        "/api/v1/recoveries",
        "/api/v1/pipelines",
        "/api/v1/history?measure=retained_bytes",
    ];
    let mut paths: Vec<String> = fixed.map(str::to_owned).to_vec();
    for table in tables {
        paths.extend([format!("/tables/{table}"), format!("/api/v1/stream_tables/{table}")]);
    }
    let mut pages = Vec::new();
    for path in paths {
        let (status, body) = get(port, &path).await.unwrap_or_else(|e| panic!("{path}: {e}"));
        assert_eq!(status, 200, "{path}: {body}");
        pages.push((path, body));
    }
    pages
}

/// Any request; `Host` is localhost unless it is given.
pub async fn ask(
    port: u16,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Result<Answer, String> {
    let stream = TcpStream::connect(("127.0.0.1", port)).await.map_err(|e| e.to_string())?;
    ask_over(stream, method, path, headers, body).await
}

/// The same over a connection of any kind.
pub async fn ask_over(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Result<Answer, String> {
    let mut request =
        format!("{method} {path} HTTP/1.1\r\nConnection: close\r\nContent-Length: {}\r\n", body.len());
    if !headers.iter().any(|(name, _)| *name == "Host") {
        request.push_str("Host: localhost\r\n");
    }
    for (name, value) in headers {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    request.push_str("\r\n");
    request.push_str(body);
    stream.write_all(request.as_bytes()).await.map_err(|e| e.to_string())?;
    let mut answer = Vec::new();
    // Some close the connection only when they like, so what was announced is enough.
    while !is_whole(&answer) {
        if stream.read_buf(&mut answer).await.map_err(|e| e.to_string())? == 0 {
            break;
        }
    }
    parse(&String::from_utf8_lossy(&answer))
}

/// Whether the body has the length that the head announces.
fn is_whole(answer: &[u8]) -> bool {
    let Some(end) = answer.windows(4).position(|four| four == b"\r\n\r\n") else { return false };
    let head = String::from_utf8_lossy(&answer[..end]).to_ascii_lowercase();
    let length =
        head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse::<usize>().ok());
    length.is_some_and(|length| answer.len() >= end + 4 + length)
}

/// What has come of a stream of events when `enough` says so.
pub async fn events(port: u16, enough: impl Fn(&str) -> bool) -> Result<String, String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.map_err(|e| e.to_string())?;
    let request = "GET /api/v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n";
    stream.write_all(request.as_bytes()).await.map_err(|e| e.to_string())?;
    let mut text = String::new();
    let mut part = [0; 4096];
    while !enough(&text) {
        match stream.read(&mut part).await.map_err(|e| e.to_string())? {
            0 => return Err(format!("the events ended: {text}")),
            n => text.push_str(&String::from_utf8_lossy(&part[..n])),
        }
    }
    Ok(text)
}

fn parse(text: &str) -> Result<Answer, String> {
    let (head, body) = text.split_once("\r\n\r\n").ok_or_else(|| format!("no body: {text}"))?;
    let mut lines = head.lines();
    let status = lines.next().and_then(|l| l.split(' ').nth(1)).and_then(|s| s.parse().ok());
    let pairs = lines.filter_map(|line| line.split_once(':'));
    let headers: BTreeMap<String, String> =
        pairs.map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned())).collect();
    Ok(Answer { status: status.ok_or("no status")?, headers, body: body.to_owned() })
}
