//! Damaged and hostile files: always an error or a model, never a panic.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use arrow_buffer::Buffer;
use hypr_common::model::ModelTables;
use hypr_common::{Error, ErrorKind};
use hypr_inference::encoder::Encoder;
use hypr_inference::import;
use hypr_inference::kv_cache::KvPrecision;
use hypr_inference::model::Model;
use hypr_inference::sampler::Sampler;
use hypr_inference::transformer::{Chunk, Transformer, Workspace};
use hypr_inference::{EmbedInput, GenerateRequest, Sampling};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::support::{checkpoint, fixture, kernels, read};

/// Imports and opens what can be opened.
fn gguf(bytes: Vec<u8>) -> hypr_common::Result<()> {
    let tables = import::gguf(Buffer::from_vec(bytes), "hostile")?;
    Transformer::open(&tables, 64).map(drop)
}

fn safetensors(bytes: Vec<u8>) -> hypr_common::Result<()> {
    let mut files = checkpoint(&fixture("tiny-llama"));
    files.insert("model.safetensors".into(), Buffer::from_vec(bytes));
    let tables = import::safetensors(&files, "hostile")?;
    Transformer::open(&tables, 64).map(drop)
}

#[test]
fn every_truncation_is_a_clear_error() {
    let whole = read(&fixture("tiny-llama.gguf")).to_vec();
    gguf(whole.clone()).unwrap();
    for len in (0..2400).chain((2400..whole.len()).step_by(997)) {
        let error = gguf(whole[..len].to_vec()).expect_err("a truncated file");
        assert_eq!(error.kind(), ErrorKind::Corrupted, "at {len}: {error}");
        assert!(error.message().contains("GGUF"), "at {len}: {error}");
    }
    let whole = read(&fixture("tiny-llama").join("model.safetensors")).to_vec();
    safetensors(whole.clone()).unwrap();
    for len in (0..whole.len()).step_by(499) {
        assert_eq!(safetensors(whole[..len].to_vec()).unwrap_err().kind(), ErrorKind::Corrupted, "at {len}");
    }
}

#[test]
fn lengths_beyond_the_file_reserve_nothing() {
    let mut file = b"GGUF".to_vec();
    file.extend(3_u32.to_le_bytes());
    file.extend(u64::MAX.to_le_bytes());
    file.extend(1_u64.to_le_bytes());
    file.extend(1_u64.to_le_bytes());
    file.push(b'k');
    file.extend(9_u32.to_le_bytes());
    file.extend(10_u32.to_le_bytes());
    file.extend((u64::MAX / 2).to_le_bytes());
    let error = gguf(file).unwrap_err();
    assert!(error.kind() == ErrorKind::Corrupted && error.message().contains("k claims"), "{error}");
}

#[test]
fn a_file_of_another_kind_says_so() {
    let error = gguf(b"PK\x03\x04 a zip archive".to_vec()).unwrap_err();
    assert!(error.message().contains("does not start with \"GGUF\""), "{error}");
    let files = [("model.safetensors".to_owned(), Buffer::from_vec(vec![0_u8; 9]))].into();
    let error = import::safetensors(&files, "x").unwrap_err();
    assert!(error.message().contains("config.json"), "{error}");
}

/// The files of `scripts/make_corpus.py`.
fn corpus() -> PathBuf {
    fixture("../corpus")
}

/// Imports a file of the corpus beside sound ones, opens the model, and where that works takes it through a pass.
fn take(name: &str, bytes: Vec<u8>) -> hypr_common::Result<()> {
    let sound = |kind: &str| read(&corpus().join(kind));
    let tables = match name.split('-').next().unwrap() {
        "gguf" => import::gguf(Buffer::from_vec(bytes), "hostile")?,
        kind => {
            let mut files = [
                ("model.safetensors".to_owned(), sound("safetensors-sound.safetensors")),
                ("config.json".to_owned(), sound("config-sound.json")),
                ("tokenizer.json".to_owned(), sound("tokenizer-sound.json")),
            ];
            let at = ["safetensors", "config", "tokenizer"].iter().position(|known| *known == kind).unwrap();
            files[at].1 = Buffer::from_vec(bytes);
            import::safetensors(&files.into(), "hostile")?
        }
    };
    run(tables)
}

