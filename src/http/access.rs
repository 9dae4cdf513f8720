//! Who may ask: the secret, the names under which the server is asked for, and what every answer says to browsers.
//!
//! Invariant: an address that others can reach is served without a secret only when that was asked for by name. On
//! loopback without a secret the `Host` must be one of ours: a page of another site that made its name point here must not
//! read the answers.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::error::{Error, ErrorKind, Result};

/// What every answer carries. Scripts and styles come from files of ours only.
const HEADERS: [(HeaderName, &str); 7] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
         form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    ),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::REFERRER_POLICY, "same-origin"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    (HeaderName::from_static("permissions-policy"), "camera=(), geolocation=(), microphone=()"),
];

/// Who may ask.
#[derive(Clone)]
pub struct Access {
    /// Hash of the secret, and the user name that goes with it.
    secret: Option<([u8; 32], String)>,
    /// Only these names and loopback addresses are answered; `None`: any.
    hosts: Option<Vec<String>>,
}

/// Marks a request that has shown the secret, or needed none.
#[derive(Clone, Copy)]
pub(super) struct Authorized(pub bool);

impl Access {
    /// `hosts`: names beyond localhost, in lower case. `insecure`: everybody who reaches the address may ask.
    ///
    /// # Errors
    /// `Config` when others can reach the address and nobody would be asked for a secret.
    pub fn new(
        at: SocketAddr,
        secret: Option<String>,
        user: &str,
        hosts: Vec<String>,
        insecure: bool,
    ) -> Result<Access> {
        let local = at.ip().is_loopback();
        if secret.is_none() && !local && !insecure {
            let what = format!("{at} can be reached by others, and nobody would be asked for a secret");
            return Err(Error::new(ErrorKind::Config, what).with_hint(
                "set http_token_file to a file with a secret, serve on 127.0.0.1, or say --http-insecure if something \
                 in front asks for one",
            ));
        }
        let hosts = (secret.is_none() && local).then_some(hosts);
        Ok(Access { secret: secret.map(|s| (hash(&s), user.to_owned())), hosts })
    }

    /// Whether nobody is asked for a secret.
    pub fn is_open(&self) -> bool {
        self.secret.is_none()
    }

    fn allows_host(&self, host: Option<&str>) -> bool {
        let Some(known) = &self.hosts else { return true };
        let Some(host) = host else { return false };
        let name = match host.strip_prefix('[') {
            Some(rest) => rest.split(']').next().unwrap_or_default(),
            None => host.rsplit_once(':').map_or(host, |(name, _)| name),
        };
        let name = name.to_ascii_lowercase();
        name == "localhost"
            || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
            || known.contains(&name)
    }

    /// `Bearer <secret>`, or `Basic` with the user name and the secret as password.
    fn authorizes(&self, headers: &HeaderMap) -> bool {
        let Some((secret, user)) = &self.secret else { return true };
        let Some(said) = headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok()) else {
            return false;
        };
        let Some((scheme, value)) = said.split_once(' ') else { return false };
        let same = |a: &[u8; 32], text: &str| bool::from(a.ct_eq(&hash(text)));
        match scheme.to_ascii_lowercase().as_str() {
            "bearer" => same(secret, value.trim()),
            "basic" => {
                let decoded = BASE64_STANDARD.decode(value.trim()).ok();
                let decoded = decoded.and_then(|bytes| String::from_utf8(bytes).ok()).unwrap_or_default();
                let (name, password) = decoded.split_once(':').unwrap_or_default();
                same(&hash(user), name) & same(secret, password)
            }
            _ => false,
        }
    }
}

/// Texts of any length are compared by their hashes, in constant time.
fn hash(text: &str) -> [u8; 32] {
    Sha256::digest(text.as_bytes()).into()
}

/// Lets a request in, or answers why not. Liveness is for everybody, readiness without its reasons too.
pub(super) async fn guard(State(access): State<Arc<Access>>, mut request: Request, next: Next) -> Response {
    let path = request.uri().path();
    if path == "/healthz" {
        return next.run(request).await;
    }
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
    // A request for a whole URL names the host there.
    let host = request.uri().authority().map(|a| a.as_str()).or(host);
    if !access.allows_host(host) {
        let text = "this server is not asked for under that name\n\nAsk for localhost or 127.0.0.1, or add the name to \
                    http_hosts.\n";
        return (StatusCode::MISDIRECTED_REQUEST, text).into_response();
    }
    let authorized = access.authorizes(request.headers());
    if !authorized && path != "/readyz" {
        let challenge = [(header::WWW_AUTHENTICATE, "Basic realm=\"pgtrickle\", charset=\"UTF-8\", Bearer")];
        return (StatusCode::UNAUTHORIZED, challenge, "a secret is needed (http_token_file)\n")
            .into_response();
    }
    request.extensions_mut().insert(Authorized(authorized));
    next.run(request).await
}

