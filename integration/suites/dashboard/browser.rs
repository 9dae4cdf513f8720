//! A real browser: Chromium behind its WebDriver, with what only its own protocol can do.
//!
//! WebDriver is JSON over HTTP and a handful of calls are needed, so the plain client of the HTTP suite speaks it.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use crate::harness::{SOON, wait_until};
use crate::suites::http::client::{ask, free_port};

/// How a page is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum View {
    Light,
    Dark,
    Phone,
}

impl View {
    pub const ALL: [View; 3] = [View::Light, View::Dark, View::Phone];

    pub fn name(self) -> &'static str {
        match self {
            View::Light => "light",
            View::Dark => "dark",
            View::Phone => "phone",
        }
    }
}

/// A browser with one window. Ends, with all its processes, when dropped.
pub struct Browser {
    port: u16,
    session: String,
    driver: Child,
    _profile: tempfile::TempDir,
}

/// Whether browser tests were asked for; says so if they were not.
pub fn is_wanted() -> bool {
    let wanted = std::env::var("PGTRICKLE_BROWSER").is_ok_and(|v| v == "1");
    if !wanted {
        crate::harness::left_out("a browser test needs PGTRICKLE_BROWSER=1, chromium and chromedriver");
    }
    wanted
}

/// Where pictures go.
pub fn pictures() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target"), PathBuf::from);
    let folder = target.join("dashboard-screenshots");
    std::fs::create_dir_all(&folder).expect("a folder for pictures");
    folder
}

impl Browser {
    pub async fn start() -> Browser {
        let port = free_port();
        let driver = Command::new("chromedriver")
            .arg(format!("--port={port}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .expect("chromedriver starts (Debian: apt-get install chromium chromium-driver)");
        let profile = tempfile::tempdir().expect("a folder for the browser");
        let arguments = [
            "--headless=new".to_owned(),
            "--no-sandbox".to_owned(),
            "--disable-gpu".to_owned(),
            "--disable-dev-shm-usage".to_owned(),
            "--hide-scrollbars".to_owned(),
            // It asks nobody but us.
            "--no-first-run".to_owned(),
            "--disable-background-networking".to_owned(),
            "--disable-component-update".to_owned(),
            "--disable-sync".to_owned(),
            "--disable-quic".to_owned(),
            "--window-size=1280,900".to_owned(),
            format!("--user-data-dir={}", profile.path().display()),
        ];
        let capabilities = json!({
            "goog:chromeOptions": { "args": arguments },
            "goog:loggingPrefs": { "browser": "ALL" },
        });
        let wanted = json!({ "capabilities": { "alwaysMatch": capabilities } }).to_string();
        // The driver is up before the browser is: only the browser's failure is final.
        wait_until("the driver to listen", SOON, || async {
            ask(port, "GET", "/status", &[], "").await.map(drop)
        })
        .await;
        let made = call(port, "POST", "/session", &wanted).await;
        let session = made["sessionId"].as_str().expect("a session").to_owned();
        Browser { port, session, driver, _profile: profile }
    }

    /// A call below the session.
    async fn call(&self, method: &str, path: &str, body: Value) -> Value {
        call(self.port, method, &format!("/session/{}/{path}", self.session), &body.to_string()).await
    }

    /// A command of the browser's own protocol.
    pub async fn devtools(&self, command: &str, parameters: Value) -> Value {
        self.call("POST", "goog/cdp/execute", json!({ "cmd": command, "params": parameters })).await
    }

    /// Sets size and colours of what follows.
    pub async fn look(&self, view: View) {
        let (width, height, scale, mobile) = match view {
            View::Phone => (390, 844, 2, true),
            _ => (1280, 900, 1, false),
        };
        let size = json!({ "width": width, "height": height, "deviceScaleFactor": scale, "mobile": mobile });
        self.devtools("Emulation.setDeviceMetricsOverride", size).await;
        let scheme = if view == View::Dark { "dark" } else { "light" };
        let media = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        self.devtools("Emulation.setEmulatedMedia", media).await;
    }

    pub async fn open(&self, url: &str) {
        self.call("POST", "url", json!({ "url": url })).await;
    }

    /// The value of an expression on the page.
    pub async fn value(&self, script: &str) -> Value {
        let script = format!("return (() => {{ {script} }})()");
        self.call("POST", "execute/sync", json!({ "script": script, "args": [] })).await
    }

    /// The page as it is now; works where scripts do not.
    pub async fn html(&self) -> String {
        let root = self.devtools("DOM.getDocument", json!({})).await["root"]["nodeId"].clone();
        let html = self.devtools("DOM.getOuterHTML", json!({ "nodeId": root })).await;
        html["outerHTML"].as_str().expect("a document").to_owned()
    }

    /// A picture of the whole page, as a PNG file.
    pub async fn picture(&self, name: &str) -> PathBuf {
        let size = self.devtools("Page.getLayoutMetrics", json!({})).await["cssContentSize"].clone();
        let clip = json!({ "x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1 });
        let how = json!({ "format": "png", "captureBeyondViewport": true, "clip": clip });
        let answer = self.devtools("Page.captureScreenshot", how).await;
        let data = answer["data"].as_str().expect("a picture");
        let bytes = base64::Engine::decode(&base64::prelude::BASE64_STANDARD, data).expect("base64");
        let path = pictures().join(format!("{name}.png"));
        std::fs::write(&path, bytes).expect("the picture can be written");
        path
    }

    /// What the page has complained about since the last look, violations of the content security policy among it.
    pub async fn complaints(&self) -> Vec<String> {
        let entries = self.call("POST", "se/log", json!({ "type": "browser" })).await;
        let text = |e: &Value| format!("{}: {}", e["level"], e["message"]);
        let bad = |e: &&Value| e["level"] == "SEVERE" || e["level"] == "WARNING";
        entries.as_array().into_iter().flatten().filter(bad).map(text).collect()
    }

    /// Presses a key on what has the focus.
    pub async fn press(&self, key: char) {
        let keys = [json!({ "type": "keyDown", "value": key }), json!({ "type": "keyUp", "value": key })];
        let actions = json!({ "actions": [{ "type": "key", "id": "keys", "actions": keys }] });
        self.call("POST", "actions", actions).await;
    }
}

/// One call of WebDriver; its value. Fails with what the driver says.
async fn call(port: u16, method: &str, path: &str, body: &str) -> Value {
    let header = [("Content-Type", "application/json")];
    let answer = tokio::time::timeout(SOON, ask(port, method, path, &header, body)).await;
    let answer = answer.expect("the driver answers").expect("the driver can be asked");
    let value = answer.json()["value"].clone();
    assert_eq!(answer.status, 200, "{method} {path} {}: {value}", body.chars().take(300).collect::<String>());
    value
}

impl Drop for Browser {
    fn drop(&mut self) {
        let group = format!("-{}", self.driver.id());
        let _ = Command::new("sh").args(["-c", "kill -s KILL -- \"$1\"", "sh", &group]).status();
        let _ = self.driver.wait();
    }
}
