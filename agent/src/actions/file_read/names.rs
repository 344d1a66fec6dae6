//! The names of users and groups, by the host's own lists. Directories of users elsewhere are not asked: that takes sockets,
//! which a confined task does not have.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader},
};

const USERS: &str = "/etc/passwd";
const GROUPS: &str = "/etc/group";

/// What the kernel says for ids that a user namespace does not have (`/proc/sys/kernel/overflowuid`).
const UNMAPPED: u32 = 65534;

/// A user's name; empty if it is not known.
pub(super) fn of_user(id: u32) -> String {
    name(id, "/proc/self/uid_map", USERS)
}

/// A group's name; empty if it is not known.
pub(super) fn of_group(id: u32) -> String {
    name(id, "/proc/self/gid_map", GROUPS)
}

fn name(id: u32, map: &str, list: &str) -> String {
    if id == UNMAPPED && !fs::read_to_string(map).is_ok_and(|map| has_all(&map)) {
        return String::new();
    }
    let list = File::open(list).map(BufReader::new);
    list.ok()
        .and_then(|list| find(list.split(b'\n').map_while(Result::ok), id))
        .unwrap_or_default()
}

/// Whether a map of ids, as "INSIDE OUTSIDE COUNT", has every one.
fn has_all(map: &str) -> bool {
    let numbers: Vec<&str> = map.split_ascii_whitespace().collect();
    numbers == ["0", "0", "4294967295"]
}

/// The name in a list whose lines are "NAME:…:ID:…".
fn find(lines: impl Iterator<Item = Vec<u8>>, id: u32) -> Option<String> {
    let id = id.to_string();
    for line in lines {
        let line = String::from_utf8_lossy(&line);
        let mut fields = line.split(':');
        let name = fields.next()?;
        if fields.nth(1) == Some(&id) {
            return Some(name.to_owned());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_found_by_its_id() {
        let list = "root:x:0:0:root:/root:/bin/sh\n\nada:x:10:20::/home/ada:/bin/sh\nbad\n";
        let find = |id| find(list.lines().map(Vec::from), id);
        assert_eq!(find(0).as_deref(), Some("root"));
        assert_eq!(find(10).as_deref(), Some("ada"));
        assert_eq!(find(20), None);
        assert_eq!(of_user(0), "root");
    }

    #[test]
    fn a_map_of_one_id_does_not_have_all() {
        assert!(has_all("         0          0 4294967295\n"));
        assert!(!has_all("      1000       1000          1\n"));
        assert!(!has_all(""));
    }
}
