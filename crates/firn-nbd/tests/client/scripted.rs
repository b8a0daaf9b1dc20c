//! Everything that a server can do wrong, and what a client does about a server that goes away.

use crate::common::default_options;
use crate::fake::{
    ALLOCATION_ID, Fake, MULTI, Request, WRITE_FLAGS, chunk, chunk_of, data_chunk, get, greet, option, option_reply,
    put, request, shake, simple,
};
use firn_disk::{Disk, ErrorKind, ExtentKind, Fua, MayUnmap, WriteDisk};
use firn_nbd::{Options, list, open, open_writable};
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

const LENGTH: u64 = 1 << 20;

fn impatient() -> Options {
    Options { timeout: Duration::from_millis(300), reconnect: 0, ..default_options() }
}

/// What a read of 512 bytes at 1024 comes to when a server with structured replies answers it with `answer`.
fn read_answered_by(answer: impl Fn(Request) -> Vec<u8> + Send + Sync + 'static) -> firn_disk::Result<[u8; 512]> {
    read_with(&Options { reconnect: 0, ..default_options() }, answer)
}

fn read_with(
    options: &Options,
    answer: impl Fn(Request) -> Vec<u8> + Send + Sync + 'static,
) -> firn_disk::Result<[u8; 512]> {
    let fake = Fake::start(move |_, stream| {
        shake(stream, LENGTH, 1, true)?;
        while let Some(request) = request(stream) {
            put(stream, &[&answer(request)])?;
        }
        Some(())
    });
    let disk = open(&fake.uri(), options)?;
    let mut bytes = [0xAA; 512];
    disk.read_at(&mut bytes, 1024).map(|()| bytes)
}

#[test]
fn chunks_in_any_order_make_one_read() {
    let bytes = read_answered_by(|request| {
        let c = request.cookie;
        assert_eq!((request.offset, request.length), (1024, 512));
        let hole = [&1124_u64.to_be_bytes()[..], &300_u32.to_be_bytes()].concat();
        let parts =
            [data_chunk(c, false, 1424, &[2; 112]), data_chunk(c, false, 1024, &[1; 100]), chunk(c, false, 2, &hole)];
        [parts.concat(), chunk(c, true, 0, &[])].concat()
    });
    let bytes = bytes.unwrap();
    assert!(bytes[..100] == [1; 100] && bytes[100..400] == [0; 300] && bytes[400..] == [2; 112]);
}

