//! The place of this process in a cluster: the hosts file, its number, the secret.

use std::path::Path;
use std::time::Duration;

use super::{Origin, Sourced, Sources, evaluation, options};
use crate::cluster::{Hosts, Secret, Settings};
use crate::error::{Error, ErrorKind, Result};

/// How long another process may be silent unless something else was said.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Shorter ones take a busy machine for a dead one.
const SHORTEST: Duration = Duration::from_secs(1);

/// A process that holds shards: it needs no database.
#[derive(Debug, Clone)]
pub struct Member {
    pub cluster: Settings,
    /// Bytes that the state of this process may take.
    pub memory_limit: Sourced<u64>,
}

impl Sources {
    /// The settings of a process that is not the first of its cluster; `None`: it is, or there is no cluster.
    ///
    /// # Errors
    /// `Config` with the origin of a value that can't be used.
    pub fn member(&self) -> Result<Option<Member>> {
        match self.cluster()? {
            Some(cluster) if cluster.process > 0 => {
                Ok(Some(Member { cluster, memory_limit: self.memory_limit()? }))
            }
            _ => Ok(None),
        }
    }

    /// The cluster that this process belongs to.
    ///
    /// # Errors
    /// `Config` with the origin of a value that can't be used.
    pub(super) fn cluster(&self) -> Result<Option<Settings>> {
        let file = self.text(options::CLUSTER);
        let process = self.text(options::PROCESS);
        let secret = self.text(options::CLUSTER_SECRET_FILE);
        let timeout = self.text(options::CLUSTER_TIMEOUT);
        let Some(file) = file else {
            return match process {
                Some(process) => Err(process
                    .refuse("there is no cluster")
                    .with_hint("name the hosts file with --cluster, or leave --process away")),
                None => Ok(None),
            };
        };
        let text = read(&file)?;
        let text = String::from_utf8(text).map_err(|_| file.refuse(format!("{} is no text", file.value)))?;
        let hosts = Hosts::parse(&text).map_err(|why| {
            let hint =
                "one line per process, host:port, the first for process 0; the same file for all processes";
            file.refuse(format!("{}: {why}", file.value)).with_hint(hint)
        })?;
        let last = hosts.count() - 1;
        let Some(process) = process else {
            let what = "which of its processes this one is was not said";
            return Err(file.refuse(what).with_hint(format!("add --process with a number from 0 to {last}")));
        };
        let number = match process.value.parse::<usize>() {
            Ok(number) if number <= last => number,
            _ => {
                let what = format!("{:?} is no process of {}", process.value, file.value);
                return Err(process.refuse(what).with_hint(format!("use a number from 0 to {last}")));
            }
        };
        let Some(secret) = secret else {
            let hint = "make one with: openssl rand -base64 32 > secret; give all processes the same with --cluster-secret-file";
            return Err(file.refuse("a cluster needs a secret").with_hint(hint));
        };
        let known =
            Secret::new(&read(&secret)?).map_err(|why| secret.refuse(format!("{}: {why}", secret.value)))?;
        let timeout = match timeout {
            None => TIMEOUT,
            Some(text) => {
                evaluation::parse(&text.value).filter(|time| *time >= SHORTEST).ok_or_else(|| {
                    let what = format!("{:?} is no time of a second or more", text.value);
                    text.refuse(what).with_hint("write 10s or 1min")
                })?
            }
        };
        Ok(Some(Settings { process: number, hosts, secret: known, timeout }))
    }
}

fn read(path: &Sourced<String>) -> Result<Vec<u8>> {
    std::fs::read(Path::new(&path.value))
        .map_err(|e| path.refuse(format!("{} can't be read: {e}", path.value)))
}

/// What can't be combined with a cluster.
pub(super) fn alone(cluster: Option<&Settings>, all_databases: &Sourced<bool>) -> Result<()> {
    if cluster.is_some() && all_databases.value {
        let what = "a cluster serves one pipeline of one database";
        return Err(match all_databases.origin {
            Origin::Default => Error::new(ErrorKind::Config, what),
            _ => all_databases.refuse(what),
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::{Environment, Flags};
    use super::*;

    fn sources(flags: &[(&'static options::Choice, &str)]) -> Sources {
        let mut all = Flags::default();
        flags.iter().for_each(|(choice, value)| all.set(choice, Some((*value).to_owned())));
        Sources::read(all, Environment::new()).unwrap()
    }

    #[test]
    fn a_process_needs_a_hosts_file_its_number_and_a_secret() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let hosts = path("hosts.txt", "127.0.0.1:7000\n127.0.0.1:7001\n");
        let broken = path("broken.txt", "127.0.0.1:7000\nelsewhere\n");
        let (secret, short) = (path("secret", "0123456789abcdef\n"), path("short", "abc\n"));
        use options::{CLUSTER, CLUSTER_SECRET_FILE, CLUSTER_TIMEOUT, PROCESS};
        let member = sources(&[(CLUSTER, &hosts), (PROCESS, "1"), (CLUSTER_SECRET_FILE, &secret)]).member();
        let member = member.unwrap().unwrap();
        assert_eq!((member.cluster.process, member.cluster.timeout), (1, TIMEOUT));
        let first = sources(&[(CLUSTER, &hosts), (PROCESS, "0"), (CLUSTER_SECRET_FILE, &secret)]);
        assert!(first.member().unwrap().is_none() && first.cluster().unwrap().is_some());
        for (flags, error) in [
            (vec![(PROCESS, "1")], "flag --process: there is no cluster"),
            (vec![(CLUSTER, hosts.as_str())], "flag --cluster: which of its processes"),
            (vec![(CLUSTER, &broken), (PROCESS, "0")], "line 2: \"elsewhere\" is no address"),
            (vec![(CLUSTER, &hosts), (PROCESS, "2")], "flag --process: \"2\" is no process"),
            (vec![(CLUSTER, &hosts), (PROCESS, "1")], "flag --cluster: a cluster needs a secret"),
            (vec![(CLUSTER, &hosts), (PROCESS, "1"), (CLUSTER_SECRET_FILE, &short)], "at least 16"),
            (vec![(CLUSTER, "/nowhere"), (PROCESS, "1")], "/nowhere can't be read"),
            (
                vec![
                    (CLUSTER, &hosts),
                    (PROCESS, "1"),
                    (CLUSTER_SECRET_FILE, &secret),
                    (CLUSTER_TIMEOUT, "10ms"),
                ],
                "flag --cluster-timeout",
            ),
        ] {
            let refused = sources(&flags).member().unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::Config);
            assert!(refused.context().contains(error), "{flags:?}: {refused}");
        }
    }
}
