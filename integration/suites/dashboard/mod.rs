//! The dashboard in a real browser: what it shows under load and after a loss, and for whom it can be read.
//!
//! Runs with `PGTRICKLE_BROWSER=1`; pictures of every page are left in `target/dashboard-screenshots`.
//! `PGTRICKLE_BROWSER_SECONDS` lets the load run for longer before the pictures (20 by default).

mod browser;

use std::time::Duration;

use serde_json::Value;
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use crate::harness::servers::each;
use crate::harness::{SOON, Sidecar, TestDatabase, own_cluster, wait_until};
use crate::suites::http::client::{free_port, get};
use browser::{Browser, View, is_wanted};

const AUDIT: &str = include_str!("audit.js");

const SHOP: &str = "
    create table customers (id int primary key, name text, country text);
    create table products (id int primary key, name text, category text, price numeric);
    create table orders (id bigint generated always as identity primary key, customer_id int, status text, placed_at timestamptz default now());
    create table order_lines (order_id bigint, product_id int, quantity int, unit_price numeric, primary key (order_id, product_id));
    create table page_views (customer_id int, at timestamptz default now());
    insert into customers select i, 'customer ' || i, (array['AT','DE','FR','PL','US'])[i % 5 + 1] from generate_series(1, 500) i;
    insert into products select i, 'product ' || i, 'category ' || i % 8, i from generate_series(1, 100) i;";

const STREAM_TABLES: [(&str, &str, &str); 8] = [
    (
        "open_orders",
        "calculated",
        "select id, customer_id, status, placed_at from orders where status in ('new', 'paid')",
    ),
    (
        "customer_revenue",
        "calculated",
        "select c.id as customer_id, c.name, c.country, count(*) as lines, sum(l.quantity * l.unit_price) as revenue\n  from customers c\n  join orders o on o.customer_id = c.id\n  join order_lines l on l.order_id = o.id\n where o.status <> 'cancelled'\n group by c.id, c.name, c.country",
    ),
    (
        "country_revenue",
        "calculated",
        "select country, sum(revenue) as revenue, count(*) as customers from customer_revenue group by country",
    ),
    (
        "product_sales",
        "calculated",
        "select p.id as product_id, p.category, count(*) as lines, min(l.unit_price) as lowest, max(l.unit_price) as highest\n  from products p\n  join order_lines l on l.product_id = p.id\n group by p.id, p.category",
    ),
    (
        "category_sales",
        "calculated",
        "select category, sum(lines) as lines from product_sales group by category",
    ),
    (
        "top_customers",
        "calculated",
        "select customer_id, name, revenue from customer_revenue order by revenue desc, customer_id limit 10",
    ),
    (
        "views_per_customer",
        "calculated",
        "select customer_id, count(*) as views from page_views group by customer_id",
    ),
    ("recent_orders", "1m", "select id, customer_id from orders where placed_at > now() - interval '1 hour'"),
];

/// A server, a shop on it, and a sidecar with its dashboard.
struct Scene {
    sidecar: Sidecar,
    db: TestDatabase,
    app: Client,
    port: u16,
    _server: crate::harness::Server,
}

async fn scene(major: u32, settings: &[(&str, &str)]) -> Scene {
    let server = own_cluster(major, settings).await;
    let db = TestDatabase::create(&server).await;
    db.install();
    let app = db.as_app().await;
    app.batch_execute(SHOP).await.unwrap();
    let port = free_port();
    let mut sidecar = Sidecar::start(&db, &["--http", &format!("127.0.0.1:{port}")]);
    sidecar.wait_ready(SOON).await;
    Scene { sidecar, db, app, port, _server: server }
}

impl Scene {
    fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    async fn create(&self, names: &[&str]) {
        for (name, schedule, query) in STREAM_TABLES.iter().filter(|(name, _, _)| names.contains(name)) {
            let sql = "select pgtrickle.create_stream_table($1, $2, schedule => $3)";
            self.app.execute(sql, &[name, query, schedule]).await.unwrap_or_else(|e| panic!("{name}: {e:?}"));
        }
    }

