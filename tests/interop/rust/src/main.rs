//! `interop`: mmap-sync's side of a conversation with mmapds.
//!
//! Each subcommand does one thing with the published crate and says what happened in lines (each
//! flushed at once) that a test can read. Errors go to stderr, exit status 1; wrong usage: 2.
//! The writer here sleeps 1 microsecond at a time (not the crate's default second) while
//! it waits for readers, so that two processes at full speed make progress.

mod bench;
mod model;

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::process::exit;
use std::thread;
use std::time::{Duration, Instant};

use mmap_sync::locks::{LockDisabled, SingleWriter, WriteLockStrategy};
use mmap_sync::synchronizer::{Synchronizer, SynchronizerError};
use wyhash::WyHash;

use model::{archive, hello, is_whole, HelloWorld};

type Sync<WL> = Synchronizer<WyHash, WL, 1024, 1_000>;

const USAGE: &str = "\
interop write PREFIX VERSION [MESSAGE...]    one write, without a writer lock
interop read PREFIX                          one read with check_bytes = true
interop version PREFIX                       the 64-bit version word, decimal
interop archive VERSION [MESSAGE...]         the archive of such a value, in hex
interop archives COUNT                       archives of versions 1..COUNT: u32 length, bytes
interop writer PREFIX COUNT [--single-writer] [--pace MICROS] [--grace MILLIS]
                                             writes versions 1..COUNT
interop reader PREFIX UNTIL [--ack FIFO] [--watchdog SECONDS]
                                             reads until it sees version UNTIL; JSON summary
interop hold PREFIX                          SingleWriter: writes version 1, holds the lock
interop try-write PREFIX                     SingleWriter: prints ok or conflict
interop pin PREFIX                           holds a read until stdin ends
interop bench PREFIX                         times the crate; JSON";

pub fn fail(message: &str) -> ! {
    eprintln!("interop: {message}");
    exit(1)
}

fn usage() -> ! {
    eprintln!("{USAGE}");
    exit(2)
}

fn say(line: &str) {
    let mut out = io::stdout().lock();
    // A closed pipe means that nobody listens any more: end quietly.
    if writeln!(out, "{line}").and_then(|()| out.flush()).is_err() {
        exit(0)
    }
}

fn wait_for_stdin_to_end() {
    let _ = io::copy(&mut io::stdin().lock(), &mut io::sink());
}

/// Arguments in order; options may stand anywhere after the prefix.
struct Args(VecDeque<OsString>);

impl Args {
    fn next(&mut self) -> OsString {
        self.0.pop_front().unwrap_or_else(|| usage())
    }

    fn flag(&mut self, name: &str) -> bool {
        let at = self.0.iter().position(|arg| arg == name);
        at.map(|at| self.0.remove(at)).is_some()
    }

    fn option(&mut self, name: &str) -> Option<OsString> {
        let at = self.0.iter().position(|arg| arg == name)?;
        self.0.remove(at);
        Some(self.0.remove(at).unwrap_or_else(|| usage()))
    }

    fn value(&mut self) -> HelloWorld {
        HelloWorld {
            version: parse(&self.next()),
            messages: self
                .0
                .drain(..)
                .map(|arg| arg.into_string().unwrap_or_else(|_| usage()))
                .collect(),
        }
    }

    fn last(&mut self) -> OsString {
        let arg = self.next();
        if !self.0.is_empty() {
            usage()
        }
        arg
    }
}

fn parse(arg: &OsStr) -> u32 {
    let number = arg.to_str().and_then(|text| text.parse().ok());
    number.unwrap_or_else(|| usage())
}

fn main() {
    let mut args = Args(std::env::args_os().skip(1).collect());
    let command = args.next();
    match command.to_str().unwrap_or_default() {
        "write" => write(&args.next(), &args.value()),
        "read" => read(&args.last()),
        "version" => version(&args.last()),
        "archive" => {
            let bytes = archive(&args.value());
            let hex: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            say(&hex.concat());
        }
        "archives" => {
            // A closed pipe means that nobody listens any more: end quietly.
            let _ = archives(parse(&args.last()));
        }
        "writer" => {
            let single = args.flag("--single-writer");
            let pace = args.option("--pace").map_or(0, |arg| parse(&arg));
            let grace = args.option("--grace").map_or(10_000, |arg| parse(&arg));
            let (prefix, count) = (args.next(), parse(&args.last()));
            let pace = Duration::from_micros(pace.into());
            let grace = Duration::from_millis(grace.into());
            if single {
                writer::<SingleWriter>(&prefix, count, pace, grace);
            } else {
                writer::<LockDisabled>(&prefix, count, pace, grace);
            }
        }
        "reader" => {
            let ack = args.option("--ack");
            let watchdog = args.option("--watchdog").map_or(120, |arg| parse(&arg));
            let (prefix, until) = (args.next(), parse(&args.last()));
            reader(&prefix, until, ack, Duration::from_secs(watchdog.into()));
        }
        "hold" => hold(&args.last()),
        "try-write" => try_write(&args.last()),
        "pin" => pin(&args.last()),
        "bench" => bench::run(&args.last()),
        _ => usage(),
    }
}

