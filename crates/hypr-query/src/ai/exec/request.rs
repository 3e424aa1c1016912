//! One value of a call on one row: what to ask, and under which conditions two rows ask the same.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use arrow::util::display::FormatOptions;
use arrow_array::cast::AsArray;
use arrow_array::{Array, ArrayRef, BooleanArray, RecordBatch};
use arrow_schema::DataType;
use datafusion::common::cast::as_boolean_array;
use datafusion::common::{Result, ScalarValue, plan_err};
use datafusion::logical_expr::ColumnarValue;
use hypr_inference::api::{
    CacheIdentity, ChatMessage, EmbedInput, GenerateRequest, Inference, InputKind, Prompt, Sampling, Task,
};

use super::PhysicalCall;
use crate::ai::AiOptions;
use crate::ai::function::AiFunction;
use crate::ai::media;
use crate::ai::options::{CONTEXT, CallOptions, OnError};
use crate::ai::text::Texts;
use crate::error;

/// The answers of `ai_filter`.
pub(super) const TRUE: &str = "yes";
const FALSE: &str = "no";

/// What a row asks.
#[derive(Clone, Debug)]
pub(super) enum Request {
    Generate(GenerateRequest),
    Embed { how: Embed, input: EmbedInput },
    Aggregate(Aggregation),
}

/// How an input is embedded.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Embed {
    pub model: Option<String>,
    pub normalize: bool,
    pub kind: InputKind,
}

/// Texts of a group, to be made one text.
#[derive(Clone, Debug)]
pub(super) struct Aggregation {
    pub texts: Vec<String>,
    pub instruction: String,
    pub system: Option<String>,
    /// What every request has in common.
    pub base: GenerateRequest,
    /// Of the model; none where answers are not kept.
    pub identity: Option<CacheIdentity>,
}

/// A request and how its answer is used.
#[derive(Clone, Debug)]
pub(super) struct Ask {
    pub request: Request,
    /// Equal keys have equal answers; none when every row needs an answer of its own.
    pub key: Option<Arc<str>>,
    /// How the answer is kept for other statements; none where it must not be.
    pub kept: Option<Kept>,
    pub timeout: Option<Duration>,
    pub on_error: OnError,
}

/// What an answer is kept under.
#[derive(Clone, Debug)]
pub(super) struct Kept {
    pub key: Arc<str>,
    /// What must have given it.
    pub identity: CacheIdentity,
}

impl Kept {
    /// What the answer of `identity` to `request` is kept under.
    pub fn of(identity: &CacheIdentity, request: &Request) -> Self {
        let key = Arc::from(format!("{identity:?} {:?}", comparable(request)));
        Self { key, identity: identity.clone() }
    }
}

/// `request` without what its answer does not depend on; the model is told apart from it.
fn comparable(request: &Request) -> Request {
    let plain = |request: &GenerateRequest| GenerateRequest {
        model: None,
        caller: String::new(),
        priority: 0,
        speculative: None,
        ..request.clone()
    };
    match request {
        Request::Generate(request) => Request::Generate(plain(request)),
        Request::Embed { how, input } => {
            Request::Embed { how: Embed { model: None, ..how.clone() }, input: input.clone() }
        }
        Request::Aggregate(job) => {
            Request::Aggregate(Aggregation { base: plain(&job.base), identity: None, ..job.clone() })
        }
    }
}

/// What one running operator asks with.
pub(super) struct Asker<'a> {
    pub options: &'a AiOptions,
    /// Who keeps answers asks it for the versions of models; none where no answers are kept.
    pub versions: Option<&'a dyn Inference>,
    /// Of this execution.
    pub nonce: u64,
}

