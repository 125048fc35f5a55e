use std::os::unix::fs::FileExt;

use openraft::StorageError;
use openraft::testing::{StoreBuilder, Suite};
use tempfile::TempDir;

use super::*;
use crate::consensus::log::Log;
use crate::consensus::machine::Machine;
use crate::consensus::{Types, Vote};

// openraft's suite makes nodes of numbers.
impl From<u64> for NodeId {
    fn from(id: u64) -> Self {
        Self(id)
    }
}

const ME: NodeId = NodeId(3);

struct Files;

struct Open(
    Arc<Store>,
    #[expect(dead_code, reason = "removes the directory when dropped")] TempDir,
);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl StoreBuilder<Types, Log, Machine, Open> for Files {
    async fn build(&self) -> Result<(Open, Log, Machine), StorageError<NodeId>> {
        let dir = TempDir::new().unwrap();
        let store = Store::open(&dir.path().join("topology.redb"), ME, true).unwrap();
        let machine = Machine::load(Arc::clone(&store)).unwrap();
        Ok((Open(Arc::clone(&store), dir), Log(store), machine))
    }
}

#[test]
fn openraft_finds_log_and_state_machine_as_it_needs_them() {
    Suite::test_all(Files).unwrap();
}

fn write(store: &Store, write: Write) -> Result<(), Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(store.write(write))
}

fn append(store: &Store, indices: std::ops::RangeInclusive<u64>) {
    let entries = indices.map(|index| (index, encode(&format!("entry {index}")))).collect();
    write(store, Write::Append(entries)).unwrap();
}

fn entries(store: &Store, range: impl RangeBounds<u64>) -> Vec<String> {
    store.entries(range, usize::MAX).unwrap()
}

/// What is on the disk at this moment, as after a kill.
fn image(path: &Path) -> PathBuf {
    let image = path.with_extension("image");
    fs::copy(path, &image).unwrap();
    image
}

#[test]
fn what_was_answered_outlives_a_kill() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("topology.redb");
    let store = Store::open(&path, ME, true).unwrap();
    append(&store, 0..=5);
    write(&store, Write::Truncate(4)).unwrap();
    write(&store, Write::Purge(1, encode(&1_u64))).unwrap();
    let vote = Vote::new(7, NodeId(2));
    write(&store, Write::Put(vec![(Key::Vote, encode(&vote))])).unwrap();

    let again = Store::open(&image(&path), ME, true).unwrap();
    assert_eq!(entries(&again, ..), ["entry 2", "entry 3"]);
    assert_eq!(again.last_index().unwrap(), Some(3));
    assert_eq!(again.get::<u64>(Key::Purged).unwrap(), Some(1));
    assert_eq!(again.get::<Vote>(Key::Vote).unwrap(), Some(vote));
    again.close();
    store.close();
}

#[test]
fn what_is_noted_as_committed_is_written_soon_and_when_closing() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("topology.redb");
    let store = Store::open(&path, ME, true).unwrap();
    store.note_committed(encode(&4_u64));
    assert_eq!(store.committed::<u64>().unwrap(), Some(4));
    store.note_committed(encode(&5_u64));
    store.close();
    let store = Store::open(&path, ME, true).unwrap();
    assert_eq!(store.committed::<u64>().unwrap(), Some(5));
    store.note_committed(encode(&6_u64));
    // With the next write it is there too.
    append(&store, 0..=0);
    let again = Store::open(&image(&path), ME, true).unwrap();
    assert_eq!(again.committed::<u64>().unwrap(), Some(6));
    again.close();
    store.close();
}

#[test]
fn a_message_takes_as_many_entries_as_fit_and_one_at_least() {
    let dir = TempDir::new().unwrap();
    let store = Store::open(&dir.path().join("topology.redb"), ME, true).unwrap();
    append(&store, 0..=4);
    // Each has 4 bytes of checksum, 1 of length, 7 of text.
    let fitting = |bytes_max| store.entries::<String>(1..4, bytes_max).unwrap().len();
    assert_eq!([fitting(1), fitting(23), fitting(24), fitting(99)], [1, 1, 2, 3]);
    assert_eq!(entries(&store, 4..4), Vec::<String>::new());
    #[expect(clippy::reversed_empty_ranges, reason = "somebody may ask")]
    let reversed = 4..2;
    assert_eq!(entries(&store, reversed), Vec::<String>::new());
    store.close();
}

