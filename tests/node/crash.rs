//! SIGKILL under a load of writes: whatever was acknowledged is there in the next life.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::json;

use crate::support::{Home, Node, http};

const LIVES: usize = 50;
const WRITERS: u64 = 8;
const KEYS_PER_WRITER: u64 = 50;

/// What one key may hold: what was acknowledged last, or what was asked for since.
#[derive(Clone, Debug, Default)]
struct Expected {
    acknowledged: Option<u64>,
    asked: Vec<Option<u64>>,
}

impl Expected {
    fn allows(&self, seen: Option<u64>) -> bool {
        seen == self.acknowledged || self.asked.contains(&seen)
    }
}

#[derive(Default)]
struct Writer {
    keys: BTreeMap<String, Expected>,
    next: u64,
    increments_acknowledged: u64,
    increments_asked: u64,
}

impl Writer {
    /// Writes until the node is gone: mostly PUT, sometimes DELETE, and one counter.
    async fn write_until_killed(&mut self, id: u64, node_url: String) {
        let http = http();
        loop {
            self.next += 1;
            let n = self.next;
            if n.is_multiple_of(5) {
                self.increments_asked += 1;
                let url = format!("{node_url}counter:{id}?op=incr");
                match http.post(url).send().await {
                    Ok(answer) if answer.status() == 200 => self.increments_acknowledged += 1,
                    Ok(answer) => panic!("incr: {}", answer.status()),
                    Err(_) => return,
                }
                continue;
            }
            let key = format!("w{id}:{}", n % KEYS_PER_WRITER);
            let url = format!("{node_url}{key}");
            let (value, request) = if n.is_multiple_of(7) {
                (None, http.delete(url))
            } else {
                (Some(n), http.put(url).body(format!("{n}:{}", "x".repeat(n as usize % 300))))
            };
            let expected = self.keys.entry(key).or_default();
            expected.asked.push(value);
            match request.send().await {
                Ok(answer) => {
                    assert!(answer.status().is_success(), "{}", answer.status());
                    *expected = Expected { acknowledged: value, asked: Vec::new() };
                }
                Err(_) => return,
            }
        }
    }

    /// Compares all of this writer's keys with what the node has, and goes on from there.
    async fn check(&mut self, id: u64, node: &Node) -> usize {
        let http = http();
        for (key, expected) in &mut self.keys {
            let answer = http.get(node.url(key)).send().await.unwrap();
            let seen = match answer.status().as_u16() {
                404 => None,
                200 => {
                    let body = answer.text().await.unwrap();
                    let (n, padding) = body.split_once(':').unwrap();
                    let n: u64 = n.parse().unwrap();
                    assert_eq!(padding.len() as u64, n % 300, "{key}: a mangled value");
                    Some(n)
                }
                other => panic!("{key}: {other}"),
            };
            assert!(expected.allows(seen), "{key}: saw {seen:?}, expected {expected:?}");
            *expected = Expected { acknowledged: seen, asked: Vec::new() };
        }
        let answer = http.get(node.url(&format!("counter:{id}"))).send().await.unwrap();
        if answer.status() == 200 {
            let sum: u64 = answer.text().await.unwrap().parse().unwrap();
            assert!(
                (self.increments_acknowledged..=self.increments_asked).contains(&sum),
                "counter {id}: {sum}, acknowledged {}, asked {}",
                self.increments_acknowledged,
                self.increments_asked
            );
            self.increments_acknowledged = sum;
            self.increments_asked = sum;
        } else {
            assert_eq!(self.increments_acknowledged, 0, "counter {id} is gone");
        }
        self.keys.len()
    }
}

async fn survives_kills(wal_mode: &str) {
    // Small segments, so that rotation and snapshots fall into the load as well.
    let home = Home::new(json!({ "wal_mode": wal_mode, "wal_max_size_mb": 1 }));
    let mut writers: Vec<Writer> = (0..WRITERS).map(|_| Writer::default()).collect();
    for life in 0..LIVES {
        let node = home.start().await;
        let mut checked = 0;
        for (id, writer) in writers.iter_mut().enumerate() {
            checked += writer.check(id as u64, &node).await;
        }
        if life > 0 {
            assert!(checked > 0, "life {life}: nothing was written before the kill");
        }
        let url = node.url("");
        let load: Vec<_> = std::mem::take(&mut writers)
            .into_iter()
            .enumerate()
            .map(|(id, mut writer)| {
                let url = url.clone();
                tokio::spawn(async move {
                    writer.write_until_killed(id as u64, url).await;
                    writer
                })
            })
            .collect();
        tokio::time::sleep(Duration::from_millis(60 + 7 * life as u64)).await;
        node.kill();
        for writer in load {
            writers.push(writer.await.unwrap());
        }
    }
    let node = home.start().await;
    let mut acknowledged = 0;
    for (id, writer) in writers.iter_mut().enumerate() {
        writer.check(id as u64, &node).await;
        acknowledged += writer.next;
    }
    println!("{wal_mode}: {LIVES} kills, {acknowledged} writes asked for, nothing lost");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sync_loses_nothing_over_fifty_kills() {
    survives_kills("sync").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn async_loses_nothing_over_fifty_kills_of_the_process() {
    survives_kills("async").await;
}