#[test]
fn answers_that_break_the_protocol_are_errors() {
    type Answer = fn(u64) -> Vec<u8>;
    let answers: &[(&str, Answer)] = &[
        ("wrong magic", |_| vec![0xFF; 64]),
        ("wrong cookie", |c| data_chunk(c ^ 1 << 40, true, 1024, &[1; 512])),
        ("simple reply", |c| [&0x6744_6698_u32.to_be_bytes()[..], &[0; 4], &c.to_be_bytes(), &[1; 512]].concat()),
        ("too little", |c| data_chunk(c, true, 1024, &[1; 511])),
        ("too much", |c| data_chunk(c, true, 1024, &[1; 513])),
        ("before", |c| data_chunk(c, true, 1023, &[1; 512])),
        ("far away", |c| data_chunk(c, true, u64::MAX, &[1; 512])),
        ("nothing", |c| chunk(c, true, 0, &[])),
        ("none without end", |c| chunk(c, false, 0, &[])),
        ("empty data", |c| data_chunk(c, false, 1024, &[])),
        ("huge data", |c| chunk_of(c, true, 1, u32::MAX, &[0; 64])),
        ("short data", |c| chunk_of(c, true, 1, 7, &[0; 64])),
        ("overlap", |c| [data_chunk(c, false, 1024, &[1; 512]), data_chunk(c, true, 1500, &[2; 36])].concat()),
        ("inside", |c| [data_chunk(c, false, 1100, &[1; 10]), data_chunk(c, true, 1024, &[2; 512])].concat()),
        ("hole too long", |c| chunk(c, true, 2, &[&1024_u64.to_be_bytes()[..], &u32::MAX.to_be_bytes()].concat())),
        ("hole of none", |c| chunk(c, false, 2, &[&1024_u64.to_be_bytes()[..], &[0; 4]].concat())),
        ("status", |c| chunk(c, true, 5, &[0, 0, 0, 7, 0, 0, 2, 0, 0, 0, 0, 0])),
        ("unknown chunk", |c| chunk(c, true, 99, &[0; 8])),
        ("huge error", |c| chunk_of(c, true, 0x8001, u32::MAX, &[0; 64])),
        ("error of none", |c| chunk(c, true, 0x8001, &[0; 6])),
        ("error's text too long", |c| chunk(c, true, 0x8001, &[0, 0, 0, 5, 1, 0, b'x'])),
        ("endless errors", |c| chunk(c, false, 0x8001, &[0, 0, 0, 5, 0, 0]).repeat(3000)),
        ("twice", |c| [data_chunk(c, true, 1024, &[1; 511]), data_chunk(c, true, 1024, &[1; 512])].concat()),
    ];
    for (name, answer) in answers {
        let error = read_answered_by(|request| answer(request.cookie)).expect_err(name);
        assert_eq!(error.kind(), ErrorKind::Io, "{name}: {error}");
        assert!(error.to_string().contains("broke the protocol"), "{name}: {error}");
    }
}

#[test]
fn errors_have_the_server_s_words_and_the_place() {
    let text = [&28_u32.to_be_bytes()[..], &4_u16.to_be_bytes(), b"full"].concat();
    let error = read_answered_by(move |request| chunk(request.cookie, true, 0x8001, &text)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("full"), "{error}");
    let text = [&5_u32.to_be_bytes()[..], &0_u16.to_be_bytes(), &1234_u64.to_be_bytes()].concat();
    let answer = move |request: Request| {
        let good = data_chunk(request.cookie, false, 1024, &[1; 512]);
        [good, chunk(request.cookie, true, 0x8002, &text)].concat()
    };
    let error = read_answered_by(answer).unwrap_err();
    assert!(error.kind() == ErrorKind::Io && error.to_string().contains("1234"), "{error}");
}

#[test]
fn silence_and_half_an_answer_end_in_time() {
    for half in [0, 3, 19, 100] {
        let answer = move |request: Request| data_chunk(request.cookie, true, 1024, &[1; 512])[..half].to_vec();
        assert_eq!(read_with(&impatient(), answer).unwrap_err().kind(), ErrorKind::Unavailable, "{half} bytes");
    }
}

#[test]
fn an_answer_that_trickles_in_for_ever_is_given_up() {
    let fake = Fake::start(|_, stream| {
        shake(stream, LENGTH, 1, true)?;
        let request = request(stream)?;
        for byte in data_chunk(request.cookie, true, 0, &[1; 512]) {
            stream.write_all(&[byte]).ok()?;
            std::thread::sleep(Duration::from_millis(30));
        }
        Some(())
    });
    let disk = open(&fake.uri(), &Options { timeout: Duration::from_millis(100), ..impatient() }).unwrap();
    let started = Instant::now();
    assert_eq!(disk.read_at(&mut [0; 512], 0).unwrap_err().kind(), ErrorKind::Unavailable);
    assert!(started.elapsed() > Duration::from_millis(1900), "not at the first silence");
}

