//! One value of a call on one row: what to ask, and under which conditions two rows ask the same.

use std::sync::Arc;

use arrow::util::display::FormatOptions;
use arrow_array::cast::AsArray;
use arrow_array::{Array, ArrayRef, BooleanArray, RecordBatch};
use arrow_schema::DataType;
use datafusion::common::cast::as_boolean_array;
use datafusion::common::{Result, ScalarValue};
use datafusion::logical_expr::ColumnarValue;
use hypr_inference::api::{GenerateRequest, Prompt};

use super::PhysicalCall;
use crate::ai::AiOptions;
use crate::ai::function::AiFunction;
use crate::ai::options::{CONTEXT, CallOptions};
use crate::ai::text::Texts;
use crate::error;

/// What a row asks.
#[derive(Clone, Debug)]
pub(super) enum Request {
    Generate(GenerateRequest),
    Embed { model: Option<String>, normalize: bool, text: String },
}

/// A request and how its answer is used.
#[derive(Clone, Debug)]
pub(super) struct Ask {
    pub request: Request,
    /// Equal keys have equal answers; none when every row needs an answer of its own.
    pub key: Option<Arc<str>>,
    pub null_on_error: bool,
}

/// The requests of `call` for the rows of `batch`: `None` for a row that needs none. `first_row` is the number
/// of the batch's first row in the query, from which calls without a seed get one.
pub(super) fn requests(
    call: &PhysicalCall,
    batch: &RecordBatch,
    options: &AiOptions,
    nonce: u64,
    first_row: u64,
) -> Result<Vec<Option<Ask>>> {
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
    let arguments = Arguments::evaluate(call, &batch, options)?;
    for (at, row) in rows.into_iter().enumerate() {
        let seed = mix(nonce ^ (first_row + row as u64));
        asks[row] = arguments.ask(call.function, at, seed)?;
        if let Some(Ask { request: Request::Generate(request), .. }) = &mut asks[row] {
            // Queries take turns in the engine, however many rows each has.
            request.caller = format!("query {nonce:016x}");
        }
    }
    Ok(asks)
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
            arguments.constant = Some(arguments.options_at(call.function, 0)?);
        }
        Ok(arguments)
    }

    fn options_at(&self, function: AiFunction, row: usize) -> Result<CallOptions> {
        let mut options = CallOptions::default();
        for (name, value) in &self.options {
            let value = match value {
                ColumnarValue::Scalar(scalar) => scalar.clone(),
                ColumnarValue::Array(array) => ScalarValue::try_from_array(array, row)?,
            };
            options.set(function, name, &value, self.max_tokens).map_err(error::to_datafusion)?;
        }
        Ok(options)
    }

    /// The request of row `row`; a NULL prompt asks nothing.
    fn ask(&self, function: AiFunction, row: usize, seed: u64) -> Result<Option<Ask>> {
        let Some((first, passages)) = self.values.split_first() else {
            return Ok(None);
        };
        let format = FormatOptions::default();
        let Some(text) = Texts::new(first.as_ref(), &format)?.at(row)? else {
            return Ok(None);
        };
        let options = match &self.constant {
            Some(options) => options.clone(),
            None => self.options_at(function, row)?,
        };
        let repeatable = options.is_repeatable();
        let null_on_error = options.null_on_error;
        let request = match function {
            AiFunction::Embed => Request::Embed { model: options.model, normalize: options.normalize, text },
            AiFunction::Generate => {
                let mut context = Vec::new();
                for passage in passages {
                    context.extend(Texts::new(passage.as_ref(), &format)?.at(row)?);
                }
                if let Some(list) = &self.context {
                    extend_from_list(&mut context, list, row)?;
                }
                let mut sampling = options.sampling;
                if !repeatable {
                    sampling.seed = seed;
                }
                Request::Generate(GenerateRequest {
                    model: options.model,
                    prompt: Prompt::Instruction(text),
                    context,
                    max_tokens: options.max_tokens,
                    sampling,
                    stop: options.stop,
                    ..GenerateRequest::default()
                })
            }
        };
        let key = repeatable.then(|| Arc::from(format!("{request:?}")));
        Ok(Some(Ask { request, key, null_on_error }))
    }
}

/// Adds the items of a list of passages, or the one passage.
fn extend_from_list(context: &mut Vec<String>, list: &ArrayRef, row: usize) -> Result<()> {
    let format = FormatOptions::default();
    let items = match list.data_type() {
        _ if list.is_null(row) => return Ok(()),
        DataType::List(_) => list.as_list::<i32>().value(row),
        DataType::LargeList(_) => list.as_list::<i64>().value(row),
        DataType::FixedSizeList(_, _) => list.as_fixed_size_list().value(row),
        _ => list.slice(row, 1),
    };
    let texts = Texts::new(items.as_ref(), &format)?;
    for item in 0..items.len() {
        context.extend(texts.at(item)?);
    }
    Ok(())
}
