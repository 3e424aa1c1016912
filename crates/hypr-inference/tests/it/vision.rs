//! ViT and CLIP with small random weights against PyTorch.

use std::sync::Arc;

use arrow_buffer::Buffer;
use futures::executor::block_on;
use hypr_common::model::ModelTables;
use hypr_inference::image_processor::Pixels;
use hypr_inference::model::{Model, embedding_width};
use hypr_inference::transformer::{Chunk, Transformer, Workspace};
use hypr_inference::vision::VisionTower;
use hypr_inference::weights::Weights;
use hypr_inference::{EmbedInput, EmbedRequest, EngineOptions, EngineService, Inference, config, engine, import};
use serde_json::Value;

use crate::support::*;

const TOLERANCE: f32 = 2e-4;

fn tiny(name: &str) -> (ModelTables, Value) {
    let directory = fixture(name);
    let mut files = checkpoint(&directory);
    files.insert("preprocessor_config.json".to_owned(), read(&directory.join("preprocessor_config.json")));
    (import::safetensors(&files, name).unwrap(), json(&directory.join("expected.json")))
}

fn pixels(expected: &Value) -> Pixels {
    Pixels { height: 16, width: 16, values: floats(&expected["pixels"]) }
}

fn close(what: &str, got: &[f32], wanted: &Value) {
    let off = largest_difference(got, &floats(wanted));
    assert!(off < TOLERANCE, "{what}: off by {off}");
}

fn vision(tables: &ModelTables) -> VisionTower {
    let config = config::ModelConfig::from_metadata(&tables.metadata).unwrap();
    let weights = Weights::new(tables).unwrap();
    match &config.vision {
        Some(vision) => VisionTower::open(&weights.tower("vision."), vision).unwrap(),
        None => VisionTower::open(&weights, &config).unwrap(),
    }
}

#[test]
fn vit_gives_the_states_of_pytorch_alone_and_packed() {
    let (tables, expected) = tiny("tiny-vit");
    let tower = vision(&tables);
    let mut other = pixels(&expected);
    other.values.reverse();
    for level in levels() {
        let kernels = kernels(level, 2);
        let mut work = Workspace::new();
        tower.forward(&kernels, &[pixels(&expected)], &mut work).unwrap();
        close("states", work.hidden(), &expected["states"]);
        let alone = tower.embed(&kernels, &[pixels(&expected)], &mut work).unwrap();
        close("class token", &alone[0], &expected["class"]);
        let packed = tower.embed(&kernels, &[other.clone(), pixels(&expected), other.clone()], &mut work).unwrap();
        assert_eq!(packed[1], alone[0]);
        assert_eq!(packed[0], packed[2]);
        assert_ne!(packed[0], packed[1]);
    }
    let small = Pixels { height: 8, width: 16, values: vec![0.0; 3 * 8 * 16] };
    let error =
        tower.forward(&kernels(hypr_tensor::kernels::detect(), 1), &[small], &mut Workspace::new()).unwrap_err();
    assert!(error.message().contains("16 x 8"), "{error}");
}

#[test]
fn clip_takes_text_and_pictures_into_one_space_as_pytorch_does() {
    let (tables, expected) = tiny("tiny-clip");
    assert_eq!((tables.metadata.hidden_size, embedding_width(&tables.metadata)), (32, 24));
    let (tower, tables) = (vision(&tables), Arc::new(tables));
    let model = Model::open(Arc::clone(&tables), 64).unwrap();
    let text = expected["text"].as_str().unwrap();
    let input = model.encode_input(text).unwrap();
    assert_eq!(input, tokens(&expected["tokens"]));
    let unit = |mut vector: Vec<f32>| {
        let length = vector.iter().map(|value| value * value).sum::<f32>().sqrt();
        vector.iter_mut().for_each(|value| *value /= length);
        vector
    };
    for level in levels() {
        let kernels = kernels(level, 2);
        let mut work = Workspace::new();
        let chunk = Chunk { tokens: &input, cache: None, logits: false };
        Transformer::open(&tables, 64).unwrap().forward(&kernels, &mut [chunk], &mut work).unwrap();
        close("text states", work.hidden(), &expected["text_states"]);
        close("text pooled", &work.hidden()[(input.len() - 1) * 32..], &expected["text_pooled"]);
        let vectors = model.embed(&kernels, &[&input, &input[..3]], true, &mut work).unwrap();
        close("text embedding", &vectors[0], &expected["text_embedding"]);

        tower.forward(&kernels, &[pixels(&expected)], &mut work).unwrap();
        close("picture pooled", &work.hidden()[..40], &expected["image_pooled"]);
        let vector = tower.embed(&kernels, &[pixels(&expected)], &mut work).unwrap().remove(0);
        close("picture embedding", &unit(vector), &expected["image_embedding"]);
    }
}