/// Adds what every answer carries.
pub(super) async fn headers(request: Request, next: Next) -> Response {
    let is_asset = request.uri().path().starts_with("/static/");
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    for (name, value) in HEADERS {
        headers.insert(name, HeaderValue::from_static(value));
    }
    if !is_asset && !headers.contains_key(header::CACHE_CONTROL) {
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
    response
}

/// A path of this server to go back to; anything else is the start page.
pub(super) fn own_path(text: &str) -> &str {
    let is_own = text.starts_with('/')
        && !text.starts_with("//")
        && !text.contains(['\\', '\r', '\n'])
        && text.parse::<Uri>().is_ok_and(|uri| uri.authority().is_none());
    if is_own { text } else { "/" }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOCAL: &str = "127.0.0.1:9642";
    const ANY: &str = "0.0.0.0:9642";

    fn access(at: &str, secret: Option<&str>, insecure: bool) -> Result<Access> {
        let hosts = vec!["metrics.example".to_owned()];
        Access::new(at.parse().unwrap(), secret.map(str::to_owned), "ops", hosts, insecure)
    }

    fn said(authorization: &str) -> HeaderMap {
        HeaderMap::from_iter([(header::AUTHORIZATION, authorization.parse().unwrap())])
    }

    #[test]
    fn an_address_that_others_reach_needs_a_secret_or_the_word_insecure() {
        let refused = access(ANY, None, false).err().unwrap();
        assert!(refused.hint().unwrap().contains("http_token_file"), "{refused}");
        assert!(access(ANY, Some("0123456789abcdef"), false).is_ok());
        assert!(access(ANY, None, true).unwrap().is_open());
        assert!(access(LOCAL, None, false).is_ok() && access("[::1]:1", None, false).is_ok());
    }

    #[test]
    fn on_loopback_without_a_secret_only_our_own_names_are_answered() {
        let open = access(LOCAL, None, false).unwrap();
        for host in ["localhost:9642", "LOCALHOST", "127.0.0.1:9642", "[::1]:9642", "metrics.example:80"] {
            assert!(open.allows_host(Some(host)), "{host}");
        }
        for host in ["evil.example", "127.0.0.1.evil.example:9642", "[::2]:1", ""] {
            assert!(!open.allows_host(Some(host)), "{host}");
        }
        assert!(!open.allows_host(None));
        let closed = access(LOCAL, Some("0123456789abcdef"), false).unwrap();
        assert!(closed.allows_host(Some("anything")));
    }

    #[test]
    fn the_secret_is_a_bearer_token_or_a_password() {
        let closed = access(ANY, Some("0123456789abcdef"), false).unwrap();
        let basic = |text: &str| format!("Basic {}", BASE64_STANDARD.encode(text));
        assert!(closed.authorizes(&said("Bearer 0123456789abcdef")));
        assert!(closed.authorizes(&said("bearer 0123456789abcdef")));
        assert!(closed.authorizes(&said(&basic("ops:0123456789abcdef"))));
        let wrong = [
            "Bearer 0123456789abcde",
            "Bearer",
            "Digest 0123456789abcdef",
            "Basic !",
            &basic("ops:"),
            &basic("0123456789abcdef"),
            &basic("other:0123456789abcdef"),
        ];
        for header in wrong {
            assert!(!closed.authorizes(&said(header)), "{header}");
        }
        assert!(!closed.authorizes(&HeaderMap::new()));
    }

    #[test]
    fn only_a_path_of_ours_is_gone_back_to() {
        assert_eq!(own_path("/tables?q=a"), "/tables?q=a");
        for foreign in ["//evil.example", "https://evil.example", "/\\evil.example", "", "/a\r\nb"] {
            assert_eq!(own_path(foreign), "/", "{foreign:?}");
        }
    }
}
