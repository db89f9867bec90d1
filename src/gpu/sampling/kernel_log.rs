//! Reads XIDs out of the kernel log: NVML does not tell of all, as of a GPU off the bus.

use std::{
    fs::File,
    io::{ErrorKind, Read, Seek, SeekFrom},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use super::sampler::Host;
use crate::{
    entity::{
        self,
        gpu_event::{GpuEventKind, GpuEventSource},
    },
    gpu::events::{Happened, PciAddress},
};

/// How often to look for new lines.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// The log gives one record at a time, and refuses a buffer that one does not fit into.
const LONGEST_RECORD: usize = 8 * 1024;

/// How much of a line is kept, in characters.
const LONGEST_DETAIL: usize = 1_000;

/// `O_NONBLOCK` of Linux: a read at the end of the log must not hold up the end of the process.
const NONBLOCK: i32 = 0o4000;

/// An XID as the kernel log has it.
#[derive(Debug, PartialEq, Eq)]
struct Xid {
    address: PciAddress,
    code: i64,
    detail: Option<String>,
}

/// Starts to read the log at `path`, from its end on. Without it XIDs come from NVML only.
pub(in crate::gpu) fn spawn(host: Arc<Host>, path: &Path) {
    // Opened at once: what is written from now on is new.
    let log = match open(path) {
        Ok(log) => log,
        Err(error) => {
            let path = path.display();
            tracing::info!(%path, %error, "the kernel log cannot be read: XIDs come from NVML only");
            return;
        }
    };
    let thread = thread::Builder::new()
        .name("gpu-kernel-log".into())
        .spawn(move || follow(&host, log));
    if let Err(error) = thread {
        tracing::error!(%error, "the thread that reads the kernel log could not be started");
    }
}

fn open(path: &Path) -> std::io::Result<File> {
    let mut log = File::options()
        .read(true)
        .custom_flags(NONBLOCK)
        .open(path)?;
    log.seek(SeekFrom::End(0))?;
    Ok(log)
}

fn follow(host: &Host, mut log: File) {
    let (mut buffer, mut unread) = (vec![0; LONGEST_RECORD], Vec::new());
    loop {
        match log.read(&mut buffer) {
            Ok(0) => {}
            Ok(length) => {
                unread.extend_from_slice(&buffer[..length]);
                for line in lines(&mut unread) {
                    if let Some(xid) = Xid::parse(&line) {
                        report(host, xid);
                    }
                }
                continue;
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            // The log is a ring: the next read goes on at the oldest line that is left.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {
                tracing::warn!(
                    "the kernel log was written faster than it was read; lines are lost"
                );
                continue;
            }
            Err(error) => {
                tracing::warn!(%error, "the kernel log cannot be read any more: XIDs come from NVML only");
                return;
            }
        }
        if host.stop.wait_until(Instant::now() + LOOK_EVERY) {
            return;
        }
    }
}

/// Takes the whole lines out of what was read.
fn lines(unread: &mut Vec<u8>) -> Vec<String> {
    let end = unread.iter().rposition(|byte| *byte == b'\n');
    let Some(end) = end else {
        // No line is so long: this is something else.
        if unread.len() > LONGEST_RECORD {
            unread.clear();
        }
        return Vec::new();
    };
    let whole: Vec<u8> = unread.drain(..=end).collect();
    let whole = String::from_utf8_lossy(&whole);
    whole.lines().map(str::to_owned).collect()
}

fn report(host: &Host, xid: Xid) {
    let gpu = host.conditions.at(xid.address);
    host.events.push(Happened {
        at: entity::now(),
        address: Some(xid.address),
        gpu,
        kind: GpuEventKind::Xid,
        code: Some(xid.code),
        detail: xid.detail,
        source: GpuEventSource::KernelLog,
        occurrences: 1,
        after: Vec::new(),
    });
}

impl Xid {
    /// Reads `4,1234,5678,-;NVRM: Xid (PCI:0000:01:00): 79, pid=1, GPU has fallen off the bus.`
    fn parse(line: &str) -> Option<Self> {
        let (head, message) = line.split_once(';')?;
        // Not what a program has written into the log.
        let facility = head.split(',').next()?.parse::<u32>().ok()? >> 3;
        if facility != 0 {
            return None;
        }
        let rest = message.strip_prefix("NVRM: Xid (PCI:")?;
        let (address, rest) = rest.split_once(')')?;
        let rest = rest.strip_prefix(':')?.trim_start();
        let digits = rest.find(|c: char| !c.is_ascii_digit());
        let (code, detail) = rest.split_at(digits.unwrap_or(rest.len()));
        let detail = detail.trim_start_matches([',', ' ']).trim_end();
        // PostgreSQL has no NUL.
        let detail = detail.chars().filter(|c| *c != '\0').take(LONGEST_DETAIL);
        let detail: String = detail.collect();
        Some(Self {
            address: PciAddress::parse(address)?,
            code: code.parse().ok()?,
            detail: Some(detail).filter(|detail| !detail.is_empty()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(clippy::unnecessary_wraps, reason = "as it is read")]
    fn xid(address: &str, code: i64, detail: Option<&str>) -> Option<Xid> {
        Some(Xid {
            address: PciAddress::parse(address).unwrap(),
            code,
            detail: detail.map(Into::into),
        })
    }

    #[test]
    fn an_xid_is_read_as_the_driver_writes_it() {
        for (line, expected) in [
            (
                "4,1234,5678,-;NVRM: Xid (PCI:0000:01:00): 79, pid=1234, GPU has fallen off the bus.",
                xid(
                    "0000:01:00",
                    79,
                    Some("pid=1234, GPU has fallen off the bus."),
                ),
            ),
            (
                "4,1,2,-,caller=T77;NVRM: Xid (PCI:0001:c1:00): 31, pid='<unknown>', name=<unknown>, Ch 0000000e",
                xid(
                    "0001:c1:00",
                    31,
                    Some("pid='<unknown>', name=<unknown>, Ch 0000000e"),
                ),
            ),
            (
                "3,1,2,-;NVRM: Xid (PCI:0000:01:00): 62",
                xid("0000:01:00", 62, None),
            ),
            ("3,1,2,-;NVRM: GPU at PCI:0000:01:00: GPU-1", None),
            ("3,1,2,-;NVRM: Xid (PCI:0000:01:00): , x", None),
            ("3,1,2,-;NVRM: Xid (PCI:nowhere): 79", None),
            // A program may write what it likes, but not as the kernel.
            ("12,1,2,-;NVRM: Xid (PCI:0000:01:00): 79", None),
            (" SUBSYSTEM=pci", None),
            ("", None),
        ] {
            assert_eq!(Xid::parse(line), expected, "{line}");
        }
    }

    #[test]
    fn lines_are_read_whole() {
        let mut unread = b"one\ntwo\nthr".to_vec();
        assert_eq!(lines(&mut unread), ["one", "two"]);
        unread.extend_from_slice(b"ee\n");
        assert_eq!(lines(&mut unread), ["three"]);
        assert!(unread.is_empty());
    }
}
