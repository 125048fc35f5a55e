//! What a history is made of, drawn from its seed.

use aegiskv::wal::Mode;

use crate::dice::Dice;
use crate::machine::Setup;
use crate::oracle::{Breaks, Moods};

/// How many machines there are.
pub(crate) const MACHINES: usize = 4;

/// What may go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    KillProcess,
    CrashMachine,
    Pause,
    CutOff,
    CutOneWay,
    JumpClock,
    BreakDisk,
    Wipe,
    Corrupt,
    Snapshot,
    Sweep,
    Evict,
}

const FAULTS: [(Fault, u64); 12] = [
    (Fault::KillProcess, 500),
    (Fault::CrashMachine, 400),
    (Fault::Pause, 450),
    (Fault::CutOff, 450),
    (Fault::CutOneWay, 350),
    (Fault::JumpClock, 300),
    (Fault::BreakDisk, 150),
    (Fault::Wipe, 120),
    (Fault::Corrupt, 80),
    (Fault::Snapshot, 500),
    (Fault::Sweep, 500),
    (Fault::Evict, 100),
];

impl Fault {
    /// What it is called in the counts.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::KillProcess => "fault: a process is killed",
            Self::CrashMachine => "fault: a machine crashes",
            Self::Pause => "fault: a machine stands still",
            Self::CutOff => "fault: a machine is cut off",
            Self::CutOneWay => "fault: one way is cut",
            Self::JumpClock => "fault: a clock jumps",
            Self::BreakDisk => "fault: a disk breaks",
            Self::Wipe => "fault: a disk is wiped",
            Self::Corrupt => "fault: a file is corrupted",
            Self::Snapshot => "snapshot",
            Self::Sweep => "sweep",
            Self::Evict => "eviction",
        }
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) setup: Setup,
    pub(crate) modes: [Mode; MACHINES],
    pub(crate) clients: usize,
    pub(crate) operations_each: usize,
    pub(crate) keys: usize,
    pub(crate) voters: usize,
    /// Longest time between two operations of a client.
    pub(crate) think_max: u64,
    pub(crate) patience: u64,
    pub(crate) lost: u64,
    pub(crate) doubled: u64,
    /// How many messages take very long.
    pub(crate) late: u64,
    pub(crate) delay_max: u64,
    pub(crate) tick: u64,
    pub(crate) oracle_pace: u64,
    pub(crate) moods: Moods,
    pub(crate) breaks: Breaks,
    pub(crate) faults: Vec<Fault>,
    pub(crate) fault_pace: u64,
    /// Furthest that a clock is off, in milliseconds.
    pub(crate) skew_max: i64,
    /// Memory of a majority may be lost.
    pub(crate) catastrophes: bool,
    /// The last key expires.
    pub(crate) expires: bool,
    /// Zeros before a value: with very many of them a copy of the shard comes in several pieces.
    pub(crate) zeros: usize,
    pub(crate) calm_at: u64,
}

impl Plan {
    pub(crate) fn draw(dice: &mut Dice) -> Self {
        let troubled = dice.chance(950);
        let faults: Vec<Fault> = FAULTS
            .iter()
            .filter(|(_, per_mille)| dice.chance(*per_mille))
            .map(|(fault, _)| *fault)
            .collect();
        let one_mode = dice.pick(&[Mode::Off, Mode::Async, Mode::Sync]).expect("three");
        let mixed = dice.chance(300);
        let modes =
            std::array::from_fn(|_| match dice.pick(&[Mode::Off, Mode::Async, Mode::Sync]) {
                Some(mode) if mixed => mode,
                _ => one_mode,
            });
        let faults_or_none = if troubled { faults } else { vec![Fault::Snapshot, Fault::Sweep] };
        Self {
            setup: Setup {
                shards: 1 + u16::from(dice.chance(250)),
                replication_log: [1, 2_400, 10_000, 1 << 20, 1 << 20][dice.below(5)],
                segment_bytes_max: [600, 2_000, 8_000][dice.below(3)],
                keeps_life: false,
            },
            modes,
            clients: dice.within(2..=6) as usize,
            operations_each: dice.within(3..=9) as usize,
            keys: dice.within(1..=3) as usize,
            voters: if dice.chance(850) { 3 } else { dice.within(1..=4) as usize },
            think_max: [2_000, 20_000, 80_000][dice.below(3)],
            patience: [60_000, 250_000, 800_000][dice.below(3)],
            lost: if troubled { [0, 10, 60, 200][dice.below(4)] } else { 0 },
            doubled: if troubled { [0, 20, 100][dice.below(3)] } else { 0 },
            late: if troubled { [0, 10, 50][dice.below(3)] } else { 0 },
            delay_max: [1_000, 5_000, 20_000][dice.below(3)],
            tick: dice.within(8_000..=40_000),
            oracle_pace: dice.within(10_000..=60_000),
            moods: Moods {
                moves: if troubled { [0, 30, 100, 300][dice.below(4)] } else { 0 },
                changes: if troubled { [0, 50, 300][dice.below(3)] } else { 0 },
                hurries: [0, 300][dice.below(2)],
            },
            breaks: Breaks::default(),
            faults: faults_or_none,
            fault_pace: dice.within(15_000..=120_000),
            skew_max: [0, 5, 300][dice.below(3)],
            catastrophes: troubled && dice.chance(40),
            expires: dice.chance(250),
            zeros: if dice.chance(20) { 270_000 } else { 0 },
            calm_at: dice.within(200_000..=900_000),
        }
    }
}
