//! The `size` command: memory and disk for so much data on so many nodes.
//!
//! Here are the arguments and the words; what is needed is reckoned in [`plan`]. No node is asked.

mod plan;

use std::fmt::Write as _;
use std::io::Write as _;

use bytesize::ByteSize;
use clap::Args;

use super::exit::{Exit, Usage, note, output};
use plan::{Amount, Answer, ITEM_BYTES_ASSUMED, KEY_BYTES_ASSUMED, Loss, Question};

/// Larger amounts are taken for a slip.
const SIZE_BYTES_MAX: u64 = 1_000_000_000_000_000_000;

/// Reckons memory and disk for so much data on so many nodes, and says what it would not survive
///
/// Say how much there is with --data, and better with --items beside it, since each item costs
/// memory of its own; if all items are about as large, with two of --data, --items and --value-size.
/// Sizes are written as 600B, 100GB or 64GiB. No node is asked.
#[derive(Args, Debug)]
pub(crate) struct Size {
    /// Bytes of all keys and values, each counted once
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    data: Option<u64>,

    /// How many items there are, as in 2000000 or 2M
    #[arg(long, value_name = "N", value_parser = parse_count)]
    items: Option<u64>,

    /// Bytes of a value, with its content type if it has one
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    value_size: Option<u64>,

    /// Bytes of a key (default: 32B where a value's size is given)
    #[arg(long, value_name = "SIZE", value_parser = parse_size, requires = "value_size")]
    key_size: Option<u64>,

    /// How many nodes
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1000))]
    nodes: u64,

    /// Availability zones that the nodes stand in, as evenly as they go
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1000))]
    zones: Option<u64>,

    /// Copies of each shard
    #[arg(long, value_name = "N", default_value_t = plan::number("replication_factor"))]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=15))]
    replication_factor: u64,

    /// Shards that the keys are spread over
    #[arg(long, value_name = "N", default_value_t = plan::number("num_shards") as u16)]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=4096))]
    num_shards: u16,

    /// Per cent of max_memory_mb that is to be free while all nodes are there
    #[arg(long, value_name = "PERCENT", default_value = "20", value_parser = parse_headroom)]
    headroom: u64,

    /// Bytes of keys and values that clients write in a second
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    write_rate: Option<u64>,

    /// As JSON
    #[arg(long)]
    json: bool,
}

impl Size {
    pub(crate) fn run(self) -> anyhow::Result<Exit> {
        let answer = plan::answer(&self.question()?);
        let mut out = output();
        if self.json {
            writeln!(out, "{}", serde_json::to_string_pretty(&answer)?)?;
        } else {
            answer.warnings.iter().for_each(|warning| note(format_args!("warning: {warning}")));
            out.write_all(in_words(&answer, self.is_guess()).as_bytes())?;
        }
        out.flush()?;
        Ok(Exit::Done)
    }

    /// Whether nothing was said of the items.
    fn is_guess(&self) -> bool {
        self.items.is_none() && self.value_size.is_none()
    }

    fn question(&self) -> Result<Question, Usage> {
        let (zones, nodes) = (self.zones.unwrap_or(1), self.nodes);
        if zones > nodes {
            return Err(Usage(format!("{nodes} nodes cannot stand in {zones} zones")));
        }
        Ok(Question {
            amount: self.amount()?,
            nodes,
            zones: self.zones,
            replication_factor: self.replication_factor,
            num_shards: self.num_shards,
            headroom: self.headroom as f64 / 100.0,
            write_rate: self.write_rate,
        })
    }

    fn amount(&self) -> Result<Amount, Usage> {
        let key = self.key_size.unwrap_or(KEY_BYTES_ASSUMED);
        let like_each_other = self.value_size.map(|value| (key, value));
        let item = like_each_other.map_or(ITEM_BYTES_ASSUMED, |(key, value)| key + value);
        let (data_bytes, items) = match (self.data, self.items, self.value_size) {
            (Some(_), Some(_), Some(_)) => {
                return Err(Usage("give two of --data, --items and --value-size".to_owned()));
            }
            (Some(data), Some(items), None) => (data, items),
            (Some(data), None, _) => (data, (data / item).max(1)),
            (None, Some(items), Some(_)) => (items.saturating_mul(item), items),
            (None, _, _) => {
                return Err(Usage("say how much there is, as in --data 100GB".to_owned()));
            }
        };
        let (key_max, value_max) = plan::largest();
        let (key, value) = like_each_other.unwrap_or((0, data_bytes / items));
        if data_bytes > SIZE_BYTES_MAX {
            return Err(Usage(format!("{} is more than can be meant", si(data_bytes))));
        }
        if data_bytes < items {
            return Err(Usage(format!("{data_bytes} bytes cannot be {items} items")));
        }
        if key > key_max || value > value_max {
            return Err(Usage(format!(
                "a key of {key} bytes with a value of {value} cannot be kept: at most {key_max} and {value_max}"
            )));
        }
        Ok(Amount { data_bytes, items, like_each_other })
    }
}