#[test]
fn negotiations_that_go_wrong() {
    type Script = fn(&mut UnixStream) -> Option<()>;
    let scripts: &[(&str, Script, ErrorKind)] = &[
        ("silence", |stream| get::<1>(stream).map(drop), ErrorKind::Unavailable),
        ("hangs up", |_| None, ErrorKind::Unavailable),
        ("a web server", |stream| put(stream, &[b"HTTP/1.1 400 Bad Request\r\n\r\n"]), ErrorKind::Io),
        ("neither style", |stream| put(stream, &[b"NBDMAGIC", &[9; 10]]), ErrorKind::Io),
        (
            "oldstyle",
            |stream| put(stream, &[b"NBDMAGIC", &0x4202_8186_1253_u64.to_be_bytes(), &[0; 200]]),
            ErrorKind::Unsupported,
        ),
        (
            "wrong option",
            |stream| {
                greet(stream)?;
                option_reply(stream, 9, 1, &[])
            },
            ErrorKind::Io,
        ),
        (
            "wrong magic",
            |stream| {
                greet(stream)?;
                put(stream, &[&[0; 20]])
            },
            ErrorKind::Io,
        ),
        (
            "trickle",
            |stream| loop {
                put(stream, &[b"N"])?;
                std::thread::sleep(Duration::from_millis(50))
            },
            ErrorKind::Unavailable,
        ),
        ("endless contexts", |stream| after(stream, 10, |stream| option_reply(stream, 10, 4, &[0; 9])), ErrorKind::Io),
        (
            "endless information",
            |stream| after(stream, 7, |stream| option_reply(stream, 7, 3, &[0; 12])),
            ErrorKind::Io,
        ),
        ("no information", |stream| after(stream, 7, |stream| option_reply(stream, 7, 1, &[])), ErrorKind::Io),
        ("short information", |stream| after(stream, 7, |stream| option_reply(stream, 7, 3, &[0; 11])), ErrorKind::Io),
        (
            "too long a disk",
            |stream| {
                after(stream, 7, |stream| {
                    option_reply(stream, 7, 3, &[&[0, 0][..], &[0xFF; 10]].concat())?;
                    option_reply(stream, 7, 1, &[])
                })
            },
            ErrorKind::Io,
        ),
        (
            "blocks of 3 bytes",
            |stream| {
                after(stream, 7, |stream| {
                    option_reply(stream, 7, 3, &[0; 12])?;
                    option_reply(stream, 7, 3, &[0, 3, 0, 0, 0, 3, 0, 0, 0, 3, 0, 0, 0, 3])?;
                    option_reply(stream, 7, 1, &[])
                })
            },
            ErrorKind::Io,
        ),
        (
            "not now",
            |stream| after(stream, 7, |stream| option_reply(stream, 7, 0x8000_0007, b"bye")),
            ErrorKind::Unavailable,
        ),
        ("policy", |stream| after(stream, 7, |stream| option_reply(stream, 7, 0x8000_0002, b"no")), ErrorKind::Denied),
        (
            "huge reply",
            |stream| {
                after(stream, 7, |stream| {
                    put(
                        stream,
                        &[&0x0003_e889_0455_65a9_u64.to_be_bytes(), &7_u32.to_be_bytes(), &[0, 0, 0, 3], &[0xFF; 4]],
                    )
                })
            },
            ErrorKind::Io,
        ),
    ];
    for (name, script, kind) in scripts {
        let script = *script;
        let fake = Fake::start(move |_, stream| {
            script(stream)?;
            // Stays until the client leaves, so that it is the answer that counts.
            while get::<1>(stream).is_some() {}
            Some(())
        });
        // Where an answer comes it may take its time.
        let options = if *kind == ErrorKind::Unavailable { impatient() } else { default_options() };
        let error = open(&fake.uri(), &options).expect_err(name);
        assert_eq!(error.kind(), *kind, "{name}: {error}");
    }
}

/// Negotiates as it should be up to the option `number`, then answers that with `answer`, again and again.
fn after(stream: &mut UnixStream, number: u32, answer: fn(&mut UnixStream) -> Option<()>) -> Option<()> {
    greet(stream)?;
    while let Some((asked, _)) = option(stream) {
        match asked {
            _ if asked == number => {
                for _ in 0..10_000 {
                    answer(stream)?;
                }
            }
            8 => option_reply(stream, 8, 1, &[])?,
            _ => option_reply(stream, asked, 0x8000_0001, &[])?,
        }
    }
    Some(())
}

