//! Where the rows of a snapshot lie, by row id.
//!
//! In Lance a row has an address, `fragment << 32 | offset`. Row ids ascend along most of a fragment, so the map is a
//! list of runs that ascend together; a fragment is read again only when rows of it were deleted or it is new.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock, Weak};

use arrow_array::cast::AsArray;
use arrow_array::types::UInt64Type;
use futures::{FutureExt, TryStreamExt};
use hypr_common::Result;
use lance::Dataset;
use lance::dataset::scanner::{RowAddrMask, RowAddrTreeMap};
use lance_table::format::Fragment;
use parking_lot::Mutex;

use crate::ROW_ID_COLUMN;
use crate::lance_store::lance_error;
use crate::tail::{Snapshot, is_dead};

/// Rows `first_id .. first_id + len` at `address ..`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    first_id: u64,
    address: u64,
    len: u64,
}

/// The rows of one Lance version.
#[derive(Debug, Default)]
pub(crate) struct RowMap {
    /// Ascending by `first_id`, none overlapping.
    runs: Vec<Run>,
    /// The addresses of all rows, once somebody asks.
    addresses: OnceLock<Arc<RowAddrMask>>,
}

impl RowMap {
    fn addresses(&self) -> Arc<RowAddrMask> {
        let mask = || {
            let mut addresses = RowAddrTreeMap::new();
            for run in &self.runs {
                addresses.insert_range(run.address..run.address + run.len);
            }
            Arc::new(RowAddrMask::from_allowed(addresses))
        };
        Arc::clone(self.addresses.get_or_init(mask))
    }

    fn address(&self, id: u64) -> Option<u64> {
        let run = self.runs[..self.runs.partition_point(|run| run.first_id <= id)].last()?;
        (id - run.first_id < run.len).then(|| run.address + (id - run.first_id))
    }
}

/// What tells one state of a fragment from another: its id and that of its deletion file.
type FragmentKey = (u64, Option<u64>);

/// The maps of the newest Lance versions that were asked for.
#[derive(Debug, Default)]
pub(crate) struct RowMaps {
    /// Version and map, newest last.
    maps: Mutex<Vec<(u64, Arc<RowMap>)>>,
    fragments: tokio::sync::Mutex<HashMap<FragmentKey, Arc<Vec<Run>>>>,
    /// Of the snapshot that was asked for last.
    last: Mutex<Option<(Weak<Snapshot>, Arc<PlaceIndex>)>>,
}

/// Versions whose maps are kept: the newest, and one that a statement may still be at.
const KEPT_MAPS: usize = 2;

impl RowMaps {
    fn known(&self, version: u64) -> Option<Arc<RowMap>> {
        self.maps.lock().iter().find(|(other, _)| *other == version).map(|(_, map)| Arc::clone(map))
    }

    /// The map of a version; reads the row ids of fragments that changed since the last one.
    pub(crate) async fn of(&self, dataset: &Dataset) -> Result<Arc<RowMap>> {
        let version = dataset.manifest().version;
        if let Some(map) = self.known(version) {
            return Ok(map);
        }
        let mut fragments = self.fragments.lock().await;
        if let Some(map) = self.known(version) {
            return Ok(map);
        }
        let mut current = HashMap::with_capacity(dataset.fragments().len());
        for fragment in dataset.fragments().iter() {
            let key: FragmentKey = (fragment.id, fragment.deletion_file.as_ref().map(|deletions| deletions.id));
            let runs = match fragments.get(&key) {
                Some(runs) => Arc::clone(runs),
                None => Arc::new(read_runs(dataset, fragment).await?),
            };
            current.insert(key, runs);
        }
        let mut runs: Vec<Run> = current.values().flat_map(|runs| runs.iter().copied()).collect();
        runs.sort_unstable_by_key(|run| run.first_id);
        let map = Arc::new(RowMap { runs, addresses: OnceLock::new() });
        // A version out of the past must not evict what the newest will need.
        if self.maps.lock().last().is_none_or(|(newest, _)| *newest < version) {
            *fragments = current;
        }
        let mut maps = self.maps.lock();
        maps.push((version, Arc::clone(&map)));
        maps.sort_unstable_by_key(|(version, _)| *version);
        if maps.len() > KEPT_MAPS {
            maps.remove(0);
        }
        Ok(map)
    }
}

async fn read_runs(dataset: &Dataset, fragment: &Fragment) -> Result<Vec<Run>> {
    let failed = |e| lance_error("reading row ids", e);
    let mut scanner = dataset.scan();
    scanner.project(&[ROW_ID_COLUMN]).map_err(failed)?.with_row_address().with_fragments(vec![fragment.clone()]);
    let mut stream = scanner.try_into_stream().boxed().await.map_err(failed)?;
    let mut runs: Vec<Run> = Vec::new();
    while let Some(batch) = stream.try_next().await.map_err(failed)? {
        let ids = batch.column(0).as_primitive::<UInt64Type>();
        let addresses = batch.column(1).as_primitive::<UInt64Type>();
        for (&id, &address) in ids.values().iter().zip(addresses.values()) {
            match runs.last_mut() {
                Some(run) if run.first_id + run.len == id && run.address + run.len == address => run.len += 1,
                _ => runs.push(Run { first_id: id, address, len: 1 }),
            }
        }
    }
    Ok(runs)
}

