//! ONNX encoders against ONNX Runtime, and pictures against Pillow.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow_buffer::Buffer;
use futures::executor::block_on;
use hypr_common::ErrorKind;
use hypr_common::model::ModelTables;
use hypr_inference::encoder::Encoder;
use hypr_inference::image_processor::ImageProcessor;
use hypr_inference::transformer::Workspace;
use hypr_inference::{EmbedInput, EmbedRequest, EngineOptions, EngineService, Inference, engine, import};
use serde_json::json;

use crate::support::*;

fn picture() -> EmbedInput {
    EmbedInput::Binary(read(&fixture("picture.png")))
}

fn files(name: &str, graph: Buffer, description: &serde_json::Value) -> BTreeMap<String, Buffer> {
    let description = Buffer::from_vec(description.to_string().into_bytes());
    BTreeMap::from([(name.to_owned(), graph), ("encoder.json".to_owned(), description)])
}

/// The tiny graph, used as `change` leaves its description.
fn tiny(change: impl FnOnce(&mut serde_json::Value)) -> hypr_common::Result<ModelTables> {
    let directory = fixture("tiny-onnx");
    let mut description = json(&directory.join("encoder.json"));
    change(&mut description);
    import::onnx(&files("model.onnx", read(&directory.join("model.onnx")), &description), "tiny")
}

fn embed(tables: ModelTables, inputs: &[EmbedInput], normalize: bool) -> hypr_common::Result<Vec<Vec<f32>>> {
    let encoder = Encoder::open(&Arc::new(tables), 64).unwrap().unwrap();
    let kernels = kernels(hypr_tensor::kernels::detect(), 2);
    let prepared = inputs.iter().map(|input| encoder.prepare(input)).collect::<hypr_common::Result<Vec<_>>>()?;
    let prepared: Vec<_> = prepared.iter().collect();
    encoder.embed(&kernels, &prepared, normalize, &mut Workspace::new())?.into_iter().collect()
}

#[test]
fn pictures_are_resized_and_cropped_as_pillow_does() {
    let bytes = read(&fixture("picture.png"));
    for case in json(&fixture("image_processor.json")).as_array().unwrap() {
        let pixels = ImageProcessor::from_json(&case["settings"]).unwrap().pixels(bytes.as_slice()).unwrap();
        let off = largest_difference(&pixels.values, &floats(&case["values"]));
        // One step of 256, which normalising makes 1 / 255 / 0.22.
        let bar = if case["settings"].get("image_std").is_some() { 0.018 } else { 1.0 };
        assert!(off <= bar, "{}: off by {off}", case["settings"]);
    }
}

#[test]
fn an_output_inside_the_graph_is_that_of_onnx_runtime() {
    let expected = json(&fixture("tiny-onnx").join("expected.json"));
    for pooling in ["cls", "mean", "all"] {
        let tables = tiny(|description| match pooling {
            "all" => drop(description.as_object_mut().unwrap().remove("pooling")),
            pooling => description["pooling"] = pooling.into(),
        });
        let tables = tables.unwrap();
        let wanted = floats(&expected[pooling]);
        assert_eq!(tables.metadata.hidden_size as usize, wanted.len());
        let got = embed(tables, &[picture(), picture()], false).unwrap();
        // A step of 256 in a pixel moves a state by up to 0.02.
        let off = largest_difference(&got[0], &wanted);
        assert!(off < 0.02, "{pooling}: off by {off}");
        assert_eq!(got[0], got[1]);
    }
}

#[test]
fn the_weights_that_the_output_needs_are_rows_and_no_others() {
    let tables = tiny(|_| ()).unwrap();
    let weights = hypr_inference::weights::Weights::new(&tables).unwrap();
    let mut names: Vec<&str> = weights.iter().map(|((_, name), _)| name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["class", "head.weight", "patch.bias", "patch.weight"]);
    assert_eq!(weights.get(0, "patch.weight").unwrap().shape(), [8, 3, 4, 4]);
    assert_eq!(tables.metadata.total_parameters, 8 * 3 * 16 + 8 + 8 + 48);
    let whole = read(&fixture("tiny-onnx").join("model.onnx")).len();
    assert!(tables.files["graph.onnx"].len() < whole / 2, "the graph's file holds no weights");
}

#[test]
fn a_description_that_does_not_fit_the_graph_is_refused() {
    let refused = |change: &dyn Fn(&mut serde_json::Value)| tiny(|it| change(it)).unwrap_err().message().to_owned();
    assert!(refused(&|it| it["output"] = "nothing".into()).contains("its outputs are decoded"));
    assert!(refused(&|it| it["input"]["layout"] = "channels_last".into()).contains("takes [any, 3, 16, 16]"));
    assert!(refused(&|it| it["input"]["preprocessor"]["size"]["width"] = 20.into()).contains("[1, 3, 16, 20]"));
    assert!(refused(&|it| it["pooling"] = "max".into()).contains("encoder.json"));
    let audio = json!({"modality": "audio", "sample_rate": 16000, "window": 512});
    assert!(refused(&|it| it["input"] = audio.clone()).contains("takes [any, 3, 16, 16]"));
    let alone = BTreeMap::from([("model.onnx".to_owned(), read(&fixture("tiny-onnx").join("model.onnx")))]);
    let error = import::onnx(&alone, "tiny").unwrap_err();
    assert!(error.message().contains("preprocessor_config.json"), "{error}");
}

