//! One of three nodes under a stranger's attack: no member is taken for silent.

use std::fs;
use std::io;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::net::UdpSocket;

use crate::clients::{continuations, head_of_references, into_no_window};
use crate::harness::{Attacker, Victim, attack, carry_out, fetch};
use crate::operations::{in_a_loop, silent};

/// Longest wait for a member to be suspected that is.
const PATIENCE: Duration = Duration::from_secs(20);

/// Datagrams that a stranger sends at once.
const DATAGRAMS: usize = 64;

/// Lines in which nodes said of members that these are silent.
fn suspicions(victims: &[Victim]) -> Vec<String> {
    let logs = victims.iter().map(|victim| fs::read_to_string(victim.stderr()).unwrap());
    let said = |line: &&str| line.contains("is suspected") || line.contains("seems dead");
    logs.flat_map(|log| log.lines().filter(said).map(str::to_owned).collect::<Vec<_>>()).collect()
}

/// How each node sees each member.
fn seen(victims: &[Victim]) -> Vec<String> {
    let views = victims.iter().map(|victim| fetch(&victim.ops, "GET /cluster", "").unwrap().1);
    let members = views.flat_map(|view| {
        let view: Value = serde_json::from_str(&view).unwrap();
        view["members"].as_array().unwrap().clone()
    });
    members.map(|member| member["status"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn nobody_is_suspected() {
    let settings =
        json!({ "gossip_interval": "200ms", "suspect_timeout": "2s", "dead_timeout": "4s" });
    let mut victims = Victim::start_three(&settings);
    let Victim { client, gossip, ops, .. } = &victims[0];
    let (client, gossip, ops) = (client.clone(), gossip.clone(), ops.clone());
    let attacks = [
        (
            &client,
            attack("401 into no window", 400, |a| {
                Box::pin(into_no_window(a, "/v1/kv/attack", None))
            }),
        ),
        (&client, attack("heads of references", 100, |a| Box::pin(head_of_references(a)))),
        (&client, attack("empty CONTINUATION", 4, |a| Box::pin(continuations(a)))),
        (&ops, attack("1000 silent", 1000, |a| Box::pin(silent(a)))),
        (&ops, attack("/metrics in 1000 loops", 1000, |a| Box::pin(in_a_loop(a, "GET /metrics")))),
        (&gossip, attack("connections between nodes", 500, |a| Box::pin(silent(a)))),
        (&gossip, attack("datagrams", 4, |a| Box::pin(datagrams(a)))),
    ];
    for (addr, attack) in attacks {
        carry_out(&mut victims[0], addr, &attack);
        assert!(victims[0].is_alive(), "{}: it ended:\n{}", attack.name, victims[0].log());
        assert_eq!(suspicions(&victims), [""; 0], "{}", attack.name);
        assert_eq!(seen(&victims), ["alive"; 9], "{}", attack.name);
    }
    // And one that is silent would have been.
    victims[2].signal("STOP");
    let began = Instant::now();
    while suspicions(&victims).is_empty() {
        assert!(began.elapsed() < PATIENCE, "a node that stands still is suspected");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// What is none of theirs, of every length.
async fn datagrams(a: Attacker) -> io::Result<()> {
    let socket = UdpSocket::bind("127.0.0.1:0").await?;
    socket.connect(&a.addr).await?;
    let bytes = [0x5a; 1400];
    loop {
        for n in 0..DATAGRAMS {
            socket.send(&bytes[..n * bytes.len() / DATAGRAMS]).await?;
        }
        tokio::task::yield_now().await;
    }
}
