//! Times in the pool: nanoseconds since 1970-01-01 UTC in an `i64`, which lasts until 2262.

use firn_disk::{Error, Result};
use jiff::Timestamp;

/// What is stored for `time`.
///
/// # Errors
/// `Invalid` for a time before 1677 or after 2262.
pub(crate) fn to_nanoseconds(time: Timestamp) -> Result<i64> {
    i64::try_from(time.as_nanosecond()).map_err(|_| Error::invalid(format!("the time {time} cannot be stored")))
}

/// The time that is stored as `nanoseconds`.
///
/// # Errors
/// `Corrupt` for what no clock shows; every `i64` is in fact a time.
pub(crate) fn from_nanoseconds(nanoseconds: i64) -> Result<Timestamp> {
    Timestamp::from_nanosecond(i128::from(nanoseconds)).map_err(|error| Error::corrupt("no valid time").because(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_back() {
        for time in ["1970-01-01T00:00:00Z", "2026-11-21T10:49:26.123456789Z", "1960-02-29T12:00:00Z"] {
            let time: Timestamp = time.parse().unwrap();
            assert_eq!(from_nanoseconds(to_nanoseconds(time).unwrap()).unwrap(), time);
        }
        assert!(from_nanoseconds(i64::MIN).is_ok() && from_nanoseconds(i64::MAX).is_ok());
        assert!(to_nanoseconds(Timestamp::MAX).is_err());
    }
}
