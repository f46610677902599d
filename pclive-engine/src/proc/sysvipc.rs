//! `/proc/sysvipc/shm`: the System V segments of the reader's IPC namespace (sysvipc(5)).

use crate::model::tree::{Ownership, Segment};

/// `SHM_DEST` among the permission bits.
const REMOVED: u32 = 0o1000;

/// Parses the whole file: a heading, then lines of
/// `key shmid perms size cpid lpid nattch uid gid cuid cgid atime dtime ctime rss swap`. A line that is not the kernel's
/// is an error.
pub fn parse_segments(text: &str) -> Result<Vec<Segment>, String> {
    let lines = text.lines().skip(1).filter(|line| !line.trim().is_empty());
    lines.map(|line| parse_segment(line).ok_or_else(|| line.to_owned())).collect()
}

/// How many things a file of `/proc/sysvipc` lists.
pub fn count(text: &str) -> usize {
    text.lines().skip(1).filter(|line| !line.trim().is_empty()).count()
}

fn parse_segment(line: &str) -> Option<Segment> {
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    let number = |at: usize| fields.get(at)?.parse::<u32>().ok();
    let mode = u32::from_str_radix(fields.get(2)?, 8).ok()?;
    let key = fields.first()?.parse::<i64>().ok()?;
    Some(Segment {
        id: fields.get(1)?.parse().ok()?,
        key: (key & 0xffff_ffff) as u32 as i32,
        size: fields.get(3)?.parse().ok()?,
        owner: Ownership { mode: mode & 0o777, uid: number(7)?, gid: number(8)? },
        creator: (number(9)?, number(10)?),
        removed: mode & REMOVED != 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "       key      shmid perms                  size  cpid  lpid nattch   uid   gid  cuid  \
                        cgid      atime      dtime      ctime                   rss                  swap\n \
                        1234      32769   600                    56   108   123      6   104   110   104   110 \
                        1764316800          0 1764316800                  4096                     0\n \
                        -2          3  1666                  4096     1     1      1     0     0     5     6 \
                        1764316800          0 1764316800                  4096                     0\n";

    #[test]
    fn segments_are_read_with_their_owners() {
        let owner = Ownership { mode: 0o600, uid: 104, gid: 110 };
        let first = Segment { id: 32769, key: 1234, size: 56, owner, creator: (104, 110), removed: false };
        let owner = Ownership { mode: 0o666, uid: 0, gid: 0 };
        let second = Segment { id: 3, key: -2, size: 4096, owner, creator: (5, 6), removed: true };
        assert_eq!(parse_segments(TEXT), Ok(vec![first, second]));
        assert_eq!(count(TEXT), 2);
    }

    #[test]
    fn other_text_is_refused() {
        assert!(parse_segments("heading\n1 2\n").is_err());
    }
}
