//! `process_input(text, tokenizer)`: the tokens of a text. And the functions that stand behind
//! `generate_response(tokens, weight_data, config)`, which no user writes (see `ai::weights_form`).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow_array::builder::{Int32Builder, ListBuilder, StringBuilder};
use arrow_array::cast::AsArray;
use arrow_array::types::Int32Type;
use arrow_array::{Array, ArrayRef};
use arrow_cast::cast;
use arrow_schema::{DataType, Field};
use datafusion::common::{Result as DfResult, ScalarValue, plan_err};
use datafusion::logical_expr::function::AccumulatorArgs;
use datafusion::logical_expr::{
    Accumulator, AggregateUDF, AggregateUDFImpl, ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl,
    Signature, Volatility,
};
use hypr_common::model::{ModelMetadata, ModelSource, TOKENIZER_FILE};
use hypr_common::{Error, Result};
use hypr_inference::tokenizer::TextTokenizer;
use parking_lot::Mutex;

use super::architecture_config;
use crate::error;
use crate::functions::vector::{all_constant, first_as_constant};

/// An aggregate over model and layer: which layers of which models there are.
pub(crate) const SELECTED_WEIGHTS: &str = "_selected_weights";
/// The id of the one model that selected weights are all of.
pub(crate) const WHOLE_MODEL: &str = "_whole_model";
/// Tokens, or text, as the text of a prompt.
pub(crate) const PROMPT_OF: &str = "_prompt_of";

/// The scalar functions over the models of `source`.
pub(crate) fn functions(source: &Arc<dyn ModelSource>) -> Vec<Arc<ScalarUDF>> {
    let models = Arc::new(Models { source: Arc::clone(source), tokenizers: Mutex::default() });
    [Kind::ProcessInput, Kind::PromptOf, Kind::WholeModel]
        .map(|kind| {
            let signature = Signature::user_defined(Volatility::Stable);
            Arc::new(ScalarUDF::from(ModelFunction { kind, models: Arc::clone(&models), signature }))
        })
        .to_vec()
}

/// The aggregate [`SELECTED_WEIGHTS`].
pub(crate) fn selected_weights() -> Arc<AggregateUDF> {
    let signature = Signature::exact(vec![DataType::Utf8, DataType::Int32], Volatility::Immutable);
    Arc::new(AggregateUDF::from(SelectedWeights { signature }))
}

struct Models {
    source: Arc<dyn ModelSource>,
    /// By model, of the version beside it.
    tokenizers: Mutex<HashMap<String, (u64, Arc<TextTokenizer>)>>,
}

impl fmt::Debug for Models {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Models").field("source", &self.source).finish_non_exhaustive()
    }
}

impl Models {
    fn tokenizer(&self, model_id: &str) -> Result<Arc<TextTokenizer>> {
        let tables = self.source.open(model_id)?;
        if let Some((version, tokenizer)) = self.tokenizers.lock().get(model_id)
            && *version == tables.version
        {
            return Ok(Arc::clone(tokenizer));
        }
        let json = tables.files.get(TOKENIZER_FILE).ok_or_else(|| {
            Error::invalid(format!("model {model_id} has no tokenizer; import it with its tokenizer.json"))
        })?;
        let tokenizer = Arc::new(TextTokenizer::from_json(json.as_slice())?);
        self.tokenizers.lock().insert(model_id.to_owned(), (tables.version, Arc::clone(&tokenizer)));
        Ok(tokenizer)
    }

    /// The model whose tokenizer `name` is: `model/tokenizer.json`, as `architecture_config` has it, or the model.
    fn of_tokenizer(&self, name: &str) -> Result<String> {
        let models = self.source.models()?;
        let wanted = name.strip_suffix(TOKENIZER_FILE).and_then(|name| name.strip_suffix('/')).unwrap_or(name);
        match models.iter().find(|model| model.model_id == wanted) {
            Some(model) => Ok(model.model_id.clone()),
            None => {
                Err(Error::not_found(format!("tokenizer \"{name}\" is that of no model; there are {}", names(&models))))
            }
        }
    }

