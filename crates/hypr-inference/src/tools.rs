//! Tools: how a model is told what it may call, and how its calls are read from its answer.
//!
//! A chat template that knows `tools` gets them in OpenAI's shape; for another they are written into the system's message.
//! Calls are looked for in the forms that open models write: JSON between `<tool_call>` tags (Hermes, Qwen, SmolLM), and
//! JSON alone, with `parameters` (Llama 3) or after `[TOOL_CALLS]` (Mistral). Invariant: what is not a call of a tool
//! that was offered stays text. Deliberately absent: running tools, and checking arguments of calls that were not
//! required against their schemas.

use hypr_common::{Error, Result};
use serde_json::{Value, json};

use crate::api::{Constraint, GenerateRequest, Prompt, Tool, ToolCall, ToolChoice};
use crate::model::Model;

const OPEN: &str = "<tool_call>";
const CLOSE: &str = "</tool_call>";
/// What may stand before calls that are JSON alone.
const MARKS: [&str; 2] = ["<|python_tag|>", "[TOOL_CALLS]"];

/// How a model writes its calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToolFormat {
    /// `<tool_call>{"name": .., "arguments": ..}</tool_call>`.
    Hermes,
    /// `{"name": .., "parameters": ..}`.
    Llama3,
    /// `[TOOL_CALLS][{"name": .., "arguments": ..}]`.
    Mistral,
}

impl ToolFormat {
    /// That of the models whose chat template this is.
    pub fn of_template(template: &str) -> Self {
        if template.contains(OPEN) {
            Self::Hermes
        } else if template.contains("[TOOL_CALLS]") {
            Self::Mistral
        } else if template.contains("<|python_tag|>") || template.contains("\"parameters\"") {
            Self::Llama3
        } else {
            Self::Hermes
        }
    }
}

/// The tools that `request` offers.
pub fn offered(request: &GenerateRequest) -> &[Tool] {
    if request.tool_choice == ToolChoice::None { &[] } else { &request.tools }
}

/// For models whose template knows nothing of tools: the system's message that offers them.
pub fn instruction(tools: &[Tool]) -> String {
    let list: Vec<String> = tools.iter().map(python_json).collect();
    format!(
        "You may call functions to answer. Here they are, one a line:\n{}\nTo call one, write nothing but \
         {OPEN}\n{{\"name\": <its name>, \"arguments\": <its arguments as a JSON object>}}\n{CLOSE}",
        list.join("\n")
    )
}

/// Reads the calls of one request's answer.
#[derive(Debug)]
pub struct ToolParser {
    names: Vec<String>,
    constraint: Option<Constraint>,
}

impl ToolParser {
    /// The parser of `request`; `None` where it offers no tools.
    ///
    /// # Errors
    /// `InvalidInput` for a call that is required of a tool that is not offered, and for tools beside a text to continue or
    /// a grammar that they would contradict.
    pub fn of(model: &Model, request: &GenerateRequest) -> Result<Option<Self>> {
        let tools = offered(request);
        let names: Vec<String> = tools.iter().map(|tool| tool.name.clone()).collect();
        let required: Vec<&Tool> = match &request.tool_choice {
            ToolChoice::None | ToolChoice::Auto => Vec::new(),
            ToolChoice::Required if tools.is_empty() => {
                return Err(Error::invalid("a tool call is required and no tool is offered; give `tools`"));
            }
            ToolChoice::Required => tools.iter().collect(),
            ToolChoice::Named(name) => match tools.iter().find(|tool| tool.name == *name) {
                Some(tool) => vec![tool],
                None => {
                    let message = format!("tool_choice names '{name}', which is not offered; there are: ");
                    return Err(Error::invalid(message + &names.join(", ")));
                }
            },
        };
        if tools.is_empty() {
            return Ok(None);
        }
        if matches!(request.prompt, Prompt::Raw(_)) {
            return Err(Error::invalid("tools need an instruction or a conversation, not a text to continue"));
        }
        if !required.is_empty() && request.constraint.is_some() {
            return Err(Error::invalid("a required tool call and a grammar contradict each other; give one of them"));
        }
        let constraint = (!required.is_empty()).then(|| call_grammar(model, &required));
        Ok(Some(Self { names, constraint }))
    }

    /// The grammar of a call that is required.
    pub fn constraint(&self) -> Option<&Constraint> {
        self.constraint.as_ref()
    }

