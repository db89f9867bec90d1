//! Reads XIDs from the kernel log, because NVML misses some, such as the XID of a GPU off the bus.

use std::{
    fs::File,
    io::{ErrorKind, Read, Seek, SeekFrom},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use super::context::SamplingContext;
use crate::{
    entity::{
        self,
        gpu_event::{GpuEventKind, GpuEventSource},
    },
    gpu::{events::PendingEvent, pci_address::PciAddress},
};

/// Time between two checks for new lines.
const POLL_INTERVAL: Duration = Duration::from_millis(250);

/// Size of the read buffer. The log returns one record per read, and refuses a buffer that is too
/// small.
const MAX_RECORD_BYTES: usize = 8 * 1024;

/// Upper bound of the stored detail of an XID, in characters.
const MAX_DETAIL_CHARS: usize = 1_000;

/// `O_NONBLOCK` of Linux, so that a read at the end of the log cannot delay the end of the process.
const NONBLOCK: i32 = 0o4000;

/// XID from the kernel log.
#[derive(Debug, PartialEq, Eq)]
struct Xid {
    address: PciAddress,
    code: i64,
    detail: Option<String>,
}

/// Starts the thread that reads new lines of the log at `path`. Without a readable log, XIDs come
/// from NVML only.
pub(in crate::gpu) fn spawn(context: Arc<SamplingContext>, path: &Path) {
    // Opened before the thread starts, so that no line from now on is missed.
    let log = match open(path) {
        Ok(log) => log,
        Err(error) => {
            let path = path.display();
            tracing::info!(%path, %error, "the kernel log cannot be read: XIDs come from NVML only");
            return;
        }
    };
    let thread = thread::Builder::new().name("gpu-kernel-log".into()).spawn(move || follow(&context, log));
    if let Err(error) = thread {
        tracing::error!(%error, "the thread that reads the kernel log could not be started");
    }
}

fn open(path: &Path) -> std::io::Result<File> {
    let mut log = File::options().read(true).custom_flags(NONBLOCK).open(path)?;
    log.seek(SeekFrom::End(0))?;
    Ok(log)
}

fn follow(context: &SamplingContext, mut log: File) {
    let (mut buffer, mut unread) = (vec![0; MAX_RECORD_BYTES], Vec::new());
    loop {
        match log.read(&mut buffer) {
            Ok(0) => {}
            Ok(length) => {
                unread.extend_from_slice(&buffer[..length]);
                for line in take_lines(&mut unread) {
                    if let Some(xid) = Xid::parse(&line) {
                        push_event(context, xid);
                    }
                }
                continue;
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            // The log is a ring buffer: the next read continues at the oldest line.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {
                tracing::warn!("the kernel log was written faster than it was read; lines are lost");
                continue;
            }
            Err(error) => {
                tracing::warn!(%error, "the kernel log cannot be read any more: XIDs come from NVML only");
                return;
            }
        }
        if context.stop.wait_until(Instant::now() + POLL_INTERVAL) {
            return;
        }
    }
}

/// Removes and returns the complete lines.
fn take_lines(unread: &mut Vec<u8>) -> Vec<String> {
    let end = unread.iter().rposition(|byte| *byte == b'\n');
    let Some(end) = end else {
        // No line is that long, so the file is not a kernel log.
        if unread.len() > MAX_RECORD_BYTES {
            unread.clear();
        }
        return Vec::new();
    };
    let bytes: Vec<u8> = unread.drain(..=end).collect();
    let text = String::from_utf8_lossy(&bytes);
    text.lines().map(str::to_owned).collect()
}

fn push_event(context: &SamplingContext, xid: Xid) {
    let gpu = context.conditions.find_by_address(xid.address);
    context.events.push(PendingEvent {
        occurred_at: entity::now(),
        address: Some(xid.address),
        gpu,
        kind: GpuEventKind::Xid,
        code: Some(xid.code),
        detail: xid.detail,
        source: GpuEventSource::KernelLog,
        occurrences: 1,
        conditions: Vec::new(),
    });
}

impl Xid {
    /// Parses `4,1234,5678,-;NVRM: Xid (PCI:0000:01:00): 79, pid=1, GPU has fallen off the bus.`
    fn parse(line: &str) -> Option<Self> {
        let (head, message) = line.split_once(';')?;
        // Lines that programs wrote into the log have another facility.
        let facility = head.split(',').next()?.parse::<u32>().ok()? >> 3;
        if facility != 0 {
            return None;
        }
        let rest = message.strip_prefix("NVRM: Xid (PCI:")?;
        let (address, rest) = rest.split_once(')')?;
        let rest = rest.strip_prefix(':')?.trim_start();
        let digits = rest.find(|c: char| !c.is_ascii_digit());
        let (code, detail) = rest.split_at(digits.unwrap_or(rest.len()));
        let trimmed = detail.trim_start_matches([',', ' ']).trim_end();
        // PostgreSQL cannot store NUL.
        let detail: String = trimmed.chars().filter(|c| *c != '\0').take(MAX_DETAIL_CHARS).collect();
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

    #[expect(clippy::unnecessary_wraps, reason = "the same type as the result of the parser")]
    fn xid(address: &str, code: i64, detail: Option<&str>) -> Option<Xid> {
        Some(Xid { address: PciAddress::parse(address).unwrap(), code, detail: detail.map(Into::into) })
    }

    #[test]
    fn an_xid_is_read_as_the_driver_writes_it() {
        for (line, expected) in [
            (
                "4,1234,5678,-;NVRM: Xid (PCI:0000:01:00): 79, pid=1234, GPU has fallen off the bus.",
                xid("0000:01:00", 79, Some("pid=1234, GPU has fallen off the bus.")),
            ),
            (
                "4,1,2,-,caller=T77;NVRM: Xid (PCI:0001:c1:00): 31, pid='<unknown>', name=<unknown>, Ch 0000000e",
                xid("0001:c1:00", 31, Some("pid='<unknown>', name=<unknown>, Ch 0000000e")),
            ),
            ("3,1,2,-;NVRM: Xid (PCI:0000:01:00): 62", xid("0000:01:00", 62, None)),
            ("3,1,2,-;NVRM: GPU at PCI:0000:01:00: GPU-1", None),
            ("3,1,2,-;NVRM: Xid (PCI:0000:01:00): , x", None),
            ("3,1,2,-;NVRM: Xid (PCI:nowhere): 79", None),
            // A program cannot write with the facility of the kernel.
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
        assert_eq!(take_lines(&mut unread), ["one", "two"]);
        unread.extend_from_slice(b"ee\n");
        assert_eq!(take_lines(&mut unread), ["three"]);
        assert!(unread.is_empty());
    }
}
