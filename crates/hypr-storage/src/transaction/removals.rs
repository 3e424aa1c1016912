//! Which rows of a table were removed while transactions were open, so that a commit can tell whether a row it
//! changes is still the one that it read.

use std::collections::VecDeque;

use hypr_common::Result;

use super::conflict;

/// Row ids remembered for a table, 64 MiB of them. A transaction that is older than what was forgotten cannot
/// change rows of the table any more.
const MAX_ROW_IDS: usize = 8 << 20;

/// See the module documentation.
#[derive(Debug, Default)]
pub(crate) struct Removals {
    /// Position of the commit and the rows it removed, ascending, oldest commit first.
    commits: VecDeque<(u64, Box<[u64]>)>,
    row_ids: usize,
    /// Removals up to this position are not known.
    forgotten_lsn: u64,
}

impl Removals {
    /// Notes what the commit at `lsn` removed. `oldest` is the position of the oldest open transaction; what lies
    /// before it interests nobody.
    pub(crate) fn note(&mut self, lsn: u64, row_ids: &[u64], oldest: Option<u64>) {
        let Some(oldest) = oldest else {
            self.commits.clear();
            (self.row_ids, self.forgotten_lsn) = (0, lsn);
            return;
        };
        let mut sorted: Box<[u64]> = row_ids.into();
        sorted.sort_unstable();
        self.row_ids += sorted.len();
        self.commits.push_back((lsn, sorted));
        while let Some((first, ids)) = self.commits.front()
            && (*first <= oldest || self.row_ids > MAX_ROW_IDS)
        {
            self.forgotten_lsn = *first;
            self.row_ids -= ids.len();
            self.commits.pop_front();
        }
    }

    /// Checks that no commit after `lsn` removed one of `row_ids` (ascending).
    ///
    /// # Errors
    /// `Conflict`.
    pub(super) fn check(&self, table: &str, lsn: u64, row_ids: &[u64]) -> Result<()> {
        if row_ids.is_empty() {
            return Ok(());
        }
        if self.forgotten_lsn > lsn {
            return Err(conflict(&format!("too many rows of table {table} changed since it began")));
        }
        for (_, removed) in self.commits.iter().filter(|(at, _)| *at > lsn) {
            let (few, many) =
                if removed.len() < row_ids.len() { (&removed[..], row_ids) } else { (row_ids, &removed[..]) };
            if few.iter().any(|id| many.binary_search(id).is_ok()) {
                return Err(conflict(&format!("another writer changed a row of table {table} that it changes, too")));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hypr_common::ErrorKind;

    #[test]
    fn only_removals_after_the_snapshot_conflict() {
        let mut removals = Removals::default();
        removals.note(5, &[9, 3], Some(4));
        removals.check("t", 5, &[3]).unwrap();
        removals.check("t", 4, &[1, 2, 4]).unwrap();
        assert_eq!(removals.check("t", 4, &[3]).unwrap_err().kind(), ErrorKind::Conflict);
        assert_eq!(removals.check("t", 4, &(0..100).collect::<Vec<_>>()).unwrap_err().kind(), ErrorKind::Conflict);
    }

    #[test]
    fn what_was_forgotten_counts_as_a_conflict() {
        let mut removals = Removals::default();
        removals.note(5, &[1], Some(4));
        removals.note(6, &vec![2; MAX_ROW_IDS], Some(4));
        assert!(removals.check("t", 4, &[77]).unwrap_err().message().contains("too many rows"));
        removals.check("t", 5, &[77]).unwrap();
        // Nobody was there to see it: transactions that begin later have the rows gone already.
        removals.note(7, &[3], None);
        removals.check("t", 7, &[3]).unwrap();
    }
}
