//! Numbers as nccl-tests prints them.

/// Two decimals, fewer where they do not fit in `width`, at last an exponent.
pub fn fixed(value: f64, width: usize) -> String {
    if !value.is_finite() {
        return format!("{value:>width$}");
    }
    let mut digits = 0;
    let mut power = 1.0;
    while value >= power {
        digits += 1;
        power *= 10.0;
    }
    match digits {
        digits if digits + 2 < width => format!("{value:width$.2}"),
        digits if digits + 1 < width => format!("{value:width$.1}"),
        digits if digits < width + 1 => format!("{value:width$.0}"),
        _ if width >= 7 => format!("{:>width$}", exponent(value, 1)),
        _ => format!("{:>width$}", exponent(value, 0)),
    }
}

/// C's `%g`: six significant digits, no zeros at the end.
pub fn general(value: f64) -> String {
    if value == 0.0 || !value.is_finite() {
        return format!("{value}");
    }
    let power = exponent_of(value);
    if !(-4..6).contains(&power) {
        let text = exponent(value, 5);
        let (digits, power) = text.split_once('e').expect("an exponent");
        return format!("{}e{power}", trimmed(digits));
    }
    let decimals = (5 - power).max(0) as usize;
    trimmed(&format!("{value:.decimals$}")).to_owned()
}

/// C's `%.{decimals}e`: a sign and two digits in the exponent.
fn exponent(value: f64, decimals: usize) -> String {
    let text = format!("{value:.decimals$e}");
    let (digits, power) = text.split_once('e').expect("an exponent");
    let power: i32 = power.parse().expect("a number");
    format!("{digits}e{power:+03}")
}

fn exponent_of(value: f64) -> i32 {
    // Rounded to six digits first: 999999.9 is 1e+06.
    let text = format!("{value:.5e}");
    text.split_once('e').and_then(|(_, power)| power.parse().ok()).unwrap_or(0)
}

fn trimmed(digits: &str) -> &str {
    match digits.contains('.') {
        true => digits.trim_end_matches('0').trim_end_matches('.'),
        false => digits,
    }
}

/// A size for people.
pub fn size(bytes: usize) -> String {
    let units = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match units.iter().find(|(unit, _)| bytes >= *unit) {
        Some((unit, name)) if bytes.is_multiple_of(*unit) => format!("{} {name}", bytes / unit),
        Some((unit, name)) => format!("{:.1} {name}", bytes as f64 / *unit as f64),
        None => format!("{bytes} B"),
    }
}

/// `%Y-%m-%d %H:%M:%S`, in UTC.
pub fn timestamp(since_epoch: std::time::Duration) -> String {
    let seconds = since_epoch.as_secs();
    let (days, clock) = (seconds / 86_400, seconds % 86_400);
    // Civil from days: http://howardhinnant.github.io/date_algorithms.html
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (clock / 3600, clock / 60 % 60, clock % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}")
}

/// Now, as [`timestamp`].
pub fn now() -> String {
    let now = std::time::SystemTime::now();
    timestamp(now.duration_since(std::time::UNIX_EPOCH).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn times_degrade_as_in_nccl_tests() {
        let of = |value| fixed(value, 7);
        assert_eq!(of(0.154), "   0.15");
        assert_eq!(of(35.149), "  35.15");
        assert_eq!(of(1806.7), "1806.70");
        assert_eq!(of(10_094.0), "10094.0");
        assert_eq!(of(1_234_567.0), "1234567");
        assert_eq!(of(123_456_789.0), "1.2e+08");
        assert_eq!(fixed(834.57, 6), "834.57");
        assert_eq!(fixed(1_234_567.0, 6), " 1e+06");
    }

    #[test]
    fn general_is_percent_g() {
        assert_eq!(general(745.53), "745.53");
        assert_eq!(general(0.0), "0");
        assert_eq!(general(0.000_012_345_67), "1.23457e-05");
        assert_eq!(general(1_234_567.0), "1.23457e+06");
        assert_eq!(general(123_456.7), "123457");
        assert_eq!(general(0.5), "0.5");
    }

    #[test]
    fn dates_are_civil() {
        let at = |seconds| timestamp(Duration::from_secs(seconds));
        assert_eq!(at(0), "1970-01-01 00:00:00");
        assert_eq!(at(951_782_400), "2000-02-29 00:00:00");
        assert_eq!(at(1_767_225_599), "2025-12-31 23:59:59");
    }

    #[test]
    fn sizes_are_readable() {
        assert_eq!(size(8), "8 B");
        assert_eq!(size(64 << 20), "64 MiB");
        assert_eq!(size(1536), "1.5 KiB");
    }
}
