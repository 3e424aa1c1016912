//! Flight's session options: their messages, which `arrow-flight` has not, and the options that there are.

use std::collections::HashMap;
use std::time::Duration;

use hypr_query::{CATALOG, DEFAULT_SCHEMA, Settings};
use prost::{Enumeration, Message, Oneof};

pub(super) const SET_SESSION_OPTIONS: &str = "SetSessionOptions";
pub(super) const GET_SESSION_OPTIONS: &str = "GetSessionOptions";
pub(super) const CLOSE_SESSION: &str = "CloseSession";

/// `arrow.flight.protocol.SessionOptionValue` (Flight.proto).
#[derive(Clone, PartialEq, Message)]
pub struct SessionOptionValue {
    /// None unsets the option.
    #[prost(oneof = "OptionValue", tags = "1, 2, 3, 4, 5")]
    pub option_value: Option<OptionValue>,
}

/// The value of a session option.
#[derive(Clone, PartialEq, Oneof)]
pub enum OptionValue {
    /// Text.
    #[prost(string, tag = "1")]
    String(String),
    /// True or false.
    #[prost(bool, tag = "2")]
    Bool(bool),
    /// An integer.
    #[prost(sfixed64, tag = "3")]
    Int64(i64),
    /// A number.
    #[prost(double, tag = "4")]
    Double(f64),
    /// Several texts.
    #[prost(message, tag = "5")]
    StringList(StringListValue),
}

/// `SessionOptionValue.StringListValue`.
#[derive(Clone, PartialEq, Message)]
pub struct StringListValue {
    /// The texts.
    #[prost(string, repeated, tag = "1")]
    pub values: Vec<String>,
}

/// `SetSessionOptionsRequest`.
#[derive(Clone, PartialEq, Message)]
pub struct SetSessionOptionsRequest {
    /// By name.
    #[prost(map = "string, message", tag = "1")]
    pub session_options: HashMap<String, SessionOptionValue>,
}

/// `SetSessionOptionsResult`.
#[derive(Clone, PartialEq, Message)]
pub struct SetSessionOptionsResult {
    /// The options that were not set.
    #[prost(map = "string, message", tag = "1")]
    pub errors: HashMap<String, SetSessionOptionsError>,
}

/// `SetSessionOptionsResult.Error`.
#[derive(Clone, PartialEq, Message)]
pub struct SetSessionOptionsError {
    /// Why.
    #[prost(enumeration = "SetError", tag = "1")]
    pub value: i32,
}

/// `SetSessionOptionsResult.ErrorValue`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Enumeration)]
#[repr(i32)]
pub enum SetError {
    /// Not known.
    Unspecified = 0,
    /// There is no such option.
    InvalidName = 1,
    /// The option does not take this value.
    InvalidValue = 2,
    /// It could not be set.
    Error = 3,
}

/// `GetSessionOptionsResult`.
#[derive(Clone, PartialEq, Message)]
pub struct GetSessionOptionsResult {
    /// By name.
    #[prost(map = "string, message", tag = "1")]
    pub session_options: HashMap<String, SessionOptionValue>,
}

/// `CloseSessionResult`.
#[derive(Clone, PartialEq, Message)]
pub struct CloseSessionResult {
    /// A [`CloseStatus`].
    #[prost(enumeration = "CloseStatus", tag = "1")]
    pub status: i32,
}

/// `CloseSessionResult.Status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Enumeration)]
#[repr(i32)]
pub enum CloseStatus {
    /// Not known.
    Unspecified = 0,
    /// It is closed.
    Closed = 1,
    /// It is being closed.
    Closing = 2,
    /// It cannot be closed.
    NotCloseable = 3,
}

/// Sets one option; without a value, to its default.
pub(super) fn set(settings: &mut Settings, option: &str, value: &SessionOptionValue) -> Result<(), SetError> {
    use OptionValue::{Double, Int64, String as Text};
    let value = value.option_value.as_ref();
    match (option, value) {
        ("catalog", None) => Ok(()),
        ("catalog", Some(Text(name))) if name == CATALOG => Ok(()),
        ("schema", None) => {
            DEFAULT_SCHEMA.clone_into(&mut settings.schema);
            Ok(())
        }
        ("schema", Some(Text(name))) if !name.is_empty() => {
            settings.schema.clone_from(name);
            Ok(())
        }
        ("time_zone", None) => {
            settings.time_zone = None;
            Ok(())
        }
        ("time_zone", Some(Text(zone))) => {
            zone.parse::<arrow_array::timezone::Tz>().map_err(|_| SetError::InvalidValue)?;
            settings.time_zone = Some(zone.clone());
            Ok(())
        }
        ("statement_timeout_s", None) => {
            settings.statement_timeout = None;
            Ok(())
        }
        ("statement_timeout_s", Some(value)) => {
            let seconds = match value {
                Int64(seconds) => *seconds as f64,
                Double(seconds) => *seconds,
                Text(seconds) => seconds.parse().map_err(|_| SetError::InvalidValue)?,
                _ => return Err(SetError::InvalidValue),
            };
            let limit = Duration::try_from_secs_f64(seconds).map_err(|_| SetError::InvalidValue)?;
            settings.statement_timeout = Some(limit).filter(|limit| !limit.is_zero());
            Ok(())
        }
        ("catalog" | "schema" | "time_zone", Some(_)) => Err(SetError::InvalidValue),
        _ => Err(SetError::InvalidName),
    }
}

/// Every option and its value.
pub(super) fn shown(settings: &Settings) -> HashMap<String, SessionOptionValue> {
    let timeout = settings.statement_timeout.map_or(0.0, |limit| limit.as_secs_f64());
    let zone = settings.time_zone.clone().unwrap_or_else(|| "UTC".to_owned());
    HashMap::from([
        option("catalog", OptionValue::String(CATALOG.to_owned())),
        option("schema", OptionValue::String(settings.schema.clone())),
        option("time_zone", OptionValue::String(zone)),
        option("statement_timeout_s", OptionValue::Double(timeout)),
    ])
}

fn option(name: &str, value: OptionValue) -> (String, SessionOptionValue) {
    (name.to_owned(), SessionOptionValue { option_value: Some(value) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(value: OptionValue) -> SessionOptionValue {
        SessionOptionValue { option_value: Some(value) }
    }

    #[test]
    fn options_are_checked_one_by_one() {
        let mut settings = Settings::default();
        let text = |text: &str| value(OptionValue::String(text.to_owned()));
        set(&mut settings, "schema", &text("sales")).unwrap();
        set(&mut settings, "time_zone", &text("Europe/Vienna")).unwrap();
        set(&mut settings, "statement_timeout_s", &text("1.5")).unwrap();
        assert_eq!(settings.statement_timeout, Some(Duration::from_millis(1500)));
        assert_eq!(set(&mut settings, "time_zone", &text("Mars/Base")), Err(SetError::InvalidValue));
        assert_eq!(set(&mut settings, "catalog", &text("other")), Err(SetError::InvalidValue));
        assert_eq!(
            set(&mut settings, "statement_timeout_s", &value(OptionValue::Double(-1.0))),
            Err(SetError::InvalidValue)
        );
        assert_eq!(set(&mut settings, "colour", &text("red")), Err(SetError::InvalidName));
        assert_eq!(shown(&settings)["schema"], text("sales"));
        set(&mut settings, "schema", &SessionOptionValue { option_value: None }).unwrap();
        assert_eq!(settings.schema, DEFAULT_SCHEMA);
    }
}
