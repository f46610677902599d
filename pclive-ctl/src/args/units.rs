//! Times and rates as people write them.

use std::time::Duration;

/// Rounded up, so that a positive time never becomes 0 (which means "the default").
pub(super) fn whole_milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

pub(super) fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|error| format!("{error}; write a number and its unit, as in 300ms"))
}

/// `500Mbit`, `1Gbit`, `800kbit` (decimal, a second), or bytes a second: `62500000`, `60MiB`, `60MB`.
pub(super) fn bandwidth(text: &str) -> Result<u64, String> {
    let wrong = || "write a rate like 500Mbit, 1Gbit, 60MiB or bytes a second".to_owned();
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.').len();
    let (number, unit) = text.split_at(digits);
    let number: f64 = number.parse().map_err(|_| wrong())?;
    let unit_bytes = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "kb" => 1e3,
        "mb" => 1e6,
        "gb" => 1e9,
        "kib" => 1024.0,
        "mib" => 1_048_576.0,
        "gib" => 1_073_741_824.0,
        "kbit" => 1e3 / 8.0,
        "mbit" => 1e6 / 8.0,
        "gbit" => 1e9 / 8.0,
        _ => return Err(wrong()),
    };
    // A cast of a float saturates.
    match (number * unit_bytes).round() as u64 {
        0 => Err("must be more than nothing".to_owned()),
        bytes => Ok(bytes),
    }
}

/// At most 100 years: certificates end before the year 9999.
pub(super) fn validity(text: &str) -> Result<Duration, String> {
    let time = positive_duration(text)?;
    let longest = Duration::from_secs(100 * 366 * 24 * 3600);
    if time > longest { Err("must be at most 100 years".to_owned()) } else { Ok(time) }
}

pub(super) fn positive_duration(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err("must be longer than nothing".to_owned()),
        time => Ok(time),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_bits_by_name_and_bytes_otherwise() {
        let cases = [
            ("1Gbit", 125_000_000),
            ("500Mbit", 62_500_000),
            ("2.5gbit", 312_500_000),
            ("800kbit", 100_000),
            ("1000", 1000),
            ("60MB", 60_000_000),
            ("1MiB", 1 << 20),
        ];
        for (text, bytes) in cases {
            assert_eq!(bandwidth(text), Ok(bytes), "{text}");
        }
        for text in ["", "Mbit", "1Tbit", "0", "fast", "-1", "1.2.3", "1 Gbit"] {
            assert!(bandwidth(text).is_err(), "{text}");
        }
    }
}