impl Asker<'_> {
    /// The requests of `call` for the rows of `batch`: `None` for a row that needs none. `first_row` is the number
    /// of the batch's first row in the query, from which calls without a seed get one.
    pub fn requests(&self, call: &PhysicalCall, batch: &RecordBatch, first_row: u64) -> Result<Vec<Option<Ask>>> {
        let mut asks: Vec<Option<Ask>> = vec![None; batch.num_rows()];
        let needed = match &call.guard {
            None => None,
            Some(guard) => Some(as_boolean_array(&guard.evaluate(batch)?.into_array(batch.num_rows())?)?.clone()),
        };
        // Arguments are evaluated for the rows that need them only: others may have no value for them.
        let (rows, batch): (Vec<usize>, RecordBatch) = match needed {
            None => ((0..batch.num_rows()).collect(), batch.clone()),
            Some(mask) => (set_rows(&mask), arrow::compute::filter_record_batch(batch, &mask)?),
        };
        if rows.is_empty() {
            return Ok(asks);
        }
        let arguments = Arguments::evaluate(call, &batch, self.options)?;
        let mut identities: HashMap<Option<String>, Option<CacheIdentity>> = HashMap::new();
        for (at, row) in rows.into_iter().enumerate() {
            let Some((mut request, options)) = arguments.request(call, at, self.nonce ^ (first_row + row as u64))?
            else {
                continue;
            };
            let mut identity = None;
            if let (Some(inference), true) = (self.versions, options.is_repeatable()) {
                let known = identities.entry(options.model.clone());
                identity = known.or_insert_with(|| identity_of(&request, options.model.as_deref(), inference)).clone();
            }
            let kept = identity.as_ref().map(|identity| Kept::of(identity, &request));
            let own_key = || Arc::from(format!("{:?} {:?}", options.model, comparable(&request)));
            let key = match &kept {
                _ if !options.is_repeatable() => None,
                Some(kept) => Some(Arc::clone(&kept.key)),
                None => Some(own_key()),
            };
            match &mut request {
                // Queries take turns in the engine, however many rows each has.
                Request::Generate(request) => request.caller = self.caller(),
                Request::Aggregate(job) => {
                    job.base.caller = self.caller();
                    job.identity = identity;
                }
                Request::Embed { .. } => {}
            }
            asks[row] = Some(Ask { request, key, kept, timeout: options.timeout, on_error: options.on_error });
        }
        Ok(asks)
    }

    fn caller(&self) -> String {
        format!("query {:016x}", self.nonce)
    }
}

/// What would answer `request` now. A model that cannot be found is an error of the call and not of its key.
fn identity_of(request: &Request, model: Option<&str>, inference: &dyn Inference) -> Option<CacheIdentity> {
    let task = match request {
        Request::Embed { how, .. } => how.kind.resolve(inference, model).ok()?.0,
        Request::Generate(_) | Request::Aggregate(_) => Task::Generate,
    };
    inference.identity(task, model).ok().flatten()
}

fn set_rows(mask: &BooleanArray) -> Vec<usize> {
    (0..mask.len()).filter(|row| mask.is_valid(*row) && mask.value(*row)).collect()
}

