//! From logical to physical: [`GenerateNode`] and [`ContextNode`].

use std::sync::Arc;

use async_trait::async_trait;
use datafusion::common::{Result, internal_err};
use datafusion::execution::SessionState;
use datafusion::logical_expr::{LogicalPlan, UserDefinedLogicalNode};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_planner::{DefaultPhysicalPlanner, ExtensionPlanner, PhysicalPlanner};
use hypr_inference::api::Inference;

use super::AiOptions;
use super::answer::AnswerCache;
use super::context::{ContextExec, ContextNode};
use super::exec::{GenerateExec, PhysicalCall};
use super::node::GenerateNode;

/// Plans the nodes of this module.
#[derive(Clone, Debug)]
pub(super) struct AiExtensionPlanner {
    inference: Arc<dyn Inference>,
    options: Arc<AiOptions>,
    cache: Arc<AnswerCache>,
}

impl AiExtensionPlanner {
    pub fn new(inference: Arc<dyn Inference>, options: Arc<AiOptions>, cache: Arc<AnswerCache>) -> Self {
        Self { inference, options, cache }
    }

    fn generate(
        &self,
        planner: &dyn PhysicalPlanner,
        node: &GenerateNode,
        input: &Arc<dyn ExecutionPlan>,
        state: &SessionState,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let input_schema = node.input.schema();
        let physical = |expr| planner.create_physical_expr(expr, input_schema, state);
        let calls = node
            .calls
            .iter()
            .map(|call| {
                Ok(PhysicalCall {
                    guard: call.guard.as_ref().map(physical).transpose()?,
                    function: call.function,
                    options: call.options.clone(),
                    args: call.args.iter().map(physical).collect::<Result<_>>()?,
                    output: Arc::clone(&call.output),
                })
            })
            .collect::<Result<Vec<_>>>()?;
        let schema = datafusion::logical_expr::UserDefinedLogicalNodeCore::schema(node);
        let predicate =
            node.predicate.as_ref().map(|expr| planner.create_physical_expr(expr, schema, state)).transpose()?;
        let exec = GenerateExec::try_new(
            Arc::clone(input),
            calls,
            predicate,
            Arc::clone(&self.inference),
            Arc::clone(&self.options),
            Arc::clone(&self.cache),
        )?;
        Ok(Arc::new(exec))
    }
}

#[async_trait]
impl ExtensionPlanner for AiExtensionPlanner {
    async fn plan_extension(
        &self,
        planner: &dyn PhysicalPlanner,
        node: &dyn UserDefinedLogicalNode,
        _: &[&LogicalPlan],
        physical_inputs: &[Arc<dyn ExecutionPlan>],
        session_state: &SessionState,
    ) -> Result<Option<Arc<dyn ExecutionPlan>>> {
        let generate = node.as_any().downcast_ref::<GenerateNode>();
        let context = node.as_any().downcast_ref::<ContextNode>();
        if generate.is_none() && context.is_none() {
            return Ok(None);
        }
        let [input] = physical_inputs else {
            return internal_err!("{} takes one input", node.name());
        };
        if let Some(node) = context {
            let query = DefaultPhysicalPlanner::default().optimize_physical_plan(
                Arc::clone(input),
                session_state,
                |_, _| {},
            )?;
            return Ok(Some(Arc::new(ContextExec::new(query, node.max_bytes))));
        }
        generate.map(|node| self.generate(planner, node, input, session_state)).transpose()
    }
}
