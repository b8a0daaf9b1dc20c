//! The engine against arrays that are laid out here by the plain rules; real ones are in the crate's `tests/`.

use super::*;
use firn_disk::MemDisk;
use firn_disk::testing::{self, Random};
use std::sync::Arc;

const CHUNK: u64 = 1024;
const MEMBER: u64 = 20 * CHUNK;
const START: u64 = 100;

/// The bytes of the array, and those of its members.
fn laid_out(geometry: &Geometry, members: usize, seed: u64) -> (Vec<u8>, Vec<Vec<u8>>) {
    let blank = (0..members).map(|_| missing("blank")).collect();
    let length = MEMBER.max(1);
    let probe = Array::new(geometry.clone(), blank, Clean::Below(0), Trust::FirstThere, None).unwrap();
    let bytes = testing::pattern(usize::try_from(probe.len()).unwrap(), seed);
    let mut disks = vec![vec![0; usize::try_from(START + 3 * length).unwrap()]; members];
    let mut offset = 0;
    while offset < probe.len() {
        let (places, stripe, left) = probe.locate(offset).unwrap();
        let end = (offset + left).min(probe.len());
        let piece = &bytes[usize::try_from(offset).unwrap()..usize::try_from(end).unwrap()];
        for place in places {
            let at = usize::try_from(START + place.at).unwrap();
            disks[place.member][at..at + piece.len()].copy_from_slice(piece);
            if let (Geometry::Parity(parity), Some(stripe)) = (geometry, stripe) {
                let roles = parity.roles(stripe).unwrap();
                let Role::Data(exponent) = roles[place.member] else { panic!() };
                for (role, disk) in roles.iter().zip(&mut disks) {
                    let factor = match role {
                        Role::P => 1,
                        Role::Q => galois::power(exponent),
                        Role::Data(_) => continue,
                    };
                    galois::add_multiple(&mut disk[at..at + piece.len()], piece, factor);
                }
            }
        }
        offset = end;
    }
    (bytes, disks)
}

/// A geometry by kind and numbers, the last of which is how many members it has.
fn make(kind: &str, rest: &str) -> Geometry {
    let numbers: Vec<u32> = rest.split(' ').map(|number| number.parse().unwrap()).collect();
    let members = usize::try_from(*numbers.last().unwrap()).unwrap();
    match kind {
        "parity" => Geometry::Parity(Parity::new(numbers[0], numbers[1], CHUNK, members, MEMBER).unwrap()),
        "ten" => Geometry::Ten(Ten::new(numbers[0], CHUNK, members, MEMBER).unwrap()),
        "mirror" => Geometry::Mirror(MEMBER),
        "zones" => {
            let lengths: Vec<u64> = (0..numbers[0].into()).map(|at| MEMBER + at / 2 * 5000).collect();
            Geometry::Zones(Zones::new(CHUNK, &lengths, Some(Counting::Zone)).unwrap())
        }
        _ => Geometry::Linear(Linear::new(&vec![MEMBER; members]).unwrap()),
    }
}

fn geometry(name: &str) -> Geometry {
    let (kind, rest) = name.split_once(' ').unwrap();
    make(kind, rest)
}

fn missing(name: &str) -> Member {
    Member { name: name.into(), disk: Err("is missing".into()), start: START, readable: u64::MAX }
}

fn members(disks: &[Vec<u8>], away: &[usize]) -> Vec<Member> {
    let member = |(at, bytes): (usize, &Vec<u8>)| {
        let name = format!("member {at}");
        let disk: SharedDisk = Arc::new(MemDisk::from(bytes.clone()));
        let member = Member { name: name.clone(), disk: Ok(disk), start: START, readable: u64::MAX };
        if away.contains(&at) { missing(&name) } else { member }
    };
    disks.iter().enumerate().map(member).collect()
}

fn open(name: &str, members: Vec<Member>, clean: u64) -> Array {
    Array::new(geometry(name), members, Clean::Below(clean), Trust::FirstThere, None).unwrap()
}

#[test]
fn every_geometry_conforms_with_as_many_missing_as_it_bears() {
    let plain = ["linear 3", "zones 5", "mirror 3", "ten 258 4", "ten 258 3", "ten 513 4", "ten 66049 5"];
    let parity = |level: u32, layouts: &[u32], count: usize| -> Vec<String> {
        layouts.iter().map(|layout| format!("parity {level} {layout} {count}")).collect()
    };
    let six: Vec<u32> = (0..=5).chain(8..=10).chain(16..=20).collect();
    let mut names: Vec<String> = plain.iter().map(|name| (*name).to_owned()).collect();
    names.extend(parity(4, &[0], 3));
    names.extend(parity(5, &[0, 1, 2, 3, 4, 5], 4));
    names.extend(parity(6, &six, 5));
    for (seed, name) in names.iter().enumerate() {
        let geometry = geometry(name);
        let count = name.rsplit(' ').next().unwrap().parse().unwrap();
        let (bytes, disks) = laid_out(&geometry, count, seed as u64);
        let bears = match name.split(' ').collect::<Vec<_>>()[..] {
            ["parity", level, ..] => {
                if level == "6" {
                    2
                } else {
                    1
                }
            }
            ["mirror", ..] => 2,
            ["ten", ..] => 1,
            _ => 0,
        };
        testing::check_disk(&open(name, members(&disks, &[]), 0), &bytes, seed as u64);
        for one in 0..count {
            for two in 0..count {
                let away = if bears == 2 { vec![one, two] } else { vec![one] };
                let array = open(name, members(&disks, &away), u64::MAX);
                let mut read = vec![0; bytes.len()];
                let result = array.read_at(&mut read, 0);
                if bears == 0 {
                    assert_eq!(result.unwrap_err().kind(), ErrorKind::Unavailable, "{name} without {away:?}");
                } else {
                    result.unwrap_or_else(|error| panic!("{name} without {away:?}: {error}"));
                    assert!(read == bytes, "{name} without {away:?} differs");
                }
                if bears < 2 {
                    break;
                }
            }
        }
    }
}

