//! A network of the test's own, which it can cut: a namespace for each node, and a switch between.
//!
//! The test has one leg in it, and reaches every node however they are cut off from each other.
//! Dropped, everything is gone; what a killed test left behind goes when the next one begins.

use std::collections::BTreeSet;
use std::io::Write;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Mutex;

use nix::unistd::Uid;

use super::losses::{self, Loss, Traffic};

/// Where `ip netns` keeps its namespaces.
const NAMESPACES: &str = "/run/netns";

/// Beginning of the names of all namespaces and links made here; the test's process follows.
const PREFIX: &str = "akv";

/// What a node is cut off from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    /// It neither hears the others nor is heard by them.
    Both,
    /// It does not hear them.
    Hearing,
    /// It is not heard by them.
    Speaking,
}

pub(crate) struct Network {
    tag: String,
    /// Where its addresses are: no other test's that runs now has the same.
    third: u8,
    count: usize,
    losses: Mutex<BTreeSet<Loss>>,
}

impl Network {
    /// A network for `count` nodes. `None`, and a line that says why, where that cannot be.
    pub(crate) fn for_test(test: &str, count: usize) -> Option<Self> {
        let network = Self::check().and_then(|()| Self::new(count));
        network.inspect_err(|reason| println!("SKIP {test}: {reason}")).ok()
    }

    fn check() -> Result<(), String> {
        if !Uid::effective().is_root() {
            return Err("network namespaces need root".to_owned());
        }
        run("ip", &["-V"]).map_err(|_| "there is no `ip` (iproute2)".to_owned())?;
        run("nft", &["--version"]).map_err(|_| "there is no `nft` (nftables)".to_owned())?;
        Ok(())
    }

    fn new(count: usize) -> Result<Self, String> {
        remove_left_overs();
        let tag = format!("{PREFIX}{}", std::process::id());
        // Dropped half way: what there is goes.
        let mut network = Self { tag, third: 0, count, losses: Mutex::default() };
        let switch = network.switch();
        ip(&["netns", "add", &switch])?;
        ip(&["-n", &switch, "link", "add", "br0", "type", "bridge"])?;
        ip(&["-n", &switch, "link", "set", "br0", "up"])?;
        network.third = claim_addresses(&switch)?;
        let leg = leg(network.third);
        ip(&["-n", &switch, "link", "set", "p0", "master", "br0", "up"])?;
        ip(&["addr", "add", &format!("10.77.{}.254/24", network.third), "dev", &leg])?;
        ip(&["link", "set", &leg, "up"])?;
        for index in 0..count {
            let (node, port) = (network.namespace(index), port(index));
            ip(&["netns", "add", &node])?;
            ip(&["-n", &node, "link", "set", "lo", "up"])?;
            let link = ["link", "add", "eth0", "type", "veth", "peer", "name", &port, "netns"];
            ip(&[&["-n", &node][..], &link, &[&switch]].concat())?;
            let addr = format!("{}/24", network.host(index));
            ip(&["-n", &node, "addr", "add", &addr, "dev", "eth0"])?;
            ip(&["-n", &node, "link", "set", "eth0", "up"])?;
            ip(&["-n", &switch, "link", "set", &port, "master", "br0", "up"])?;
        }
        Ok(network)
    }

    pub(crate) fn subnet(&self) -> [u8; 3] {
        [10, 77, self.third]
    }

    fn host(&self, index: usize) -> Ipv4Addr {
        let [a, b, c] = self.subnet();
        Ipv4Addr::new(a, b, c, u8::try_from(index + 1).unwrap())
    }

    pub(crate) fn namespace(&self, index: usize) -> String {
        format!("{}-{}", self.tag, index + 1)
    }

    fn switch(&self) -> String {
        format!("{}-sw", self.tag)
    }

    /// Pulls a node's cable: nobody reaches it, nor it them.
    pub(crate) fn unplug(&self, index: usize) {
        ip(&["-n", &self.switch(), "link", "set", &port(index), "down"]).unwrap();
    }

    /// Puts it back.
    pub(crate) fn plug(&self, index: usize) {
        ip(&["-n", &self.switch(), "link", "set", &port(index), "up"]).unwrap();
    }

    /// Cuts a node off from the other nodes; the test still reaches it.
    pub(crate) fn cut(&self, index: usize, cut: Cut) {
        let others: Vec<usize> = (0..self.count).filter(|other| *other != index).collect();
        self.cut_from(index, &others, cut);
    }

