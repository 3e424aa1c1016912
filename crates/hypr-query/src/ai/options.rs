//! The named options of AI calls: names, ranges and defaults.

use datafusion::common::ScalarValue;
use datafusion::common::cast::as_string_array;
use hypr_common::{Error, Result};
use hypr_inference::api::{GenerateRequest, Sampling};

use super::function::AiFunction;

/// Options of `generate_response`.
pub(super) const GENERATE: &[&str] = &[
    "model",
    "max_tokens",
    "temperature",
    "top_k",
    "top_p",
    "repetition_penalty",
    "seed",
    "stop",
    "context",
    "on_error",
];
/// Options of `embed`.
pub(super) const EMBED: &[&str] = &["model", "normalize", "on_error"];
/// The option that takes passages as a list of texts; `USING CONTEXT` sets it.
pub(super) const CONTEXT: &str = "context";

/// The options of one call on one row, context apart.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct CallOptions {
    pub model: Option<String>,
    pub max_tokens: usize,
    pub sampling: Sampling,
    /// True when the caller gave the seed.
    pub seeded: bool,
    pub stop: Vec<String>,
    pub normalize: bool,
    /// An error gives NULL rather than failing the query.
    pub null_on_error: bool,
}

impl Default for CallOptions {
    fn default() -> Self {
        Self {
            model: None,
            max_tokens: GenerateRequest::default().max_tokens,
            sampling: Sampling::default(),
            seeded: false,
            stop: Vec::new(),
            normalize: true,
            null_on_error: false,
        }
    }
}

impl CallOptions {
    /// Sets option `name`; NULL keeps the default.
    ///
    /// # Errors
    /// `InvalidInput` for an unknown name or a value out of range, naming what is valid.
    pub fn set(&mut self, function: AiFunction, name: &str, value: &ScalarValue, max_tokens: usize) -> Result<()> {
        if !function.options().contains(&name) {
            return Err(unknown(function, name));
        }
        if value.is_null() {
            return Ok(());
        }
        match name {
            "model" => self.model = Some(text(name, value)?.to_owned()),
            "max_tokens" => self.max_tokens = whole(name, value, 1, max_tokens as u64)? as usize,
            "temperature" => self.sampling.temperature = real(name, value, "0 or more", |value| value >= 0.0)?,
            "top_k" => self.sampling.top_k = whole(name, value, 0, u64::from(u32::MAX))? as usize,
            "top_p" => {
                self.sampling.top_p = real(name, value, "above 0 and at most 1", |value| value > 0.0 && value <= 1.0)?;
            }
            "repetition_penalty" => {
                self.sampling.repetition_penalty = real(name, value, "above 0", |value| value > 0.0)?;
            }
            "seed" => {
                self.sampling.seed = seed(value)?;
                self.seeded = true;
            }
            "stop" => self.stop = texts(value)?,
            "normalize" => self.normalize = boolean(name, value)?,
            "on_error" => {
                self.null_on_error = match text(name, value)?.to_ascii_lowercase().as_str() {
                    "null" => true,
                    "fail" => false,
                    other => return Err(Error::invalid(format!("on_error must be 'fail' or 'null', not '{other}'"))),
                }
            }
            // Passages; the node reads them itself.
            _ => {}
        }
        Ok(())
    }

    /// True when the same request always has the same answer.
    pub fn is_repeatable(&self) -> bool {
        self.sampling.temperature == 0.0 || self.seeded
    }
}

/// Checks one option by itself.
pub(super) fn check(function: AiFunction, name: &str, value: &ScalarValue, max_tokens: usize) -> Result<()> {
    CallOptions::default().set(function, name, value, max_tokens)
}

/// The error for an option that `function` does not have.
pub(super) fn unknown(function: AiFunction, name: &str) -> Error {
    Error::invalid(format!("{} has no option \"{name}\"; it has {}", function.name(), function.options().join(", ")))
}

fn text<'a>(name: &str, value: &'a ScalarValue) -> Result<&'a str> {
    value.try_as_str().flatten().ok_or_else(|| Error::invalid(format!("{name} must be text, not {value}")))
}