    fn whole_model(&self, weights: &str, config: Option<&str>) -> Result<String> {
        let selected: Selected = serde_json::from_str(weights).map_err(|_| {
            Error::invalid("generate_response takes weight_data as a query on model_weights selects it")
        })?;
        let models = self.source.models()?;
        let (id, layers) = match selected.into_iter().collect::<Vec<_>>().as_slice() {
            [only] => only.clone(),
            [] => {
                let known = names(&models);
                return Err(Error::not_found(format!("the query selects the weights of no model; there are {known}")));
            }
            several => {
                let ids: Vec<&str> = several.iter().map(|(id, _)| id.as_str()).collect();
                let ids = ids.join(", ");
                return Err(Error::invalid(format!("the query selects weights of several models ({ids}); choose one")));
            }
        };
        let model = models.iter().find(|model| model.model_id == id);
        let model = model.ok_or_else(|| Error::not_found(format!("model {id} is gone")))?;
        let missing: Vec<i32> = (0..model.num_hidden_layers).filter(|layer| !layers.contains(layer)).collect();
        if !missing.is_empty() {
            return Err(Error::invalid(format!(
                "weight_data lacks {} of the {} layers of {id}: {}; select them all",
                missing.len(),
                model.num_hidden_layers,
                ranges(&missing)
            )));
        }
        match config {
            Some(config) if serde_json::from_str(config).ok() != Some(architecture_config(model)) => {
                Err(Error::invalid(format!("the third argument is not the architecture_config of model {id}")))
            }
            _ => Ok(id),
        }
    }

    fn prompt(&self, tokens: &[i32], weights: &str) -> Result<String> {
        let selected: Selected = serde_json::from_str(weights).unwrap_or_default();
        match selected.first_key_value() {
            Some((model, _)) => self.tokenizer(model)?.decode(&tokens.iter().map(|id| *id as u32).collect::<Vec<_>>()),
            // The check of the weights says what is wrong with them.
            None => Ok(String::new()),
        }
    }
}

fn names(models: &[ModelMetadata]) -> String {
    let names: Vec<String> =
        models.iter().map(|model| format!("{} (model_type {})", model.model_id, model.model_type)).collect();
    if names.is_empty() { "none; import one".to_owned() } else { names.join(", ") }
}

/// `1, 3 to 5`.
fn ranges(layers: &[i32]) -> String {
    let mut parts: Vec<(i32, i32)> = Vec::new();
    for layer in layers {
        match parts.last_mut() {
            Some((_, end)) if *end + 1 == *layer => *end = *layer,
            _ => parts.push((*layer, *layer)),
        }
    }
    let text = parts.iter().map(|(a, b)| if a == b { a.to_string() } else { format!("{a} to {b}") });
    text.collect::<Vec<_>>().join(", ")
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Kind {
    ProcessInput,
    PromptOf,
    WholeModel,
}

#[derive(Debug)]
struct ModelFunction {
    kind: Kind,
    models: Arc<Models>,
    signature: Signature,
}

impl PartialEq for ModelFunction {
    fn eq(&self, other: &Self) -> bool {
        self.kind == other.kind
    }
}

impl Eq for ModelFunction {}

impl Hash for ModelFunction {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.kind.hash(state);
    }
}

fn tokens_type() -> DataType {
    DataType::List(Arc::new(Field::new_list_field(DataType::Int32, true)))
}