fn write(prefix: &OsStr, value: &HelloWorld) {
    let mut sync = Sync::<LockDisabled>::with_params(prefix);
    match sync.write(value, Duration::from_secs(1)) {
        Ok((written, reset)) => say(&format!("written: {written} bytes | reset: {reset}")),
        Err(error) => fail(&error.to_string()),
    }
}

fn read(prefix: &OsStr) {
    let mut sync = Sync::<LockDisabled>::with_params(prefix);
    // SAFETY (here and below): the archive is checked, and dropped within the writer's grace.
    let data = unsafe { sync.read::<HelloWorld>(true) };
    match data {
        Ok(data) => say(&format!(
            "version: {} messages: {:?}",
            data.version, data.messages
        )),
        Err(error) => fail(&error.to_string()),
    }
}

fn version(prefix: &OsStr) {
    let mut sync = Sync::<LockDisabled>::with_params(prefix);
    match sync.version() {
        Ok(version) => say(&u64::from(version).to_string()),
        Err(error) => fail(&error.to_string()),
    }
}

fn hold(prefix: &OsStr) {
    let mut sync = Sync::<SingleWriter>::with_params(prefix);
    if let Err(error) = sync.write(&hello(1), Duration::from_secs(1)) {
        fail(&error.to_string());
    }
    say("holding");
    wait_for_stdin_to_end();
}

fn try_write(prefix: &OsStr) {
    let mut sync = Sync::<SingleWriter>::with_params(prefix);
    match sync.write(&hello(1), Duration::from_secs(1)) {
        Ok(_) => say("ok"),
        Err(SynchronizerError::WriteLockConflict) => say("conflict"),
        Err(error) => fail(&error.to_string()),
    }
}

fn pin(prefix: &OsStr) {
    let mut sync = Sync::<LockDisabled>::with_params(prefix);
    let data = unsafe { sync.read::<HelloWorld>(true) };
    match data {
        Ok(_pinned) => {
            say("pinned");
            wait_for_stdin_to_end();
        }
        Err(error) => fail(&error.to_string()),
    }
}

fn archives(count: u32) -> io::Result<()> {
    let mut out = BufWriter::with_capacity(1 << 16, io::stdout().lock());
    for version in 1..=count {
        let bytes = archive(&hello(version));
        out.write_all(&(bytes.len() as u32).to_le_bytes())?;
        out.write_all(&bytes)?;
    }
    out.flush()
}

fn writer<WL>(prefix: &OsStr, count: u32, pace: Duration, grace: Duration)
where
    WL: for<'a> WriteLockStrategy<'a>,
{
    let mut sync = Sync::<WL>::with_params(prefix);
    let mut resets = 0u32;
    let mut due = Instant::now();
    for version in 1..=count {
        match sync.write(&hello(version), grace) {
            Ok((_, reset)) => resets += u32::from(reset),
            Err(error) => fail(&error.to_string()),
        }
        if version % (count / 10).max(1) == 0 {
            say(&format!("progress: {version}"));
        }
        if !pace.is_zero() {
            due = Instant::max(due + pace, Instant::now());
            thread::sleep(due.saturating_duration_since(Instant::now()));
        }
    }
    say(&format!("done: {count} resets: {resets}"));
}

/// Reads in a loop. `ack` is a FIFO into which each version, once seen whole and let go, is
/// written as u32: a writer that waits for it is never more than one version ahead, and the crate's
/// race (load the version, then count oneself, and not look again) needs two.
fn reader(prefix: &OsStr, until: u32, ack: Option<OsString>, watchdog: Duration) {
    let mut ack: Option<File> = ack.map(|path| {
        let opened = OpenOptions::new().write(true).open(&path);
        opened.unwrap_or_else(|error| fail(&format!("cannot open the ack FIFO: {error}")))
    });
    say("ready");
    let mut sync = Sync::<LockDisabled>::with_params(prefix);
    let (mut reads, mut versions, mut torn, mut invalid, mut backwards) = (0u64, 0u64, 0u64, 0, 0);
    let mut last = 0;
    let mut progress = Instant::now();
    while last < until && progress.elapsed() < watchdog {
        let seen = match unsafe { sync.read::<HelloWorld>(true) } {
            Ok(value) if is_whole(&value) => value.version,
            Ok(_) => {
                torn += 1;
                continue;
            }
            Err(SynchronizerError::FailedEntityRead) => {
                invalid += 1; // check_bytes refused it: torn as well
                continue;
            }
            Err(
                SynchronizerError::UninitializedState
                | SynchronizerError::FailedStateRead(_)
                | SynchronizerError::FailedDataRead(_),
            ) if last == 0 => {
                thread::sleep(Duration::from_millis(1)); // nothing is published yet
                continue;
            }
            Err(error) => fail(&error.to_string()),
        };
        reads += 1;
        if seen == last {
            thread::yield_now();
            continue;
        }
        backwards += u32::from(seen < last);
        versions += 1;
        last = seen;
        progress = Instant::now();
        if let Some(fifo) = &mut ack {
            if let Err(error) = fifo.write_all(&seen.to_le_bytes()) {
                fail(&format!("cannot write to the ack FIFO: {error}"));
            }
        }
    }
    say(&format!(
        "{{\"reads\": {reads}, \"versions\": {versions}, \"last\": {last}, \"torn\": {torn}, \
         \"invalid\": {invalid}, \"backwards\": {backwards}, \"timed_out\": {}}}",
        last < until
    ));
}
