//! From logical to physical: DataFusion's planner with the planners of our own nodes.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::common::Result;
use datafusion::execution::SessionState;
use datafusion::execution::context::QueryPlanner;
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_planner::{DefaultPhysicalPlanner, ExtensionPlanner, PhysicalPlanner};

/// A planner of nodes that are not DataFusion's.
pub(crate) type Extension = Arc<dyn ExtensionPlanner + Send + Sync>;

/// Plans with each of its extensions.
pub(crate) struct HyprQueryPlanner {
    extensions: Vec<Extension>,
}

impl HyprQueryPlanner {
    pub(crate) fn new(extensions: Vec<Extension>) -> Self {
        Self { extensions }
    }
}

impl fmt::Debug for HyprQueryPlanner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HyprQueryPlanner").field("extensions", &self.extensions.len()).finish()
    }
}

#[async_trait]
impl QueryPlanner for HyprQueryPlanner {
    async fn create_physical_plan(
        &self,
        logical_plan: &LogicalPlan,
        session_state: &SessionState,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        DefaultPhysicalPlanner::with_extension_planners(self.extensions.clone())
            .create_physical_plan(logical_plan, session_state)
            .await
    }
}
