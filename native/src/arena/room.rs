//! How much memory there is, and how much of it is free: of /dev/shm, of the machine, of this process's control groups.
//!
//! A store to a full tmpfs is SIGBUS, and a page that the machine has no room for ends a process; so both are asked for before
//! memory is handed out or taken back. Files are read through a function, so that tests can make a machine up.

use crate::page::page_size;
use crate::sys::statvfs;
use std::collections::BTreeMap;
#[cfg(feature = "faults")]
use std::sync::{Mutex, PoisonError};

const CGROUPS: &str = "/sys/fs/cgroup";
/// Of what pages may be taken back for, so much is left over: others take pages back at the same time.
const LEFT_OVER: u64 = 256 << 20;

/// How much memory a place has, and how much of it is free, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// All of it.
    pub size: u64,
    /// What is free.
    pub free: u64,
    /// Nobody should count on it.
    pub small: bool,
}

/// Of /dev/shm; None: it has no limit, or the kernel does not say. It is small if it has less than a quarter of the
/// machine's memory: tmpfs has half unless told.
pub fn of_shm() -> Option<Room> {
    let (size, free) = statvfs::filesystem(c"/dev/shm").ok()?;
    (size > 0).then(|| Room { size, free, small: size < statvfs::physical() / 4 })
}

/// Of the machine, or of this process's control group if that has less. None: the kernel does not say.
pub fn of_memory() -> Option<Room> {
    memory(&|path| std::fs::read_to_string(path).unwrap_or_default())
}

/// How many pages may be taken back from frames: that takes memory which nobody asked for. None: no bound is known.
///
/// There is no error for the last page of memory: the kernel ends a process, of ours or of somebody else's.
pub fn spare_pages(room: Option<Room>) -> Option<usize> {
    let room = room?;
    let spare = room.free.saturating_sub((room.size / 16).min(LEFT_OVER));
    Some((spare / page_size() as u64) as usize)
}

/// What a place is said to have, for tests: None, unless something was.
#[cfg(feature = "faults")]
pub fn pretended(place: usize) -> Option<Option<Room>> {
    *PRETENDED[place].lock().unwrap_or_else(PoisonError::into_inner)
}

/// Says what a place has; None: the truth again.
#[cfg(feature = "faults")]
pub fn pretend(place: usize, room: Option<Option<Room>>) {
    *PRETENDED[place].lock().unwrap_or_else(PoisonError::into_inner) = room;
}

#[cfg(feature = "faults")]
static PRETENDED: [Mutex<Option<Option<Room>>>; 2] = [Mutex::new(None), Mutex::new(None)];

type Read<'a> = &'a dyn Fn(&str) -> String;

fn memory(read: Read<'_>) -> Option<Room> {
    let text = read("/proc/meminfo");
    let known: BTreeMap<&str, u64> = text.lines().filter_map(kibibytes).collect();
    let of = |key: &str| known.get(key).copied().unwrap_or(0);
    known.get("MemAvailable")?;
    let (mut size, mut free) = (of("MemTotal") + of("SwapTotal"), of("MemAvailable") + of("SwapFree"));
    if read("/proc/sys/vm/overcommit_memory").trim() == "2" {
        // The kernel promises no more than it has: nor do we.
        size = size.min(of("CommitLimit"));
        free = free.min(of("CommitLimit").saturating_sub(of("Committed_AS")));
    }
    if let Some(bound) = group(read) {
        (size, free) = (size.min(bound.size), free.min(bound.free));
    }
    Some(Room { size, free, small: false })
}

fn kibibytes(line: &str) -> Option<(&str, u64)> {
    let (key, value) = line.split_once(':')?;
    let mut words = value.split_whitespace();
    let number: u64 = words.next()?.parse().ok()?;
    words.next().map(|_| (key, number * 1024)) // without a unit it is a count
}

