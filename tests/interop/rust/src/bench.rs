//! Times the crate's own operations, so that a benchmark of mmapds can show both from one run.

use std::ffi::OsStr;
use std::hint::black_box;
use std::path::Path;
use std::time::{Duration, Instant};

use mmap_sync::synchronizer::Synchronizer;

use crate::model::{archive, HelloWorld};

const ROUNDS: usize = 15;
const ROUND_TIME: Duration = Duration::from_millis(20);
const GRACE: Duration = Duration::from_secs(1);

/// Nanoseconds of one call, from the best of several rounds of about 20 ms each.
fn best_of(mut call: impl FnMut()) -> f64 {
    let mut calls = 1u32;
    let mut best = f64::INFINITY;
    let mut round = 0;
    while round < ROUNDS {
        let start = Instant::now();
        for _ in 0..calls {
            call();
        }
        let took = start.elapsed();
        if took < ROUND_TIME / 2 && calls < 1 << 28 {
            calls *= 2; // still finding out how many calls fill a round
            continue;
        }
        best = best.min(took.as_nanos() as f64 / f64::from(calls));
        round += 1;
    }
    best
}

/// Runs on a prefix of its own, which must not exist, removes its files, prints one JSON line.
pub fn run(prefix: &OsStr) {
    let files = ["_state", "_data_0", "_data_1"].map(|suffix| {
        let mut path = prefix.to_os_string();
        path.push(suffix);
        path
    });
    if files.iter().any(|path| Path::new(path).exists()) {
        crate::fail("bench needs a prefix of its own, and files exist at this one");
    }

    let value = HelloWorld {
        version: 7,
        messages: ["Hello", "World", "!"].map(String::from).to_vec(),
    };
    let small = archive(&value);
    let large = vec![7u8; 1 << 20];

    // The crate's defaults, as its own benchmark uses them. Nothing reads beside the writes.
    let mut writer = Synchronizer::new(prefix);
    let mut reader = Synchronizer::new(prefix);
    writer.write(&value, GRACE).expect("first write");

    let read_checked = best_of(|| {
        let read = unsafe { reader.read::<HelloWorld>(true) }.expect("read");
        black_box(read.version);
    });
    let read_unchecked = best_of(|| {
        let read = unsafe { reader.read::<HelloWorld>(false) }.expect("read");
        black_box(read.version);
    });
    let version = best_of(|| {
        black_box(reader.version().expect("version"));
    });
    let write_value = best_of(|| {
        writer.write(black_box(&value), GRACE).expect("write");
    });
    let write_small = best_of(|| {
        writer
            .write_raw::<HelloWorld>(black_box(&small), GRACE)
            .expect("write_raw");
    });
    let write_large = best_of(|| {
        writer
            .write_raw::<HelloWorld>(black_box(&large), GRACE)
            .expect("write_raw");
    });
    for path in &files {
        std::fs::remove_file(path).expect("the files of this run are there");
    }

    println!(
        "{{\"crate\": \"mmap-sync\", \"crate_version\": \"2.0.4\", \"archive_bytes\": {}, \
         \"read_checked_ns\": {read_checked:.2}, \"read_unchecked_ns\": {read_unchecked:.2}, \
         \"version_ns\": {version:.2}, \"write_value_ns\": {write_value:.2}, \
         \"write_raw_36_ns\": {write_small:.2}, \"write_raw_1mib_ns\": {write_large:.2}}}",
        small.len()
    );
}