#[test]
fn an_endless_list_of_exports_is_refused() {
    let fake = Fake::start(|_, stream| {
        greet(stream)?;
        option(stream)?;
        loop {
            option_reply(stream, 3, 2, &[0, 0, 0, 1, b'x', b'y'])?;
        }
    });
    assert_eq!(list(&fake.uri(), &default_options()).unwrap_err().kind(), ErrorKind::Unsupported);
}

/// Answers reads with the low byte of their offset's sector, in simple replies.
fn serve(stream: &mut UnixStream) -> Option<()> {
    while let Some(request) = request(stream) {
        answer(stream, request)?;
    }
    Some(())
}

fn answer(stream: &mut UnixStream, request: Request) -> Option<()> {
    let sectors = request.offset / 512..(request.offset + u64::from(request.length)) / 512;
    let data: Vec<u8> = sectors.flat_map(|sector| [sector.to_le_bytes()[0]; 512]).collect();
    simple(stream, request.cookie, 0, if request.command == 0 { &data } else { &[] })
}

#[test]
fn a_read_whose_connection_is_lost_is_made_again() {
    let fake = Fake::start(|number, stream| {
        shake(stream, LENGTH, 1, false)?;
        if number < 2 {
            let first = request(stream)?;
            answer(stream, first)?;
            request(stream)?;
            return Some(());
        }
        serve(stream)
    });
    let disk = open(&fake.uri(), &Options { timeout: Duration::from_secs(5), ..default_options() }).unwrap();
    for sector in 0..20 {
        let mut bytes = [0; 512];
        disk.read_at(&mut bytes, sector * 512).unwrap();
        assert_eq!(u64::from(bytes[511]), sector);
    }
    assert_eq!(fake.connections(), 3);
    assert_eq!(disk.extent_at(5).unwrap().kind, ExtentKind::Data);
}

