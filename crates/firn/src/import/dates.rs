//! Dates in the names of files, and as people write them.

use firn_disk::{Error, Result};
use jiff::civil::{Date, DateTime, Time};
use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};

/// The date that `name` has in it, in the local time zone: `2026-11-17`, `20261117`, and a time after either, as
/// `2026-11-17T03-00`, `20261117_030000`, `2026-11-17 03.00.15`. Without a time it is the start of that day.
pub fn in_name(name: &str) -> Option<Timestamp> {
    let digits: Vec<(usize, u8)> = name.bytes().enumerate().filter(|(_, byte)| byte.is_ascii_digit()).collect();
    digits.iter().enumerate().find_map(|(index, (at, _))| {
        // A date begins where a number begins.
        let begins = index == 0 || digits.get(index - 1).is_none_or(|(before, _)| before + 1 < *at);
        begins.then(|| parse_at(name.get(*at..)?)).flatten()
    })
}

/// The part of `name` before the date in it and after, without signs around; the whole name where there is none.
pub fn without_date(name: &str) -> String {
    let stem = name.rsplit_once('.').map_or(name, |(stem, _)| stem);
    if in_name(name).is_none() {
        return stem.to_owned();
    }
    stem.chars().filter(|letter| !letter.is_ascii_digit() && !"-_. :T".contains(*letter)).collect()
}

fn parse_at(text: &str) -> Option<Timestamp> {
    let mut reader = Reader { rest: text };
    let year = i16::try_from(reader.number(4)?).ok().filter(|year| (1980..2200).contains(year))?;
    let dashed = reader.sign(&['-', '_', '.']);
    let month = i8::try_from(reader.number(2)?).ok()?;
    if dashed && !reader.sign(&['-', '_', '.']) {
        return None;
    }
    let day = i8::try_from(reader.number(2)?).ok()?;
    let date = Date::new(year, month, day).ok()?;
    // Twelve or fourteen digits in a row are date and time; nine are something else.
    let time = reader.clone().time();
    if time.is_none() && reader.rest.starts_with(|next: char| next.is_ascii_digit()) {
        return None;
    }
    local(DateTime::from_parts(date, time.unwrap_or(Time::midnight()))).ok()
}

#[derive(Clone)]
struct Reader<'a> {
    rest: &'a str,
}

impl Reader<'_> {
    fn number(&mut self, digits: usize) -> Option<u32> {
        let text = self.rest.get(..digits).filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))?;
        self.rest = self.rest.get(digits..)?;
        text.parse().ok()
    }

    fn sign(&mut self, signs: &[char]) -> bool {
        match self.rest.strip_prefix(signs) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn time(mut self) -> Option<Time> {
        self.sign(&['T', 't', '_', '-', ' ', '.', '@']);
        let hour = i8::try_from(self.number(2)?).ok()?;
        self.sign(&[':', '-', '.', 'h', '_']);
        let minute = i8::try_from(self.number(2)?).ok()?;
        self.sign(&[':', '-', '.', 'm', '_']);
        let second = self.number(2).and_then(|second| i8::try_from(second).ok()).unwrap_or(0);
        Time::new(hour, minute, second, 0).ok()
    }
}

fn local(time: DateTime) -> Result<Timestamp, jiff::Error> {
    time.to_zoned(TimeZone::system()).map(|zoned| zoned.timestamp())
}

/// A date as people and programs write it: with a zone or offset, or else in the local time zone.
///
/// # Errors
/// `Invalid`.
pub fn parse(text: &str) -> Result<Timestamp> {
    let parsed = text.parse::<Timestamp>().or_else(|_| text.parse::<Zoned>().map(|zoned| zoned.timestamp()));
    let parsed = parsed.or_else(|_| text.parse::<DateTime>().and_then(local));
    parsed.map_err(|error| {
        Error::invalid(format!("{text:?} is no date")).because(error).hint("write it as 2026-11-17T03:00:00")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(name: &str) -> Option<String> {
        in_name(name).map(|time| time.to_zoned(TimeZone::system()).datetime().to_string())
    }

    #[test]
    fn dates_in_names() {
        for (name, expected) in [
            ("web1-2026-11-17.qcow2", "2026-11-17T00:00:00"),
            ("2026-11-17T03:00:15.raw", "2026-11-17T03:00:15"),
            ("web1_20261117.img", "2026-11-17T00:00:00"),
            ("web1_20261117_0300.img", "2026-11-17T03:00:00"),
            ("20261117030015-web1", "2026-11-17T03:00:15"),
            ("vm100.2026.11.17-03.00.vmdk", "2026-11-17T03:00:00"),
            ("vzdump-qemu-100-2026_11_17-03_00_15.raw", "2026-11-17T03:00:15"),
        ] {
            assert_eq!(shown(name).as_deref(), Some(expected), "{name}");
        }
        for name in ["web1.qcow2", "disk-12345678.raw", "2026", "web-99991301.img", "123456789012345.img", ""] {
            assert_eq!(shown(name), None, "{name}");
        }
        assert_eq!(without_date("web1-2026-11-17.qcow2"), without_date("web1-2026-11-18T03:00.qcow2"));
        assert_ne!(without_date("root-2026-11-17.img"), without_date("data-2026-11-17.img"));
    }

    #[test]
    fn dates_as_people_write_them() {
        assert_eq!(parse("2026-11-17T03:00:00Z").unwrap().to_string(), "2026-11-17T03:00:00Z");
        assert_eq!(parse("2026-11-17T03:00:00+01:00").unwrap().to_string(), "2026-11-17T02:00:00Z");
        let civil = |text: &str| parse(text).unwrap().to_zoned(TimeZone::system()).datetime().to_string();
        assert_eq!(civil("2026-11-17T03:00:00"), "2026-11-17T03:00:00");
        assert_eq!(civil("2026-11-17"), "2026-11-17T00:00:00");
        assert!(parse("yesterday").is_err());
    }
}
