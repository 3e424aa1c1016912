//! A mapped model costs no memory of its own: a synthetic gigabyte is opened and run.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::Command;

use hypr_inference::import;
use hypr_inference::kv_cache::KvPrecision;
use hypr_inference::transformer::{Chunk, Transformer, Workspace};
use hypr_inference::weights::Weights;

use crate::support::*;

const FILE: &str = "HYPRSTREAM_TEST_SYNTHETIC_MODEL";
const LAYERS: usize = 14;
const HIDDEN: usize = 2048;
const INNER: usize = 8192;
const VOCABULARY: usize = 1024;

/// Writes the head of a GGUF file and leaves its data to be a hole of the file system.
struct Writer {
    head: Vec<u8>,
    tensors: Vec<u8>,
    count: u64,
    pairs: u64,
    offset: u64,
}

impl Writer {
    fn string(to: &mut Vec<u8>, text: &str) {
        to.extend((text.len() as u64).to_le_bytes());
        to.extend(text.as_bytes());
    }

    fn pair(&mut self, key: &str, kind: u32, value: &[u8]) {
        Self::string(&mut self.head, key);
        self.head.extend(kind.to_le_bytes());
        self.head.extend(value);
        self.pairs += 1;
    }

    fn size(&mut self, key: &str, value: usize) {
        self.pair(&format!("llama.{key}"), 4, &(value as u32).to_le_bytes());
    }

    /// A matrix in Q8_0, or a vector in F32.
    fn tensor(&mut self, name: &str, shape: &[usize]) {
        Self::string(&mut self.tensors, &format!("{name}.weight"));
        self.tensors.extend((shape.len() as u32).to_le_bytes());
        for dim in shape.iter().rev() {
            self.tensors.extend((*dim as u64).to_le_bytes());
        }
        let values = shape.iter().product::<usize>();
        let (kind, bytes) = if shape.len() == 1 { (0_u32, values * 4) } else { (8, values / 32 * 34) };
        self.tensors.extend(kind.to_le_bytes());
        self.tensors.extend(self.offset.to_le_bytes());
        self.offset += (bytes as u64).next_multiple_of(32);
        self.count += 1;
    }

    fn finish(self, path: &Path) -> u64 {
        let mut file = File::create(path).unwrap();
        let counts = [b"GGUF".to_vec(), 3_u32.to_le_bytes().to_vec(), self.count.to_le_bytes().to_vec()].concat();
        let head = [counts, self.pairs.to_le_bytes().to_vec(), self.head, self.tensors].concat();
        file.write_all(&head).unwrap();
        let len = (head.len() as u64).next_multiple_of(32) + self.offset;
        file.set_len(len).unwrap();
        len
    }
}

fn write_model(path: &Path) -> u64 {
    let mut writer = Writer { head: Vec::new(), tensors: Vec::new(), count: 0, pairs: 0, offset: 0 };
    let mut name = Vec::new();
    Writer::string(&mut name, "llama");
    writer.pair("general.architecture", 8, &name);
    for (key, value) in [
        ("block_count", LAYERS),
        ("context_length", 128),
        ("embedding_length", HIDDEN),
        ("feed_forward_length", INNER),
        ("attention.head_count", 16),
    ] {
        writer.size(key, value);
    }
    writer.tensor("token_embd", &[VOCABULARY, HIDDEN]);
    writer.tensor("output_norm", &[HIDDEN]);
    for layer in 0..LAYERS {
        for part in ["attn_q", "attn_k", "attn_v", "attn_output"] {
            writer.tensor(&format!("blk.{layer}.{part}"), &[HIDDEN, HIDDEN]);
        }
        for part in ["ffn_gate", "ffn_up"] {
            writer.tensor(&format!("blk.{layer}.{part}"), &[INNER, HIDDEN]);
        }
        writer.tensor(&format!("blk.{layer}.ffn_down"), &[HIDDEN, INNER]);
        writer.tensor(&format!("blk.{layer}.attn_norm"), &[HIDDEN]);
        writer.tensor(&format!("blk.{layer}.ffn_norm"), &[HIDDEN]);
    }
    writer.finish(path)
}

/// Bytes that this process has allocated: mapped pages of a file are not among them, read or not.
fn allocated_bytes() -> usize {
    let rollup = std::fs::read_to_string("/proc/self/smaps_rollup").unwrap();
    let anonymous = rollup.lines().find(|line| line.starts_with("Anonymous:")).unwrap();
    anonymous.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 1024
}

#[test]

fn a_gigabyte_of_mapped_weights_adds_little_private_memory() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("synthetic.gguf");
    assert!(write_model(&path) > 1_000_000_000);
    // In a process of its own, where no other test allocates.
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "memory::child", "--ignored", "--nocapture"])
        .env(FILE, &path)
        .output()
        .unwrap();
    let output = String::from_utf8_lossy(&child.stdout).into_owned() + &String::from_utf8_lossy(&child.stderr);
    assert!(child.status.success() && output.contains("1 passed"), "{output}");
    print!("{output}");
}

#[test]
#[ignore = "runs as a process of the test above"]
fn child() {
    let path = std::env::var_os(FILE).expect("started by the test above");
    let before = allocated_bytes();
    let mapping = hypr_tensor::map_file(&File::open(path).unwrap()).unwrap();
    let tables = import::gguf(mapping.clone(), "synthetic").unwrap();
    let inside = mapping.as_ptr_range();
    for (name, array) in Weights::new(&tables).unwrap().iter() {
        for piece in array.pieces() {
            let bytes = piece.data.as_slice().as_ptr_range();
            assert!(inside.start <= bytes.start && bytes.end <= inside.end, "{name:?}");
        }
    }
    let transformer = Transformer::open(&tables, 128).unwrap();
    let opened = allocated_bytes() - before;
    let kernels = kernels(hypr_tensor::kernels::detect(), 2);
    let mut cache = transformer.new_cache(KvPrecision::F16);
    let mut work = Workspace::new();
    let mut batch = [Chunk { tokens: &[1, 2, 3], cache: Some(&mut cache), logits: true }];
    transformer.forward(&kernels, &mut batch, &mut work).unwrap();
    let run = allocated_bytes() - before;
    println!("opened: {opened} bytes, run: {run} bytes, mapped: {} bytes", mapping.len());
    assert!(opened < 50_000_000 && run < 50_000_000, "opened: {opened}, run: {run}");
}
