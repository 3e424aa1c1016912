//! Small random networks of every family against PyTorch: the mathematics, in single precision throughout, within
//! 2e-4 of logits that spread over about 10.

use arrow_array::Array;
use arrow_array::cast::AsArray;
use arrow_buffer::Buffer;
use hypr_common::model::{MAX_PIECE_BYTES, ModelTables};
use hypr_inference::import;
use hypr_inference::kv_cache::KvPrecision;
use hypr_inference::transformer::{Chunk, Transformer, Workspace};
use hypr_inference::weights::Weights;

use crate::support::*;

const TOLERANCE: f32 = 2e-4;

fn tiny(name: &str) -> ModelTables {
    import::safetensors(&checkpoint(&fixture(name)), name).unwrap()
}

fn check_decoder(tables: &ModelTables, expected: &str) {
    let expected = json(&fixture(expected).join("expected.json"));
    let (tokens, wanted) = (tokens(&expected["tokens"]), floats(&expected["logits"]));
    let transformer = Transformer::open(tables, 64).unwrap();
    for level in levels() {
        let got = logits(&transformer, &kernels(level, 2), &tokens, 1, KvPrecision::F32).concat();
        let off = largest_difference(&got, &wanted);
        assert!(off < TOLERANCE, "{} at {level}: off by {off}", tables.metadata.model_id);
        // Half-precision keys and values cost a little, and no more.
        let half = logits(&transformer, &kernels(level, 2), &tokens, 1, KvPrecision::F16).concat();
        assert!(largest_difference(&half, &wanted) < 0.05 && half != got);
    }
}

#[test]
fn decoders_match_pytorch() {
    for name in ["tiny-llama", "tiny-llama-tied", "tiny-llama1", "tiny-llama3", "tiny-smollm"] {
        check_decoder(&tiny(name), name);
    }
    for name in ["tiny-qwen2", "tiny-qwen2-untied", "tiny-qwen3", "tiny-qwen3-tied"] {
        check_decoder(&tiny(name), name);
    }
}

#[test]
fn a_gguf_file_with_interleaved_rotation_gives_the_same_logits() {
    let tables = import::gguf(read(&fixture("tiny-llama.gguf")), "tiny-llama").unwrap();
    assert_eq!(tables.metadata.architecture_config["rope"], "interleaved");
    check_decoder(&tables, "tiny-llama");
}

#[test]
fn the_encoder_matches_pytorch_alone_and_packed() {
    let expected = json(&fixture("tiny-bert").join("expected.json"));
    let (tokens, wanted) = (tokens(&expected["tokens"]), floats(&expected["states"]));
    let transformer = Transformer::open(&tiny("tiny-bert"), 64).unwrap();
    for level in levels() {
        let kernels = kernels(level, 2);
        let mut work = Workspace::new();
        let chunk = |tokens| Chunk { tokens, cache: None, logits: false };
        transformer.forward(&kernels, &mut [chunk(&tokens)], &mut work).unwrap();
        let alone = work.hidden().to_vec();
        let off = largest_difference(&alone, &wanted);
        assert!(off < TOLERANCE, "at {level}: off by {off}");
        transformer.forward(&kernels, &mut [chunk(&[3, 4, 5]), chunk(&tokens), chunk(&[9])], &mut work).unwrap();
        assert_eq!(work.hidden()[3 * 32..(3 + tokens.len()) * 32], alone);
    }
}

#[test]
fn a_sequence_is_the_same_to_the_bit_whatever_it_is_batched_with() {
    let transformer = Transformer::open(&tiny("tiny-llama"), 64).unwrap();
    let tokens: Vec<u32> = (0..40).map(|i| (i * 37 + 11) % 64).collect();
    for level in levels() {
        let kernels = kernels(level, 2);
        let whole = logits(&transformer, &kernels, &tokens, 40, KvPrecision::F16).pop().unwrap();
        for chunk in [1, 7, 39] {
            assert_eq!(logits(&transformer, &kernels, &tokens, chunk, KvPrecision::F16).pop().unwrap(), whole);
        }
        let mut caches: Vec<_> = (0..3).map(|_| transformer.new_cache(KvPrecision::F16)).collect();
        let [first, second, third] = &mut caches[..] else { unreachable!() };
        let mut work = Workspace::new();
        let mut batch = [
            Chunk { tokens: &tokens[5..9], cache: Some(first), logits: true },
            Chunk { tokens: &tokens, cache: Some(second), logits: true },
            Chunk { tokens: &tokens[..1], cache: Some(third), logits: false },
        ];
        transformer.forward(&kernels, &mut batch, &mut work).unwrap();
        assert_eq!(work.logits_mut().len(), 2 * 64);
        assert_eq!(work.logits_mut()[64..], whole);
    }
}