#[test]
fn reconnections_have_an_end_and_a_changed_export_is_refused() {
    let fake = Fake::start(|number, stream| match number {
        0 => {
            shake(stream, LENGTH, 1, false)?;
            request(stream).map(drop)
        }
        _ => None,
    });
    let disk = open(&fake.uri(), &default_options()).unwrap();
    assert_eq!(disk.read_at(&mut [0; 5], 0).unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(fake.connections(), 1 + 2);
    for (length, flags) in [(LENGTH + 512, 1), (LENGTH, 3)] {
        let fake = Fake::start(move |number, stream| {
            shake(stream, if number == 0 { LENGTH } else { length }, if number == 0 { 1 } else { flags }, false)?;
            if number == 0 { request(stream).map(drop) } else { serve(stream) }
        });
        let disk = open(&fake.uri(), &default_options()).unwrap();
        let error = disk.read_at(&mut [0; 5], 0).unwrap_err();
        assert!(error.to_string().contains("not what it was"), "{error}");
        assert_eq!(fake.connections(), 2, "it is not tried again");
    }
}

#[test]
fn one_connection_without_multi_conn_and_requests_of_many_threads_in_flight() {
    let fake = Fake::start(|_, stream| {
        shake(stream, LENGTH, 1, false)?;
        // Nothing is answered before four are there, and then the last goes first.
        let mut requests = Vec::new();
        while let Some(next) = request(stream) {
            requests.push(next);
            if requests.len() == 4 {
                while let Some(last) = requests.pop() {
                    answer(stream, last)?;
                }
            }
        }
        Some(())
    });
    let disk = open(&fake.uri(), &default_options()).unwrap();
    assert_eq!(disk.connections(), 1);
    let barrier = Barrier::new(4);
    std::thread::scope(|scope| {
        for thread in 0..4_u64 {
            let (disk, barrier) = (&disk, &barrier);
            scope.spawn(move || {
                for round in 0..20 {
                    barrier.wait();
                    let sector = round * 4 + thread;
                    let mut bytes = [0; 512];
                    disk.read_at(&mut bytes, sector * 512).unwrap();
                    assert_eq!(u64::from(bytes[7]), sector);
                }
            });
        }
    });
    assert_eq!(fake.connections(), 1);
    let fake = Fake::start(|_, stream| shake(stream, LENGTH, MULTI, false).and_then(|()| serve(stream)));
    assert_eq!(open(&fake.uri(), &default_options()).unwrap().connections(), 4);
}

#[test]
fn block_status_that_makes_no_sense() {
    let status = |payload: &[u32]| -> Vec<u8> { payload.iter().flat_map(|number| number.to_be_bytes()).collect() };
    let extent = |payload: Vec<u8>| {
        let fake = Fake::start(move |_, stream| {
            shake(stream, LENGTH, 1, true)?;
            while let Some(request) = request(stream) {
                put(stream, &[&chunk(request.cookie, true, 5, &payload)])?;
            }
            Some(())
        });
        open(&fake.uri(), &default_options()).unwrap().extent_at(1000)
    };
    let good = extent(status(&[ALLOCATION_ID, 1024, 3, u32::MAX, 2])).unwrap();
    assert_eq!((good.kind, good.length), (ExtentKind::Hole, 1024 - 1000 + 512));
    for payload in
        [&[ALLOCATION_ID][..], &[ALLOCATION_ID, 0, 0], &[ALLOCATION_ID, 5], &[99, 4096, 0], &[ALLOCATION_ID, 100, 0]]
    {
        assert_eq!(extent(status(payload)).unwrap_err().kind(), ErrorKind::Io, "{payload:?}");
    }
}

#[test]
fn a_writable_disk_fails_for_good_with_its_connection() {
    let fake = Fake::start(|_, stream| {
        shake(stream, LENGTH, WRITE_FLAGS, false)?;
        let first = request(stream)?;
        answer(stream, first)?;
        request(stream).map(drop)
    });
    let disk = open_writable(&fake.uri(), &default_options()).unwrap();
    disk.write_at(&[1; 512], 0, Fua::No).unwrap();
    assert_eq!(disk.flush().unwrap_err().kind(), ErrorKind::Unavailable);
    assert!(
        disk.flush().is_err() && disk.write_at(&[1; 512], 0, Fua::No).is_err() && disk.read_at(&mut [0], 0).is_err()
    );
    assert_eq!(fake.connections(), 1, "a flush over a new connection would say that what was lost is safe");
    let fake = Fake::start(|_, stream| shake(stream, LENGTH, 1, false).and_then(|()| serve(stream)));
    assert_eq!(open_writable(&fake.uri(), &default_options()).unwrap_err().kind(), ErrorKind::Unsupported);
}

#[test]
fn without_fua_a_durable_write_is_flushed_and_without_zeroing_zeros_are_written() {
    let flushed = Arc::new(AtomicBool::new(false));
    let seen = flushed.clone();
    let fake = Fake::start(move |_, stream| {
        shake(stream, LENGTH, WRITE_FLAGS, false)?;
        while let Some(request) = request(stream) {
            assert_eq!(request.flags, 0);
            assert!([0, 1, 3].contains(&request.command), "{request:?}");
            seen.fetch_or(request.command == 3, Ordering::SeqCst);
            answer(stream, request)?;
        }
        Some(())
    });
    let disk = open_writable(&fake.uri(), &default_options()).unwrap();
    disk.zero(100..5000, MayUnmap::Yes).unwrap();
    disk.discard(0..LENGTH).unwrap();
    assert!(!flushed.load(Ordering::SeqCst));
    disk.write_at(&[1; 512], 0, Fua::Yes).unwrap();
    assert!(flushed.load(Ordering::SeqCst));
}
