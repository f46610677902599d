//! Mappings: files, shared memory, advice, locks.

use std::fs::File;
use std::os::fd::AsRawFd;

use anyhow::{Context, Result, ensure};

use crate::{Check, State, same};

pub(crate) const STATES: &[State] =
    &[("private-file", private_file), ("shared-file", shared_file), ("advice", advice), ("heap", heap)];

/// Pages of the mappings.
const LENGTH: usize = 16 << 12;

/// Mapped memory of this program that stays for ever.
fn map(flags: libc::c_int, file: Option<&File>) -> Result<&'static mut [u8]> {
    let (fd, flags) = file.map_or((-1, flags | libc::MAP_ANONYMOUS), |file| (file.as_raw_fd(), flags));
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: without MAP_FIXED the kernel takes addresses that nothing uses.
    let address = unsafe { libc::mmap(std::ptr::null_mut(), LENGTH, protection, flags, fd, 0) };
    ensure!(address != libc::MAP_FAILED, "cannot map: {}", std::io::Error::last_os_error());
    // SAFETY: the memory is mapped, initialised by the kernel, as long as LENGTH and never unmapped; only the
    // returned reference uses it (a file below it is long enough and is written only through it).
    Ok(unsafe { std::slice::from_raw_parts_mut(address.cast::<u8>(), LENGTH) })
}

fn file(path: &str) -> Result<File> {
    std::fs::write(path, vec![b'f'; LENGTH])?;
    File::options().read(true).write(true).open(path).context("cannot open the file")
}

/// Pages that were written differ from the file; the file does not change.
fn private_file() -> Result<Check> {
    let file = file("/data/private")?;
    let memory = map(libc::MAP_PRIVATE, Some(&file))?;
    memory[5 << 12] = b'w';
    Ok(Box::new(move || {
        same("written byte", &b'w', &memory[5 << 12])?;
        ensure!(memory.iter().filter(|&&byte| byte != b'f').count() == 1, "other bytes have changed");
        ensure!(std::fs::read("/data/private")? == vec![b'f'; LENGTH], "the file has changed");
        Ok(())
    }))
}

fn shared_file() -> Result<Check> {
    let file = file("/data/shared")?;
    let memory = map(libc::MAP_SHARED, Some(&file))?;
    let mut turn = b'0';
    memory[7 << 12] = turn;
    Ok(Box::new(move || {
        same("written byte", &turn, &memory[7 << 12])?;
        turn += 1;
        memory[7 << 12] = turn;
        same("byte of the file", &turn, &std::fs::read("/data/shared")?[7 << 12])
    }))
}

/// The flags of a mapping that `smaps` shows and that are the program's wish.
fn advice() -> Result<Check> {
    const WISHES: [&str; 8] = ["lo", "dc", "dd", "wf", "sr", "rr", "hg", "nh"];
    const ADVICE: [libc::c_int; 5] = [
        libc::MADV_DONTFORK,
        libc::MADV_DONTDUMP,
        libc::MADV_RANDOM,
        libc::MADV_HUGEPAGE,
        libc::MADV_WIPEONFORK,
    ];
    let mut addresses = Vec::new();
    for wish in ADVICE {
        let memory = map(libc::MAP_PRIVATE, None)?;
        // SAFETY: the range is this program's; none of the advice changes what is in it now.
        let _ = unsafe { libc::madvise(memory.as_mut_ptr().cast(), LENGTH, wish) };
        addresses.push(memory.as_ptr() as usize);
    }
    let locked = map(libc::MAP_PRIVATE, None)?;
    // SAFETY: the range is this program's; locking changes no contents.
    let _ = unsafe { libc::mlock(locked.as_ptr().cast(), LENGTH) };
    addresses.push(locked.as_ptr() as usize);
    let look = move || -> Result<Vec<Vec<String>>> {
        let text = std::fs::read_to_string("/proc/self/smaps")?;
        let of = |address: &usize| -> Option<Vec<String>> {
            let start = text.find(&format!("\n{address:x}-")).or_else(|| inside(&text, *address))?;
            let flags = text[start..].lines().find_map(|line| line.strip_prefix("VmFlags: "))?;
            Some(flags.split(' ').filter(|flag| WISHES.contains(flag)).map(str::to_owned).collect())
        };
        addresses.iter().map(|address| of(address).context("a mapping is gone")).collect()
    };
    let before = look()?;
    ensure!(before.iter().filter(|flags| !flags.is_empty()).count() >= 4, "advice was not taken: {before:?}");
    Ok(Box::new(move || same("flags of mappings", &before, &look()?)))
}

/// Where the text of the mapping that has `address` inside begins.
fn inside(text: &str, address: usize) -> Option<usize> {
    let mut offset = 0;
    for line in text.lines() {
        let range = line.split(' ').next().and_then(|word| word.split_once('-'));
        let number = |word: &str| usize::from_str_radix(word, 16).ok();
        if let Some((Some(start), Some(end))) = range.map(|(start, end)| (number(start), number(end)))
            && (start..end).contains(&address)
        {
            return Some(offset);
        }
        offset += line.len() + 1;
    }
    None
}

/// The heap can still grow, and what is in it stays.
fn heap() -> Result<Check> {
    let mut kept: Vec<Vec<u8>> = (0..100_u8).map(|number| vec![number; 3000]).collect();
    Ok(Box::new(move || {
        let right = kept.iter().enumerate().all(|(index, block)| *block == vec![(index % 256) as u8; 3000]);
        ensure!(right, "a block of the heap has changed");
        let length = kept.len();
        kept.extend((length..length + 100).map(|number| vec![(number % 256) as u8; 3000]));
        Ok(())
    }))
}
