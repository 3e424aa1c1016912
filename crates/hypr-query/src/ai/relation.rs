//! Plans what [`super::using_context`] leaves in `FROM`: the marked derived table and the model's name.

use std::sync::Arc;

use datafusion::common::Result;
use datafusion::logical_expr::planner::{PlannedRelation, RelationPlanner, RelationPlannerContext, RelationPlanning};
use datafusion::logical_expr::{LogicalPlan, LogicalPlanBuilder};
use datafusion::sql::sqlparser::ast::{ObjectNamePart, TableAlias, TableFactor};
use hypr_inference::api::{Inference, Task};

use super::context::ContextNode;
use super::using_context::{self, MODEL_ALIAS};
use crate::error;

/// Makes rows of `FROM model` and `FROM model USING CONTEXT (query)`.
#[derive(Debug)]
pub(super) struct ModelRelations {
    inference: Arc<dyn Inference>,
    max_context_bytes: usize,
}

impl ModelRelations {
    pub fn new(inference: Arc<dyn Inference>, max_context_bytes: usize) -> Self {
        Self { inference, max_context_bytes }
    }

    fn plan(&self, model: &str, input: Option<LogicalPlan>) -> Result<RelationPlanning> {
        self.inference.resolve(Task::Generate, Some(model)).map_err(error::to_datafusion)?;
        let plan = match input {
            Some(input) => ContextNode::try_new(Arc::new(input), self.max_context_bytes)?.into_plan(),
            None => LogicalPlanBuilder::empty(true).build()?,
        };
        let plan = LogicalPlanBuilder::from(plan).alias(MODEL_ALIAS)?.build()?;
        Ok(RelationPlanning::Planned(Box::new(PlannedRelation::new(plan, None))))
    }
}

impl RelationPlanner for ModelRelations {
    fn plan_relation(
        &self,
        relation: TableFactor,
        context: &mut dyn RelationPlannerContext,
    ) -> Result<RelationPlanning> {
        match relation {
            TableFactor::Derived { lateral, subquery, alias: Some(TableAlias { name, .. }), sample }
                if using_context::marked_model(&name).is_some() =>
            {
                let model = using_context::marked_model(&name).unwrap_or_default().to_owned();
                let rows = context.plan(TableFactor::Derived { lateral, subquery, alias: None, sample })?;
                self.plan(&model, Some(rows))
            }
            TableFactor::Table { ref name, .. } => match name.0.as_slice() {
                [ObjectNamePart::Identifier(ident)] => match using_context::marked_model(ident) {
                    Some(model) => self.plan(model, None),
                    None => Ok(RelationPlanning::Original(Box::new(relation))),
                },
                _ => Ok(RelationPlanning::Original(Box::new(relation))),
            },
            relation => Ok(RelationPlanning::Original(Box::new(relation))),
        }
    }
}
