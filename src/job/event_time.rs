//! Times as messages write them: RFC 3339, with an offset.
//!
//! It knows the calendar and no clock. Invariant: two texts that mean the same instant give the same number.

/// Microseconds since the Unix epoch (UTC) of an RFC 3339 time such as `2024-05-17T10:30:00.25+02:00`. Finer digits are
/// cut off; a leap second counts as the second after it. The error says what is missing.
pub fn parse_event_time(text: &str) -> Result<i64, &'static str> {
    const SHAPE: &str = "is not an RFC 3339 time; write it like 2024-05-17T08:30:00Z";
    let bytes = text.as_bytes();
    if bytes.len() < 19 || !text.is_ascii() {
        return Err(SHAPE);
    }
    let marks = bytes[4] == b'-' && bytes[7] == b'-' && bytes[13] == b':' && bytes[16] == b':';
    if !marks || !matches!(bytes[10], b'T' | b't') {
        return Err(SHAPE);
    }
    let field = |from: usize, to: usize| digits(&bytes[from..to]).ok_or(SHAPE);
    let (year, month, day) = (field(0, 4)?, field(5, 7)?, field(8, 10)?);
    let (hour, minute, second) = (field(11, 13)?, field(14, 16)?, field(17, 19)?);
    if !(1..=12).contains(&month) || day < 1 || day > days_of_month(year, month) {
        return Err("names a day that the calendar does not have");
    }
    if hour > 23 || minute > 59 || second > 60 {
        return Err("names a time of day that the clock does not have");
    }
    let (micros, rest) = fraction(&bytes[19..]).ok_or(SHAPE)?;
    let offset = offset_minutes(rest)?;
    let minutes = (days_since_epoch(year, month, day) * 24 + hour) * 60 + minute - offset;
    Ok((minutes * 60 + second) * 1_000_000 + micros)
}

fn digits(bytes: &[u8]) -> Option<i64> {
    bytes.iter().try_fold(0, |sum, byte| byte.is_ascii_digit().then(|| sum * 10 + i64::from(byte - b'0')))
}

/// Microseconds of an optional `.123`, and what follows it.
fn fraction(bytes: &[u8]) -> Option<(i64, &[u8])> {
    if bytes.first() != Some(&b'.') {
        return Some((0, bytes));
    }
    let length = bytes[1..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    let kept = length.min(6);
    let value = digits(&bytes[1..1 + kept])?;
    (length > 0).then(|| (value * 10_i64.pow(6 - kept as u32), &bytes[1 + length..]))
}

fn offset_minutes(bytes: &[u8]) -> Result<i64, &'static str> {
    const MISSING: &str = "has no valid offset; end it with Z or an offset such as +02:00";
    match bytes {
        [b'Z' | b'z'] => Ok(0),
        [sign @ (b'+' | b'-'), hours @ .., b':', tens, ones] if hours.len() == 2 => {
            let hours = digits(hours).filter(|hours| *hours <= 23).ok_or(MISSING)?;
            let minutes = digits(&[*tens, *ones]).filter(|minutes| *minutes <= 59).ok_or(MISSING)?;
            let offset = hours * 60 + minutes;
            Ok(if *sign == b'-' { -offset } else { offset })
        }
        _ => Err(MISSING),
    }
}

fn days_of_month(year: i64, month: i64) -> i64 {
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    match month {
        2 => 28 + i64::from(leap),
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days from 1970-01-01 in the proleptic Gregorian calendar. Years are counted from March, so that the leap day comes
/// last and the months before it have a regular length.
fn days_since_epoch(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let month_from_march = (month + 9) % 12;
    let day_of_year = (153 * month_from_march + 2) / 5 + day - 1;
    let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    const DAYS_FROM_MARCH_OF_YEAR_0_TO_EPOCH: i64 = 719_468;
    year * 365 + leap_days + day_of_year - DAYS_FROM_MARCH_OF_YEAR_0_TO_EPOCH
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_instants_are_read() {
        let known = [
            ("1970-01-01T00:00:00Z", 0),
            ("1970-01-01T00:00:00.000001Z", 1),
            ("1969-12-31T23:59:59.5z", -500_000),
            ("2024-02-29t12:00:00+00:00", 1_709_208_000_000_000),
            ("2024-05-17T10:30:00.123456789+02:00", 1_715_934_600_123_456),
            ("2000-03-01T00:00:00-05:30", 951_888_600_000_000),
            ("2016-12-31T23:59:60Z", 1_483_228_800_000_000),
            ("0000-01-01T00:00:00Z", -62_167_219_200_000_000),
            ("9999-12-31T23:59:59Z", 253_402_300_799_000_000),
        ];
        for (text, micros) in known {
            assert_eq!(parse_event_time(text), Ok(micros), "{text}");
        }
    }

    #[test]
    fn what_is_no_instant_is_refused() {
        let wrong = [
            "",
            "today",
            "2024-05-17",
            "2024-05-17T08:30:00",
            "2024-05-17 08:30:00Z",
            "2024-13-01T00:00:00Z",
            "2023-02-29T00:00:00Z",
            "1900-02-29T00:00:00Z",
            "2024-05-00T00:00:00Z",
            "2024-05-17T24:00:00Z",
            "2024-05-17T08:60:00Z",
            "2024-05-17T08:30:61Z",
            "2024-05-17T08:30:00.Z",
            "2024-05-17T08:30:00+2:00",
            "2024-05-17T08:30:00+0200",
            "2024-05-17T08:30:00+24:00",
            "2024-05-17T08:30:00Zulu",
            "2024-05-1７T08:30:00Z",
            "-024-05-17T08:30:00Z",
        ];
        for text in wrong {
            assert!(parse_event_time(text).is_err(), "{text}");
        }
    }

    #[test]
    fn every_day_of_four_centuries_follows_the_one_before() {
        let mut expected = days_since_epoch(1900, 1, 1);
        for year in 1900..2300 {
            for month in 1..=12 {
                for day in 1..=days_of_month(year, month) {
                    assert_eq!(days_since_epoch(year, month, day), expected, "{year}-{month}-{day}");
                    expected += 1;
                }
            }
        }
    }
}
