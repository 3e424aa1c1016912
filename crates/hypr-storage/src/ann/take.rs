//! Rows by their ids.

use std::sync::Arc;

use arrow_array::{Array, ArrayRef, RecordBatch, RecordBatchOptions};
use arrow_schema::{Schema, SchemaRef};
use futures::FutureExt;
use hypr_common::{Error, Result};
use lance::dataset::ProjectionRequest;

use super::nearest::PinnedTable;
use super::places::Place;
use crate::column_cache::kept_fields;
use crate::evolution::{assemble, physical_columns, stored_fields};
use crate::lance_store::lance_error;
use crate::schema::row_id_field;

impl PinnedTable {
    /// The rows of these ids, in their order, with the columns at `projection` of the table's schema.
    ///
    /// # Errors
    /// `NotFound` for an id that this snapshot has no row of.
    pub async fn take_rows(&self, row_ids: &[u64], projection: &[usize]) -> Result<RecordBatch> {
        let schema: SchemaRef = Arc::new(self.schema().project(projection)?);
        if projection.is_empty() || row_ids.is_empty() {
            let options = RecordBatchOptions::new().with_row_count(Some(row_ids.len()));
            let columns = schema.fields().iter().map(|field| arrow_array::new_empty_array(field.data_type())).collect();
            return Ok(RecordBatch::try_new_with_options(schema, columns, &options)?);
        }
        let places = self.places().await?;
        let found = row_ids
            .iter()
            .map(|id| places.find(*id).ok_or_else(|| Error::not_found(format!("the table has no row {id}"))))
            .collect::<Result<Vec<_>>>()?;
        let addresses: Vec<u64> = found
            .iter()
            .filter_map(|place| match place {
                Place::Lance(address) => Some(*address),
                Place::Tail { .. } => None,
            })
            .collect();
        let lance =
            if addresses.is_empty() { None } else { Some(self.take_lance(&addresses, projection, false).await?) };
        if let Some(lance) = &lance
            && addresses.len() == found.len()
        {
            return Ok(RecordBatch::try_new(schema, lance.columns().to_vec())?);
        }
        let columns = (0..projection.len())
            .map(|at| self.gather(&found, lance.as_ref().map(|lance| lance.column(at)), projection[at]))
            .collect::<Result<Vec<_>>>()?;
        Ok(RecordBatch::try_new(schema, columns)?)
    }

    /// The columns in the table's present form, whatever form Lance has them in, and perhaps the row id.
    pub(super) async fn take_lance(
        &self,
        addresses: &[u64],
        projection: &[usize],
        with_row_id: bool,
    ) -> Result<RecordBatch> {
        let failed = |e| lance_error("reading rows", e);
        let dataset = self.snapshot.dataset.as_ref();
        let dataset = dataset.ok_or_else(|| Error::internal("a row has an address and its table no files"))?;
        let layout = &self.shared.layout;
        let physical = physical_columns(dataset, layout);
        let mut fields = stored_fields(&physical, projection);
        // Lance cannot project zero columns.
        if with_row_id || fields.is_empty() {
            fields.push(row_id_field());
        }
        let kept = match kept_fields(dataset, fields.iter().map(|field| field.name().as_str())) {
            Some(kept) => self.snapshot.dir.columns.take(dataset, addresses, &kept).await?,
            None => None,
        };
        let taken = match kept {
            Some(columns) => columns,
            None => {
                let columns = lance_core::datatypes::Schema::try_from(&Schema::new(fields)).map_err(failed)?;
                let columns = ProjectionRequest::from_schema(columns);
                let taken = dataset.take_rows(addresses, columns).boxed().await.map_err(failed)?;
                if taken.num_rows() != addresses.len() {
                    return Err(Error::internal(format!("{} rows were read of {}", taken.num_rows(), addresses.len())));
                }
                taken.columns().to_vec()
            }
        };
        let mut columns = assemble(layout, &physical, projection, &taken, addresses.len())?;
        let mut fields = self.schema().project(projection)?.fields().to_vec();
        if with_row_id {
            fields.push(Arc::new(row_id_field()));
            columns.extend(taken.last().cloned());
        }
        Ok(RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)?)
    }

    /// One column of rows that lie in Lance, in order, and in the tail.
    fn gather(&self, places: &[Place], lance: Option<&ArrayRef>, column: usize) -> Result<ArrayRef> {
        let mut sources: Vec<&dyn Array> =
            self.snapshot.batches.iter().map(|batch| batch.rows.column(column).as_ref()).collect();
        let of_lance = sources.len();
        sources.extend(lance.map(|lance| lance.as_ref()));
        let mut next = 0;
        let picks: Vec<(usize, usize)> = places
            .iter()
            .map(|place| match place {
                Place::Tail { batch, row } => (*batch, *row),
                Place::Lance(_) => {
                    next += 1;
                    (of_lance, next - 1)
                }
            })
            .collect();
        Ok(arrow_select::interleave::interleave(&sources, &picks)?)
    }
}
