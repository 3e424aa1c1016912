//! Damaged and hostile files: always an error or a model, never a panic.

use arrow_buffer::Buffer;
use hypr_common::ErrorKind;
use hypr_inference::import;
use hypr_inference::transformer::Transformer;
use proptest::prelude::*;

use crate::support::*;

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