    async fn json(&self, path: &str) -> Result<Value, String> {
        let (status, body) = get(self.port, path).await?;
        if status != 200 {
            return Err(format!("{status} {body}"));
        }
        serde_json::from_str(&body).map_err(|e| e.to_string())
    }

    async fn all_active(&self, count: usize) {
        wait_until("all stream tables to be shown as active", SOON, || async {
            let rows = self.json("/api/v1/stream_tables").await?["stream_tables"].clone();
            let active = rows.as_array().into_iter().flatten().filter(|r| r["status"] == "ACTIVE").count();
            if active == count { Ok(()) } else { Err(rows.to_string()) }
        })
        .await;
    }
}

/// Orders, payments and cancellations until `stop`.
async fn load(db_url: String, stop: CancellationToken) {
    let client = crate::harness::database::connect(&db_url).await;
    let order = "with o as (insert into orders (customer_id, status)
            select 1 + (random() * 499)::int, 'new' from generate_series(1, 1 + (random() * 12)::int) returning id)
        insert into order_lines select id, 1 + (random() * 99)::int, 1 + (random() * 4)::int, (random() * 100)::int from o;
        update orders set status = 'paid' where id in (select id from orders where status = 'new' order by id limit 5);
        update orders set status = 'cancelled' where id in (select id from orders where status = 'paid' order by random() limit 1);
        insert into page_views (customer_id) select 1 + (random() * 499)::int from generate_series(1, 20)";
    while !stop.is_cancelled() {
        client.batch_execute(order).await.expect("the load can write");
    }
}

/// The paths of the curves of all charts.
async fn curves(browser: &Browser) -> Vec<String> {
    let found = browser
        .value("return [...document.querySelectorAll('.chart .curve')].map((c) => c.getAttribute('d'))")
        .await;
    found.as_array().into_iter().flatten().filter_map(|v| v.as_str().map(str::to_owned)).collect()
}

