//! Search as table functions: `text_search`, `vector_search`, `rrf`, `rerank`.
//!
//! 1. [`relation`] plans a call in `FROM`: [`arguments`] reads what it was given, and the call becomes a plan.
//! 2. `text_search` and `vector_search` are a [`node::SearchNode`] above a scan of [`candidates`]. Conditions of the
//!    query that concern the table's columns alone are pushed below the node, so they choose the rows to search
//!    among; conditions on the score stay above it.
//! 3. [`exec::SearchExec`] searches when it runs, asks for the query's embedding if it needs one, and fetches only the
//!    rows that it found and only the columns that somebody reads.
//! 4. `rrf` is a [`fuse::FuseNode`] above its searches; `rerank` is a projection with AI calls and a sort, for which
//!    [`crate::ai`] does the rest.
//!
//! Deliberately absent: indexes, which are the store's.

mod arguments;
mod candidates;
mod exec;
mod fuse;
mod node;
mod planner;
mod relation;

pub(crate) use exec::constant;

use std::sync::Arc;
use std::time::Duration;

use datafusion::catalog::TableProvider;
use datafusion::execution::session_state::SessionStateBuilder;
use datafusion::logical_expr::UserDefinedLogicalNode;
use hypr_inference::api::Inference;
use hypr_storage::Table;

use crate::catalog::Catalog;
use crate::extensions::Extension;
use candidates::Candidates;
use fuse::FuseNode;
use node::SearchNode;

/// The columns that `rrf` and `rerank` add.
const FUSED_SCORE: &str = "fused_score";
const RERANK_SCORE: &str = "rerank_score";
/// Rows that a search finds when it is not told how many.
const DEFAULT_LIMIT: i64 = 1000;

/// Adds the table functions to a session. The session's query planner needs [`extension_planner`].
pub(crate) fn install(builder: SessionStateBuilder, catalog: &Catalog) -> SessionStateBuilder {
    let mut builder = builder;
    let planner = Arc::new(relation::SearchRelations::new(catalog.clone()));
    builder.relation_planners().get_or_insert_default().insert(0, planner);
    builder
}

/// The planner of the nodes that the functions become.
pub(crate) fn extension_planner(inference: Arc<dyn Inference>, busy_timeout: Duration) -> Extension {
    Arc::new(planner::SearchPlanner::new(inference, busy_timeout))
}

/// Whether `node` is of this module. Its expressions show all parameters.
pub(crate) fn is_search(node: &dyn UserDefinedLogicalNode) -> bool {
    node.as_any().is::<SearchNode>() || node.as_any().is::<FuseNode>()
}

/// Whether `node` finds rows by an index, where nothing says which to search among.
pub(crate) fn is_row_by_row(node: &dyn UserDefinedLogicalNode) -> bool {
    node.as_any().is::<SearchNode>()
}

/// The table that `provider` gives a search the rows of, if it does.
pub(crate) fn searched_table(provider: &dyn TableProvider) -> Option<Arc<Table>> {
    provider.downcast_ref::<Candidates>().map(Candidates::table)
}

/// `name`, or `_name` where the table has a column of that name.
fn free_name(name: &str, taken: &arrow_schema::Schema) -> String {
    let mut free = name.to_owned();
    while taken.field_with_name(&free).is_ok() {
        free.insert(0, '_');
    }
    free
}
