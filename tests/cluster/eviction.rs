//! More is written than memory holds: old entries make room on every node, and copies stay equal.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use serde_json::json;

use crate::support::{Cluster, PATIENCE, eventually};

const MB: u64 = 1 << 20;

/// Bytes of one value.
const VALUE_BYTES: usize = 16 << 10;

/// Writes under way at a time.
const WRITERS: usize = 8;

/// What a copy may hold beyond its limit, for what is on its way when it says that it is full.
const OVER_MAX: u64 = 2 * MB;

/// The bytes that a node holds, and how many it may.
async fn held(http: &reqwest::Client, url: &str) -> Option<(u64, u64)> {
    let text = http.get(url).send().await.ok()?.text().await.ok()?;
    let metric = |name: &str| {
        let line = text.lines().find(|line| line.split([' ', '{']).next() == Some(name))?;
        line.rsplit(' ').next()?.parse::<f64>().ok().map(|value| value as u64)
    };
    Some((metric("aegis_cache_size_bytes")?, metric("aegis_cache_max_bytes")?))
}

/// Writes three times what the largest node holds, and sees that none is over its limit.
async fn memory_is_kept(cluster: &Cluster, total: u64) {
    let over = Arc::new(AtomicBool::new(false));
    let urls: Vec<String> = cluster.nodes.iter().map(|node| node.ops_url("/metrics")).collect();
    let watching = {
        let (http, over) = (cluster.http.clone(), over.clone());
        tokio::spawn(async move {
            let mut most = vec![(0, 0); urls.len()];
            loop {
                for (url, most) in urls.iter().zip(&mut most) {
                    if let Some(held) = held(&http, url).await {
                        *most = held.max(*most);
                    }
                }
                if over.load(Ordering::Relaxed) {
                    return most;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
    };
    let value = "x".repeat(VALUE_BYTES);
    let count = usize::try_from(total).unwrap() / VALUE_BYTES;
    let writes = (0..count).map(|n| {
        let value = &value;
        async move {
            let answer = cluster.put(n % 3, &format!("k{n}"), value).await;
            let status = answer.status().as_u16();
            assert_eq!(status, 201, "k{n}: {}", answer.text().await.unwrap());
        }
    });
    futures_util::stream::iter(writes).buffer_unordered(WRITERS).collect::<()>().await;
    eventually("old entries have made room", PATIENCE, async || {
        for node in &cluster.nodes {
            let (used, limit) = held(&cluster.http, &node.ops_url("/metrics")).await.unwrap();
            // The mark at which eviction begins, and ends.
            if used * 10 > limit * 9 {
                return Err(format!("{}: {used} of {limit} bytes", node.name));
            }
        }
        Ok(())
    })
    .await;
    over.store(true, Ordering::Relaxed);
    let most = watching.await.unwrap();
    for (node, (used, limit)) in cluster.nodes.iter().zip(&most) {
        println!("{}: {:.1} MB at most, of {:.1}", node.name, mb(*used), mb(*limit));
    }
    for (used, limit) in most {
        assert!(used <= limit + OVER_MAX, "{used} of {limit}");
    }
    cluster.wait_equal(PATIENCE).await;
    let kept = cluster.dump(0).await.len();
    println!("{count} written, {kept} kept");
    assert!(kept * VALUE_BYTES > 4 * MB as usize, "{kept} of {count} kept");
}

fn mb(bytes: u64) -> f64 {
    bytes as f64 / MB as f64
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_entries_make_room_on_every_node() {
    let cluster = Cluster::start(3, json!({ "max_memory_mb": 16 })).await;
    memory_is_kept(&cluster, 48 * MB).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_smallest_node_counts() {
    let mut cluster = Cluster::lay_out(3, json!({ "max_memory_mb": 32 })).await;
    cluster.nodes[2].set(&json!({ "max_memory_mb": 16 }));
    cluster.nodes.iter_mut().for_each(crate::support::Node::spawn);
    cluster.wait_ready().await;
    cluster.wait_healthy(PATIENCE).await;
    memory_is_kept(&cluster, 48 * MB).await;
}