    /// The answer without its calls, and the calls.
    pub fn parse(&self, text: &str) -> (String, Vec<ToolCall>) {
        parse(text, |name| self.names.iter().any(|known| known == name))
    }
}

/// A grammar of one call of one of `tools`, in the model's own form.
fn call_grammar(model: &Model, tools: &[&Tool]) -> Constraint {
    let format = model.tool_format();
    let (before, arguments, after) = match format {
        ToolFormat::Hermes => {
            let tag = |tag: &str| if model.tokenizer().is_special(tag) { tag.to_owned() } else { quoted(tag) };
            (format!("{} \"\\n\" ", tag(OPEN)), "arguments", format!(" \"\\n\" {}", tag(CLOSE)))
        }
        ToolFormat::Llama3 => (String::new(), "parameters", String::new()),
        ToolFormat::Mistral => {
            let mark = MARKS[1];
            let mark = if model.tokenizer().is_special(mark) { String::new() } else { quoted(mark) + " " };
            (mark + "\"[\" ", "arguments", " \"]\"".to_owned())
        }
    };
    let names: Vec<String> = (0..tools.len()).map(|at| format!("call_{at}")).collect();
    let mut grammar = format!("start: {before}call{after}\ncall: {}\n", names.join(" | "));
    for (at, tool) in tools.iter().enumerate() {
        let head = format!("{{\"name\": {}, \"{arguments}\": ", Value::from(tool.name.as_str()));
        let parameters = if tool.parameters.is_object() { tool.parameters.clone() } else { json!({ "const": {} }) };
        let schema = crate::grammar::spaced(parameters);
        grammar += &format!("call_{at}: {} arguments_{at} \"}}\"\narguments_{at}: %json {schema}\n", quoted(&head));
    }
    Constraint::Lark(grammar.into())
}

/// A string of a Lark grammar.
fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

/// See [`ToolParser::parse`].
fn parse(text: &str, is_offered: impl Fn(&str) -> bool) -> (String, Vec<ToolCall>) {
    let mut calls = Vec::new();
    let mut content = String::new();
    let mut rest = text;
    while let Some((before, inside)) = rest.split_once(OPEN) {
        let (inside, after) = inside.split_once(CLOSE).unwrap_or((inside, ""));
        content.push_str(before);
        match calls_of(inside, &is_offered) {
            Some(found) => calls.extend(found),
            None => content.push_str(&rest[before.len()..rest.len() - after.len()]),
        }
        rest = after;
    }
    content.push_str(rest);
    if calls.is_empty() {
        let bare = MARKS.iter().fold(text.trim(), |text, mark| text.trim_start_matches(mark));
        if let Some(found) = calls_of(bare, &is_offered) {
            return (String::new(), numbered(found));
        }
        return (text.to_owned(), calls);
    }
    (content.trim().to_owned(), numbered(calls))
}

fn numbered(mut calls: Vec<ToolCall>) -> Vec<ToolCall> {
    for (at, call) in calls.iter_mut().enumerate() {
        call.id = format!("call_{at}");
    }
    calls
}

/// The calls that `text` consists of: objects, or lists of them, one after another. `None` where it has anything else.
fn calls_of(text: &str, is_offered: &impl Fn(&str) -> bool) -> Option<Vec<ToolCall>> {
    let mut calls = Vec::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        let mut values = serde_json::Deserializer::from_str(rest).into_iter::<Value>();
        let value = values.next()?.ok()?;
        rest = rest[values.byte_offset()..].trim_start_matches([';', ',']).trim_start();
        let items = if let Value::Array(items) = value { items } else { vec![value] };
        for item in items {
            calls.push(call_of(item).filter(|call| is_offered(&call.name))?);
        }
    }
    if calls.is_empty() { None } else { Some(calls) }
}

fn call_of(value: Value) -> Option<ToolCall> {
    let Value::Object(mut fields) = value else { return None };
    // OpenAI's shape, and that of a message: the call is inside.
    if let Some(inner @ Value::Object(_)) = fields.remove("function") {
        return call_of(inner);
    }
    let Some(Value::String(name)) = fields.remove("name") else { return None };
    let arguments = fields.remove("arguments").or_else(|| fields.remove("parameters"));
    let arguments = match arguments {
        Some(Value::String(text)) => text,
        Some(object @ Value::Object(_)) => object.to_string(),
        None => "{}".to_owned(),
        Some(_) => return None,
    };
    Some(ToolCall { id: String::new(), name, arguments })
}

