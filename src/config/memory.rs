//! Sizes in bytes as people write them, and how much memory this process may use.

use std::fs;
use std::path::Path;

/// What a limit must at least be: below it not even an empty dataflow runs.
const LEAST: u64 = 16 << 20;

/// `512MB`, `2GiB`, `1.5 GB` or a number of bytes. Units without an `i` are decimal.
pub(super) fn parse(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let factor: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kb" => 1000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "t" | "tib" => 1 << 40,
        _ => return Err(format!("{text:?} is no size")),
    };
    let number: f64 = number.parse().map_err(|_| format!("{text:?} is no size"))?;
    let bytes = number * factor as f64;
    if bytes >= u64::MAX as f64 {
        return Err(format!("{text:?} is larger than any memory"));
    }
    let bytes = bytes as u64;
    if bytes < LEAST { Err(format!("{text:?} is too small")) } else { Ok(bytes) }
}

/// 75 % of what this process may have: the limit of its control group (version 2 or 1), else the machine's memory, else
/// 1 GiB is the limit itself.
pub fn default_limit() -> u64 {
    let machine = fs::read_to_string("/proc/meminfo").ok().and_then(|text| machine_memory(&text));
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let group = group_limit(Path::new("/sys/fs/cgroup"), &groups);
    limit_within(group, machine)
}

/// The rest is for what is no state: the program itself, changes under way, answers that are written. Past the group's
/// limit the kernel kills, at the next start as well.
fn limit_within(group: Option<u64>, machine: Option<u64>) -> u64 {
    // "No limit" is a huge number in version 1.
    match group.into_iter().chain(machine).min() {
        Some(memory) => (memory / 4 * 3).max(LEAST),
        None => 1 << 30,
    }
}

fn machine_memory(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? << 10)
}

/// The smallest limit from the group of this process up to the root. In a container the path of the group often does
/// not exist below `root`, but one of its ancestors (the container's own root) does.
fn group_limit(root: &Path, groups: &str) -> Option<u64> {
    let mut limits = Vec::new();
    for line in groups.lines() {
        // hierarchy:controllers:path; version 2 has hierarchy 0 and no controllers (man 7 cgroups).
        let mut parts = line.splitn(3, ':');
        let (Some(hierarchy), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next())
        else {
            continue;
        };
        let (root, file) = if hierarchy == "0" && controllers.is_empty() {
            (root.to_path_buf(), "memory.max")
        } else if controllers.split(',').any(|c| c == "memory") {
            (root.join("memory"), "memory.limit_in_bytes")
        } else {
            continue;
        };
        for ancestor in Path::new(path.trim_start_matches('/')).ancestors() {
            let text = fs::read_to_string(root.join(ancestor).join(file)).unwrap_or_default();
            limits.extend(text.trim().parse::<u64>().ok());
        }
    }
    limits.into_iter().min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_understood_with_decimal_and_binary_units() {
        assert_eq!(parse("512MB"), Ok(512_000_000));
        assert_eq!(parse("2GiB"), Ok(2 << 30));
        assert_eq!(parse(" 1.5 GB "), Ok(1_500_000_000));
        assert_eq!(parse("33554432"), Ok(32 << 20));
        assert!(parse("12 parsec").is_err() && parse("").is_err() && parse("-1GB").is_err());
        assert!(parse("1MB").is_err() && parse("99999999999TB").is_err());
    }

    #[test]
    fn the_smallest_limit_of_the_group_and_its_ancestors_counts() {
        let scratch = tempfile::tempdir().unwrap();
        let root = scratch.path();
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::write(root.join("a/memory.max"), "1000000\n").unwrap();
        fs::write(root.join("a/b/memory.max"), "max\n").unwrap();
        assert_eq!(group_limit(root, "0::/a/b\n"), Some(1_000_000));
        assert_eq!(group_limit(root, "0::/elsewhere\n"), None);
        fs::create_dir_all(root.join("memory")).unwrap();
        fs::write(root.join("memory/memory.limit_in_bytes"), "500\n").unwrap();
        assert_eq!(group_limit(root, "5:cpu,memory:/docker/x\n3:pids:/\n"), Some(500));
    }

    #[test]
    fn a_quarter_of_the_memory_is_left_for_what_is_no_state() {
        assert_eq!(limit_within(Some(1 << 30), Some(8 << 30)), 3 << 28);
        assert_eq!(limit_within(Some(1 << 62), Some(8 << 30)), 6 << 30);
        assert_eq!(limit_within(None, Some(8 << 30)), 6 << 30);
        assert_eq!(limit_within(Some(1), None), LEAST);
        assert_eq!(limit_within(None, None), 1 << 30);
    }

    #[test]
    fn the_memory_of_the_machine_is_read_in_bytes() {
        assert_eq!(machine_memory("MemTotal:       1024 kB\nMemFree: 1 kB\n"), Some(1 << 20));
        assert!(default_limit() >= LEAST);
    }
}
