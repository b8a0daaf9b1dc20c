//! When a snapshot was taken, by its name.
//!
//! ```text
//!   @GMT-2026.11.17-03.05.00            Samba, Windows                        UTC
//!   hourly.2026-11-17_0305              NetApp                                the filer's zone
//!   zfs-auto-snap_daily-2026-11-17-0025 zfs-auto-snapshot                     that machine's zone
//!   autosnap_2026-11-17_00:00:01_daily  sanoid                                that machine's zone
//!   GMT-2026.11.17-03.05.00             TrueNAS and others, without the sign  UTC
//!   auto-2026-11-17_00-00, 20261117-0305, …
//! ```
//! So: a date of eight digits, with one or no sign between its parts, then one sign, then a time of four or six digits, with
//! one or no sign between its parts. Names that begin with `@GMT-` or `GMT-`, or end in `Z` or `UTC`, are in UTC; all others
//! are taken for the zone of this machine, and said to be. A name with a date alone tells no instant.
//!
//! Sources: vfs_shadow_copy2(8), NetApp KB "Snapshot naming enhancements in ONTAP 9.0", zfs-auto-snapshot(8), sanoid.

use jiff::Timestamp;
use jiff::civil::{Date, DateTime, Time};
use jiff::tz::TimeZone;

/// An instant out of a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Dated {
    pub(super) taken: Timestamp,
    /// Whether the name was taken for the local zone.
    pub(super) is_local: bool,
}

/// The instant that `name` tells, with `zone` for names that say no zone.
pub(super) fn find(name: &str, zone: &TimeZone) -> Option<Dated> {
    let when = (0..name.len()).filter(|&at| starts_word(name, at)).find_map(|at| parse(name.get(at..)?))?;
    let is_utc = name.starts_with("@GMT-") || name.starts_with("GMT-") || name.ends_with('Z') || name.ends_with("UTC");
    let zone = if is_utc { &TimeZone::UTC } else { zone };
    let taken = zone.to_ambiguous_timestamp(when).compatible().ok()?;
    Some(Dated { taken, is_local: !is_utc })
}

/// Whether no digit stands before byte `at`: dates begin where numbers begin.
fn starts_word(name: &str, at: usize) -> bool {
    !name.as_bytes()[..at].last().is_some_and(u8::is_ascii_digit)
}

/// The date and time at the beginning of `text`.
fn parse(text: &str) -> Option<DateTime> {
    let mut rest = Cursor(text.as_bytes());
    let year = rest.number(4)?;
    let date_sign = rest.sign(b"-._");
    let month = rest.number(2)?;
    if rest.sign(b"-._") != date_sign {
        return None;
    }
    let day = rest.number(2)?;
    rest.sign(b"-._T ")?;
    let hour = rest.number(2)?;
    let time_sign = rest.sign(b"-._:");
    let minute = rest.number(2)?;
    let before_second = Cursor(rest.0);
    let second = if rest.sign(b"-._:") == time_sign { rest.number(2) } else { None };
    let after = if second.is_some() { &rest } else { &before_second };
    if after.0.first().is_some_and(u8::is_ascii_digit) {
        return None;
    }
    let date = Date::new(year, i8::try_from(month).ok()?, i8::try_from(day).ok()?).ok()?;
    let part = |number: i16| i8::try_from(number).ok();
    let time = Time::new(part(hour)?, part(minute)?, part(second.unwrap_or(0))?, 0).ok()?;
    Some(date.to_datetime(time))
}

/// What is left of a name.
struct Cursor<'a>(&'a [u8]);

impl Cursor<'_> {
    fn number(&mut self, digits: usize) -> Option<i16> {
        let (head, rest) = self.0.split_at_checked(digits)?;
        let number = head.iter().try_fold(0, |number: i16, byte| match byte {
            b'0'..=b'9' => Some(number * 10 + i16::from(byte - b'0')),
            _ => None,
        })?;
        self.0 = rest;
        Some(number)
    }

    /// The sign at the beginning, if it is one of `signs`.
    fn sign(&mut self, signs: &[u8]) -> Option<u8> {
        let (&first, rest) = self.0.split_first()?;
        signs.contains(&first).then(|| self.0 = rest)?;
        Some(first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::tz;

    #[test]
    fn names_of_filers_tell_the_instant() {
        let zone = TimeZone::fixed(tz::offset(1));
        for (name, expected, is_local) in [
            ("@GMT-2026.11.17-03.05.09", "2026-11-17T03:05:09Z", false),
            ("GMT-2026.11.17-03.05.00", "2026-11-17T03:05:00Z", false),
            ("hourly.2026-11-17_0305", "2026-11-17T02:05:00Z", true),
            ("daily.2026-11-17_0010", "2026-11-16T23:10:00Z", true),
            ("zfs-auto-snap_daily-2026-11-17-0025", "2026-11-16T23:25:00Z", true),
            ("autosnap_2026-11-17_00:00:01_daily", "2026-11-16T23:00:01Z", true),
            ("auto-2026-11-17_00-00", "2026-11-16T23:00:00Z", true),
            ("20261117-0305", "2026-11-17T02:05:00Z", true),
            ("web 2026-11-17T03:05:00Z", "2026-11-17T03:05:00Z", false),
            ("snap3-20261117T030500", "2026-11-17T02:05:00Z", true),
        ] {
            let expected = Dated { taken: expected.parse().unwrap(), is_local };
            assert_eq!(find(name, &zone), Some(expected), "{name}");
        }
    }

    #[test]
    fn what_tells_no_instant_is_not_guessed() {
        for name in [
            "hourly.0",
            "weekly.2026-11-17",
            "2026-13-17_0305",
            "2026-11-17_2505",
            "12026-11-17_0305",
            "20261117-03055",
            "2026-11.17_0305",
            "",
            "ä2026",
        ] {
            assert_eq!(find(name, &TimeZone::UTC), None, "{name}");
        }
    }
}