impl ScalarUDFImpl for ModelFunction {
    fn name(&self) -> &str {
        match self.kind {
            Kind::ProcessInput => "process_input",
            Kind::PromptOf => PROMPT_OF,
            Kind::WholeModel => WHOLE_MODEL,
        }
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> DfResult<DataType> {
        Ok(if self.kind == Kind::ProcessInput { tokens_type() } else { DataType::Utf8 })
    }

    fn coerce_types(&self, arg_types: &[DataType]) -> DfResult<Vec<DataType>> {
        let [first, second] = arg_types else {
            return plan_err!("process_input takes a text and a tokenizer, not {} arguments", arg_types.len());
        };
        let is_text = |data_type: &DataType| data_type.is_string() || data_type.is_null();
        let first = match self.kind {
            Kind::PromptOf if first.is_list() => tokens_type(),
            Kind::WholeModel if first.is_binary() => {
                return plan_err!(
                    "select weight_data in a subquery or in WITH, which make one row of it; this query would ask once for each weight"
                );
            }
            _ if is_text(first) => DataType::Utf8,
            _ => return plan_err!("{} takes text, not {first}", self.name().trim_start_matches('_')),
        };
        if !(is_text(second) || self.kind == Kind::PromptOf && second.is_binary()) {
            return plan_err!(
                "{} takes text as its second argument, not {second}",
                self.name().trim_start_matches('_')
            );
        }
        Ok(vec![first, DataType::Utf8])
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> DfResult<ColumnarValue> {
        let constant = all_constant(&args.args);
        let rows = if constant { 1 } else { args.number_rows };
        let columns = args.args.iter().map(|value| value.to_array(rows)).collect::<DfResult<Vec<_>>>()?;
        let result = self.over(&columns[0], &columns[1]).map_err(error::to_datafusion)?;
        if constant { first_as_constant(&result) } else { Ok(ColumnarValue::Array(result)) }
    }
}

impl ModelFunction {
    fn over(&self, first: &ArrayRef, second: &ArrayRef) -> Result<ArrayRef> {
        let second = cast(second, &DataType::Utf8)?;
        let second = second.as_string::<i32>();
        let rows = 0..first.len();
        if self.kind == Kind::PromptOf && first.data_type().is_list() {
            let (lists, mut prompts) = (first.as_list::<i32>(), StringBuilder::new());
            for row in rows {
                let tokens = lists.is_valid(row).then(|| lists.value(row));
                let prompt = tokens
                    .filter(|_| second.is_valid(row))
                    .map(|tokens| self.models.prompt(tokens.as_primitive::<Int32Type>().values(), second.value(row)));
                prompts.append_option(prompt.transpose()?);
            }
            return Ok(Arc::new(prompts.finish()));
        }
        let first = cast(first, &DataType::Utf8)?;
        if self.kind == Kind::PromptOf {
            return Ok(first);
        }
        let first = first.as_string::<i32>();
        let text = |row: usize| first.is_valid(row).then(|| first.value(row));
        let other = |row: usize| second.is_valid(row).then(|| second.value(row));
        if self.kind == Kind::WholeModel {
            let mut models = StringBuilder::new();
            for row in rows {
                let model = text(row).map(|weights| self.models.whole_model(weights, other(row)));
                models.append_option(model.transpose()?);
            }
            return Ok(Arc::new(models.finish()));
        }
        let mut tokens = ListBuilder::new(Int32Builder::new());
        for row in rows {
            if let Some((text, name)) = text(row).zip(other(row)) {
                let tokenizer = self.models.tokenizer(&self.models.of_tokenizer(name)?)?;
                for token in tokenizer.encode(text, false)? {
                    tokens.values().append_value(i32::try_from(token).unwrap_or(i32::MAX));
                }
                tokens.append(true);
            } else {
                tokens.append(false);
            }
        }
        Ok(Arc::new(tokens.finish()))
    }
}

/// Layers by model, as JSON.
type Selected = BTreeMap<String, BTreeSet<i32>>;

#[derive(Debug, PartialEq, Eq, Hash)]
struct SelectedWeights {
    signature: Signature,
}

impl AggregateUDFImpl for SelectedWeights {
    fn name(&self) -> &str {
        SELECTED_WEIGHTS
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> DfResult<DataType> {
        Ok(DataType::Utf8)
    }

    fn accumulator(&self, _: AccumulatorArgs) -> DfResult<Box<dyn Accumulator>> {
        Ok(Box::new(SelectedLayers::default()))
    }
}

#[derive(Debug, Default)]
struct SelectedLayers(Selected);

impl SelectedLayers {
    fn json(&self) -> DfResult<ScalarValue> {
        let json = serde_json::to_string(&self.0)
            .map_err(|e| error::to_datafusion(Error::internal("a list of layers is no JSON").with_source(e)))?;
        Ok(ScalarValue::from(json))
    }
}

impl Accumulator for SelectedLayers {
    fn update_batch(&mut self, values: &[ArrayRef]) -> DfResult<()> {
        let (models, layers) = (values[0].as_string::<i32>(), values[1].as_primitive::<Int32Type>());
        for (model, layer) in models.iter().zip(layers) {
            let (Some(model), Some(layer)) = (model, layer) else { continue };
            match self.0.get_mut(model) {
                Some(layers) => drop(layers.insert(layer)),
                None => drop(self.0.insert(model.to_owned(), BTreeSet::from([layer]))),
            }
        }
        Ok(())
    }

    fn evaluate(&mut self) -> DfResult<ScalarValue> {
        self.json()
    }

    fn size(&self) -> usize {
        size_of_val(self) + self.0.values().map(|layers| layers.len() * size_of::<i32>()).sum::<usize>()
    }

    fn state(&mut self) -> DfResult<Vec<ScalarValue>> {
        Ok(vec![self.json()?])
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> DfResult<()> {
        for state in states[0].as_string::<i32>().iter().flatten() {
            let other: Selected = serde_json::from_str(state)
                .map_err(|e| error::to_datafusion(Error::internal("a list of layers is damaged").with_source(e)))?;
            for (model, layers) in other {
                self.0.entry(model).or_default().extend(layers);
            }
        }
        Ok(())
    }
}
