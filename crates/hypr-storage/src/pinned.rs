//! Which rows one state of a table has, read piece by piece.
//!
//! The rows of a state lie in Lance fragments, which never change, and in the tail; some rows of fragments are dead.
//! A reader that wants to know which rows a state has can therefore remember what it read of each fragment, by
//! [`PinnedTable::fragments`], and read only what is new to it.

use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_schema::Schema;
use futures::{FutureExt, TryStreamExt};
use hypr_common::{Error, Result};

use crate::PinnedTable;
use crate::evolution::{assemble, physical_columns, stored_fields};
use crate::lance_store::lance_error;
use crate::schema::{bare, row_id_field};
use crate::table::Table;
use crate::tail::live_rows;

impl Table {
    /// What tells this table from every other that there is or ever was, also under the same name.
    pub fn identity(&self) -> u128 {
        self.shared.stored.uuid.as_u128()
    }
}

impl PinnedTable {
    /// True when both hold the very same state.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.snapshot, &other.snapshot)
    }

    /// A name for the content of each Lance fragment: the same name, here or in another state of this table, is the
    /// same rows.
    pub fn fragments(&self) -> Vec<String> {
        let fragments = self.snapshot.dataset.iter().flat_map(|dataset| dataset.fragments().iter());
        let named = fragments.map(|fragment| {
            let files: Vec<&str> = fragment.files.iter().map(|file| file.path.as_str()).collect();
            format!("{} {:?}", files.join(" "), fragment.deletion_file)
        });
        named.collect()
    }

    /// The rows of a fragment, by its place in [`Self::fragments`]: `column` and the row id. Rows of [`Self::dead`]
    /// are among them.
    ///
    /// # Errors
    /// Those of reading; `NotFound` for a column that is not there.
    pub async fn fragment_rows(&self, at: usize, column: &str) -> Result<Vec<RecordBatch>> {
        let name = self.shared.definition.qualified_name();
        let fragment = self.snapshot.dataset.as_ref().and_then(|dataset| dataset.fragments().get(at));
        let (Some(dataset), Some(fragment)) = (&self.snapshot.dataset, fragment) else {
            return Err(Error::internal(format!("table {name} has no fragment {at}")));
        };
        let field = self.field(column)?;
        let layout = &self.shared.layout;
        let projection = [layout.columns.index_of(column)?];
        let physical = physical_columns(dataset, layout);
        let mut fields = stored_fields(&physical, &projection);
        fields.push(row_id_field());
        let failed = |e| lance_error(&format!("reading {name}"), e);
        let columns = lance_core::datatypes::Schema::try_from(&Schema::new(fields)).map_err(failed)?;
        let mut scanner = dataset.scan();
        scanner.project_with_schema(&columns).map_err(failed)?.with_fragments(vec![fragment.clone()]);
        let stored: Vec<RecordBatch> =
            scanner.try_into_stream().boxed().await.map_err(failed)?.try_collect().await.map_err(failed)?;
        let schema = Arc::new(bare(&Schema::new(vec![field, row_id_field()])));
        let adopt = |batch: RecordBatch| {
            let rows = batch.num_rows();
            let mut columns = assemble(layout, &physical, &projection, batch.columns(), rows)?;
            columns.extend(batch.columns().last().cloned());
            Ok(RecordBatch::try_new(Arc::clone(&schema), columns)?)
        };
        stored.into_iter().map(adopt).collect()
    }

    /// The rows that are not in a fragment yet: `column` and the row id, without dead ones.
    ///
    /// # Errors
    /// `NotFound` for a column that is not there.
    pub fn tail_rows(&self, column: &str) -> Result<Vec<RecordBatch>> {
        let columns = &self.shared.definition.columns;
        self.field(column)?;
        let at = columns.index_of(column)?;
        let mut batches = Vec::with_capacity(self.snapshot.batches.len());
        for batch in &self.snapshot.batches {
            let live = live_rows(&batch.rows, &self.snapshot.dead)?;
            batches.push(live.project(&[at, columns.fields().len()])?);
        }
        Ok(batches)
    }

    /// The ids of rows that are in a fragment or in the tail and deleted.
    pub fn dead(&self) -> impl Iterator<Item = u64> {
        self.snapshot.dead.iter().flat_map(|ids| ids.iter().copied())
    }

    fn field(&self, column: &str) -> Result<arrow_schema::Field> {
        let columns = &self.shared.definition.columns;
        columns.field_with_name(column).cloned().map_err(|_| {
            let name = self.shared.definition.qualified_name();
            Error::not_found(format!("column \"{column}\" of {name} does not exist"))
        })
    }
}