#[test]
fn the_log_is_measured_until_a_snapshot_is_made() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("topology.redb");
    let store = Store::open(&path, ME, true).unwrap();
    append(&store, 0..=1);
    assert_eq!(store.log_bytes(), 16);
    write(&store, Write::Put(vec![(Key::Snapshot, vec![1])])).unwrap();
    assert_eq!(store.log_bytes(), 0);
    store.close();
}

#[test]
fn a_file_that_is_no_topology_is_refused_with_the_way_out() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("topology.redb");
    let refused = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        Store::open(&path, ME, true).unwrap_err().to_string()
    };
    for error in [refused(b"no database"), refused(&[0; 100_000]), refused(b"")] {
        assert!(error.contains("topology.redb cannot be used"), "{error}");
        assert!(error.contains("move the data directory aside"), "{error}");
    }

    fs::remove_file(&path).unwrap();
    let error = Store::open(&path, ME, false).unwrap_err();
    assert!(matches!(error, Error::Damaged { damage: Damage::Missing, .. }), "{error:?}");
    Database::create(&path).unwrap().close().unwrap();
    let error = Store::open(&path, ME, true).unwrap_err();
    assert!(matches!(error, Error::Damaged { damage: Damage::Foreign, .. }), "{error:?}");
}

#[test]
fn the_file_of_another_node_or_of_a_newer_version_is_refused() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("topology.redb");
    let store = Store::open(&path, ME, true).unwrap();
    let error = Store::open(&path, ME, true).unwrap_err();
    assert!(matches!(error, Error::InUse { .. }), "{error:?}");
    write(&store, Write::Put(vec![(Key::Node, encode(&NodeId(8)))])).unwrap();
    store.close();
    let error = Store::open(&path, ME, true).unwrap_err().to_string();
    assert!(error.contains("is node 8's, and this is node 3"), "{error}");

    let store = Store::open(&path, NodeId(8), true).unwrap();
    write(&store, Write::Put(vec![(Key::Format, encode(&2_u32))])).unwrap();
    store.close();
    let error = Store::open(&path, NodeId(8), true).unwrap_err().to_string();
    assert!(error.contains("has format 2, this aegiskv reads up to 1"), "{error}");
}

#[test]
fn a_flipped_bit_is_noticed_or_harmless_but_never_a_panic() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("topology.redb");
    let store = Store::open(&path, ME, true).unwrap();
    append(&store, 0..=20);
    store.close();
    let sound = fs::read(&path).unwrap();
    let places: Vec<usize> = (0..sound.len()).step_by(487).chain(0..16).collect();
    let mut noticed = 0;
    for place in places {
        fs::write(&path, &sound).unwrap();
        let file = fs::File::options().write(true).open(&path).unwrap();
        file.write_all_at(&[sound[place] ^ 0x10], place as u64).unwrap();
        drop(file);
        match Store::open(&path, ME, true) {
            Ok(store) => {
                let found = store.entries::<String>(.., usize::MAX);
                store.close();
                let found = found.unwrap_or_else(|e| panic!("opened, yet {place}: {e}"));
                assert_eq!(found.len(), 21, "at {place}");
            }
            Err(Error::Damaged { .. }) => noticed += 1,
            Err(error) => panic!("at {place}: {error:?}"),
        }
    }
    assert!(noticed > 10, "only {noticed} were noticed: are the bits flipped?");
}

#[test]
fn after_a_failed_write_nothing_is_written_and_everybody_is_told() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("topology.redb");
    let store = Store::open(&path, ME, true).unwrap();
    let failure = store.failure();
    append(&store, 0..=0);
    assert!(failure.borrow().is_none());
    // As the disk would: the file is gone from under the store.
    let database = store.lose_file().unwrap();
    assert!(write(&store, Write::Truncate(0)).is_err());
    assert!(failure.borrow().is_some());
    *store.database.write() = Some(database);
    assert!(write(&store, Write::Truncate(0)).is_err(), "nothing is tried again");
    assert_eq!(entries(&store, ..), ["entry 0"]);
    store.close();
}

#[test]
fn writes_at_once_share_a_transaction() {
    let dir = TempDir::new().unwrap();
    let store = Store::open(&dir.path().join("topology.redb"), ME, true).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let one = |index: u64| store.write(Write::Append(vec![(index, encode(&"x"))]));
        let results = futures_util::future::join_all((0..50).map(one)).await;
        assert!(results.into_iter().all(|result| result.is_ok()));
    });
    assert_eq!(entries(&store, ..).len(), 50);
    store.close();
}
