//! The marker functions: they have a type for the planner and no implementation, because every call is moved
//! into a [`super::node::GenerateNode`] before the plan is optimised.
//!
//! A call with named options arrives as the second form, whose first argument is the list of option names as a
//! literal, followed by their values and then the function's own arguments:
//! `_generate_response('model,seed', 'smollm2', 7, prompt, passage)`.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow_schema::{DataType, Field, FieldRef};
use datafusion::common::{Result, ScalarValue, internal_err, plan_err};
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::{
    ColumnarValue, Expr, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDFImpl, Signature, Volatility,
};
use hypr_common::types;
use hypr_inference::api::{Inference, Task};
use hypr_inference::model::embedding_width;

use super::media;
use super::options::{self, OnError};
use crate::error;

/// What an AI call asks of the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum AiFunction {
    /// `generate_response(prompt, passage, ..)`: text.
    Generate,
    /// `embed(text)`: a vector of the model's width.
    Embed,
    /// `ai_filter(statement, passage, ..)`: whether the statement is true.
    Filter,
    /// `ai_classify(text, labels)`: one of the labels.
    Classify,
    /// `ai_agg(text, instruction)`: a text from the texts of a group, which `aggregate` has gathered into a list.
    Aggregate,
}

impl AiFunction {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Generate, Self::Embed, Self::Filter, Self::Classify, Self::Aggregate];

    /// The name in SQL.
    pub fn name(self) -> &'static str {
        match self {
            AiFunction::Generate => "generate_response",
            AiFunction::Embed => "embed",
            AiFunction::Filter => "ai_filter",
            AiFunction::Classify => "ai_classify",
            AiFunction::Aggregate => "ai_agg",
        }
    }

    /// The name of the form with options; no user writes it.
    pub fn name_with_options(self) -> &'static str {
        match self {
            AiFunction::Generate => "_generate_response",
            AiFunction::Embed => "_embed",
            AiFunction::Filter => "_ai_filter",
            AiFunction::Classify => "_ai_classify",
            AiFunction::Aggregate => "_ai_agg",
        }
    }

    /// The function that SQL calls `name`, in any case.
    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|function| function.name().eq_ignore_ascii_case(name))
    }

    /// What the model must be able to do.
    pub fn task(self) -> Task {
        match self {
            AiFunction::Embed => Task::Embed,
            AiFunction::Generate | AiFunction::Filter | AiFunction::Classify | AiFunction::Aggregate => Task::Generate,
        }
    }
}

/// A marker function.
#[derive(Debug)]
pub(super) struct AiUdf {
    function: AiFunction,
    with_options: bool,
    signature: Signature,
    inference: Arc<dyn Inference>,
}

impl AiUdf {
    pub fn new(function: AiFunction, with_options: bool, inference: Arc<dyn Inference>) -> Self {
        Self { function, with_options, signature: Signature::variadic_any(Volatility::Volatile), inference }
    }

    /// Splits the arguments of a call into option names and the values with the function's own arguments.
    fn split<'a, T>(
        &self,
        all: &'a [T],
        names: impl Fn(&'a T) -> Option<&'a str>,
    ) -> Result<(Vec<String>, &'a [T], &'a [T])> {
        if !self.with_options {
            return Ok((Vec::new(), &[], all));
        }
        let Some((first, rest)) = all.split_first() else {
            return internal_err!("a call with options has no list of them");
        };
        let Some(names) = names(first) else {
            return internal_err!("the list of options is not a literal");
        };
        let names: Vec<String> = names.split(',').map(str::to_owned).collect();
        if rest.len() < names.len() {
            return internal_err!("a call has fewer values than options");
        }
        let (values, arguments) = rest.split_at(names.len());
        Ok((names, values, arguments))
    }

    /// The type of the answers; a struct of it and of the error where `on_error` asks for one.
    fn output_type(&self, fields: &[FieldRef], model: Option<&str>, on_error: OnError) -> Result<FieldRef> {
        let name = self.function.name();
        let answer = match self.function {
            AiFunction::Generate | AiFunction::Classify | AiFunction::Aggregate => {
                Field::new(name, DataType::Utf8, true)
            }
            AiFunction::Filter => Field::new(name, DataType::Boolean, true),
            AiFunction::Embed => {
                let input = fields.first().map_or(&DataType::Null, |field| field.data_type());
                let model = media::model(self.inference.as_ref(), input, model).map_err(error::to_datafusion)?;
                types::vector_field(name, embedding_width(&model), true)
            }
        };
        Ok(Arc::new(match on_error {
            OnError::Struct => {
                let error = Field::new("error", DataType::Utf8, true);
                Field::new_struct(name, vec![answer.with_name("value"), error], true)
            }
            OnError::Fail | OnError::Null => answer,
        }))
    }
}

impl PartialEq for AiUdf {
    fn eq(&self, other: &Self) -> bool {
        (self.function, self.with_options) == (other.function, other.with_options)
    }
}

impl Eq for AiUdf {}

impl Hash for AiUdf {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.function, self.with_options).hash(state);
    }
}

