//! Durations in annotations.

use std::time::Duration;

/// The greatest duration of an annotation: a week.
const MAX_SECONDS: u64 = 7 * 24 * 3600;

/// Parses a duration of hours, minutes and seconds, such as `10m` or `1h30m`. It is a week at most.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let mut seconds = 0_u64;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, after) = rest.split_at(digits);
        let unit = match after.bytes().next()? {
            b'h' => 3600,
            b'm' => 60,
            b's' => 1,
            _ => return None,
        };
        seconds = seconds.checked_add(number.parse::<u64>().ok()?.checked_mul(unit)?)?;
        rest = &after[1..];
    }
    (!text.is_empty() && seconds <= MAX_SECONDS).then(|| Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units() {
        let seconds = |text| parse_duration(text).map(|duration| duration.as_secs());
        assert_eq!(seconds("30s"), Some(30));
        assert_eq!(seconds("10m"), Some(600));
        assert_eq!(seconds("1h30m5s"), Some(5405));
        assert_eq!(seconds("0s"), Some(0));
        assert_eq!(seconds("168h"), Some(604_800));
        for wrong in ["", "10", "m", "-1m", "1.5h", "10 m", "169h", "99999999999999999999s", "10ms"] {
            assert_eq!(seconds(wrong), None, "{wrong}");
        }
    }
}