/// Nothing is wrong with the page, as far as a script can see.
async fn audited(browser: &Browser, what: &str) {
    let wrong = browser.value(AUDIT).await;
    assert_eq!(wrong, Value::Array(vec![]), "{what}");
    let complaints = browser.complaints().await;
    assert!(complaints.is_empty(), "{what}: the browser complains: {complaints:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn charts_move_under_load_and_every_page_can_be_read_by_everybody() {
    if !is_wanted() {
        return;
    }
    each(async |major| {
        let scene = scene(major, &[("max_slot_wal_keep_size", "2GB")]).await;
        // Another's slot, which keeps WAL and is shown beside ours.
        let dba = scene.db.as_dba().await;
        dba.batch_execute("select pg_create_physical_replication_slot('standby_b', true)").await.unwrap();
        scene.create(&STREAM_TABLES.map(|(name, _, _)| name)).await;
        scene.all_active(STREAM_TABLES.len()).await;
        let stop = CancellationToken::new();
        let loading = tokio::spawn(load(scene.db.url("app"), stop.clone()));
        let browser = Browser::start().await;
        browser.look(View::Light).await;
        browser.open(&scene.url("/")).await;
        browser.value("window.stays = true").await;
        wait_until("three charts with curves", SOON, || async {
            let found = curves(&browser).await;
            if found.len() >= 3 { Ok(()) } else { Err(format!("{found:?}")) }
        })
        .await;
        // A chart whose second point came later begins then.
        let before = std::sync::Mutex::new(curves(&browser).await);
        wait_until("every chart of the open page to move", SOON, || async {
            let now = curves(&browser).await;
            let mut before = before.lock().expect("nobody panics here");
            if now.len() != before.len() {
                *before = now;
                return Err("another chart has come".to_owned());
            }
            if now.iter().zip(&*before).all(|(a, b)| a != b) { Ok(()) } else { Err(format!("{now:?}")) }
        })
        .await;
        let busy = "return JSON.parse(document.querySelector('[data-unit=bytes_per_second]').dataset.points).some(([, v]) => v > 1000)";
        wait_until("the load to be on the chart", SOON, || async {
            if browser.value(busy).await == true { Ok(()) } else { Err("it is not".to_owned()) }
        })
        .await;
        assert_eq!(browser.value("return window.stays").await, true, "the page was not read anew as a whole");
        let seconds =
            std::env::var("PGTRICKLE_BROWSER_SECONDS").ok().and_then(|s| s.parse().ok()).unwrap_or(20);
        let until = std::time::Instant::now() + Duration::from_secs(seconds);
        wait_until("the load to have run", Duration::from_secs(seconds + 30), || async {
            if std::time::Instant::now() >= until { Ok(()) } else { Err("not yet".to_owned()) }
        })
        .await;
        let pages = [
            ("overview", "/"),
            ("tables", "/tables"),
            ("table", "/tables/app.customer_revenue"),
            ("table-full", "/tables/app.recent_orders"),
            ("graph", "/graph"),
            ("recovery", "/recovery"),
            ("manual", "/manual/runbook"),
            ("not-found", "/none"),
        ];
        for view in View::ALL {
            browser.look(view).await;
            for (name, path) in pages {
                browser.open(&scene.url(path)).await;
                // The answer 404 itself is reported by the browser.
                if name == "not-found" {
                    browser.complaints().await;
                }
                audited_text(&browser, name).await;
                let picture = browser.picture(&format!("{name}-{}", view.name())).await;
                audited_unless_short(&browser, name, view).await;
                eprintln!("picture: {}", picture.display());
            }
        }
        keyboard(&browser, &scene).await;
        a_finding_takes_no_focus(&browser, &scene).await;
        a_page_follows_what_goes_and_comes(&browser, &scene).await;
        without_a_script(&browser, &scene).await;
        stop.cancel();
        loading.await.unwrap();
    })
    .await;
}

/// A page shows its name.
async fn audited_text(browser: &Browser, name: &str) {
    let title = browser.value("return document.title").await;
    assert!(title.as_str().is_some_and(|t| t.contains("pgtrickle")), "{name}: {title}");
}

/// The page that says that there is nothing has too few texts for the audit.
async fn audited_unless_short(browser: &Browser, name: &str, view: View) {
    if name != "not-found" {
        audited(browser, &format!("{name} ({})", view.name())).await;
    }
}

/// Everything can be reached and used with keys alone.
async fn keyboard(browser: &Browser, scene: &Scene) {
    const TAB: char = '\u{E004}';
    const ENTER: char = '\u{E007}';
    const LEFT: char = '\u{E012}';
    browser.look(View::Light).await;
    browser.open(&scene.url("/")).await;
    browser.press(TAB).await;
    let first = browser.value("return document.activeElement.textContent").await;
    assert_eq!(first, "Skip to content");
    let seen = browser.value("return document.activeElement.getBoundingClientRect().top >= 0").await;
    assert_eq!(seen, true, "the link is shown when it has the focus");
    browser.press(ENTER).await;
    assert_eq!(browser.value("return location.hash").await, "#content");
    let mut reached = Vec::new();
    for _ in 0..60 {
        browser.press(TAB).await;
        let focused = browser.value(
            "const e = document.activeElement; if (e.matches('.chart')) return 'chart';
             const s = getComputedStyle(e); return e === document.body ? 'end' : s.outlineStyle === 'none' ? 'invisible focus: ' + e.outerHTML : e.textContent.trim()",
        );
        let focused = focused.await.as_str().unwrap_or_default().to_owned();
        assert!(!focused.starts_with("invisible"), "{focused}");
        if focused == "end" {
            break;
        }
        reached.push(focused);
    }
    assert!(reached.iter().any(|r| r == "chart") && reached.iter().any(|r| r == "Dark"), "{reached:?}");
    // A chart is read point by point.
    browser.value("document.querySelector('.slot .chart').focus()").await;
    browser.press(LEFT).await;
    let told = browser.value("return document.querySelector('.slot .newest').textContent").await;
    assert!(told.as_str().is_some_and(|t| t.contains(" at ")), "{told}");
    // The chosen colours stay, whatever the system says.
    browser.value("document.querySelector('button[value=dark]').focus()").await;
    browser.press(ENTER).await;
    wait_until("the dark page", SOON, || async {
        let theme = browser.value("return document.documentElement.dataset.theme").await;
        if theme == "dark" { Ok(()) } else { Err(theme.to_string()) }
    })
    .await;
    assert_eq!(browser.complaints().await, Vec::<String>::new());
}

/// What comes above and goes again leaves the reader where they are.
async fn a_finding_takes_no_focus(browser: &Browser, scene: &Scene) {
    const LEFT: char = '\u{E012}';
    const READS: &str = "const e = document.activeElement;
        return e.matches('.pipeline .charts .chart') && / at /.test(e.querySelector('.newest').textContent)";
    const TOLD: &str =
        "return document.querySelector('.pipeline .findings')?.innerText.includes('top_customers') ?? false";
    browser.open(&scene.url("/")).await;
    browser.value("document.querySelector('.pipeline .charts .chart').focus()").await;
    browser.press(LEFT).await;
    assert_eq!(browser.value(READS).await, true, "the chart reads points");
    for (change, wanted) in [("suspend", true), ("resume", false)] {
        let sql = format!("select pgtrickle.{change}_stream_table('top_customers')");
        scene.app.batch_execute(&sql).await.unwrap();
        wait_until(&format!("a finding after {change}"), SOON, || async {
            if browser.value(TOLD).await == wanted { Ok(()) } else { Err(browser.html().await) }
        })
        .await;
        assert_eq!(browser.value(READS).await, true, "the chart has lost the focus: {change}");
        for view in View::ALL {
            browser.look(view).await;
            audited(browser, &format!("the page after {change} ({})", view.name())).await;
        }
        browser.look(View::Light).await;
    }
    scene.all_active(STREAM_TABLES.len()).await;
}

/// A page about what is dropped says so, and that it is live; it shows it again when it is back.
async fn a_page_follows_what_goes_and_comes(browser: &Browser, scene: &Scene) {
    browser.open(&scene.url("/tables/app.views_per_customer")).await;
    assert_eq!(browser.complaints().await, Vec::<String>::new());
    let shows = async |wanted: &str| {
        let seen =
            "return document.querySelector('main').innerText + document.getElementById('live').textContent";
        wait_until(&format!("the open page to show {wanted:?} and to be live"), SOON, || async {
            let seen = browser.value(seen).await;
            let text = seen.as_str().unwrap_or_default();
            if text.contains(wanted) && text.ends_with(" · live") { Ok(()) } else { Err(text.to_owned()) }
        })
        .await;
    };
    shows("Refresh history").await;
    scene.app.batch_execute("select pgtrickle.drop_stream_table('views_per_customer')").await.unwrap();
    shows("There is no stream table app.views_per_customer.").await;
    scene.create(&["views_per_customer"]).await;
    shows("Refresh history").await;
    // The browser itself notes each answer 404.
    let other: Vec<String> = browser.complaints().await.into_iter().filter(|c| !c.contains("404")).collect();
    assert_eq!(other, Vec::<String>::new());
    scene.all_active(STREAM_TABLES.len()).await;
    // One that comes late is not taken for the next page's.
    browser.open(&scene.url("/")).await;
    browser.complaints().await;
}

/// Without scripts a page shows the same, and reads itself again.
async fn without_a_script(browser: &Browser, scene: &Scene) {
    browser.devtools("Emulation.setScriptExecutionDisabled", serde_json::json!({ "value": true })).await;
    browser.open(&scene.url("/")).await;
    let overview = scene.json("/api/v1/overview").await.unwrap();
    let html = browser.html().await;
    let pipeline = &overview["pipelines"][0];
    for text in [
        pipeline["server_version"].as_str().unwrap().to_owned(),
        overview["slots"][0]["name"].as_str().unwrap().to_owned(),
        format!("pid {}", overview["slots"][0]["pid"]),
        format!("{} active", pipeline["counts"]["active"]),
        "standby_b".to_owned(),
    ] {
        assert!(html.contains(&text), "{text} is not on the page without a script");
    }
    assert!(html.contains("class=\"curve\"") && html.contains("http-equiv=\"refresh\""));
    browser.open(&scene.url("/tables")).await;
    let html = browser.html().await;
    for (name, _, _) in STREAM_TABLES {
        assert!(html.contains(&format!("app.{name}</a>")), "{name}");
    }
    assert!(!html.contains(" · live"), "the script ran");
    browser.picture("overview-no-script").await;
    browser.devtools("Emulation.setScriptExecutionDisabled", serde_json::json!({ "value": false })).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_slot_turns_the_page_red_and_says_what_was_done() {
    if !is_wanted() {
        return;
    }
    each(async |major| {
        let mut scene = scene(major, &[("max_slot_wal_keep_size", "1MB"), ("checkpoint_timeout", "1h")]).await;
        scene.create(&["open_orders"]).await;
        scene.all_active(1).await;
        let browser = Browser::start().await;
        browser.look(View::Light).await;
        browser.open(&scene.url("/")).await;
        let severity = async |wanted: &[&str]| {
            wait_until(&format!("the open page to be {wanted:?}"), SOON, || async {
                let now = browser.value("return document.body.dataset.severity").await;
                let text = browser.value("return document.querySelector('main').innerText").await;
                if wanted.iter().any(|w| now == *w) { Ok(()) } else { Err(format!("{now}: {text}")) }
            })
            .await;
        };
        severity(&["ok", "notice"]).await;
        // Nobody can write to the stream table, so nothing is acknowledged; then the server gives the slot up.
        let dba = scene.db.as_dba().await;
        dba.batch_execute("begin; lock table app.open_orders in access exclusive mode").await.unwrap();
        let other = scene.db.as_dba().await;
        wait_until("the server to give the slot up", SOON, || async {
            let write = "select pg_logical_emit_message(false, 'x', repeat('x', 1000000)), pg_switch_wal()";
            other.batch_execute(write).await.map_err(|e| e.to_string())?;
            other.batch_execute("checkpoint").await.map_err(|e| e.to_string())?;
            let row = other.query_one("select count(*) filter (where wal_status = 'lost') + (select count(*) from pgtrickle.pgt_recoveries) from pg_replication_slots", &[]).await;
            match row.map(|r| r.get::<_, i64>(0)) {
                Ok(0) => Err("it is still good".to_owned()),
                Ok(_) => Ok(()),
                Err(e) => Err(e.to_string()),
            }
        })
        .await;
        severity(&["critical"]).await;
        wait_until("the page to say what is done", SOON, || async {
            let text = browser.value("return document.querySelector('.findings li.critical').innerText").await;
            if text.as_str().is_some_and(|t| t.contains("What was done")) { Ok(()) } else { Err(text.to_string()) }
        })
        .await;
        let red = "const [r, g, b] = getComputedStyle(document.querySelector('header.top')).backgroundColor.match(/\\d+/g).map(Number); return r > g + 10 && r > b + 10";
        assert_eq!(browser.value(red).await, true, "the top of the page is red");
        let icon = browser.value("return document.querySelector('link[rel=icon]').getAttribute('href')").await;
        assert!(icon.as_str().is_some_and(|i| i.contains("critical")), "{icon}");
        audited(&browser, "the page of a lost slot").await;
        for view in View::ALL {
            browser.look(view).await;
            browser.picture(&format!("lost-slot-{}", view.name())).await;
        }
        browser.look(View::Light).await;
        dba.batch_execute("rollback").await.unwrap();
        severity(&["warning"]).await;
        let text = browser.value("return document.querySelector('.findings').innerText").await;
        assert!(text.as_str().is_some_and(|t| t.contains("Repaired: SLOT_")), "{text}");
        browser.open(&scene.url("/recovery")).await;
        audited(&browser, "the recovery log after a loss").await;
        for view in View::ALL {
            browser.look(view).await;
            browser.picture(&format!("recovery-after-loss-{}", view.name())).await;
        }
        let text = browser.value("return document.querySelector('main').innerText").await;
        assert!(text.as_str().is_some_and(|t| t.contains("SLOT_") && t.contains("drift repaired")), "{text}");
        other.batch_execute("select pgtrickle.acknowledge_recoveries()").await.unwrap();
        browser.open(&scene.url("/")).await;
        severity(&["ok", "notice"]).await;
        assert_eq!(scene.sidecar.terminate(SOON).await, Some(0));
        wait_until("the open page to say that it is not live", SOON, || async {
            let said = browser.value("return document.getElementById('live').textContent").await;
            if said.as_str().is_some_and(|s| s.contains("NOT live")) { Ok(()) } else { Err(said.to_string()) }
        })
        .await;
    })
    .await;
}
