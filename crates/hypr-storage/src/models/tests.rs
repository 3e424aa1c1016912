use std::os::unix::fs::FileExt;
use std::process::Command;

use arrow_array::builder::{Int32Builder, ListBuilder};
use arrow_array::cast::AsArray;
use arrow_array::{ArrayRef, Int32Array, LargeBinaryArray, RecordBatch, StringArray};
use arrow_buffer::{OffsetBuffer, ScalarBuffer};
use arrow_schema::{DataType, Field};
use hypr_common::model::{MAX_PIECE_BYTES, TOKENIZER_FILE, layer_schema};

use super::*;

fn metadata(model_id: &str) -> ModelMetadata {
    ModelMetadata {
        model_id: model_id.to_owned(),
        model_type: "test".to_owned(),
        total_parameters: 12,
        architecture_config: serde_json::json!({"family": "test", "rms_norm_eps": 1e-5, "rope": 100000.0}),
        vocab_size: 3,
        hidden_size: 4,
        num_attention_heads: 1,
        num_hidden_layers: 1,
    }
}

/// One piece whose weights are `bytes`, not copied.
fn piece(layer_id: i32, name: &str, shard: i32, bytes: Buffer) -> RecordBatch {
    let mut shape = ListBuilder::new(Int32Builder::new()).with_field(Field::new("item", DataType::Int32, false));
    shape.append_value([Some(bytes.len() as i32 / 4)]);
    let offsets = OffsetBuffer::new(ScalarBuffer::from(vec![0_i64, bytes.len() as i64]));
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int32Array::from(vec![layer_id])),
        Arc::new(StringArray::from(vec!["weight"])),
        Arc::new(StringArray::from(vec![name])),
        Arc::new(Int32Array::from(vec![shard])),
        Arc::new(StringArray::from(vec!["F32"])),
        Arc::new(shape.finish()),
        Arc::new(LargeBinaryArray::new(offsets, bytes, None)),
    ];
    RecordBatch::try_new(layer_schema(), columns).unwrap()
}

/// Two layers; weight bytes are `fill`, in sizes that are no multiple of the alignment.
fn model(model_id: &str, fill: u8) -> ModelTables {
    let bytes = |count: usize| Buffer::from_vec(vec![fill; count]);
    let layers = vec![
        LayerTable {
            layer_id: -1,
            pieces: vec![piece(-1, "token_embd", 0, bytes(100)), piece(-1, "token_embd", 1, bytes(36))],
        },
        LayerTable {
            layer_id: 0,
            pieces: vec![piece(0, "attn_q", 0, bytes(4)), piece(0, "attn_norm", 0, bytes(1000))],
        },
    ];
    let files = BTreeMap::from([
        (TOKENIZER_FILE.to_owned(), Buffer::from(b"{}".as_slice())),
        ("empty.txt".to_owned(), Buffer::default()),
    ]);
    ModelTables { metadata: metadata(model_id), version: 0, layers, files }
}

fn store() -> (tempfile::TempDir, ModelStore) {
    let dir = tempfile::tempdir().unwrap();
    let store = ModelStore::open(dir.path()).unwrap();
    (dir, store)
}

fn weights(piece: &RecordBatch) -> &[u8] {
    piece.column_by_name("weight_data").unwrap().as_binary::<i64>().value(0)
}

fn first_weight_byte(tables: &ModelTables) -> u8 {
    weights(&tables.layers[0].pieces[0])[0]
}

/// Flips one byte of a published file.
fn damage(path: &Path, at: u64) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[!byte[0]], at).unwrap();
}

#[test]
fn what_is_published_is_what_is_opened() {
    let (_dir, store) = store();
    let written = model("a model/with: odd.id", 7);
    assert_eq!(store.publish(&written).unwrap(), 1);
    let read = ModelSource::open(&store, "a model/with: odd.id").unwrap();
    assert_eq!(read.metadata, written.metadata);
    assert_eq!(read.version, 1);
    assert_eq!(read.layers.len(), 2);
    for (read, written) in read.layers.iter().zip(&written.layers) {
        assert_eq!(read.layer_id, written.layer_id);
        assert_eq!(read.pieces, written.pieces);
    }
    assert_eq!(read.files, written.files);
    assert_eq!(store.models().unwrap(), vec![written.metadata]);
    store.verify("a model/with: odd.id").unwrap();
}

