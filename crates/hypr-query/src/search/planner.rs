//! From logical to physical: [`SearchNode`] and [`FuseNode`].

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use datafusion::common::{DFSchema, Result, internal_err};
use datafusion::execution::SessionState;
use datafusion::logical_expr::{LogicalPlan, UserDefinedLogicalNode, UserDefinedLogicalNodeCore};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_planner::{DefaultPhysicalPlanner, ExtensionPlanner, PhysicalPlanner};
use hypr_inference::api::Inference;
use hypr_storage::ann::Effort;

use super::candidates::{CandidatesExec, unsearchable};
use super::exec::{SearchExec, SearchPlan};
use super::fuse::{FuseExec, FuseNode};
use super::node::{SearchKind, SearchNode};
use crate::vector_search::settings::SearchSettings;

/// Plans the nodes of this module.
#[derive(Debug)]
pub(super) struct SearchPlanner {
    inference: Arc<dyn Inference>,
    /// How long a query's embedding is asked for again while the engine is busy.
    busy_timeout: Duration,
}

impl SearchPlanner {
    pub fn new(inference: Arc<dyn Inference>, busy_timeout: Duration) -> Self {
        Self { inference, busy_timeout }
    }

    fn search(
        &self,
        planner: &dyn PhysicalPlanner,
        node: &SearchNode,
        input: &Arc<dyn ExecutionPlan>,
        state: &SessionState,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let Some(candidates) = input.downcast_ref::<CandidatesExec>() else {
            return Err(unsearchable());
        };
        let empty = DFSchema::empty();
        let effort = match &node.search.kind {
            SearchKind::Vector { effort, .. } => effort.or(SearchSettings::of(state.config())),
            SearchKind::Text { .. } => Effort::default(),
        };
        let plan = SearchPlan {
            effort,
            search: Arc::clone(&node.search),
            pinned: candidates.pinned.clone(),
            query: planner.create_physical_expr(&node.query, &empty, state)?,
            limit: planner.create_physical_expr(&node.limit, &empty, state)?,
            inference: Arc::clone(&self.inference),
            busy_timeout: self.busy_timeout,
            schema: Arc::new(UserDefinedLogicalNodeCore::schema(node).as_arrow().clone()),
        };
        Ok(Arc::new(SearchExec::try_new(plan, candidates.rows.clone())?))
    }
}

#[async_trait]
impl ExtensionPlanner for SearchPlanner {
    async fn plan_extension(
        &self,
        planner: &dyn PhysicalPlanner,
        node: &dyn UserDefinedLogicalNode,
        _: &[&LogicalPlan],
        physical_inputs: &[Arc<dyn ExecutionPlan>],
        session_state: &SessionState,
    ) -> Result<Option<Arc<dyn ExecutionPlan>>> {
        if let Some(node) = node.as_any().downcast_ref::<SearchNode>() {
            let [input] = physical_inputs else {
                return internal_err!("Search takes one input");
            };
            return self.search(planner, node, input, session_state).map(Some);
        }
        let Some(node) = node.as_any().downcast_ref::<FuseNode>() else {
            return Ok(None);
        };
        // Each input is a query of its own: the rules that optimise the plan around it would drop its sort.
        let inputs = physical_inputs
            .iter()
            .map(|input| {
                DefaultPhysicalPlanner::default().optimize_physical_plan(Arc::clone(input), session_state, |_, _| {})
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(Some(Arc::new(FuseExec::try_new(node, inputs)?)))
    }
}
