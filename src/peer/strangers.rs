//! Connections that have not introduced themselves yet: a bounded number.
//!
//! When one too many comes, the oldest is cut off: whoever means well is through in a moment, and
//! whoever only holds places loses them.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::task::AbortHandle;

/// Most of them at a time.
pub(super) const STRANGERS_MAX: usize = 256;

/// The connections that have not introduced themselves.
#[derive(Debug, Default)]
pub(super) struct Strangers(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    next: u64,
    tasks: BTreeMap<u64, (IpAddr, AbortHandle)>,
}

/// One of them, until it is dropped.
#[derive(Debug)]
pub(super) struct Stranger {
    strangers: Arc<Strangers>,
    number: u64,
}

impl Drop for Stranger {
    fn drop(&mut self) {
        self.strangers.0.lock().tasks.remove(&self.number);
    }
}

impl Strangers {
    /// Takes in a connection from `address`, whose task `spawn` starts. Where the one came from
    /// that was cut off for it, if one was.
    pub(super) fn enter(
        self: &Arc<Self>,
        address: IpAddr,
        spawn: impl FnOnce(Stranger) -> AbortHandle,
    ) -> Option<IpAddr> {
        let mut table = self.0.lock();
        let oldest = match table.tasks.len() >= STRANGERS_MAX {
            true => table.tasks.pop_first(),
            false => None,
        };
        let number = table.next;
        table.next += 1;
        // Under the lock: the task cannot leave before it is entered.
        let task = spawn(Stranger { strangers: Arc::clone(self), number });
        table.tasks.insert(number, (address, task));
        drop(table);
        oldest.map(|(_, (address, task))| {
            task.abort();
            address
        })
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[tokio::test]
    async fn the_oldest_makes_room_for_one_too_many() {
        let strangers = Arc::<Strangers>::default();
        let mut tasks = Vec::new();
        let mut cut_off = Vec::new();
        for n in 0..258_u16 {
            let [high, low] = n.to_be_bytes();
            let address = IpAddr::V4(Ipv4Addr::new(10, 0, high, low));
            cut_off.extend(strangers.enter(address, |stranger| {
                let task = tokio::spawn(async move {
                    let _stranger = stranger;
                    std::future::pending::<()>().await;
                });
                let handle = task.abort_handle();
                tasks.push(task);
                handle
            }));
        }
        let addresses: [IpAddr; 2] = [[10, 0, 0, 0].into(), [10, 0, 0, 1].into()];
        assert_eq!(cut_off, addresses);
        let ended = tasks.remove(0).await.unwrap_err();
        assert!(ended.is_cancelled());
        assert_eq!(strangers.0.lock().tasks.len(), 256);
    }

    #[tokio::test]
    async fn who_has_introduced_itself_is_no_stranger_any_more() {
        let strangers = Arc::<Strangers>::default();
        let address = IpAddr::V4(Ipv4Addr::LOCALHOST);
        strangers
            .enter(address, |stranger| tokio::spawn(async move { drop(stranger) }).abort_handle());
        while !strangers.0.lock().tasks.is_empty() {
            tokio::task::yield_now().await;
        }
    }
}