#[test]
fn a_pass_that_cannot_be_is_refused_and_changes_nothing() {
    let transformer = Transformer::open(&tiny("tiny-llama"), 16).unwrap();
    let kernels = kernels(hypr_tensor::kernels::detect(), 1);
    let mut cache = transformer.new_cache(KvPrecision::F16);
    let mut work = Workspace::new();
    for tokens in [&[][..], &[64], &[1; 17]] {
        let mut batch = [Chunk { tokens, cache: Some(&mut cache), logits: true }];
        assert!(transformer.forward(&kernels, &mut batch, &mut work).is_err(), "{tokens:?}");
    }
    assert_eq!(cache.tokens(), 0);
    assert!(
        transformer.forward(&kernels, &mut [Chunk { tokens: &[1], cache: None, logits: true }], &mut work).is_err()
    );
}

fn lies_in(bytes: &[u8], file: &Buffer) -> bool {
    let (start, end) = (file.as_ptr() as usize, file.as_ptr() as usize + file.len());
    let at = bytes.as_ptr() as usize;
    start <= at && at + bytes.len() <= end
}

#[test]
fn weights_lie_inside_the_imported_file() {
    let gguf = read(&fixture("tiny-llama.gguf"));
    let files = checkpoint(&fixture("tiny-bert"));
    let imported = [
        (import::gguf(gguf.clone(), "a").unwrap(), gguf),
        (import::safetensors(&files, "b").unwrap(), files["model.safetensors"].clone()),
    ];
    for (tables, file) in imported {
        let weights = Weights::new(&tables).unwrap();
        let mut pieces = 0;
        for (name, array) in weights.iter() {
            for piece in array.pieces() {
                assert!(lies_in(piece.data.as_slice(), &file), "{name:?}");
                pieces += 1;
            }
        }
        assert_eq!(pieces, tables.layers.iter().map(|layer| layer.pieces.len()).sum::<usize>());
    }
}

#[test]
fn large_tensors_are_cut_into_pieces_of_whole_rows_that_fit_a_message() {
    // 4,100 rows of 4 KiB are a little more than two pieces.
    let (rows, cols) = (4100_usize, 1024_usize);
    let mut files = checkpoint(&fixture("tiny-bert"));
    let config = String::from_utf8(files["config.json"].to_vec()).unwrap();
    let config = config.replace("\"vocab_size\": 64", &format!("\"vocab_size\": {rows}"));
    let mut config: serde_json::Value = serde_json::from_str(&config).unwrap();
    config["hidden_size"] = cols.into();
    files.insert("config.json".into(), Buffer::from_vec(config.to_string().into_bytes()));
    let bytes: Vec<u8> = (0..rows * cols).flat_map(|i| (i as f32).to_le_bytes()).collect();
    let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![rows, cols], &bytes).unwrap();
    let file = safetensors::serialize([("embeddings.word_embeddings.weight", view)], None).unwrap();
    files.insert("model.safetensors".into(), Buffer::from_vec(file));
    let tables = import::safetensors(&files, "large").unwrap();
    let pieces = &tables.layers[0].pieces;
    assert_eq!(pieces.len(), 3);
    for piece in pieces {
        let data = piece.column_by_name("weight_data").unwrap().as_binary::<i64>();
        assert!(data.len() == 1 && data.value(0).len() <= MAX_PIECE_BYTES && data.value(0).len() % (cols * 4) == 0);
    }
    let weights = Weights::new(&tables).unwrap();
    let mut row = vec![0.0; cols];
    weights.get(-1, "embed_tokens").unwrap().dequantize_row(4099, &mut row);
    assert_eq!(row[3], (4099 * cols + 3) as f32);
}