#[test]
fn weights_are_aligned_slices_of_the_mapping() {
    let (dir, store) = store();
    store.publish(&model("m", 7)).unwrap();
    let version = dir.path().join("models/m/v1");
    let manifest = Manifest::read(&version.join(MANIFEST_FILE)).unwrap();
    let mut checked = 0;
    for file in manifest.files.iter().filter(|file| file.layer.is_some()) {
        let path = version.join(&file.name);
        let mapped = map(&path, file.bytes).unwrap();
        let layer = layer::decode(&path, &mapped, file.layer.as_ref().unwrap()).unwrap();
        for piece in &layer.pieces {
            let bytes = weights(piece).as_ptr_range();
            assert!(mapped.as_ptr_range().contains(&bytes.start) && bytes.end <= mapped.as_ptr_range().end);
            assert_eq!(bytes.start as usize % 64, 0);
            checked += 1;
        }
    }
    assert_eq!(checked, 4);
}

#[test]
fn two_opens_share_one_mapping_until_a_newer_version_is_published() {
    let (dir, store) = store();
    store.publish(&model("m", 1)).unwrap();
    let first = ModelSource::open(&store, "m").unwrap();
    assert!(Arc::ptr_eq(&first, &ModelSource::open(&store, "m").unwrap()));
    // Another process is another store on the same directory.
    let other = ModelStore::open(dir.path()).unwrap();
    assert_eq!(other.publish(&model("m", 2)).unwrap(), 2);
    let second = ModelSource::open(&store, "m").unwrap();
    assert_eq!((second.version, first_weight_byte(&second)), (2, 2));
    other.publish(&model("m", 3)).unwrap();
    assert!(!dir.path().join("models/m/v1").exists(), "only the version before the newest is kept");
    assert_eq!((first.version, first_weight_byte(&first)), (1, 1), "the old mapping outlives its file");
}

#[test]
fn a_removed_model_is_gone_for_new_readers_only_and_its_versions_are_not_reused() {
    let (dir, store) = store();
    store.publish(&model("gone", 1)).unwrap();
    store.publish(&model("kept", 1)).unwrap();
    let reader = ModelStore::open(dir.path()).unwrap();
    let held = ModelSource::open(&reader, "gone").unwrap();
    store.remove("gone").unwrap();
    let error = ModelSource::open(&reader, "gone").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.message().contains("there are: kept"), "{error}");
    assert_eq!(store.remove("gone").unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(first_weight_byte(&held), 1);
    assert_eq!(store.publish(&model("gone", 9)).unwrap(), 2);
    assert_eq!(first_weight_byte(&ModelSource::open(&reader, "gone").unwrap()), 9);
}

#[test]
fn damage_is_named_and_leaves_other_models_readable() {
    type Damage = (&'static str, fn(&Path));
    let damages: [Damage; 5] = [
        ("layer_00000.arrow", |path| File::options().write(true).open(path).unwrap().set_len(500).unwrap()),
        ("layer_00000.arrow", |path| damage(path, fs::metadata(path).unwrap().len() - 100)),
        ("layer_-0001.arrow", |path| fs::remove_file(path).unwrap()),
        ("metadata.json", |path| damage(path, 60)),
        ("tokenizer.json", |path| fs::write(path, "{").unwrap()),
    ];
    for (name, damage) in damages {
        let (dir, store) = store();
        store.publish(&model("bad", 1)).unwrap();
        store.publish(&model("good", 1)).unwrap();
        damage(&dir.path().join("models/bad/v1").join(name));
        let error = ModelSource::open(&store, "bad").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupted, "{name}: {error}");
        assert!(error.message().contains(name), "{error}");
        ModelSource::open(&store, "good").unwrap();
        assert!(store.models().unwrap().iter().any(|model| model.model_id == "good"));
    }
}