/// Opens a model, and computes, chooses and decodes a token of a text.
fn run(tables: ModelTables) -> hypr_common::Result<()> {
    let model = Model::open(Arc::new(tables), 32)?;
    let text = "abc a b <s> aaaaaaaaaaaaaaaaaaaaaaaaaaaaab";
    let mut tokens = model.encode_prompt(text)?;
    tokens.truncate(20);
    model.tokenizer().decode(&tokens)?;
    if tokens.iter().any(|&token| token as usize >= model.config().vocab_size) {
        return Err(Error::corrupted("the tokenizer gives tokens that the network does not have"));
    }
    if tokens.is_empty() {
        tokens.push(0);
    }
    let kernels = kernels(hypr_tensor::kernels::detect(), 1);
    let mut cache = model.transformer().new_cache(KvPrecision::F16);
    let mut work = Workspace::new();
    let mut batch = [Chunk { tokens: &tokens, cache: Some(&mut cache), logits: true }];
    model.transformer().forward(&kernels, &mut batch, &mut work)?;
    for temperature in [0.0, 1.0] {
        let sampling = Sampling { temperature, top_k: 3, top_p: 0.9, ..GenerateRequest::default().sampling };
        let token = Sampler::new(sampling, Vec::new(), &tokens).sample(work.logits_mut());
        model.tokenizer().decode(&[token])?;
    }
    Ok(())
}

/// A corpus file with its part of the message; `None` for a sound one.
fn expected() -> Vec<(String, Option<String>)> {
    let expected = crate::support::json(&corpus().join("expected.json"));
    let entries = expected.as_object().unwrap().iter();
    entries.map(|(name, part)| (name.clone(), part.as_str().map(str::to_owned))).collect()
}

/// What is wrong with the answer to a file, if anything.
fn judge(name: &str, part: Option<&str>) -> Option<String> {
    let taken = std::panic::catch_unwind(|| take(name, read(&corpus().join(name)).to_vec()));
    match (taken, part) {
        (Err(_), _) => Some(format!("{name}: panics")),
        (Ok(Ok(())), None) => None,
        (Ok(Ok(())), Some(part)) => Some(format!("{name}: taken, and should be refused: {part}")),
        (Ok(Err(error)), Some(part)) if part.split('|').any(|part| error.message().contains(part)) => None,
        (Ok(Err(error)), _) => Some(format!("{name}: {error} (expected {part:?})")),
    }
}

/// In a process that may not reserve more than four gigabytes of addresses, so that a length that is taken on trust ends
/// it.
#[cfg(target_os = "linux")]
#[test]
fn every_file_of_the_corpus_is_answered_within_little_memory() {
    let child = Command::new("sh")
        .args(["-c", "ulimit -v 4000000; exec \"$0\" --exact hostile::child --ignored --nocapture"])
        .arg(std::env::current_exe().unwrap())
        .output()
        .unwrap();
    let output = String::from_utf8_lossy(&child.stdout).into_owned() + &String::from_utf8_lossy(&child.stderr);
    assert!(child.status.success() && output.contains("1 passed"), "{output}");
}