    /// Cuts a node off from some of the other nodes.
    pub(crate) fn cut_from(&self, index: usize, others: &[usize], cut: Cut) {
        let others = others.iter().copied();
        let hearing = others.clone().map(|other| Loss::of(Traffic::Any, other, index));
        let speaking = others.map(|other| Loss::of(Traffic::Any, index, other));
        match cut {
            Cut::Both => self.lose(hearing.chain(speaking)),
            Cut::Hearing => self.lose(hearing),
            Cut::Speaking => self.lose(speaking),
        }
    }

    /// Loses nothing any more of what a node says or is told.
    pub(crate) fn heal(&self, index: usize) {
        self.change(|losses| losses.retain(|loss| !loss.touches(index)));
    }

    /// Loses this from now on, beside what it loses already.
    pub(crate) fn lose(&self, more: impl IntoIterator<Item = Loss>) {
        self.change(|losses| losses.extend(more));
    }

    /// Loses nothing any more.
    pub(crate) fn mend(&self) {
        self.change(BTreeSet::clear);
    }

    /// Packets lost since it was last told what to lose.
    pub(crate) fn lost(&self) -> u64 {
        let list = ["nft", "list", "table", "bridge", "losses"];
        let switch = self.switch();
        losses::lost(&run("ip", &[&["netns", "exec", &switch][..], &list].concat()).unwrap())
    }

    fn change(&self, change: impl FnOnce(&mut BTreeSet<Loss>)) {
        let mut losses = self.losses.lock().unwrap();
        change(&mut losses);
        nft(&self.switch(), &losses::rules(&losses, port));
    }

    /// Gives a node another address in the place of the one that it has.
    pub(crate) fn readdress(&self, index: usize, from: Ipv4Addr, to: Ipv4Addr) {
        let namespace = self.namespace(index);
        for (change, host) in [("del", from), ("add", to)] {
            ip(&["-n", &namespace, "addr", change, &format!("{host}/24"), "dev", "eth0"]).unwrap();
        }
    }

    /// Whether a client in a node's namespace gets an answer from an address.
    pub(crate) fn reaches(&self, index: usize, client_addr: &str) -> bool {
        let (namespace, binary) = (self.namespace(index), env!("CARGO_BIN_EXE_aegiskv"));
        let call = ["netns", "exec", &namespace, binary, "list", "--timeout", "300ms", "--addr"];
        ip(&[&call[..], &[client_addr]].concat()).is_ok()
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // It goes with its other end, but not before the kernel has the time.
        let _ = ip(&["link", "del", &leg(self.third)]);
        remove(&self.tag);
    }
}

/// The switch's port for a node.
fn port(index: usize) -> String {
    format!("p{}", index + 1)
}

/// The test's own leg in a network.
fn leg(third: u8) -> String {
    format!("{PREFIX}-leg{third}")
}

/// Makes the link between the test and a switch, whose name claims the addresses that go with it:
/// tests may run side by side.
fn claim_addresses(switch: &str) -> Result<u8, String> {
    let mut refusal = String::new();
    for step in 0..250 {
        let third = ((std::process::id() + step) % 250) as u8 + 1;
        let link = ["link", "add", &leg(third), "type", "veth", "peer", "name", "p0"];
        match ip(&[&link[..], &["netns", switch]].concat()) {
            Ok(()) => return Ok(third),
            Err(error) => refusal = error,
        }
    }
    Err(refusal)
}

fn nft(namespace: &str, rules: &str) {
    let mut child = Command::new("ip")
        .args(["netns", "exec", namespace, "nft", "-f", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(rules.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "nft refused:\n{rules}");
}

/// Removes the namespaces of a test, and with them every link that has an end in one.
fn remove(tag: &str) {
    for name in namespaces() {
        if name.strip_prefix(tag).is_some_and(|rest| rest.starts_with('-')) {
            let _ = ip(&["netns", "del", &name]);
        }
    }
}

/// Removes what tests left behind that were killed.
fn remove_left_overs() {
    for name in namespaces() {
        let tag = name.split('-').next().unwrap_or_default();
        let Some(pid) = tag.strip_prefix(PREFIX).filter(|pid| pid.parse::<u32>().is_ok()) else {
            continue;
        };
        if !Path::new("/proc").join(pid).exists() {
            remove(tag);
        }
    }
}

fn namespaces() -> Vec<String> {
    let entries = std::fs::read_dir(NAMESPACES).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

fn ip(arguments: &[&str]) -> Result<(), String> {
    run("ip", arguments).map(drop)
}

/// What a program printed.
fn run(program: &str, arguments: &[&str]) -> Result<String, String> {
    let call = format!("{program} {}", arguments.join(" "));
    let output = Command::new(program).args(arguments).output();
    let output = output.map_err(|error| format!("{call}: {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(format!("{call}: {}", String::from_utf8_lossy(&output.stderr).trim()))
}