/// Where a row lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Row address in the snapshot's Lance version.
    Lance(u64),
    /// Row `row` of batch `batch` of the snapshot's tail.
    Tail { batch: usize, row: usize },
}

/// What finds the rows of one snapshot.
#[derive(Debug)]
struct PlaceIndex {
    lance: Option<Arc<RowMap>>,
    /// The addresses of rows in Lance that are not dead, once somebody asks.
    live: OnceLock<Arc<RowAddrMask>>,
}

/// The rows of one snapshot.
#[derive(Clone, Debug)]
pub(crate) struct Places {
    snapshot: Arc<Snapshot>,
    index: Arc<PlaceIndex>,
}

impl Places {
    pub(crate) async fn of(snapshot: &Arc<Snapshot>, maps: &RowMaps) -> Result<Self> {
        let known = maps
            .last
            .lock()
            .as_ref()
            .and_then(|(of, index)| std::ptr::eq(of.as_ptr(), Arc::as_ptr(snapshot)).then(|| Arc::clone(index)));
        if let Some(index) = known {
            return Ok(Self { snapshot: Arc::clone(snapshot), index });
        }
        let lance = match &snapshot.dataset {
            Some(dataset) => Some(maps.of(dataset).await?),
            None => None,
        };
        let index = Arc::new(PlaceIndex { lance, live: OnceLock::new() });
        // The weak reference keeps the address from being used again.
        *maps.last.lock() = Some((Arc::downgrade(snapshot), Arc::clone(&index)));
        Ok(Self { snapshot: Arc::clone(snapshot), index })
    }

    /// The addresses in Lance of the rows that the snapshot has.
    pub(super) fn lance_rows(&self) -> Arc<RowAddrMask> {
        let mask = || {
            let Some(lance) = &self.index.lance else { return Arc::new(RowAddrMask::allow_nothing()) };
            let all = lance.addresses();
            if self.snapshot.dead.is_empty() {
                return all;
            }
            let dead = self.snapshot.dead.iter().flat_map(|ids| ids.iter());
            let dead: RowAddrTreeMap = dead.filter_map(|id| lance.address(*id)).collect();
            Arc::new(RowAddrMask::clone(&all).also_block(dead))
        };
        Arc::clone(self.index.live.get_or_init(mask))
    }

    /// How many rows Lance has, dead ones among them.
    pub(super) fn lance_row_count(&self) -> u64 {
        self.index.lance.iter().flat_map(|lance| &lance.runs).map(|run| run.len).sum()
    }

    /// The addresses in Lance of those rows of `ids` that the snapshot has there, ascending.
    pub(super) fn addresses_of(&self, ids: impl Iterator<Item = u64>) -> Vec<u64> {
        let Some(lance) = &self.index.lance else { return Vec::new() };
        let live = ids.filter(|id| !is_dead(&self.snapshot.dead, *id));
        let mut addresses: Vec<u64> = live.filter_map(|id| lance.address(id)).collect();
        addresses.sort_unstable();
        addresses
    }

    /// Where the snapshot has a row; none when it has not.
    pub(crate) fn find(&self, id: u64) -> Option<Place> {
        if is_dead(&self.snapshot.dead, id) {
            return None;
        }
        if let Some(address) = self.index.lance.as_ref().and_then(|lance| lance.address(id)) {
            return Some(Place::Lance(address));
        }
        self.snapshot.batches.iter().enumerate().find_map(|(at, batch)| {
            let bounds = batch.bounds();
            if !bounds.ids.contains(&id) {
                return None;
            }
            let row = match bounds.ascend {
                true => batch.ids().binary_search(&id).ok()?,
                false => batch.ids().iter().position(|other| *other == id)?,
            };
            Some(Place::Tail { batch: at, row })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_found_in_runs_and_not_between_them() {
        let run = |first_id, address, len| Run { first_id, address, len };
        let map = RowMap { runs: vec![run(3, 1 << 32, 2), run(7, 5, 1)], ..RowMap::default() };
        let found: Vec<_> = (0..10).map(|id| map.address(id)).collect();
        let at = |address: u64| Some(address);
        assert_eq!(found, [None, None, None, at(1 << 32), at(1 << 32 | 1), None, None, at(5), None, None]);
        let mask = map.addresses();
        let selected: Vec<u64> =
            [4, 5, 6, 1 << 32, 1 << 32 | 1, 1 << 32 | 2].into_iter().filter(|a| mask.selected(*a)).collect();
        assert_eq!(selected, [5, 1 << 32, 1 << 32 | 1]);
    }
}