#[test]
fn one_model_serves_text_and_pictures_through_the_engine() {
    let (tables, expected) = tiny("tiny-clip");
    let (vit, _) = tiny("tiny-vit");
    let (handle, service) =
        engine(Models::new([tables, vit]), EngineOptions { threads: 2, ..EngineOptions::default() });
    let running = std::thread::spawn(|| EngineService::run(service));
    let request = |model: Option<&str>, inputs: Vec<EmbedInput>| {
        block_on(handle.embed(EmbedRequest { model: model.map(str::to_owned), inputs, normalize: true }))
    };
    let text = request(None, vec![expected["text"].as_str().unwrap().into()]).unwrap();
    close("text", &text[0], &expected["text_embedding"]);
    let picture = || EmbedInput::Binary(read(&fixture("picture.png")));
    let seen = request(Some("tiny-clip"), vec![picture(); 3]).unwrap();
    assert!(seen.len() == 3 && seen.iter().all(|vector| vector.len() == 24 && *vector == seen[0]));
    assert_eq!(request(Some("tiny-vit"), vec![picture()]).unwrap()[0].len(), 32);
    let error = request(None, vec![picture()]).unwrap_err();
    assert!(error.message().contains("several models can embed pictures"), "{error}");
    let error = request(Some("tiny-vit"), vec!["w1".into()]).unwrap_err();
    assert!(error.message().contains("of those that can embed text there are: tiny-clip"));
    drop(handle);
    running.join().unwrap();
}

#[test]
fn weights_of_both_towers_lie_inside_the_file() {
    for name in ["tiny-vit", "tiny-clip"] {
        let file = read(&fixture(name).join("model.safetensors"));
        let mut files = checkpoint(&fixture(name));
        files.insert("model.safetensors".to_owned(), file.clone());
        let weights = Weights::new(&import::safetensors(&files, name).unwrap()).unwrap();
        let range = file.as_slice().as_ptr_range();
        for (tensor, array) in weights.iter() {
            for piece in array.pieces() {
                let bytes = piece.data.as_slice().as_ptr_range();
                assert!(range.start <= bytes.start && bytes.end <= range.end, "{tensor:?}");
            }
        }
    }
}

#[test]
fn pictures_that_no_patches_fill_and_other_channels_are_refused() {
    let refused = |change: &dyn Fn(&mut Value)| {
        let mut files = checkpoint(&fixture("tiny-vit"));
        let mut config: Value = serde_json::from_slice(files["config.json"].as_slice()).unwrap();
        change(&mut config);
        files.insert("config.json".to_owned(), Buffer::from_vec(config.to_string().into_bytes()));
        import::safetensors(&files, "tiny-vit").unwrap_err().message().to_owned()
    };
    assert!(refused(&|it| it["patch_size"] = 5.into()).contains("no patches of 5 x 5"));
    assert!(refused(&|it| it["patch_size"] = 0.into()).contains("no patches of 0 x 0"));
    assert!(refused(&|it| it["image_size"] = 0.into()).contains("pictures of 0 x 0"));
    assert!(refused(&|it| it["num_channels"] = 1.into()).contains("three channels"));
    let mut files = checkpoint(&fixture("tiny-vit"));
    files.insert("preprocessor_config.json".to_owned(), Buffer::from_vec(br#"{"size": 20}"#.to_vec()));
    let error = import::safetensors(&files, "tiny-vit").unwrap_err();
    assert!(error.message().contains("gives 20 x 20"), "{error}");
}
