//! Misfortunes.

use aegiskv::entry::ShardId;
use aegiskv::replica::Sweep;
use aegiskv::store::{Config, EvictionPolicy};
use aegiskv::topology::Seat;
use aegiskv::wal::Mode;

use crate::plan::{Fault, MACHINES};
use crate::world::{Event, World};

impl World {
    pub(crate) fn misfortune(&mut self) {
        if self.calm {
            return;
        }
        let pace = self.dice.within(1_000..=2 * self.plan.fault_pace);
        self.after(pace, Event::Misfortune);
        let faults = self.plan.faults.clone();
        let Some(fault) = self.dice.pick(&faults) else { return };
        let machine = self.some_victim();
        self.say(|| format!("{fault:?} at {machine}"));
        self.count(fault.name());
        match fault {
            Fault::KillProcess => self.lose(machine, false),
            Fault::CrashMachine => self.lose(machine, true),
            Fault::Pause => {
                let span = self.dice.within(5_000..=400_000);
                self.machines[machine].paused_until = self.now + span;
                self.machines[machine].away_since.get_or_insert(self.now);
            }
            Fault::CutOff => {
                let until = self.now + self.dice.within(10_000..=400_000);
                for other in 0..MACHINES {
                    self.cut_until[machine][other] = until;
                    self.cut_until[other][machine] = until;
                }
            }
            Fault::CutOneWay => {
                let other = self.dice.below(MACHINES);
                self.cut_until[machine][other] = self.now + self.dice.within(10_000..=500_000);
            }
            Fault::JumpClock => {
                let far = self.plan.skew_max.max(2) * 3;
                self.machines[machine].clock_millis += self.dice.offset(-far..=far);
            }
            Fault::BreakDisk => self.break_disk(machine),
            Fault::Wipe => self.wipe(machine),
            Fault::Corrupt => self.corrupt(machine),
            Fault::Snapshot => self.begin_snapshot(machine),
            Fault::Sweep => self.sweep(machine),
            Fault::Evict => self.evict(machine),
        }
    }

    /// Most often a primary: there it hurts most.
    fn some_victim(&mut self) -> usize {
        if self.dice.chance(400) {
            return self.dice.below(MACHINES);
        }
        let shard = self.dice.below(usize::from(self.plan.setup.shards));
        let primary = self.oracle.configuration(ShardId(shard as u16)).primary;
        self.oracle.hosts[primary.node.0 as usize]
    }

    /// Whether a majority that remembers is left of every shard if this machine forgets.
    fn may_forget(&self, machine: usize) -> bool {
        if self.plan.catastrophes {
            return true;
        }
        let forgotten: Vec<Seat> = (0..MACHINES)
            .filter(|i| *i == machine || self.machines[*i].forgets)
            .map(|i| self.machines[i].seat)
            .collect();
        self.oracle.survives(&forgotten)
    }

    fn lose(&mut self, machine: usize, machine_too: bool) {
        if self.machines[machine].process.is_none() {
            return;
        }
        let forgets = self.machines[machine].would_lose_memory(machine_too);
        if forgets && !self.may_forget(machine) {
            return;
        }
        self.machines[machine].forgets |= forgets;
        if machine_too {
            self.machines[machine].crash();
        } else {
            self.machines[machine].kill();
        }
        self.goes_down(machine);
    }

    fn break_disk(&mut self, machine: usize) {
        let soon = self.dice.within(0..=6);
        let disk = &self.machines[machine].disk;
        match self.dice.below(4) {
            0 => disk.fail_sync_after(soon),
            1 => disk.fail_write_after(soon),
            2 => disk.fill_after(soon * 200),
            _ => disk.shorten_writes(),
        }
    }

    fn wipe(&mut self, machine: usize) {
        if !self.may_forget(machine) {
            return;
        }
        let seed = self.dice.number();
        let was_up = self.machines[machine].process.is_some();
        let life = self.machines[machine].seat.life + 1_000;
        let seat = self.oracle.joins(machine, life);
        self.machines[machine].wipe(seat, seed);
        self.machines[machine].forgets = false;
        if was_up {
            self.goes_down(machine);
        }
    }

    fn corrupt(&mut self, machine: usize) {
        if self.machines[machine].process.is_none() || !self.may_forget(machine) {
            return;
        }
        self.machines[machine].kill();
        if self.machines[machine].corrupt(&mut self.dice)
            || self.machines[machine].mode == Mode::Off
        {
            self.machines[machine].forgets = true;
        }
        self.goes_down(machine);
    }

    fn begin_snapshot(&mut self, machine: usize) {
        let run = self.machines[machine].run;
        if self.machines[machine].mode == Mode::Off {
            return;
        }
        let delay = self.dice.within(0..=10_000);
        let Some(process) = self.process(machine, run) else { return };
        if process.during_snapshot.is_none() {
            process.during_snapshot = Some(Default::default());
            self.after(delay, Event::EndSnapshot { machine, run });
        }
    }

    fn sweep(&mut self, machine: usize) {
        for _ in 0..self.plan.setup.shards {
            let mut sweep = Sweep::default();
            let _ = self.act(machine, |replica, now, work| {
                while !replica.sweep(&mut sweep, now, work)?.round_done {}
                Ok(())
            });
        }
    }

    fn evict(&mut self, machine: usize) {
        let replication_log = self.plan.setup.replication_log;
        let config = |max_memory, eviction_ratio| Config {
            max_memory,
            eviction_ratio,
            eviction_policy: EvictionPolicy::S3Fifo,
            replication_log,
        };
        let _ = self.act(machine, |replica, now, work| {
            replica.budget().configure(&config(1 << 30, 0.000_000_001));
            let evicted = replica.evict(1, now, work);
            replica.budget().configure(&config(1 << 30, 0.9));
            evicted
        });
    }
}
