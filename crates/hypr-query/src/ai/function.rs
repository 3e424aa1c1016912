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

use super::options;
use crate::error;

/// What an AI call asks of the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum AiFunction {
    /// `generate_response(prompt, passage, ..)`: text.
    Generate,
    /// `embed(text)`: a vector of the model's width.
    Embed,
}

impl AiFunction {
    /// The name in SQL.
    pub fn name(self) -> &'static str {
        match self {
            AiFunction::Generate => "generate_response",
            AiFunction::Embed => "embed",
        }
    }

    /// The name of the form with options; no user writes it.
    pub fn name_with_options(self) -> &'static str {
        match self {
            AiFunction::Generate => "_generate_response",
            AiFunction::Embed => "_embed",
        }
    }

    /// The function that SQL calls `name`, in any case.
    pub fn of_name(name: &str) -> Option<Self> {
        [AiFunction::Generate, AiFunction::Embed]
            .into_iter()
            .find(|function| function.name().eq_ignore_ascii_case(name))
    }

    /// What the model must be able to do.
    pub fn task(self) -> Task {
        match self {
            AiFunction::Generate => Task::Generate,
            AiFunction::Embed => Task::Embed,
        }
    }

    /// The names of its options.
    pub fn options(self) -> &'static [&'static str] {
        match self {
            AiFunction::Generate => options::GENERATE,
            AiFunction::Embed => options::EMBED,
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

    fn output_type(&self, model: Option<&str>) -> Result<FieldRef> {
        let name = self.function.name();
        Ok(Arc::new(match self.function {
            AiFunction::Generate => Field::new(name, DataType::Utf8, true),
            AiFunction::Embed => {
                let model = self.inference.resolve(Task::Embed, model).map_err(error::to_datafusion)?;
                types::vector_field(name, model.hidden_size, true)
            }
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
        let mut model = None;
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
        }
        self.output_type(model)
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
        if !is_text(first.data_type()) {
            return plan_err!(
                "{name} takes {} as its first argument, not {}; cast it to TEXT",
                self.subject(),
                types::sql_type_name(first)
            );
        }
        if self.function == AiFunction::Embed && !rest.is_empty() {
            return plan_err!("embed takes one text; name its options, for example embed(text, model => 'name')");
        }
        Ok(())
    }

    fn subject(&self) -> &'static str {
        match self.function {
            AiFunction::Generate => "the prompt",
            AiFunction::Embed => "the text",
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
