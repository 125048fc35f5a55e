//! What the kernel says of this process, under the names that Prometheus' own clients use.
//!
//! It reads `/proc/self` at each rendering; what cannot be read keeps its last value.

use std::fs;

use nix::sys::resource::{Resource, getrlimit};
use nix::unistd::{SysconfVar, sysconf};
use prometheus::{Counter, Gauge, IntGauge};

use super::table::Table;

#[derive(Debug)]
pub(super) struct Process {
    cpu: Counter,
    resident: IntGauge,
    virtual_memory: IntGauge,
    open_fds: IntGauge,
    max_fds: IntGauge,
    threads: IntGauge,
    start_time: Gauge,
}

impl Process {
    pub(super) fn declare(t: &mut Table) -> Self {
        Self {
            cpu: t.float_counter(
                "process_cpu_seconds_total",
                "Processor time taken, in user and system mode together.",
            ),
            resident: t.gauge("process_resident_memory_bytes", "Memory resident in RAM."),
            virtual_memory: t.gauge("process_virtual_memory_bytes", "Size of the address space."),
            open_fds: t.gauge("process_open_fds", "Open file descriptors."),
            max_fds: t.gauge("process_max_fds", "File descriptors that may be open at once."),
            threads: t.gauge("process_threads", "Threads."),
            start_time: t.float_gauge("process_start_time_seconds", "When the process started."),
        }
    }

    pub(super) fn read(&self) {
        if let Some(stat) = fs::read_to_string("/proc/self/stat").ok().and_then(|s| parse(&s)) {
            let ticks_per_second = positive(SysconfVar::CLK_TCK).unwrap_or(100.0);
            let page_bytes = positive(SysconfVar::PAGE_SIZE).unwrap_or(4096.0);
            let cpu = stat.cpu_ticks / ticks_per_second;
            self.cpu.inc_by((cpu - self.cpu.get()).max(0.0));
            self.threads.set(stat.threads);
            self.virtual_memory.set(stat.virtual_bytes);
            self.resident.set((stat.resident_pages * page_bytes) as i64);
            if let Some(booted) = booted_at() {
                self.start_time.set(booted + stat.started_ticks / ticks_per_second);
            }
        }
        if let Ok(entries) = fs::read_dir("/proc/self/fd") {
            // The listing itself holds one open.
            self.open_fds.set(i64::try_from(entries.count()).unwrap_or(i64::MAX) - 1);
        }
        if let Ok((soft, _)) = getrlimit(Resource::RLIMIT_NOFILE) {
            self.max_fds.set(i64::try_from(soft).unwrap_or(i64::MAX));
        }
    }
}

struct Stat {
    cpu_ticks: f64,
    threads: i64,
    started_ticks: f64,
    virtual_bytes: i64,
    resident_pages: f64,
}

/// Reads a line of `/proc/PID/stat`, proc_pid_stat(5). The name in its brackets may hold anything,
/// so counting begins after the last bracket, with field 3.
fn parse(stat: &str) -> Option<Stat> {
    let (_, rest) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let field = |number: usize| fields.get(number - 3)?.parse::<f64>().ok();
    Some(Stat {
        cpu_ticks: field(14)? + field(15)?,
        threads: field(20)? as i64,
        started_ticks: field(22)?,
        virtual_bytes: field(23)? as i64,
        resident_pages: field(24)?,
    })
}

/// When the machine started, in Unix seconds.
fn booted_at() -> Option<f64> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

fn positive(variable: SysconfVar) -> Option<f64> {
    sysconf(variable).ok().flatten().filter(|v| *v > 0).map(|v| v as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_brackets_and_blanks_in_its_name_is_read() {
        let line = "42 (a) b (c) S 1 42 42 0 -1 4194304 9 0 0 0 150 50 0 0 20 0 7 0 1234 8192000 300 \
                    18446744073709551615 1 1 0";
        let stat = parse(line).unwrap();
        assert_eq!(stat.cpu_ticks, 200.0);
        assert_eq!(stat.threads, 7);
        assert_eq!(stat.started_ticks, 1234.0);
        assert_eq!(stat.virtual_bytes, 8_192_000);
        assert_eq!(stat.resident_pages, 300.0);
        assert!(parse("42 (a) S 1").is_none());
    }
}