impl ScalarUDFImpl for AiUdf {
    fn name(&self) -> &str {
        if self.with_options { self.function.name_with_options() } else { self.function.name() }
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn schema_name(&self, args: &[Expr]) -> Result<String> {
        let (names, values, arguments) = self.split(args, literal_text)?;
        let arguments = arguments.iter().map(|argument| argument.schema_name().to_string());
        let options = names.iter().zip(values).map(|(name, value)| format!("{name} => {}", value.schema_name()));
        Ok(format!("{}({})", self.function.name(), arguments.chain(options).collect::<Vec<_>>().join(", ")))
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        internal_err!("the type of {} needs its arguments", self.function.name())
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs) -> Result<FieldRef> {
        let (names, values, scalars) = self.split(args.scalar_arguments, |scalar| scalar.and_then(scalar_text))?;
        let fields = &args.arg_fields[args.arg_fields.len() - scalars.len()..];
        self.check_arguments(fields)?;
        let (mut model, mut on_error) = (None, OnError::default());
        for (name, value) in names.iter().zip(values) {
            if let Some(value) = value {
                options::check(self.function, name, value, usize::MAX).map_err(error::to_datafusion)?;
            }
            if name == "model" && self.function == AiFunction::Embed {
                let Some(value) = value else {
                    return plan_err!("the model of embed decides the width of the vector, so it must be a literal");
                };
                model = scalar_text(value);
            }
            if let ("on_error", Some(word)) = (name.as_str(), value.and_then(scalar_text)) {
                on_error = OnError::of(word).map_err(error::to_datafusion)?;
            }
        }
        self.output_type(fields, model, on_error)
    }

    fn invoke_with_args(&self, _: ScalarFunctionArgs) -> Result<ColumnarValue> {
        plan_err!("{} cannot be called here", self.function.name())
    }
}

impl AiUdf {
    fn check_arguments(&self, fields: &[FieldRef]) -> Result<()> {
        let name = self.function.name();
        let Some((first, rest)) = fields.split_first() else {
            return plan_err!("{name} takes {} as its first argument", self.subject());
        };
        let is_wanted = match self.function {
            AiFunction::Aggregate => is_list(first.data_type()),
            AiFunction::Embed if media::kind(first.data_type()).is_some() => true,
            _ => is_text(first.data_type()),
        };
        if !is_wanted {
            return plan_err!(
                "{name} takes {} as its first argument, not {}; cast it to TEXT",
                self.subject(),
                types::sql_type_name(first)
            );
        }
        match (self.function, rest) {
            (AiFunction::Embed, [_, ..]) => {
                plan_err!("embed takes one text; name its options, for example embed(text, model => 'name')")
            }
            (AiFunction::Classify, [labels]) if is_list_of_text(labels.data_type()) => Ok(()),
            (AiFunction::Classify, _) => {
                plan_err!("ai_classify takes a text and a list of labels, for example ai_classify(text, ['a', 'b'])")
            }
            (AiFunction::Aggregate, [instruction]) if is_text(instruction.data_type()) => Ok(()),
            (AiFunction::Aggregate, _) => {
                plan_err!("ai_agg takes a text and an instruction, for example ai_agg(text, 'Summarise.')")
            }
            _ => Ok(()),
        }
    }

    fn subject(&self) -> &'static str {
        match self.function {
            AiFunction::Generate => "the prompt",
            AiFunction::Filter => "the statement",
            AiFunction::Embed | AiFunction::Classify | AiFunction::Aggregate => "the text",
        }
    }
}

fn is_text(data_type: &DataType) -> bool {
    match data_type {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View | DataType::Null => true,
        DataType::Dictionary(_, value) => is_text(value),
        _ => false,
    }
}

fn is_list(data_type: &DataType) -> bool {
    item_type(data_type).is_some()
}

fn is_list_of_text(data_type: &DataType) -> bool {
    data_type.is_null() || item_type(data_type).is_some_and(is_text)
}

fn item_type(data_type: &DataType) -> Option<&DataType> {
    match data_type {
        DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => Some(item.data_type()),
        _ => None,
    }
}

fn scalar_text(scalar: &ScalarValue) -> Option<&str> {
    scalar.try_as_str().flatten()
}

fn literal_text(expr: &Expr) -> Option<&str> {
    match expr {
        Expr::Literal(scalar, _) => scalar_text(scalar),
        _ => None,
    }
}

/// A call taken apart.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Call {
    /// What is called.
    pub function: AiFunction,
    /// The names of the options.
    pub options: Vec<String>,
    /// The values of the options, then the function's own arguments.
    pub args: Vec<Expr>,
}

impl Call {
    /// The call that `expr` is, if it is one.
    pub fn of(expr: &Expr) -> Result<Option<Self>> {
        let Expr::ScalarFunction(ScalarFunction { func, args }) = expr else {
            return Ok(None);
        };
        let Some(udf) = func.inner().downcast_ref::<AiUdf>() else {
            return Ok(None);
        };
        let (options, values, arguments) = udf.split(args, literal_text)?;
        let args = values.iter().chain(arguments).cloned().collect();
        Ok(Some(Self { function: udf.function, options, args }))
    }

    /// True for an AI call; its arguments are not looked at.
    pub fn is(expr: &Expr) -> bool {
        matches!(expr, Expr::ScalarFunction(function) if function.func.inner().is::<AiUdf>())
    }
}