#[test]
#[ignore = "runs as a process of the test above"]
fn child() {
    let files = expected();
    assert!(files.len() > 150, "{} files", files.len());
    let wrong: Vec<String> = files.iter().filter_map(|(name, part)| judge(name, part.as_deref())).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_corpus_is_whole_and_its_files_are_small() {
    let mut known: Vec<String> = expected().into_iter().map(|(name, _)| name).collect();
    known.push("expected.json".to_owned());
    known.sort();
    let mut files: Vec<PathBuf> = std::fs::read_dir(corpus()).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let name = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
    assert_eq!(files.iter().map(name).collect::<Vec<_>>(), known);
    let size = |path: &Path| std::fs::metadata(path).unwrap().len();
    assert!(files.iter().all(|path| size(path) < 4096 || path.ends_with("expected.json")));
}

#[test]
fn small_files_are_refused_wherever_they_end() {
    for name in ["gguf-sound.gguf", "safetensors-sound.safetensors", "config-sound.json", "tokenizer-sound.json"] {
        let whole = read(&corpus().join(name)).to_vec();
        // What fills a GGUF file's last tensor up to 32 bytes is of no use to anybody.
        let padding = if name.ends_with(".gguf") { 16 } else { 0 };
        for len in 0..whole.len() - padding {
            let error = take(name, whole[..len].to_vec()).expect_err("a truncated file");
            assert_eq!(error.kind(), ErrorKind::Corrupted, "{name} at {len}: {error}");
        }
    }
}

/// A sound file of each kind.
fn sound() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        "gguf-sound.gguf",
        "safetensors-sound.safetensors",
        "config-sound.json",
        "tokenizer-sound.json",
    ])
}

/// One damage to a file, at a place of its own choice.
#[derive(Clone, Debug)]
enum Damage {
    Byte(u8),
    Bit(u32),
    /// A length, an offset or a dimension, as far as 8 bytes are one.
    Word(u64),
    Cut,
    /// A piece of the file once more.
    Again(usize),
    Drop(usize),
}

fn damage() -> impl Strategy<Value = (prop::sample::Index, Damage)> {
    let word =
        prop_oneof![Just(0), Just(u64::MAX), Just(1 << 62), Just(1 << 31), Just(u64::from(u32::MAX)), any::<u64>()];
    let what = prop_oneof![
        any::<u8>().prop_map(Damage::Byte),
        (0_u32..8).prop_map(Damage::Bit),
        word.prop_map(Damage::Word),
        Just(Damage::Cut),
        (1_usize..64).prop_map(Damage::Again),
        (1_usize..64).prop_map(Damage::Drop),
    ];
    (any::<prop::sample::Index>(), what)
}

fn damaged(mut file: Vec<u8>, damages: &[(prop::sample::Index, Damage)]) -> Vec<u8> {
    for (at, damage) in damages {
        if file.is_empty() {
            break;
        }
        // Where the structure is, rather than the weights.
        let at = at.index(file.len().min(1400));
        let end = |len: usize| (at + len).min(file.len());
        match *damage {
            Damage::Byte(byte) => file[at] = byte,
            Damage::Bit(bit) => file[at] ^= 1 << bit,
            Damage::Word(word) => {
                let end = end(8);
                file[at..end].copy_from_slice(&word.to_le_bytes()[..end - at]);
            }
            Damage::Cut => file.truncate(at),
            Damage::Again(len) => {
                let piece = file[at..end(len)].to_vec();
                file.splice(at..at, piece);
            }
            Damage::Drop(len) => drop(file.drain(at..end(len))),
        }
    }
    file
}

/// The places of all values below `value`.
fn places(value: &Value, at: &str, found: &mut Vec<String>) {
    found.push(at.to_owned());
    match value {
        Value::Object(fields) => fields.iter().for_each(|(key, value)| places(value, &format!("{at}/{key}"), found)),
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(i, value)| places(value, &format!("{at}/{i}"), found));
        }
        _ => {}
    }
}

/// What no sound file says somewhere.
fn strange() -> impl Strategy<Value = Value> {
    prop::sample::select(vec![
        Value::Null,
        json!(true),
        json!(0),
        json!(-1),
        json!(1),
        json!(3),
        json!(1.5),
        json!(16384),
        json!(16_777_216),
        json!(u32::MAX),
        json!(u64::MAX),
        json!(1e300),
        json!(-1e-300),
        json!(""),
        json!("gelu_new"),
        json!("llama"),
        json!([]),
        json!([0, -1, 1e9]),
        json!({}),
        json!({"height": 16384, "width": 16384}),
        json!({"longest_edge": 1}),
    ])
}

