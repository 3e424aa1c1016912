//! AI calls as a plan node of their own: `generate_response`, `embed`, `ai_filter`, `ai_classify`, `ai_agg`,
//! `USING CONTEXT`.
//!
//! The way of a call through a statement:
//! 1. [`using_context::rewrite_tokens`] turns `FROM model USING CONTEXT (query)` into a derived table, and
//!    [`using_context::rewrite_statement`] turns named options (`model => 'x'`) into arguments, on the text's
//!    tokens and syntax tree.
//!    `weights_form` makes one call of `generate_response(tokens, weight_data, config)`, and `aggregate` one over a
//!    list of `ai_agg(text, instruction)`.
//! 2. SQL planning sees marker functions (`function`) that have a type and no implementation, and `relation`
//!    plans the derived table as a node that gathers its rows into passages.
//! 3. `hoist`, an analyzer rule, moves every call from whatever clause it is in into a `node::GenerateNode`
//!    below, with the guard under which a row needs it.
//! 4. `tidy`, an optimizer rule, drops calls nobody reads and lets the node filter its own rows.
//! 5. `exec::GenerateExec` asks the engine, a bounded number of requests at a time, and emits rows in order as
//!    they finish. What it asked before, in this statement or in another, is in `answer`.
//!
//! Invariants: a call runs once for each row that needs it and never for another; the output of every node a
//! call is taken from keeps its schema; dropping the stream stops the requests it waits for.
//! Deliberately absent: model arithmetic, prompts' templates and token budgets, which are the engine's.

pub(crate) mod aggregate;
mod answer;
mod context;
mod exec;
mod function;
mod hoist;
mod media;
mod node;
mod options;
mod patience;
mod planner;
mod relation;
mod text;
mod tidy;
pub mod using_context;
pub(crate) mod weights_form;

use std::sync::Arc;
use std::time::Duration;

use datafusion::common::ScalarValue;
use datafusion::common::tree_node::TreeNode;
use datafusion::execution::session_state::SessionStateBuilder;
use datafusion::logical_expr::{Expr, ScalarUDF, UserDefinedLogicalNode};
use datafusion::physical_planner::ExtensionPlanner;
use hypr_common::Result;
use hypr_inference::api::{GenerateRequest, Inference};

pub use answer::AiMetrics;
pub(crate) use answer::AnswerCache;
use context::ContextNode;
use function::{AiFunction, AiUdf};
use node::GenerateNode;
pub(crate) use patience::patiently;

/// Whether values can be put for the parameters of `node`, of this module, after it was optimized: its expressions show
/// them all.
pub(crate) fn takes_values(node: &dyn UserDefinedLogicalNode) -> bool {
    let is_parameter = |expr: &Expr| Ok(matches!(expr, Expr::Placeholder(_)));
    let is_free =
        |node: &GenerateNode| node.predicate.iter().all(|expr| expr.exists(is_parameter).is_ok_and(|has| !has));
    node.as_any().downcast_ref().is_some_and(is_free) || node.as_any().is::<ContextNode>()
}

/// Whether `node` makes calls for one row of its input after the other.
pub(crate) fn is_row_by_row(node: &dyn UserDefinedLogicalNode) -> bool {
    node.as_any().is::<GenerateNode>()
}

/// Bounds of AI calls in one statement.
#[derive(Clone, Debug)]
pub struct AiOptions {
    /// Generation requests one plan node keeps running at a time.
    pub max_in_flight: usize,
    /// Texts in one embedding request.
    pub embed_batch: usize,
    /// The most tokens one call may ask for.
    pub max_tokens_limit: usize,
    /// The most bytes of passages `USING CONTEXT` reads; the engine cuts them to the model's context anyway.
    pub max_context_bytes: usize,
    /// How long a request is offered again while the engine's queue is full.
    pub busy_timeout: Duration,
    /// Answers that a plan node remembers for equal prompts of one statement.
    pub remembered_answers: usize,
    /// Bytes of answers that are kept for later statements; 0 keeps none.
    pub cache_bytes: usize,
    /// Where the seeds of calls without a `seed` come from.
    pub entropy: fn() -> u64,
}

impl Default for AiOptions {
    fn default() -> Self {
        Self {
            max_in_flight: 8,
            embed_batch: 64,
            max_tokens_limit: 32_768,
            max_context_bytes: 4 << 20,
            busy_timeout: Duration::from_secs(300),
            remembered_answers: 4096,
            cache_bytes: 64 << 20,
            entropy: process_entropy,
        }
    }
}

/// The randomness that the standard library seeds hash maps with.
fn process_entropy() -> u64 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    RandomState::new().build_hasher().finish()
}

/// Adds AI calls to a session: the functions and the rules, after those `builder` has. The session's query planner
/// needs `extension_planner`.
pub fn install(builder: SessionStateBuilder, inference: Arc<dyn Inference>, options: AiOptions) -> SessionStateBuilder {
    let options = Arc::new(options);
    let mut builder = builder
        .with_analyzer_rule(Arc::new(hoist::HoistAiCalls::new(Arc::clone(&inference), Arc::clone(&options))))
        .with_optimizer_rule(Arc::new(tidy::TidyGenerate));
    // The rows of USING CONTEXT keep the order of its query.
    if let Some(config) = builder.config() {
        config.options_mut().sql_parser.enable_subquery_sort_elimination = false;
    }
    let relation = Arc::new(relation::ModelRelations::new(Arc::clone(&inference), options.max_context_bytes));
    let relations = builder.relation_planners().get_or_insert_default();
    relations.insert(0, relation);
    builder.scalar_functions().get_or_insert_default().extend(functions(&inference));
    builder
}

/// The planner of [`install`]'s plan nodes.
pub(crate) fn extension_planner(
    inference: Arc<dyn Inference>,
    options: AiOptions,
    cache: Arc<AnswerCache>,
) -> Arc<dyn ExtensionPlanner + Send + Sync> {
    Arc::new(planner::AiExtensionPlanner::new(inference, Arc::new(options), cache))
}

/// The request that `generate_response` would make for one row.
///
/// # Errors
/// `InvalidInput` for an option that it does not have, or a value out of range.
pub(crate) fn request_of(
    prompt: String,
    passages: Vec<String>,
    options: &[(&str, ScalarValue)],
) -> Result<GenerateRequest> {
    exec::request_of(prompt, passages, options)
}

fn functions(inference: &Arc<dyn Inference>) -> impl Iterator<Item = Arc<ScalarUDF>> {
    AiFunction::ALL.into_iter().flat_map(|function| {
        [false, true].map(|with_options| Arc::new(AiUdf::new(function, with_options, Arc::clone(inference)).into()))
    })
}
