//! Files that browsers ask for: style, script, icons. They are part of the program and change with it alone.

use std::sync::LazyLock;

use axum::extract::Path;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};

const STYLE: &str = include_str!("../../static/app.css");
const SCRIPT: &str = include_str!("../../static/app.js");
const ICON: &str = include_str!("../../static/icon.svg");

/// Part of the address of every file: another content is another address, so browsers may keep what they have.
pub(super) static VERSION: LazyLock<String> = LazyLock::new(|| {
    let digest = Sha256::digest([STYLE, SCRIPT, ICON].concat());
    digest.iter().take(6).map(|byte| format!("{byte:02x}")).collect()
});

/// A file by its name; the icon in the colour of a state.
pub(super) async fn file(Path(name): Path<String>) -> Response {
    let (kind, content) = match name.as_str() {
        "app.css" => ("text/css; charset=utf-8", STYLE.to_owned()),
        "app.js" => ("text/javascript; charset=utf-8", SCRIPT.to_owned()),
        _ => match name.strip_prefix("icon-").and_then(|rest| rest.strip_suffix(".svg")).and_then(colour) {
            Some(colour) => ("image/svg+xml", ICON.replace("currentColor", colour)),
            None => return StatusCode::NOT_FOUND.into_response(),
        },
    };
    let keep = "public, max-age=31536000, immutable";
    ([(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, keep)], content).into_response()
}

fn colour(state: &str) -> Option<&'static str> {
    Some(match state {
        "ok" => "#1a7f4b",
        "notice" => "#1a7f4b",
        "unknown" => "#6b7684",
        "warning" => "#c77700",
        "critical" => "#c4281b",
        _ => return None,
    })
}
