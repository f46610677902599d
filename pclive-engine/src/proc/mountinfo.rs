//! `/proc/PID/mountinfo` (proc_pid_mountinfo(5)). Paths are bytes: a container chooses its mount points.

/// A mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Unique id; `mnt_id` of fdinfo. An id is used again after an unmount.
    pub id: i32,
    /// Device number of the file system: major and minor.
    pub device: (u32, u32),
    /// The directory (or file) of the file system that the mount shows; `/` for all of it.
    pub root: Vec<u8>,
    /// Mount point, as the process that owns the file sees it.
    pub point: Vec<u8>,
    /// The mount or its file system is read-only.
    pub read_only: bool,
    /// File system type: `tmpfs`.
    pub kind: Vec<u8>,
}

/// A line that is not the kernel's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot parse mountinfo line {0:?}")]
pub struct MountInfoError(pub String);

/// Parses a whole mountinfo file.
pub fn parse(text: &[u8]) -> Result<Vec<Mount>, MountInfoError> {
    text.split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| {
            parse_line(line).ok_or_else(|| MountInfoError(String::from_utf8_lossy(line).into_owned()))
        })
        .collect()
}

/// `36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue`; the number of fields before
/// the hyphen varies.
fn parse_line(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|byte| *byte == b' ');
    let id = number(fields.next()?)?;
    let _parent = fields.next()?;
    let device = device(fields.next()?)?;
    let root = unescape(fields.next()?);
    let point = unescape(fields.next()?);
    let mount_options = fields.next()?;
    fields.by_ref().find(|field| *field == b"-")?;
    let kind = fields.next()?.to_vec();
    let _source = fields.next()?;
    let super_options = fields.next()?;
    let read_only = is_read_only(mount_options) || is_read_only(super_options);
    Some(Mount { id, device, root, point, read_only, kind })
}

fn is_read_only(options: &[u8]) -> bool {
    options.split(|byte| *byte == b',').any(|option| option == b"ro")
}

fn device(field: &[u8]) -> Option<(u32, u32)> {
    let colon = field.iter().position(|byte| *byte == b':')?;
    Some((number(&field[..colon])?, number(&field[colon + 1..])?))
}

fn number<T: std::str::FromStr>(field: &[u8]) -> Option<T> {
    std::str::from_utf8(field).ok()?.parse().ok()
}

/// Undoes the kernel's `\ooo` for space, tab, newline and backslash; anything else stays as it is.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        match (first, tail.get(..3).and_then(octal)) {
            (b'\\', Some(byte)) => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    bytes
}

fn octal(digits: &[u8]) -> Option<u8> {
    if !digits.iter().all(|digit| (b'0'..=b'7').contains(digit)) {
        return None;
    }
    u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TEXT: &[u8] = b"\
        635 562 0:49 / / rw,relatime - overlay overlay rw,lowerdir=/a:/b\n\
        637 635 0:52 / /dev rw,nosuid - tmpfs tmpfs rw,size=65536k,mode=755\n\
        640 637 0:55 / /dev/shm ro,nosuid master:3 propagate_from:2 - tmpfs shm rw\n\
        641 635 254:1 /srv/my\\040data\\134x /data\\040dir rw - ext4 /dev/vda1 rw\n";

    #[test]
    fn container_mounts() {
        let mounts = parse(TEXT).unwrap();
        let points: Vec<&[u8]> = mounts.iter().map(|mount| mount.point.as_slice()).collect();
        assert_eq!(points, [b"/".as_slice(), b"/dev", b"/dev/shm", b"/data dir"]);
        assert_eq!(mounts[3].root, b"/srv/my data\\x");
        assert_eq!((mounts[3].id, mounts[3].device), (641, (254, 1)));
        assert_eq!(
            mounts.iter().map(|mount| mount.read_only).collect::<Vec<_>>(),
            [false, false, true, false]
        );
        assert_eq!(mounts[1].kind, b"tmpfs");
    }

    #[test]
    fn own_mounts_parse() {
        let mounts = parse(&std::fs::read("/proc/self/mountinfo").unwrap()).unwrap();
        assert!(mounts.iter().any(|mount| mount.point == b"/proc"));
    }

    #[test]
    fn line_without_a_hyphen_is_refused() {
        assert!(parse(b"635 562 0:49 / / rw,relatime overlay overlay rw\n").is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse(&bytes);
        }

        #[test]
        fn any_mount_point_survives(name in proptest::collection::vec(1_u8.., 1..40)) {
            let mut escaped = Vec::new();
            for byte in &name {
                match byte {
                    b' ' | b'\t' | b'\n' | b'\\' => escaped.extend(format!("\\{byte:03o}").bytes()),
                    _ => escaped.push(*byte),
                }
            }
            let mut line = b"1 2 0:3 / ".to_vec();
            line.extend(&escaped);
            line.extend(b" rw - tmpfs tmpfs rw\n");
            prop_assert_eq!(&parse(&line).unwrap()[0].point, &name);
        }
    }
}
