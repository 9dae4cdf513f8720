//! What `pgtrickle doctor` can tell from the session that it has: whether it is one session, whether others can read it,
//! and whether both clocks agree.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio_postgres::Client;

use super::{Finding, Severity};
use crate::config::Settings;
use crate::error::Result;
use crate::postgres::sessions::error;
use crate::postgres::tls::Mode;

/// Clocks that differ by less are no trouble: what depends on them (logs side by side, certificates) is not that exact.
const SKEW: Duration = Duration::from_secs(5);

/// The findings about the connection, in the order of [`super::run`].
pub(super) async fn look(client: &Client, settings: &Settings) -> Result<Vec<Finding>> {
    Ok(vec![reached(client, settings).await?, protected(client, settings).await?, clocks(client).await?])
}

/// The connection stands; a pooler in between would be seen by sessions that change.
async fn reached(client: &Client, settings: &Settings) -> Result<Finding> {
    const PID: &str = "select pg_backend_pid()";
    let first: i32 = client.query_one(PID, &[]).await.map_err(error)?.get(0);
    let second: i32 = client.query_one(PID, &[]).await.map_err(error)?.get(0);
    let at = settings.target.describe();
    Ok(match first == second {
        true => Finding { id: "pg.reach", severity: Severity::Ok, evidence: at, fix: None },
        false => Finding {
            id: "pg.reach",
            severity: Severity::Fail,
            evidence: format!("{at}: two statements met two sessions: a transaction pooler is in between"),
            fix: Some("-- use the server's direct address, or the pooler's session mode".to_owned()),
        },
    })
}

/// How the server sees the session.
struct Seen {
    /// Version of TLS, where there is any.
    tls: Option<String>,
    /// Where the client comes from, unless it is the same machine.
    from: Option<String>,
    /// Whether the server offers TLS at all.
    offered: bool,
}

async fn protected(client: &Client, settings: &Settings) -> Result<Finding> {
    // Both ends of one machine have one address; a socket has none.
    const SQL: &str = "select case when s.ssl then s.version end,
               case when inet_client_addr() <> inet_server_addr() then host(inet_client_addr()) end,
               current_setting('ssl') = 'on'
          from (select) x left join pg_stat_ssl s on s.pid = pg_backend_pid()";
    let row = client.query_one(SQL, &[]).await.map_err(error)?;
    let seen = Seen { tls: row.get(0), from: row.get(1), offered: row.get(2) };
    Ok(protection(&seen, settings.target.tls().mode))
}

fn protection(seen: &Seen, mode: Mode) -> Finding {
    let finding = |severity, evidence, fix: Option<&str>| Finding {
        id: "pg.tls",
        severity,
        evidence,
        fix: fix.map(str::to_owned),
    };
    match (&seen.tls, &seen.from) {
        (Some(version), from) => {
            let checked = match mode {
                Mode::VerifyFull => "the server's certificate and name are checked",
                Mode::VerifyCa => "the server's certificate is checked, its name is not",
                _ => "the server's certificate is not checked",
            };
            // Whoever listens learns nothing; whether somebody could stand in between is a matter of the network.
            let fix = match from {
                Some(_) if mode < Mode::VerifyFull => {
                    Some("-- connect with sslmode=verify-full and sslrootcert")
                }
                _ => None,
            };
            finding(Severity::Ok, format!("encrypted ({version}), sslmode is {mode}: {checked}"), fix)
        }
        (None, None) => {
            finding(Severity::Ok, format!("not encrypted, and within this machine; sslmode is {mode}"), None)
        }
        (None, Some(from)) => finding(
            Severity::Warn,
            format!(
                "not encrypted between {from} and the server (sslmode is {mode}): rows can be read on the way"
            ),
            Some(match seen.offered {
                true => {
                    "-- connect with sslmode=verify-full and sslrootcert; hostssl in pg_hba.conf insists on it"
                }
                false => {
                    "alter system set ssl = on; select pg_reload_conf();  -- needs ssl_cert_file and ssl_key_file; then connect with sslmode=verify-full and sslrootcert"
                }
            }),
        ),
    }
}

async fn clocks(client: &Client) -> Result<Finding> {
    const NOW: &str = "select extract(epoch from clock_timestamp())::float8";
    // The first execution is the quicker one: nothing has to be parsed.
    let statement = client.prepare(NOW).await.map_err(error)?;
    let before = SystemTime::now();
    let row = client.query_one(&statement, &[]).await.map_err(error)?;
    let after = SystemTime::now();
    let here = |at: SystemTime| at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    Ok(skew(row.get(0), here(before), here(after)))
}

/// `server` was the server's time at some moment between `before` and `after`, all in seconds.
fn skew(server: f64, before: f64, after: f64) -> Finding {
    let (ahead, behind) = (server - after, before - server);
    let finding = |severity, evidence, fix: Option<&str>| Finding {
        id: "pg.clock",
        severity,
        evidence,
        fix: fix.map(str::to_owned),
    };
    let (by, word) = if ahead > behind { (ahead, "ahead of") } else { (behind, "behind") };
    match by > SKEW.as_secs_f64() {
        true => finding(
            Severity::Warn,
            format!(
                "the server's clock is {by:.1} s {word} this machine's: times in logs and on pages do not fit together"
            ),
            Some("-- synchronise both machines, for example with chrony or systemd-timesyncd"),
        ),
        false => finding(Severity::Ok, "the clocks of the server and of this machine agree".to_owned(), None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_leaves_the_machine_unencrypted_is_a_warning() {
        let of = |tls: Option<&str>, from: Option<&str>, offered, mode| {
            let (tls, from) = (tls.map(str::to_owned), from.map(str::to_owned));
            protection(&Seen { tls, from, offered }, mode)
        };
        let far = Some("10.0.0.7");
        let open = of(None, far, true, Mode::Prefer);
        assert_eq!(open.severity, Severity::Warn);
        assert!(open.evidence.contains("10.0.0.7") && open.evidence.contains("prefer"), "{}", open.evidence);
        assert!(open.fix.unwrap().starts_with("-- connect with sslmode=verify-full"));
        assert!(of(None, far, false, Mode::Prefer).fix.unwrap().starts_with("alter system set ssl = on;"));
        assert_eq!(of(None, None, true, Mode::Disable).severity, Severity::Ok);
        let trusting = of(Some("TLSv1.3"), far, true, Mode::Require);
        assert_eq!(trusting.severity, Severity::Ok);
        assert!(trusting.evidence.contains("is not checked") && trusting.fix.is_some());
        let strict = of(Some("TLSv1.3"), far, true, Mode::VerifyFull);
        assert!(strict.severity == Severity::Ok && strict.fix.is_none());
    }

    #[test]
    fn the_time_of_the_answer_is_no_skew() {
        let told = |server| skew(server, 1000.0, 1030.0);
        for server in [1000.0, 1015.0, 1030.0, 1034.0, 996.0] {
            assert_eq!(told(server).severity, Severity::Ok, "{server}");
        }
        for (server, words) in [(1036.5, "6.5 s ahead of"), (990.0, "10.0 s behind")] {
            let found = told(server);
            assert!(found.severity == Severity::Warn && found.evidence.contains(words), "{}", found.evidence);
        }
    }
}