#[test]
fn what_is_not_in_sync_is_not_computed_or_read() {
    let name = "parity 5 2 3";
    let (bytes, disks) = laid_out(&geometry(name), 3, 1);
    let array = open(name, members(&disks, &[0]), CHUNK);
    let mut buf = [0; 10];
    // The first stripe is clean; in the next ones only what stands on the other members is read.
    array.read_at(&mut buf, 0).unwrap();
    assert_eq!(buf, bytes[..10]);
    let error = array.read_at(&mut [0; 8192], 0).unwrap_err();
    assert!(error.to_string().contains("parity is not known to be in sync"), "{error}");
    assert!(error.to_string().contains("member 0 is missing"), "{error}");
    // A member that is rebuilt up to a point.
    let mut partly = members(&disks, &[]);
    partly[0].readable = 5 * CHUNK;
    let mut read = vec![0; bytes.len()];
    open(name, partly.clone(), u64::MAX).read_at(&mut read, 0).unwrap();
    assert!(read == bytes);
    assert!(open(name, partly, 0).read_at(&mut read, 0).unwrap_err().to_string().contains("not rebuilt"));
}

#[test]
fn copies_are_read_in_order_and_never_mixed() {
    let other = testing::pattern(usize::try_from(START + MEMBER).unwrap(), 5);
    let (bytes, mut disks) = laid_out(&geometry("mirror 2"), 2, 3);
    disks[1] = other.clone();
    let read = |members, trust, clean| {
        let array = Array::new(geometry("mirror 2"), members, Clean::Below(clean), trust, None).unwrap();
        let mut buf = [0; 16];
        array.read_at(&mut buf, 0).map(|()| buf)
    };
    let second = &other[100..116];
    assert_eq!(read(members(&disks, &[]), Trust::FirstThere, 0).unwrap(), bytes[..16]);
    assert_eq!(read(members(&disks, &[0]), Trust::FirstThere, 0).unwrap(), second);
    assert!(read(members(&disks, &[0]), Trust::FirstOnly, 15).is_err());
    assert_eq!(read(members(&disks, &[0]), Trust::FirstOnly, 16).unwrap(), second);
    // The first one is there and fails.
    let mut cut = members(&disks, &[]);
    cut[0].disk = Ok(Arc::new(MemDisk::zeroed(0)));
    let error = read(cut.clone(), Trust::FirstThere, 0).unwrap_err();
    assert!(error.to_string().contains("not known to be in sync"), "{error}");
    assert_eq!(read(cut, Trust::FirstThere, u64::MAX).unwrap(), second);
}

#[test]
fn odd_geometries_never_panic() {
    let mut random = Random::new(31);
    for _ in 0..20_000 {
        let odd = |random: &mut Random| match random.below(4) {
            0 => random.next_u64(),
            1 => u64::MAX - random.below(3),
            _ => random.below(40) * 512,
        };
        let (chunk, bytes) = (odd(&mut random), odd(&mut random));
        let layout = u32::try_from(odd(&mut random) & 0xFFFF_FFFF).unwrap();
        let count = usize::try_from(random.below(9)).unwrap();
        let lengths: Vec<u64> = (0..count).map(|_| odd(&mut random)).collect();
        let geometry = match random.below(5) {
            0 => Linear::new(&lengths).map(Geometry::Linear),
            1 => Zones::new(chunk, &lengths, Some(Counting::Array)).map(Geometry::Zones),
            2 => Ten::new(layout & 0x7_0303, chunk, count, bytes).map(Geometry::Ten),
            3 => Parity::new(6, layout % 21, chunk, count, bytes).map(Geometry::Parity),
            _ => Parity::new(5, layout % 6, chunk, count, bytes).map(Geometry::Parity),
        };
        let Ok(geometry) = geometry else { continue };
        let disks = vec![vec![7; 5000]; count];
        let Ok(array) = Array::new(geometry, members(&disks, &[1]), Clean::Below(4096), Trust::FirstThere, None) else {
            continue;
        };
        for _ in 0..5 {
            let at = random.below(array.len());
            let count = usize::try_from((array.len() - at).min(random.below(5000))).unwrap();
            let _ = array.read_at(&mut vec![0; count], at);
            if at < array.len() {
                let extent = array.extent_at(at).unwrap();
                assert!(extent.length > 0 && extent.length <= array.len() - at);
            }
        }
    }
}
