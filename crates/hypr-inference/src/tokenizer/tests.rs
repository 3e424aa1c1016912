use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::*;

/// A byte-level tokenizer whose tokens are single bytes, so that every character beyond ASCII spans tokens.
fn bytes() -> TextTokenizer {
    let mut vocab = Map::new();
    let mut shifted = 256_u32;
    for byte in 0..=255_u32 {
        // GPT-2's printable names of bytes.
        let printable = matches!(byte, 33..=126 | 161..=172 | 174..=255);
        let code = if printable { byte } else { shifted };
        shifted += u32::from(!printable);
        vocab.insert(char::from_u32(code).unwrap().to_string(), Value::from(byte));
    }
    let json = json!({
        "version": "1.0", "truncation": {"max_length": 4, "strategy": "LongestFirst", "stride": 0, "direction": "Right"},
        "padding": null, "added_tokens": [], "normalizer": null, "post_processor": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    });
    TextTokenizer::from_json(json.to_string().as_bytes()).unwrap()
}

fn stream(tokenizer: &TextTokenizer, text: &str, stop: &[&str]) -> (Vec<String>, bool) {
    let mut stream = TextStream::new(stop.iter().map(|&stop| stop.to_owned()).collect());
    let mut parts = Vec::new();
    for token in tokenizer.encode(text, false).unwrap() {
        parts.push(stream.push(tokenizer, token).unwrap());
        if stream.stopped() {
            return (parts, true);
        }
    }
    parts.push(stream.finish(tokenizer).unwrap());
    let stopped = stream.stopped();
    (parts, stopped)
}

#[test]
fn characters_come_whole_and_truncation_of_the_file_is_off() {
    let tokenizer = bytes();
    let (parts, _) = stream(&tokenizer, "aé漢🦀", &[]);
    assert_eq!(parts, ["a", "", "é", "", "", "漢", "", "", "", "🦀", ""]);
}

#[test]
fn stop_strings_end_the_text_across_token_borders() {
    let tokenizer = bytes();
    let (parts, stopped) = stream(&tokenizer, "one\n\ntwo", &["\n\n"]);
    assert_eq!((parts.concat().as_str(), stopped), ("one", true));
    let (parts, stopped) = stream(&tokenizer, "one\ntwo\n", &["\n\n", ""]);
    assert_eq!((parts.concat().as_str(), stopped), ("one\ntwo\n", false));
    assert_eq!(parts[3..5], ["", "\nt"], "a possible start is held back until it is none");
}

#[test]
fn a_damaged_tokenizer_is_an_error() {
    assert!(TextTokenizer::from_json(b"{").is_err());
}

proptest! {
    #[test]
    fn a_stream_is_the_text_up_to_the_first_stop(text in "[abé漢]{0,30}", stop in "[abé漢]{1,3}", other in "[ab]{2}") {
        let tokenizer = bytes();
        let (parts, stopped) = stream(&tokenizer, &text, &[&stop, &other]);
        let first = [&stop, &other].into_iter().filter_map(|stop| text.find(stop.as_str())).min();
        // A longer stop that begins earlier can end later: the text then ends at whichever is complete first.
        if stopped {
            prop_assert!(first.is_some());
            prop_assert!(text.starts_with(&parts.concat()));
            let rest = &text[parts.concat().len()..];
            prop_assert!(rest.starts_with(&stop) || rest.starts_with(&other));
        } else {
            prop_assert_eq!(first, None);
            prop_assert_eq!(parts.concat(), text);
        }
    }
}
