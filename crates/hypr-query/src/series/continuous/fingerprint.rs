//! Which rows a state of a table has in each bucket, as a sum that is cheap to compare.
//!
//! The fingerprint of a set of row ids is their number and the wrapping sum of their 64-bit hashes, seeded with the
//! table's identity. Sums of disjoint sets add up, so a state's are those of its fragments, plus the tail's, less the
//! dead rows'. Two different sets agree with a probability of 2^-64.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::UInt64Type;
use arrow_array::{Array, RecordBatch};
use hypr_common::{Error, Result};
use hypr_storage::PinnedTable;

use super::shape::{Bucket, Shape};
use crate::error;
use crate::series::time_bucket::bucket_array;
use crate::series::times::steps;

/// A set of rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Fingerprint {
    pub rows: u64,
    pub checksum: u64,
}

impl Fingerprint {
    fn add(&mut self, other: Self) {
        self.rows += other.rows;
        self.checksum = self.checksum.wrapping_add(other.checksum);
    }

    fn remove(&mut self, other: Self) {
        self.rows = self.rows.saturating_sub(other.rows);
        self.checksum = self.checksum.wrapping_sub(other.checksum);
    }
}

/// Every bucket that has rows.
pub(super) type Buckets = BTreeMap<Bucket, Fingerprint>;

/// What fragments hold, and the last state asked for.
#[derive(Debug, Default)]
pub(super) struct PrintCache {
    fragments: HashMap<String, Arc<FragmentPrint>>,
    last: Option<(PinnedTable, Arc<Buckets>)>,
}

impl PrintCache {
    /// The buckets of `base`. Reads two columns of fragments that are new.
    ///
    /// # Errors
    /// Those of reading.
    pub async fn buckets(&mut self, base: &PinnedTable, seed: u128, shape: &Shape) -> Result<Arc<Buckets>> {
        if let Some((last, buckets)) = &self.last
            && last.is_same(base)
        {
            return Ok(Arc::clone(buckets));
        }
        let mut fragments = HashMap::new();
        for (at, name) in base.fragments().into_iter().enumerate() {
            let print = match self.fragments.get(&name) {
                Some(known) => Arc::clone(known),
                None => Arc::new(FragmentPrint::new(&base.fragment_rows(at, &shape.time).await?, seed, shape)?),
            };
            fragments.insert(name, print);
        }
        self.fragments = fragments;
        let mut buckets = Buckets::new();
        for (bucket, print) in self.fragments.values().flat_map(|fragment| &fragment.buckets) {
            buckets.entry(*bucket).or_default().add(*print);
        }
        for (bucket, id) in rows_of(&base.tail_rows(&shape.time)?, shape)? {
            buckets.entry(bucket).or_default().add(print_of(id, seed));
        }
        for id in base.dead() {
            let bucket = self.fragments.values().find_map(|fragment| fragment.bucket_of(id));
            if let Some(print) = bucket.and_then(|bucket| buckets.get_mut(&bucket)) {
                print.remove(print_of(id, seed));
            }
        }
        buckets.retain(|_, print| print.rows > 0);
        let buckets = Arc::new(buckets);
        self.last = Some((base.clone(), Arc::clone(&buckets)));
        Ok(buckets)
    }
}

/// The rows of one fragment.
#[derive(Debug)]
struct FragmentPrint {
    buckets: HashMap<Bucket, Fingerprint>,
    /// By row id: which bucket a dead row was in.
    runs: Vec<Run>,
}

/// Consecutive row ids of one bucket.
#[derive(Debug)]
struct Run {
    first: u64,
    last: u64,
    bucket: Bucket,
}

impl FragmentPrint {
    fn new(batches: &[RecordBatch], seed: u128, shape: &Shape) -> Result<Self> {
        let mut rows = rows_of(batches, shape)?;
        rows.sort_unstable_by_key(|(_, id)| *id);
        let mut buckets: HashMap<Bucket, Fingerprint> = HashMap::new();
        let mut runs: Vec<Run> = Vec::new();
        for (bucket, id) in rows {
            buckets.entry(bucket).or_default().add(print_of(id, seed));
            match runs.last_mut() {
                Some(run) if run.bucket == bucket && run.last + 1 == id => run.last = id,
                _ => runs.push(Run { first: id, last: id, bucket }),
            }
        }
        runs.shrink_to_fit();
        Ok(Self { buckets, runs })
    }

    fn bucket_of(&self, id: u64) -> Option<Bucket> {
        let after = self.runs.partition_point(|run| run.first <= id);
        let run = self.runs.get(after.checked_sub(1)?)?;
        (id <= run.last).then_some(run.bucket)
    }
}

/// The bucket and the id of each row of batches of a time and a row id.
fn rows_of(batches: &[RecordBatch], shape: &Shape) -> Result<Vec<(Bucket, u64)>> {
    let mut rows = Vec::new();
    for batch in batches {
        let starts = bucket_array(&shape.grid, batch.column(0)).and_then(|starts| steps(&starts));
        let starts = starts.map_err(error::from_datafusion)?;
        let Some(ids) = batch.column(1).as_primitive_opt::<UInt64Type>() else {
            return Err(Error::internal("a row id is no number"));
        };
        rows.extend((0..batch.num_rows()).map(|row| (starts.is_valid(row).then(|| starts.value(row)), ids.value(row))));
    }
    Ok(rows)
}

fn print_of(id: u64, seed: u128) -> Fingerprint {
    let (high, low) = ((seed >> 64) as u64, seed as u64);
    Fingerprint { rows: 1, checksum: mix(mix(id ^ high).wrapping_add(low)) }
}

/// The finaliser of SplitMix64 (Steele, Lea, Flood 2014).
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_add_up_and_tell_sets_apart() {
        let sum = |ids: &[u64], seed| {
            ids.iter().fold(Fingerprint::default(), |mut sum, id| {
                sum.add(print_of(*id, seed));
                sum
            })
        };
        assert_eq!(sum(&[1, 2, 3], 7), sum(&[3, 1, 2], 7));
        assert_ne!(sum(&[1, 4], 7), sum(&[2, 3], 7));
        assert_ne!(sum(&[1, 2], 7), sum(&[1, 2], 8));
        let mut rest = sum(&[1, 2, 3], 7);
        rest.remove(print_of(2, 7));
        assert_eq!(rest, sum(&[1, 3], 7));
    }

    #[test]
    fn a_dead_row_is_found_in_the_runs() {
        let run = |first, last, bucket| Run { first, last, bucket };
        let runs = vec![run(3, 5, Some(10)), run(6, 6, None), run(9, 12, Some(20))];
        let print = FragmentPrint { buckets: HashMap::new(), runs };
        let found: Vec<Option<Bucket>> = [2, 3, 5, 6, 7, 12, 13].map(|id| print.bucket_of(id)).to_vec();
        let expected = vec![None, Some(Some(10)), Some(Some(10)), Some(None), None, Some(Some(20)), None];
        assert_eq!(found, expected);
    }
}
