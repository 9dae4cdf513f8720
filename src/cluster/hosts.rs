//! The hosts file: one `host:port` per process, in the order of their numbers.

use std::collections::BTreeMap;

/// Most processes; each is connected with every other.
const MOST: usize = 64;

/// Addresses of all processes, by number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hosts(Vec<String>);

impl Hosts {
    /// Reads the text of a hosts file: a line per process; empty lines and what follows `#` do not count.
    ///
    /// # Errors
    /// In words, with the number of the line.
    pub fn parse(text: &str) -> Result<Hosts, String> {
        let mut hosts = Vec::new();
        let mut seen: BTreeMap<String, usize> = BTreeMap::new();
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.split('#').next().unwrap_or_default().trim();
            if line.is_empty() {
                continue;
            }
            let wrong = |why: &str| Err(format!("line {number}: {line:?} {why}"));
            let Some((host, port)) = line.rsplit_once(':') else {
                return wrong("is no address: write host:port");
            };
            let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
            if host.is_empty() || host.contains(char::is_whitespace) || (bare.is_none() && host.contains(':'))
            {
                return wrong("is no address: write host:port, and an IPv6 address in brackets");
            }
            if !port.parse::<u16>().is_ok_and(|port| port > 0) {
                return wrong("has no port between 1 and 65535");
            }
            if matches!(host, "0.0.0.0" | "[::]" | "*") {
                return wrong("is no address that other processes can connect to");
            }
            if let Some(first) = seen.insert(line.to_ascii_lowercase(), number) {
                return wrong(&format!("is there already, on line {first}"));
            }
            hosts.push(line.to_ascii_lowercase());
        }
        match hosts.len() {
            0 | 1 => Err(format!("it names {} processes; a cluster has at least 2", hosts.len())),
            2..=MOST => Ok(Hosts(hosts)),
            more => Err(format!("it names {more} processes; a cluster has at most {MOST}")),
        }
    }

    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// Address of a process.
    pub fn of(&self, process: usize) -> &str {
        self.0.get(process).map_or("", String::as_str)
    }

    /// As all processes must have it.
    pub(super) fn text(&self) -> String {
        self.0.join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_process_and_comments_are_none() {
        let hosts = Hosts::parse("# ours\n10.0.0.1:7000\n\n Node-2:7000 # second\n[fd00::3]:7000\n").unwrap();
        assert_eq!((hosts.count(), hosts.of(1), hosts.of(2)), (3, "node-2:7000", "[fd00::3]:7000"));
    }

    #[test]
    fn a_wrong_hosts_file_gives_one_error_with_its_line() {
        for (text, error) in [
            ("", "it names 0 processes"),
            ("a:1\n", "at least 2"),
            ("a:1\nb\n", "line 2: \"b\" is no address"),
            ("a:1\nb:0\n", "line 2: \"b:0\" has no port"),
            ("a:1\nb:70000\n", "has no port"),
            ("a:1\n::1:7000\n", "in brackets"),
            ("a:1\n0.0.0.0:7000\n", "can connect to"),
            ("a:1\nb:2\n\nA:1\n", "line 4: \"A:1\" is there already, on line 1"),
        ] {
            let refused = Hosts::parse(text).unwrap_err();
            assert!(refused.contains(error), "{text:?}: {refused}");
        }
    }
}