/// JSON as Python's `json.dumps` writes it, a space after each separator: the form that models have read most.
fn python_json(value: &impl serde::Serialize) -> String {
    let mut out = Vec::new();
    let written = value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, PythonFormatter));
    // Writing plain data to memory does not fail.
    if written.is_ok() { String::from_utf8(out).unwrap_or_default() } else { String::new() }
}

/// The spaces of [`python_json`].
struct PythonFormatter;

impl serde_json::ser::Formatter for PythonFormatter {
    fn begin_array_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W) -> std::io::Result<()> {
        writer.write_all(b": ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> (String, Vec<(String, String)>) {
        let (content, calls) = parse(text, |name| ["weather", "time"].contains(&name));
        for (at, call) in calls.iter().enumerate() {
            assert_eq!(call.id, format!("call_{at}"));
        }
        (content, calls.into_iter().map(|call| (call.name, call.arguments)).collect())
    }

    fn call(name: &str, arguments: &str) -> (String, String) {
        (name.to_owned(), arguments.to_owned())
    }

    #[test]
    fn calls_are_read_in_the_forms_that_models_write() {
        let oslo = call("weather", r#"{"city":"Oslo"}"#);
        let forms = [
            "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Oslo\"}}\n</tool_call>",
            "<tool_call>[{\"name\": \"weather\", \"arguments\": {\"city\": \"Oslo\"}}]</tool_call>",
            "<tool_call>{\"name\": \"weather\", \"arguments\": \"{\\\"city\\\":\\\"Oslo\\\"}\"}",
            "{\"name\": \"weather\", \"parameters\": {\"city\": \"Oslo\"}}",
            "<|python_tag|>{\"type\": \"function\", \"name\": \"weather\", \"parameters\": {\"city\": \"Oslo\"}}",
            "[TOOL_CALLS] [{\"name\": \"weather\", \"arguments\": {\"city\": \"Oslo\"}}]",
            "{\"type\": \"function\", \"function\": {\"name\": \"weather\", \"arguments\": {\"city\": \"Oslo\"}}}",
        ];
        for form in forms {
            assert_eq!(read(form), (String::new(), vec![oslo.clone()]), "{form}");
        }
        let two = "Let me see.\n<tool_call>{\"name\": \"weather\", \"arguments\": {\"city\": \"Oslo\"}}</tool_call>\n\
                   <tool_call>{\"name\": \"time\"}</tool_call>";
        assert_eq!(read(two), ("Let me see.".to_owned(), vec![oslo.clone(), call("time", "{}")]));
        let two =
            "{\"name\": \"weather\", \"parameters\": {\"city\": \"Oslo\"}}; {\"name\": \"time\", \"parameters\": {}}";
        assert_eq!(read(two), (String::new(), vec![oslo, call("time", "{}")]));
    }

    #[test]
    fn what_is_not_a_call_of_a_tool_that_was_offered_stays_text() {
        for text in [
            "It is 7 degrees.",
            "{\"name\": \"weather\"",
            "{\"name\": \"rm\", \"arguments\": {}}",
            "{\"name\": \"weather\", \"arguments\": [1]}",
            "<tool_call>{\"name\": \"rm\", \"arguments\": {}}</tool_call> done",
            "<tool_call>nothing</tool_call>",
            "I call {\"name\": \"weather\", \"arguments\": {}}",
            "[]",
            "",
        ] {
            assert_eq!(read(text), (text.to_owned(), vec![]), "{text}");
        }
    }

    #[test]
    fn the_form_is_that_of_the_template() {
        let of = ToolFormat::of_template;
        assert_eq!(of("return <tool_call></tool_call> XML tags"), ToolFormat::Hermes);
        assert_eq!(
            of("{{ '{\"name\": function name, \"parameters\": dictionary' }}<|python_tag|>"),
            ToolFormat::Llama3
        );
        assert_eq!(of("{{ '[TOOL_CALLS]' }}"), ToolFormat::Mistral);
        assert_eq!(of("{{ messages }}"), ToolFormat::Hermes);
    }

    #[test]
    fn json_is_written_as_python_writes_it() {
        let value = serde_json::json!({ "a": [1, "é<b>"], "c": {} });
        assert_eq!(python_json(&value), "{\"a\": [1, \"é<b>\"], \"c\": {}}");
    }
}