#[test]
fn a_manifest_of_strange_files_is_refused_whatever_its_checksum_says() {
    type Change = (&'static str, fn(&mut Manifest));
    let changes: [Change; 8] = [
        ("it names a file '../../../secret'", |manifest| manifest.files[0].name = "../../../secret".to_owned()),
        ("it names a file '/etc/passwd'", |manifest| manifest.files[2].name = "/etc/passwd".to_owned()),
        ("it names a file ''", |manifest| manifest.files[3].name.clear()),
        ("twice", |manifest| manifest.files[3].name = manifest.files[0].name.clone()),
        ("out of order", |manifest| manifest.files[0].layer.as_mut().unwrap().layer_id = 7),
        ("recorded were 18446744073709551615", |manifest| manifest.files[0].bytes = u64::MAX),
        ("pieces, recorded were", |manifest| manifest.files[0].layer.as_mut().unwrap().pieces = usize::MAX),
        ("it describes 'm' v9", |manifest| manifest.version = 9),
    ];
    for (part, change) in changes {
        let (dir, store) = store();
        store.publish(&model("m", 1)).unwrap();
        let path = dir.path().join("models/m/v1").join(MANIFEST_FILE);
        let mut manifest = Manifest::read(&path).unwrap();
        change(&mut manifest);
        fs::remove_file(&path).unwrap();
        manifest.write(&path).unwrap();
        let error = ModelSource::open(&ModelStore::open(dir.path()).unwrap(), "m").unwrap_err();
        assert!(error.kind() == ErrorKind::Corrupted && error.message().contains(part), "{part}: {error}");
    }
}

#[test]
fn a_model_that_is_released_is_unmapped_and_opens_again() {
    let (_dir, store) = store();
    store.publish(&model("m", 5)).unwrap();
    let first = ModelSource::open(&store, "m").unwrap();
    assert!(Arc::ptr_eq(&first, &ModelSource::open(&store, "m").unwrap()));
    let kept = Arc::downgrade(&first);
    store.release("m");
    store.release("unknown");
    let second = ModelSource::open(&store, "m").unwrap();
    assert!(!Arc::ptr_eq(&first, &second));
    drop(first);
    assert!(kept.upgrade().is_none(), "the store holds what it was to release");
    assert_eq!((second.version, first_weight_byte(&second)), (1, 5));
}

#[test]
fn every_damaged_byte_is_an_error_or_found_by_verify() {
    let (dir, store) = store();
    store.publish(&model("m", 1)).unwrap();
    let path = dir.path().join("models/m/v1/layer_-0001.arrow");
    for at in 0..fs::metadata(&path).unwrap().len() {
        damage(&path, at);
        // A fresh store, as the first has the sound manifest cached; opening must not panic on any byte.
        let reader = ModelStore::open(dir.path()).unwrap();
        if let Err(error) = ModelSource::open(&reader, "m") {
            assert_eq!(error.kind(), ErrorKind::Corrupted, "byte {at}: {error}");
        }
        let error = reader.verify("m").unwrap_err();
        assert!(error.message().contains("layer_-0001.arrow"), "byte {at}: {error}");
        damage(&path, at);
    }
    store.verify("m").unwrap();
}

#[test]
fn what_a_crashed_writer_left_is_invisible_and_cleared() {
    let (dir, store) = store();
    let left = dir.path().join("models/.tmp-1-1");
    fs::create_dir(&left).unwrap();
    fs::write(left.join("layer_00000.arrow"), "half").unwrap();
    fs::create_dir_all(dir.path().join("models/empty")).unwrap();
    assert_eq!(store.models().unwrap(), vec![]);
    assert_eq!(ModelSource::open(&store, "empty").unwrap_err().kind(), ErrorKind::NotFound);
    store.publish(&model("m", 1)).unwrap();
    assert!(!left.exists());
}

#[test]
fn bad_input_publishes_nothing() {
    let (dir, store) = store();
    assert_eq!(store.publish(&model("", 1)).unwrap_err().kind(), ErrorKind::InvalidInput);
    assert_eq!(store.publish(&model(&"x".repeat(256), 1)).unwrap_err().kind(), ErrorKind::InvalidInput);
    let mut two_rows = model("m", 1);
    let rows = [&two_rows.layers[0].pieces[0], &two_rows.layers[0].pieces[1]];
    two_rows.layers[0].pieces = vec![arrow_select::concat::concat_batches(&layer_schema(), rows).unwrap()];
    assert_eq!(store.publish(&two_rows).unwrap_err().kind(), ErrorKind::InvalidInput);
    for name in ["../evil", "metadata.json", "layer_00000.arrow", ""] {
        let mut tables = model("m", 1);
        tables.files.insert(name.to_owned(), Buffer::default());
        assert_eq!(store.publish(&tables).unwrap_err().kind(), ErrorKind::InvalidInput, "{name}");
    }
    assert_eq!(store.models().unwrap(), vec![]);
    assert!(dir_names(&dir.path().join("models")).unwrap().iter().all(|name| name == LOCK_FILE));
}

#[test]
fn ids_survive_the_file_system() {
    for id in ["plain-1_2.3", "a/b", "..", ".hidden", "sp ace", "Ünïcode", "%41", "100%"] {
        let name = encode_id(id).unwrap();
        assert!(!name.contains('/') && !name.starts_with('.'), "{name}");
        assert_eq!(decode_id(&name).as_deref(), Some(id));
    }
    for name in ["%4", "%zz", "%41", "a b"] {
        assert_eq!(decode_id(name), None, "{name}");
    }
}

/// Environment variable that makes the memory test measure, in a process where nothing else runs.
const MEASURE_DIR: &str = "HYPR_TEST_MEASURE_DIR";
const GIGABYTE_PIECES: usize = 128;
const LIMIT_KB: i64 = 50 << 10;

#[test]
fn a_gigabyte_model_adds_little_private_memory() {
    if let Ok(dir) = std::env::var(MEASURE_DIR) {
        return measure(Path::new(&dir));
    }
    let dir = tempfile::tempdir().unwrap();
    let test = "models::tests::a_gigabyte_model_adds_little_private_memory";
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(MEASURE_DIR, dir.path())
        .output()
        .unwrap();
    let output = String::from_utf8_lossy(&child.stdout);
    assert!(child.status.success(), "{output}{}", String::from_utf8_lossy(&child.stderr));
    assert!(output.contains("measured"), "the child ran no test: {output}");
}

/// Kilobytes of the named lines of `/proc/self/smaps_rollup`.
fn memory_kb(lines: &[&str]) -> i64 {
    let text = fs::read_to_string("/proc/self/smaps_rollup").unwrap();
    let value = |line: &str| {
        let rest = text.lines().find_map(|text| text.strip_prefix(line)?.strip_prefix(':')).unwrap();
        rest.trim().trim_end_matches(" kB").parse::<i64>().unwrap()
    };
    lines.iter().map(|line| value(line)).sum()
}

fn measure(dir: &Path) {
    let store = ModelStore::open(dir).unwrap();
    // Every piece on disk is its own pages; in memory they share one buffer.
    let buffer = Buffer::from_vec((0..MAX_PIECE_BYTES).map(|at| (at >> 6) as u8 | 1).collect::<Vec<u8>>());
    let pieces = |layer: i32| (0..16).map(|shard| piece(layer, "w", shard, buffer.clone())).collect();
    let layers = (0..GIGABYTE_PIECES as i32 / 16).map(|layer_id| LayerTable { layer_id, pieces: pieces(layer_id) });
    let tables = ModelTables { layers: layers.collect(), ..model("big", 1) };
    let before = memory_kb(&["Private_Clean", "Private_Dirty"]);
    store.publish(&tables).unwrap();
    let published = memory_kb(&["Private_Clean", "Private_Dirty"]) - before;
    drop(tables);
    let before = memory_kb(&["Private_Clean", "Private_Dirty"]);
    let anonymous_before = memory_kb(&["Anonymous"]);
    let opened = ModelSource::open(&store, "big").unwrap();
    let loaded = memory_kb(&["Private_Clean", "Private_Dirty"]) - before;
    let mut sum = 0_u64;
    for piece in opened.layers.iter().flat_map(|layer| &layer.pieces) {
        sum += weights(piece).iter().step_by(4096).map(|&byte| u64::from(byte)).sum::<u64>();
    }
    let used = memory_kb(&["Anonymous"]) - anonymous_before;
    println!(
        "measured: publish +{published} kB, open +{loaded} kB, after reading every page +{used} kB anonymous; {sum}"
    );
    assert!(published < LIMIT_KB && loaded < LIMIT_KB && used < LIMIT_KB);
    assert_eq!(opened.layers.iter().map(|layer| layer.pieces.len()).sum::<usize>(), GIGABYTE_PIECES);
}