/// Of a version of the control groups: the controller in a line of /proc/self/cgroup, where they are mounted, and the files
/// with the bound, what is used of it, and how much of that is page cache.
struct Version {
    controller: &'static str,
    mount: &'static str,
    limit: &'static str,
    usage: &'static str,
    cache: [&'static str; 2],
}

const VERSIONS: [Version; 2] = [
    Version {
        controller: "",
        mount: "",
        limit: "memory.max",
        usage: "memory.current",
        cache: ["inactive_file", "active_file"],
    },
    Version {
        controller: "memory",
        mount: "/memory",
        limit: "memory.limit_in_bytes",
        usage: "memory.usage_in_bytes",
        cache: ["total_inactive_file", "total_active_file"],
    },
];

/// The tightest bound of this process's control groups; page cache that can go counts as free.
fn group(read: Read<'_>) -> Option<Room> {
    let lines = read("/proc/self/cgroup");
    let mut found: Option<Room> = None;
    for version in &VERSIONS {
        let fields = lines.lines().map(|line| line.splitn(3, ':').collect::<Vec<_>>());
        let of_it = fields.filter(|f| f.len() == 3).find(|f| f[1].split(',').any(|name| name == version.controller));
        let mut path = of_it.map_or("", |fields| fields[2]);
        while path.starts_with('/') {
            let base = format!("{CGROUPS}{}{}", version.mount, path.trim_end_matches('/'));
            let number = |file: &str| read(&format!("{base}/{file}")).trim().parse::<u64>();
            // Else there is no bound, or no such group.
            if let (Ok(most), Ok(used)) = (number(version.limit), number(version.usage)) {
                let held = read(&format!("{base}/memory.stat"));
                let held: BTreeMap<&str, u64> = held.lines().filter_map(field).collect();
                let cache: u64 = version.cache.iter().filter_map(|key| held.get(key)).sum();
                let free = most.saturating_add(cache).saturating_sub(used).min(most);
                if found.is_none_or(|tightest| free < tightest.free) {
                    found = Some(Room { size: most, free, small: false });
                }
            }
            path = match path.rsplit_once('/') {
                Some(("", "")) | None => "",
                Some(("", _)) => "/",
                Some((parent, _)) => parent,
            };
        }
    }
    found
}

fn field(line: &str) -> Option<(&str, u64)> {
    let (key, value) = line.split_once(' ')?;
    Some((key, value.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMINFO: &str = "MemTotal: 1000 kB\nMemAvailable: 900 kB\nSwapTotal: 100 kB\nSwapFree: 50 kB\n\
                           CommitLimit: 800 kB\nCommitted_AS: 700 kB\nHugePages_Total: 3\n";

    fn room(size: u64, free: u64) -> Option<Room> {
        Some(Room { size, free, small: false })
    }

    /// Of a machine with these files.
    fn on(files: &[(&str, String)]) -> Option<Room> {
        memory(&|path| files.iter().find(|(name, _)| *name == path).map_or(String::new(), |(_, text)| text.clone()))
    }

    #[test]
    fn what_the_kernel_says_makes_sense() {
        for found in [of_shm(), of_memory()].into_iter().flatten() {
            assert!(found.free <= found.size, "{found:?}");
        }
        assert_eq!(on(&[]), None);
    }

    #[test]
    fn strict_overcommit_bounds_memory() {
        for (mode, expected) in [("0", room(1100 << 10, 950 << 10)), ("2", room(800 << 10, 100 << 10))] {
            let files = [("/proc/meminfo", MEMINFO.into()), ("/proc/sys/vm/overcommit_memory", format!("{mode}\n"))];
            assert_eq!(on(&files), expected);
        }
    }

    #[test]
    fn the_tightest_control_group_bounds_memory() {
        for (line, mount, limit, usage, prefix, unbounded) in [
            ("0::/outer/inner", "", "memory.max", "memory.current", "", "max".to_string()),
            (
                "4:memory:/outer/inner",
                "/memory",
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
                "total_",
                (1u64 << 62).to_string(),
            ),
        ] {
            let stat = format!("anon 1\nfile 300000\n{prefix}inactive_file 100000\n{prefix}active_file 50000\n");
            let at = |group: &str, file: &str| format!("{CGROUPS}{mount}{group}/{file}");
            let look = |inner: &str| {
                let files = [
                    ("/proc/meminfo".to_string(), "MemTotal: 9000000 kB\nMemAvailable: 9000000 kB\n".to_string()),
                    ("/proc/self/cgroup".to_string(), format!("{line}\n")),
                    (at("/outer", limit), "1000000\n".into()),
                    (at("/outer", usage), "400000\n".into()),
                    (at("/outer", "memory.stat"), stat.clone()),
                    (at("/outer/inner", limit), format!("{inner}\n")),
                    (at("/outer/inner", usage), "300000\n".into()),
                ];
                let files: Vec<(&str, String)> =
                    files.iter().map(|(name, text)| (name.as_str(), text.clone())).collect();
                on(&files)
            };
            assert_eq!(look(&unbounded), room(1_000_000, 750_000), "{line}");
            assert_eq!(look("310000"), room(310_000, 10_000), "{line}");
        }
    }

    #[test]
    fn some_memory_is_left_when_pages_are_taken_back() {
        let page = page_size() as u64;
        for (found, pages) in [
            (room(1600 << 20, 500 << 20), Some((400 << 20) / page)),
            (room(1600 << 20, 50 << 20), Some(0)),
            (room(1 << 40, 1 << 30), Some((768 << 20) / page)),
            (None, None),
        ] {
            assert_eq!(spare_pages(found), pages.map(|pages| pages as usize));
        }
    }
}
