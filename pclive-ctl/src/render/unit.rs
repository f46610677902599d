//! Numbers with units, for people: three significant digits, and the unit in which they are read most easily.

use std::time::{Duration, SystemTime};

/// A duration: `950 ns`, `412 µs`, `42.1 ms`, `12.4 s`, `2 min 05 s`, `1 h 02 min`.
pub(crate) fn duration(ns: u64) -> String {
    const SECOND: u64 = 1_000_000_000;
    let ns_f = ns as f64;
    match ns {
        0..1_000 => format!("{ns} ns"),
        _ if ns_f < 999.5e3 => format!("{} µs", three_digits(ns_f / 1e3)),
        _ if ns_f < 999.5e6 => format!("{} ms", three_digits(ns_f / 1e6)),
        _ if ns_f < 59.95e9 => format!("{} s", three_digits(ns_f / 1e9)),
        _ => long_duration(ns.saturating_add(SECOND / 2) / SECOND),
    }
}

fn long_duration(seconds: u64) -> String {
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, minutes, seconds) => format!("{minutes} min {seconds:02} s"),
        (hours, minutes, _) => format!("{hours} h {minutes:02} min"),
    }
}

/// Bytes: `812 B`, `3.25 KiB`, `1.10 GiB`.
pub(crate) fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1023.5 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{} {}", three_digits(value), UNITS[unit])
}

/// Bytes a second.
pub(crate) fn rate(bytes_per_second: u64) -> String {
    format!("{}/s", bytes(bytes_per_second))
}

/// A count with its thousands apart: `262,144`.
pub(crate) fn count(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A count of pages.
pub(crate) fn pages(pages: u64) -> String {
    if pages == 1 { "1 page".to_owned() } else { format!("{} pages", count(pages)) }
}

/// CPU time: `1.32 CPU-s`.
pub(crate) fn cpu(ns: u64) -> String {
    format!("{} CPU-s", three_digits(ns as f64 / 1e9))
}

/// A point in time (Unix milliseconds) as UTC, to the second; a dash for none.
pub(crate) fn timestamp(unix_ms: u64) -> String {
    /// The last second that four digits of year can hold.
    const LAST: u64 = 253_402_300_799_000;
    if unix_ms == 0 || unix_ms > LAST {
        return "-".to_owned();
    }
    let time = SystemTime::UNIX_EPOCH + Duration::from_millis(unix_ms);
    humantime::format_rfc3339_seconds(time).to_string()
}

fn three_digits(value: f64) -> String {
    match value {
        _ if value < 9.995 => format!("{value:.2}"),
        _ if value < 99.95 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_three_digits_and_a_unit_that_fits() {
        let cases = [
            (0, "0 ns"),
            (950, "950 ns"),
            (1_000, "1.00 µs"),
            (412_300, "412 µs"),
            (999_499, "999 µs"),
            (999_500, "1.00 ms"),
            (42_149_000, "42.1 ms"),
            (99_960_000, "100 ms"),
            (999_600_000, "1.00 s"),
            (12_400_000_000, "12.4 s"),
            (59_960_000_000, "1 min 00 s"),
            (125_000_000_000, "2 min 05 s"),
            (3_720_000_000_000, "1 h 02 min"),
        ];
        for (ns, text) in cases {
            assert_eq!(duration(ns), text, "{ns}");
        }
        assert_eq!(duration(u64::MAX), "5124095 h 34 min");
    }

    #[test]
    fn bytes_are_told_in_powers_of_1024() {
        let cases = [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.00 KiB"),
            (3_330, "3.25 KiB"),
            (1_048_575, "1.00 MiB"),
            (1_181_116_006, "1.10 GiB"),
            (u64::MAX, "16.0 EiB"),
        ];
        for (value, text) in cases {
            assert_eq!(bytes(value), text, "{value}");
        }
        assert_eq!(rate(1_181_116_006), "1.10 GiB/s");
    }

    #[test]
    fn counts_have_their_thousands_apart() {
        assert_eq!(
            [0, 999, 1_000, 262_144, 1_000_000].map(count),
            ["0", "999", "1,000", "262,144", "1,000,000"]
        );
        assert_eq!([0, 1, 2].map(pages), ["0 pages", "1 page", "2 pages"]);
        assert_eq!(cpu(1_321_000_000), "1.32 CPU-s");
    }

    #[test]
    fn points_in_time_are_utc_and_none_is_a_dash() {
        assert_eq!(timestamp(1_795_430_189_999), "2026-11-23T10:36:29Z");
        assert_eq!(timestamp(0), "-");
        assert_eq!(timestamp(u64::MAX), "-");
    }
}
