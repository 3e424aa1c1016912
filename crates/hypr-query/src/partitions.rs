//! Large results in parts that can be read at once and apart: those that are rows of one table as they lie
//! there. A part is a partition of one physical plan, so that all parts show one snapshot.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arrow_array::RecordBatch;
use arrow_schema::{DataType, SchemaRef};
use datafusion::datasource::source_as_provider;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_plan::{ExecutionPlan, ExecutionPlanProperties};
use hypr_common::{Error, ErrorKind, Result};

use crate::{Prepared, Session, error, prepared, shape};

/// Nodes whose partitions do not depend on one another.
const APART: [&str; 5] = ["TableScanExec", "FilterExec", "ProjectionExec", "CoalesceBatchesExec", "CooperativeExec"];
/// What a value of a type without a fixed width is taken for, in bytes.
const TEXT_BYTES: u64 = 32;
const BLOB_BYTES: u64 = 1024;

/// A result in parts. Each may be read once.
pub struct Partitions {
    plan: Arc<dyn ExecutionPlan>,
    /// Which parts were read: a plan gives its rows once.
    read: Vec<AtomicBool>,
    context: Arc<TaskContext>,
    schema: SchemaRef,
}

impl fmt::Debug for Partitions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Partitions").field("count", &self.count()).finish_non_exhaustive()
    }
}

impl Partitions {
    /// How many parts there are.
    pub fn count(&self) -> usize {
        self.plan.output_partitioning().partition_count()
    }

    /// The rows of one part, from 0.
    ///
    /// # Errors
    /// `NotFound` when there is no such part, `Conflict` when it was read before.
    pub fn read(&self, part: usize) -> Result<SendableRecordBatchStream> {
        if part >= self.count() {
            return Err(Error::not_found(format!("the result has {} parts and no part {part}", self.count())));
        }
        if self.read[part].swap(true, Ordering::AcqRel) {
            let message = "this part of the result was read already; run the query again";
            return Err(Error::new(ErrorKind::Conflict, message));
        }
        let rows = self.plan.execute(part, Arc::clone(&self.context)).map_err(error::from_datafusion)?;
        Ok(shape::conform(rows, Arc::clone(&self.schema)))
    }
}

impl Session {
    /// Plans a query so that its parts can be read apart; `None` when it has one part only. `params` has one row, or
    /// none for a statement without parameters.
    ///
    /// # Errors
    /// As [`Session::execute_prepared`].
    pub async fn partitions(&self, prepared: &Prepared, params: &RecordBatch) -> Result<Option<Partitions>> {
        let several = !prepared.plan.parameters.is_empty() && params.num_rows() != 1;
        if prepared.scanned_bytes.is_none() || several {
            return Ok(None);
        }
        prepared::check_count(prepared.plan.parameters.len(), params)?;
        let session = self.now()?;
        let mut state = session.statement_state();
        // Its partitions would depend on one another.
        state.config_mut().options_mut().optimizer.enable_round_robin_repartition = false;
        let logical = session.bound_plan(&state, &prepared.plan, None, params, 0).await?;
        let schema = shape::result_schema(&state, &logical)?;
        let plan = state.create_physical_plan(&logical).await.map_err(error::from_datafusion)?;
        let read = (0..plan.output_partitioning().partition_count()).map(|_| AtomicBool::new(false)).collect();
        let partitions = Partitions { plan, read, context: state.task_ctx(), schema };
        Ok((are_apart(&partitions.plan) && partitions.count() > 1).then_some(partitions))
    }
}

fn are_apart(plan: &Arc<dyn ExecutionPlan>) -> bool {
    APART.contains(&plan.name()) && plan.children().into_iter().all(are_apart)
}

/// About how many bytes the rows of `plan` have, if they are rows of one stored table in no order.
pub(crate) fn scanned_bytes(plan: &LogicalPlan) -> Option<u64> {
    let row_bytes: u64 = plan.schema().fields().iter().map(|field| value_bytes(field.data_type())).sum();
    let mut node = plan;
    loop {
        node = match node {
            LogicalPlan::Projection(projection) => &projection.input,
            LogicalPlan::Filter(filter) => &filter.input,
            LogicalPlan::SubqueryAlias(alias) => &alias.input,
            LogicalPlan::TableScan(scan) if scan.fetch.is_none() => {
                let rows = source_as_provider(&scan.source).ok()?.statistics()?.num_rows.get_value().copied()?;
                return Some(row_bytes * rows as u64);
            }
            _ => return None,
        };
    }
}

fn value_bytes(data_type: &DataType) -> u64 {
    match data_type {
        DataType::FixedSizeList(item, length) => value_bytes(item.data_type()) * (*length).unsigned_abs() as u64,
        DataType::FixedSizeBinary(length) => (*length).unsigned_abs() as u64,
        DataType::Binary
        | DataType::LargeBinary
        | DataType::BinaryView
        | DataType::List(_)
        | DataType::LargeList(_) => BLOB_BYTES,
        DataType::Struct(fields) => fields.iter().map(|field| value_bytes(field.data_type())).sum(),
        other => other.primitive_width().map_or(TEXT_BYTES, |width| width as u64),
    }
}