fn si(bytes: u64) -> String {
    ByteSize::b(bytes).display().si().to_string()
}

fn in_words(answer: &Answer, is_guess: bool) -> String {
    let Answer { nodes, copies, node, num_shards, .. } = answer;
    let mut text = String::new();
    let mut line = |name: &str, words: String| {
        writeln!(text, "{name:<17}{words}").expect("a String takes all");
    };
    let (data, even) = (si(answer.data_bytes), si(answer.even_data_bytes));
    let guess = if is_guess { ", a guess: --items or --value-size says better" } else { "" };
    line("data", format!("{data} in {} items{guess}", answer.items));
    line(
        "plain share",
        format!("{even} for each node: {data} x {} / {nodes}", counted(*copies, "copy", "copies")),
    );
    line(
        "each node keeps",
        format!(
            "{}, with {} more for each item; {} of {num_shards} shards",
            si(node.used_bytes),
            si(answer.item_overhead_bytes),
            node.shards,
        ),
    );
    if node.recent_records_bytes > 0 {
        let records = si(node.recent_records_bytes);
        line("recent records", format!("up to {records}, for nodes that fall a little behind"));
    }
    for loss in &answer.losses {
        line(&format!("one {} gone", loss.of), after(loss, *num_shards));
    }
    line("max_memory_mb", set(answer));
    line("machine", format!("at least {} of memory", si(node.machine_bytes)));
    line("disk", format!("at least {}", si(node.disk_bytes)));
    if let Some(writes) = &answer.writes {
        let day = writes.disk_bytes.saturating_mul(24 * 60 * 60);
        line(
            "disk writes",
            format!(
                "{} a second to the log, with snapshots up to {}, {} a day",
                si(writes.log_bytes),
                si(writes.disk_bytes),
                si(day)
            ),
        );
        if *nodes > 1 {
            line("network", format!("up to {} a second to other nodes", si(writes.network_bytes)));
        }
    }
    text
}

fn set(answer: &Answer) -> String {
    let max_memory = answer.node.max_memory_mb << 20;
    let used = answer.node.used_bytes + answer.node.recent_records_bytes;
    let free = 100.0 - used as f64 * 100.0 / max_memory as f64;
    format!("{}, that is {}, {free:.0}% of it free", answer.node.max_memory_mb, si(max_memory))
}

fn after(loss: &Loss, num_shards: u16) -> String {
    let used = si(loss.used_bytes);
    match loss.nodes_left {
        0 => "nothing is left".to_owned(),
        left if loss.shards_stopped > 0 => format!(
            "{} of {num_shards} shards take no writes; {} left",
            loss.shards_stopped,
            counted(left, "node is", "nodes are"),
        ),
        left => format!(
            "all shards take writes; up to {used} on each of {}",
            counted(left, "node", "nodes")
        ),
    }
}

fn counted(number: u64, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

fn parse_size(text: &str) -> Result<u64, String> {
    let bits = text.ends_with('b') && text.contains(|c: char| c.is_ascii_uppercase());
    if bits {
        return Err("a small b behind a capital letter reads as bits; write GB or GiB".to_owned());
    }
    match text.trim().parse::<ByteSize>() {
        Ok(ByteSize(0)) => Err("it must be above 0".to_owned()),
        Ok(ByteSize(bytes)) if bytes > SIZE_BYTES_MAX => Err("it is above 1 EB".to_owned()),
        Ok(ByteSize(bytes)) => Ok(bytes),
        Err(_) => Err("write a number and a unit, as in 600B, 100GB or 64GiB".to_owned()),
    }
}

fn parse_count(text: &str) -> Result<u64, String> {
    let (digits, factor) = match text.as_bytes().last() {
        Some(b'k' | b'K') => (&text[..text.len() - 1], 1000),
        Some(b'M') => (&text[..text.len() - 1], 1_000_000),
        Some(b'G') => (&text[..text.len() - 1], 1_000_000_000),
        _ => (text, 1),
    };
    let count = digits.parse::<u64>().ok().and_then(|count| count.checked_mul(factor));
    match count {
        Some(0) => Err("it must be above 0".to_owned()),
        Some(count) => Ok(count),
        None => Err("write a whole number, as in 2000000, 2000k, 2M or 2G".to_owned()),
    }
}

fn parse_headroom(text: &str) -> Result<u64, String> {
    let number = text.strip_suffix('%').unwrap_or(text).parse::<u64>();
    let percent = number.ok().filter(|percent| *percent <= 90);
    percent.ok_or_else(|| "write per cent, 0 to 90, as in 20".to_owned())
}
