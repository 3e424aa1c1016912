//! What planning a prepared query gave, kept for its next executions.
//!
//! Invariant: a kept plan is used only while planning anew would give the same: for parameters of the same types,
//! under the same options, and with the catalog at the same position. A plan that reads anything but stored tables is
//! not kept: what it names may change without the catalog.
//!
//! Kept is the logical plan as it was before optimization, since the values of parameters decide on that.

use std::sync::Arc;

use arrow_schema::{FieldRef, SchemaRef};
use datafusion::catalog::default_table_source::source_as_provider;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::execution::SessionState;
use datafusion::logical_expr::LogicalPlan;
use hypr_common::Result;
use parking_lot::Mutex;

use crate::catalog::StoredTable;
use crate::prepared::PreparedPlan;
use crate::{Session, shape};

/// A planned query, its parameters not bound.
#[derive(Debug)]
pub(crate) struct Planned {
    pub(crate) logical: LogicalPlan,
    /// The columns of its result.
    pub(crate) schema: SchemaRef,
    /// Of its parameters.
    pub(crate) types: Vec<FieldRef>,
    options: Arc<ConfigOptions>,
    catalog_position: u64,
}

/// The plan of the latest execution, shared by the clones of a prepared statement.
#[derive(Clone, Debug, Default)]
pub(crate) struct PlanCache(Arc<Mutex<Option<Arc<Planned>>>>);

impl Session {
    /// The plan of a query for parameters of `types`; none while they are not known.
    ///
    /// # Errors
    /// Those of planning.
    pub(crate) async fn planned(
        &self,
        state: &SessionState,
        plan: &PreparedPlan,
        types: Vec<FieldRef>,
    ) -> Result<Arc<Planned>> {
        let catalog_position = self.engine().database().catalog_position();
        let options = state.config_options();
        let outside = self.catalog().transaction().is_none();
        if outside && let Some(known) = plan.cache.0.lock().as_ref() {
            let same = known.catalog_position == catalog_position
                && known.types == types
                && Arc::ptr_eq(&known.options, options);
            if same {
                return Ok(Arc::clone(known));
            }
        }
        let logical = self.planner(state).plan((*plan.statement).clone(), None, &types).await?;
        let schema = shape::result_schema(state, &logical)?;
        let keep = outside && reads_stored_tables_alone(&logical);
        let planned = Arc::new(Planned { logical, schema, types, options: Arc::clone(options), catalog_position });
        if keep {
            *plan.cache.0.lock() = Some(Arc::clone(&planned));
        }
        Ok(planned)
    }
}

fn reads_stored_tables_alone(plan: &LogicalPlan) -> bool {
    let mut alone = true;
    let walked = plan.apply_with_subqueries(|node| {
        alone &= match node {
            LogicalPlan::TableScan(scan) => source_as_provider(&scan.source)
                .is_ok_and(|provider| provider.downcast_ref::<StoredTable>().is_some_and(StoredTable::is_plain)),
            LogicalPlan::Extension(_) | LogicalPlan::Statement(_) | LogicalPlan::Dml(_) | LogicalPlan::Ddl(_) => false,
            _ => true,
        };
        Ok(if alone { TreeNodeRecursion::Continue } else { TreeNodeRecursion::Stop })
    });
    walked.is_ok() && alone
}