fn boolean(name: &str, value: &ScalarValue) -> Result<bool> {
    match value {
        ScalarValue::Boolean(Some(value)) => Ok(*value),
        _ => Err(Error::invalid(format!("{name} must be true or false, not {value}"))),
    }
}

fn real(name: &str, value: &ScalarValue, range: &str, valid: impl Fn(f32) -> bool) -> Result<f32> {
    let refuse = || Error::invalid(format!("{name} must be a number, {range}, not {value}"));
    match value.cast_to(&arrow_schema::DataType::Float32) {
        Ok(ScalarValue::Float32(Some(number))) if number.is_finite() && valid(number) && !is_text(value) => Ok(number),
        _ => Err(refuse()),
    }
}

fn whole(name: &str, value: &ScalarValue, least: u64, most: u64) -> Result<u64> {
    let refuse = || Error::invalid(format!("{name} must be a whole number from {least} to {most}, not {value}"));
    if is_text(value) || !value.data_type().is_integer() {
        return Err(refuse());
    }
    match value.cast_to(&arrow_schema::DataType::UInt64) {
        Ok(ScalarValue::UInt64(Some(number))) if (least..=most).contains(&number) => Ok(number),
        _ => Err(refuse()),
    }
}

/// Any integer is a seed; negative ones wrap.
fn seed(value: &ScalarValue) -> Result<u64> {
    match value.cast_to(&arrow_schema::DataType::Int64) {
        Ok(ScalarValue::Int64(Some(seed))) if value.data_type().is_integer() => Ok(seed as u64),
        _ => whole("seed", value, 0, u64::MAX),
    }
}

/// One stop string or a list of them.
fn texts(value: &ScalarValue) -> Result<Vec<String>> {
    if let Some(Some(one)) = value.try_as_str() {
        return Ok(vec![one.to_owned()]);
    }
    let refuse = || Error::invalid(format!("stop must be a text or a list of texts, not {value}"));
    let ScalarValue::List(list) = value else {
        return Err(refuse());
    };
    let items = arrow::compute::cast(list.values(), &arrow_schema::DataType::Utf8)?;
    let items = as_string_array(&items).map_err(|_| refuse())?;
    Ok(items.iter().flatten().map(str::to_owned).collect())
}

fn is_text(value: &ScalarValue) -> bool {
    value.try_as_str().is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(name: &str, value: ScalarValue) -> String {
        check(AiFunction::Generate, name, &value, 100).unwrap_err().message().to_owned()
    }

    #[test]
    fn a_refused_option_says_what_is_valid() {
        assert!(message("colour", ScalarValue::from(1)).contains("max_tokens, temperature"));
        assert!(message("max_tokens", ScalarValue::from(101)).contains("from 1 to 100"));
        assert!(message("max_tokens", ScalarValue::from(0.5)).contains("whole number"));
        assert!(message("temperature", ScalarValue::from(-0.1)).contains("0 or more"));
        assert!(message("top_p", ScalarValue::from(1.5)).contains("at most 1"));
        assert!(message("on_error", ScalarValue::from("ignore")).contains("'fail' or 'null'"));
    }

    #[test]
    fn options_are_set_and_null_keeps_the_default() {
        let mut options = CallOptions::default();
        for (name, value) in [
            ("model", ScalarValue::from("m")),
            ("max_tokens", ScalarValue::from(7_i64)),
            ("temperature", ScalarValue::from(0.5_f64)),
            ("seed", ScalarValue::from(-1_i64)),
            ("stop", ScalarValue::from("END")),
            ("top_k", ScalarValue::Int64(None)),
        ] {
            options.set(AiFunction::Generate, name, &value, 100).unwrap();
        }
        assert_eq!((options.model.as_deref(), options.max_tokens), (Some("m"), 7));
        assert_eq!(options.sampling, Sampling { temperature: 0.5, seed: u64::MAX, ..Sampling::default() });
        assert_eq!(options.stop, ["END"]);
        assert!(options.is_repeatable());
    }
}
