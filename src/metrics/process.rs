//! Metrics of the process, with the names that all Prometheus client libraries use. On Linux only.

use prometheus::proto::MetricType;

use super::family::{Families, count};

#[cfg(not(target_os = "linux"))]
pub(super) fn collect(_: &mut Families) {}

/// Adds the metrics of the process. Values that cannot be read are left out.
#[cfg(target_os = "linux")]
pub(super) fn collect(families: &mut Families) {
    let cpu = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    let seconds = u64::try_from(cpu.tv_sec).unwrap_or(0);
    let nanos = u32::try_from(cpu.tv_nsec).unwrap_or(0);
    families.add_value(
        "process_cpu_seconds_total",
        "User and system CPU time, in seconds.",
        MetricType::COUNTER,
        std::time::Duration::new(seconds, nanos).as_secs_f64(),
    );
    let read = |file: &str| std::fs::read_to_string(file).ok();
    let mut gauge = |name, help, value: Option<f64>| {
        if let Some(value) = value {
            families.add_value(name, help, MetricType::GAUGE, value);
        }
    };
    let status = read("/proc/self/status").unwrap_or_default();
    let bytes = |name| Some(count(number_after(&status, name)? * 1024));
    gauge("process_resident_memory_bytes", "Memory that is resident, in bytes.", bytes("VmRSS:"));
    gauge("process_virtual_memory_bytes", "Virtual memory, in bytes.", bytes("VmSize:"));
    gauge("process_threads", "Threads of the operating system.", number_after(&status, "Threads:").map(count));
    // The open directory is one of the descriptors.
    let open = std::fs::read_dir("/proc/self/fd").map(|files| files.count().saturating_sub(1));
    gauge("process_open_fds", "Open file descriptors.", open.ok().map(|open| count(open as u64)));
    let limits = read("/proc/self/limits").unwrap_or_default();
    gauge("process_max_fds", "Limit of open file descriptors.", number_after(&limits, "Max open files").map(count));
    let stat = read("/proc/self/stat").unwrap_or_default();
    let boot = read("/proc/stat").and_then(|stat| number_after(&stat, "btime"));
    gauge(
        "process_start_time_seconds",
        "Start time of the process, in seconds since 1970.",
        boot.zip(start_ticks(&stat))
            .map(|(boot, ticks)| count(boot) + count(ticks) / count(rustix::param::clock_ticks_per_second())),
    );
}

/// Number after the word at the start of a line.
#[cfg(target_os = "linux")]
fn number_after(text: &str, word: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(word))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Start of the process in ticks after boot. The process name, in brackets, may contain anything.
#[cfg(target_os = "linux")]
fn start_ticks(stat: &str) -> Option<u64> {
    let (_, after_name) = stat.rsplit_once(')')?;
    after_name.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_found() {
        let status = "Name:\tx\nVmRSS:\t   1234 kB\nThreads:\t7\n";
        assert_eq!(number_after(status, "VmRSS:"), Some(1234));
        assert_eq!(number_after(status, "Threads:"), Some(7));
        assert_eq!(number_after(status, "Nope:"), None);
        assert_eq!(number_after("Max open files   1024   4096  files\n", "Max open files"), Some(1024));
        let stat = "42 (a) b) S 1 42 42 0 -1 4194304 100 0 0 0 10 5 0 0 20 0 4 0 777 1 2";
        assert_eq!(start_ticks(stat), Some(777));
        assert_eq!(start_ticks("nonsense"), None);
    }
}