/// A checkpoint of another family, with its settings changed at some places.
fn changed(network: &str, changes: &[(prop::sample::Index, Value)]) -> hypr_common::Result<()> {
    let mut files = checkpoint(&fixture(network));
    files.entry("tokenizer.json".to_owned()).or_insert_with(crate::engine::tokenizer);
    let settings = ["config.json", "preprocessor_config.json", "tokenizer.json"];
    for name in settings {
        let path = fixture(network).join(name);
        if path.exists() {
            files.insert(name.to_owned(), read(&path));
        }
    }
    for (at, value) in changes {
        let present: Vec<&str> = settings.into_iter().filter(|name| files.contains_key(*name)).collect();
        let name = *at.get(&present);
        let mut document: Value = serde_json::from_slice(&files[name]).unwrap();
        let mut found = Vec::new();
        places(&document, "", &mut found);
        let place: &String = at.get(&found);
        *document.pointer_mut(place).unwrap() = value.clone();
        files.insert(name.to_owned(), Buffer::from_vec(document.to_string().into_bytes()));
    }
    let tables = Arc::new(import::safetensors(&files, "hostile")?);
    let encoder = match Encoder::open(&tables, 32)? {
        Some(encoder) => encoder,
        None => Encoder::Text(Arc::new(Model::open(tables, 32)?)),
    };
    let picture = std::fs::read(fixture("picture.png")).unwrap();
    let kernels = kernels(hypr_tensor::kernels::detect(), 1);
    for input in [EmbedInput::Text("w1 w2 ab".into()), EmbedInput::Binary(Buffer::from_vec(picture))] {
        // One of the two is of another kind than the model takes, and a network that generates embeds nothing.
        if let Ok(prepared) = encoder.prepare(&input) {
            let _ = encoder.embed(&kernels, &[&prepared], true, &mut Workspace::new());
        }
    }
    Ok(())
}

#[test]
fn checkpoints_of_other_families_are_sound_before_they_are_changed() {
    for network in NETWORKS {
        changed(network, &[]).unwrap();
    }
}

const NETWORKS: [&str; 6] = ["tiny-bert", "tiny-clip", "tiny-vit", "tiny-qwen2", "tiny-qwen3", "tiny-llama3"];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn strange_settings_are_an_error_or_a_model(
        network in prop::sample::select(NETWORKS.to_vec()),
        changes in prop::collection::vec((any::<prop::sample::Index>(), strange()), 1..4),
    ) {
        // As above. A message, where there is one, says something.
        if let Err(error) = changed(network, &changes) {
            assert!(error.message().len() > 10, "{error}");
            assert!(error.kind() != ErrorKind::Internal, "{error}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2048))]

    #[test]
    fn damaged_files_are_an_error_or_a_model((name, damages) in (sound(), prop::collection::vec(damage(), 1..5))) {
        // Whatever it answers: it answers.
        let _ = take(name, damaged(read(&corpus().join(name)).to_vec(), &damages));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn flipped_bytes_never_panic(flips in prop::collection::vec((0_usize..2600, any::<u8>()), 1..6)) {
        let mut file = read(&fixture("tiny-llama.gguf")).to_vec();
        for (at, byte) in flips.iter().copied() {
            file[at] = byte;
        }
        let _ = gguf(file);
        let mut file = read(&fixture("tiny-llama").join("model.safetensors")).to_vec();
        for (at, byte) in flips {
            file[at] = byte;
        }
        let _ = safetensors(file);
    }

    #[test]
    fn any_bytes_never_panic(body in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = gguf([b"GGUF\x03\0\0\0", body.as_slice()].concat());
        let _ = safetensors(body);
    }
}