#[test]
fn damaged_and_hostile_graphs_are_refused() {
    let directory = fixture("tiny-onnx");
    let (graph, description) = (read(&directory.join("model.onnx")), json(&directory.join("encoder.json")));
    let import = |bytes: Vec<u8>| import::onnx(&files("model.onnx", Buffer::from_vec(bytes), &description), "tiny");
    for end in (0..graph.len()).step_by(97) {
        assert!(import(graph.as_slice()[..end].to_vec()).is_err(), "cut at {end}");
    }
    // The name of an operator that does not exist.
    let at = graph.windows(4).position(|bytes| bytes == b"Conv").unwrap();
    let mut unknown = graph.to_vec();
    unknown[at..at + 4].copy_from_slice(b"Cnov");
    assert_eq!(import(unknown).unwrap_err().kind(), ErrorKind::Unsupported);
    for at in (0..graph.len()).step_by(7) {
        let mut changed = graph.to_vec();
        changed[at] ^= 0x55;
        // It may still be a graph; what counts is that nothing panics.
        if let Ok(tables) = import(changed) {
            let _ = embed(tables, &[picture()], true);
        }
    }
}

#[test]
fn the_engine_embeds_pictures_beside_text_and_says_what_a_model_takes() {
    let tables = tiny(|_| ()).unwrap();
    let alone = embed(tables.clone(), &[picture()], true).unwrap().remove(0);
    let (handle, service) = engine(Models::new([tables]), EngineOptions { threads: 2, ..EngineOptions::default() });
    let running = std::thread::spawn(|| EngineService::run(service));
    let request = |model: Option<&str>, inputs: Vec<EmbedInput>| {
        block_on(handle.embed(EmbedRequest { model: model.map(str::to_owned), inputs, normalize: true }))
    };
    let many = request(None, vec![picture(); 9]).unwrap();
    assert_eq!(many, vec![alone; 9]);
    let length: f32 = many[0].iter().map(|value| value * value).sum();
    assert!((length - 1.0).abs() < 1e-5);

    let text = request(Some("tiny"), vec!["words".into()]).unwrap_err();
    assert!(text.message().contains("is a onnx and cannot embed text"), "{text}");
    let sound = request(Some("tiny"), vec![EmbedInput::Samples([0.0; 16].into())]).unwrap_err();
    assert!(sound.message().contains("cannot embed sound"), "{sound}");
    let broken = request(None, vec![EmbedInput::Binary(Buffer::from(b"GIF89a".as_slice()))]).unwrap_err();
    assert!(broken.kind() == ErrorKind::InvalidInput && broken.message().contains("cannot be read"), "{broken}");
    // Requests that share a pass with it are not failed by it.
    let together = (0..12).map(|at| {
        let input = if at % 3 == 1 { EmbedInput::Binary(Buffer::from(b"GIF89a".as_slice())) } else { picture() };
        handle.embed(EmbedRequest { inputs: vec![input], ..EmbedRequest::default() })
    });
    for (at, outcome) in block_on(futures::future::join_all(together)).into_iter().enumerate() {
        assert_eq!(outcome.is_err(), at % 3 == 1, "request {at}: {outcome:?}");
    }
    let mixed = request(None, vec![picture(), "words".into()]).unwrap_err();
    assert!(mixed.message().contains("of one kind"), "{mixed}");
    drop(handle);
    running.join().unwrap();
}

/// The packaged encoders, as `hyprstream model pull` describes them.
mod packaged {
    use super::*;

    fn close(name: &str, tables: ModelTables, input: EmbedInput, bar: f64) {
        let wanted = floats(&json(&fixture("onnx_real.json"))[name]);
        let got = embed(tables, &[input], false).unwrap().remove(0);
        let cosine = cosine(&got, &wanted);
        assert!(cosine > bar, "{name}: cosine {cosine}");
    }

    fn packaged(file: &str, name: &str) -> Option<ModelTables> {
        let path = real(file)?;
        let encoders = fixture("../../../hyprstream/src/models/encoders");
        let description = json(&encoders.join(format!("{name}.json")));
        Some(import::onnx(&files(file, read(&path), &description), name).unwrap())
    }

    #[test]
    fn the_vision_transformer_gives_the_class_token_of_onnx_runtime() {
        let Some(tables) = packaged("vit_s_focus.onnx", "vit-s-focus") else { return };
        assert_eq!(tables.metadata.hidden_size, 384);
        close("vit", tables, picture(), 0.9999);
    }

    #[test]
    fn a_convolutional_network_with_channels_last_gives_its_features() {
        let Some(tables) = packaged("open-nsfw.onnx", "open-nsfw") else { return };
        assert_eq!(tables.metadata.hidden_size, 1024);
        close("nsfw", tables, picture(), 0.9999);
    }

    #[test]
    fn a_speech_detector_gives_the_mean_of_its_states() {
        let Some(tables) = packaged("silero_vad_openvino_16k.onnx", "silero-vad") else { return };
        assert_eq!(tables.metadata.hidden_size, 128);
        let file = read(&fixture("tone.wav"));
        let wave = hypr_inference::audio::decode_wav(file.as_slice()).unwrap();
        let mut slower = file.to_vec();
        slower[24..28].copy_from_slice(&8000_u32.to_le_bytes());
        let error = embed(tables.clone(), &[EmbedInput::Binary(Buffer::from_vec(slower))], false).unwrap_err();
        assert!(error.message().contains("8000 samples a second"), "{error}");
        close("silero", tables.clone(), EmbedInput::Binary(file), 0.9999);
        close("silero", tables, EmbedInput::Samples(wave.samples.into()), 0.9999);
    }
}