/// splitmix64: neighbouring rows get unrelated seeds.
fn mix(mut value: u64) -> u64 {
    value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// The evaluated arguments of a call for a batch.
struct Arguments<'a> {
    options: Vec<(&'a str, ColumnarValue)>,
    context: Option<ArrayRef>,
    values: Vec<ArrayRef>,
    max_tokens: usize,
    /// The options, when they are the same for all rows.
    constant: Option<CallOptions>,
}

impl<'a> Arguments<'a> {
    fn evaluate(call: &'a PhysicalCall, batch: &RecordBatch, limits: &AiOptions) -> Result<Self> {
        let (option_exprs, value_exprs) = call.args.split_at(call.options.len());
        let mut options = Vec::with_capacity(option_exprs.len());
        let mut context = None;
        for (name, expr) in call.options.iter().zip(option_exprs) {
            let value = expr.evaluate(batch)?;
            if name == CONTEXT {
                context = Some(value.into_array(batch.num_rows())?);
            } else {
                options.push((name.as_str(), value));
            }
        }
        let values = value_exprs
            .iter()
            .map(|expr| expr.evaluate(batch)?.into_array(batch.num_rows()))
            .collect::<Result<Vec<_>>>()?;
        let mut arguments = Self { options, context, values, max_tokens: limits.max_tokens_limit, constant: None };
        if arguments.options.iter().all(|(_, value)| matches!(value, ColumnarValue::Scalar(_))) {
            arguments.constant = Some(arguments.options_at(call, 0)?);
        }
        Ok(arguments)
    }

    fn options_at(&self, call: &PhysicalCall, row: usize) -> Result<CallOptions> {
        let mut options = CallOptions::default();
        for (name, value) in &self.options {
            let value = match value {
                ColumnarValue::Scalar(scalar) => scalar.clone(),
                ColumnarValue::Array(array) => ScalarValue::try_from_array(array, row)?,
            };
            options.set(call.function, name, &value, self.max_tokens).map_err(error::to_datafusion)?;
        }
        if options.on_error == OnError::Struct && !matches!(call.output.data_type(), DataType::Struct(_)) {
            return plan_err!("on_error => 'struct' decides the type of the answer, so it must be a literal");
        }
        Ok(options)
    }

    /// The request of row `row` and its options; a NULL prompt asks nothing. Without a seed it gets one of `nonce`.
    fn request(&self, call: &PhysicalCall, row: usize, nonce: u64) -> Result<Option<(Request, CallOptions)>> {
        let Some((first, rest)) = self.values.split_first() else {
            return Ok(None);
        };
        let mut options = match &self.constant {
            Some(options) => options.clone(),
            None => self.options_at(call, row)?,
        };
        if !options.is_repeatable() {
            options.sampling.seed = mix(nonce);
        }
        let request = match call.function {
            AiFunction::Embed => embed(first, row, &options)?,
            AiFunction::Generate => self.generate(first, rest, row, &options)?.map(Request::Generate),
            AiFunction::Filter => filter(first, rest, row, &options)?.map(Request::Generate),
            AiFunction::Classify => classify(first, rest, row, &options)?.map(Request::Generate),
            AiFunction::Aggregate => aggregate(first, rest, row, &options)?.map(Request::Aggregate),
        };
        Ok(request.map(|request| (request, options)))
    }

    fn generate(
        &self,
        prompt: &ArrayRef,
        passages: &[ArrayRef],
        row: usize,
        options: &CallOptions,
    ) -> Result<Option<GenerateRequest>> {
        let Some(prompt) = text_at(prompt, row)? else { return Ok(None) };
        let mut context = Vec::new();
        for passage in passages {
            context.extend(text_at(passage, row)?);
        }
        if let Some(list) = &self.context {
            context.extend(items(list, row)?);
        }
        Ok(Some(GenerateRequest { prompt: prompt_of(prompt, options.system.as_deref()), context, ..base(options) }))
    }
}

/// See [`crate::ai::request_of`].
pub(in crate::ai) fn request_of(
    prompt: String,
    mut context: Vec<String>,
    given: &[(&str, ScalarValue)],
) -> hypr_common::Result<GenerateRequest> {
    let mut options = CallOptions::default();
    for (name, value) in given {
        options.set(AiFunction::Generate, name, value, usize::MAX)?;
        if *name == CONTEXT && !value.is_null() {
            let list = value.to_array().map_err(error::from_datafusion)?;
            context.extend(items(&list, 0).map_err(error::from_datafusion)?);
        }
    }
    Ok(GenerateRequest { prompt: prompt_of(prompt, options.system.as_deref()), context, ..base(&options) })
}

/// What all requests with `options` have in common.
fn base(options: &CallOptions) -> GenerateRequest {
    GenerateRequest {
        model: options.model.clone(),
        max_tokens: options.max_tokens,
        sampling: options.sampling,
        stop: options.stop.clone(),
        constraint: options.constraint.clone(),
        logit_bias: options.logit_bias.clone(),
        speculative: options.speculative(),
        priority: options.priority,
        ..GenerateRequest::default()
    }
}

/// An instruction, with what the system says before it.
pub(super) fn prompt_of(text: String, system: Option<&str>) -> Prompt {
    match system {
        None => Prompt::Instruction(text),
        Some(system) => Prompt::Chat(messages(text, Some(system))),
    }
}

/// The conversation that a prompt is.
pub(super) fn messages(text: String, system: Option<&str>) -> Vec<ChatMessage> {
    let message = |role: &str, content: String| ChatMessage::new(role, &content);
    let system = system.map(|system| message("system", system.to_owned()));
    system.into_iter().chain([message("user", text)]).collect()
}

fn embed(values: &ArrayRef, row: usize, options: &CallOptions) -> Result<Option<Request>> {
    let kind = media::kind(values.data_type()).unwrap_or(InputKind::Text);
    let input = match kind {
        InputKind::Text => text_at(values, row)?.map(EmbedInput::Text),
        InputKind::Binary | InputKind::Samples => media::input(values, kind, row)?,
    };
    let how = Embed { model: options.model.clone(), normalize: options.normalize, kind };
    Ok(input.map(|input| Request::Embed { how, input }))
}

/// Whether a statement is true, of passages if there are any. Passages that are all NULL leave it open.
fn filter(
    statement: &ArrayRef,
    passages: &[ArrayRef],
    row: usize,
    options: &CallOptions,
) -> Result<Option<GenerateRequest>> {
    let Some(statement) = text_at(statement, row)? else { return Ok(None) };
    let mut context = Vec::with_capacity(passages.len());
    for passage in passages {
        context.extend(text_at(passage, row)?);
    }
    if context.is_empty() && !passages.is_empty() {
        return Ok(None);
    }
    let by = if passages.is_empty() { "" } else { "Judge by the context above. " };
    let prompt =
        format!("{by}Is the following statement true? Answer {TRUE} or {FALSE}.\n\nStatement: {statement}\n\nAnswer:");
    let choices = vec![TRUE.to_owned(), FALSE.to_owned()];
    Ok(Some(constrained(prompt, context, choices, options)))
}

fn classify(
    text: &ArrayRef,
    labels: &[ArrayRef],
    row: usize,
    options: &CallOptions,
) -> Result<Option<GenerateRequest>> {
    let (Some(text), Some(list)) = (text_at(text, row)?, labels.first()) else { return Ok(None) };
    if list.is_null(row) || list.data_type().is_null() {
        return Ok(None);
    }
    let labels = items(list, row)?;
    if labels.is_empty() {
        return plan_err!("ai_classify needs a label to choose");
    }
    let prompt = format!(
        "Which of these labels fits the text above best? Answer with the label alone.\n\nLabels: {}\n\nLabel:",
        labels.join(", ")
    );
    Ok(Some(constrained(prompt, vec![text], labels, options)))
}

/// A request whose answer is one of `choices`.
fn constrained(prompt: String, context: Vec<String>, choices: Vec<String>, options: &CallOptions) -> GenerateRequest {
    let prompt = prompt_of(prompt, options.system.as_deref());
    GenerateRequest { prompt, context, choices, sampling: Sampling::default(), ..base(options) }
}

fn aggregate(list: &ArrayRef, rest: &[ArrayRef], row: usize, options: &CallOptions) -> Result<Option<Aggregation>> {
    let Some(instruction) = rest.first().map(|text| text_at(text, row)).transpose()?.flatten() else {
        return Ok(None);
    };
    let texts = items(list, row)?;
    let (base, system) = (base(options), options.system.clone());
    Ok((!texts.is_empty()).then_some(Aggregation { texts, instruction, system, base, identity: None }))
}

fn text_at(values: &ArrayRef, row: usize) -> Result<Option<String>> {
    Texts::new(values.as_ref(), &FormatOptions::default())?.at(row)
}

/// The items of a list that are not NULL as texts; the value itself where it is no list.
fn items(list: &ArrayRef, row: usize) -> Result<Vec<String>> {
    let items = match list.data_type() {
        _ if list.is_null(row) => return Ok(Vec::new()),
        DataType::List(_) => list.as_list::<i32>().value(row),
        DataType::LargeList(_) => list.as_list::<i64>().value(row),
        DataType::FixedSizeList(_, _) => list.as_fixed_size_list().value(row),
        _ => list.slice(row, 1),
    };
    let format = FormatOptions::default();
    let texts = Texts::new(items.as_ref(), &format)?;
    let texts = (0..items.len()).map(|item| texts.at(item)).collect::<Result<Vec<_>>>()?;
    Ok(texts.into_iter().flatten().collect())
}
