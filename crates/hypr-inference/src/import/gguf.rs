//! GGUF, the file format of llama.cpp.
//!
//! Grammar, all little endian (source: `docs/gguf.md` of the ggml project):
//! ```text
//! file    = "GGUF" version:u32 tensors:u64 pairs:u64 pair* tensor* padding data
//! pair    = key:string type:u32 value
//! string  = length:u64 utf-8
//! value   = u8 | i8 | u16 | i16 | u32 | i32 | f32 | bool | string | array | u64 | i64 | f64   (types 0 to 12)
//! array   = type:u32 length:u64 value*
//! tensor  = name:string dims:u32 dim:u64* type:u32 offset:u64       (first dim is the row length)
//! padding = bytes up to the next multiple of `general.alignment`, 32 where it is not given
//! ```
//! Invariant: every length is checked against the bytes that are left before anything is read or reserved, so
//! a damaged or hostile file is an error and never a panic or a large allocation. Deliberately absent: version
//! 1, and tensor types that no kernel reads.

use std::collections::{BTreeMap, HashSet};

use arrow_buffer::Buffer;
use hypr_common::model::{CHAT_TEMPLATE_FILE, ModelTables, TOKENIZER_FILE};
use hypr_common::{Error, Result};
use hypr_tensor::DType;

use super::gguf_tokenizer;
use super::tables::{self, Tensor};
use crate::config::{ActivationName, ModelConfig, RopeStyle};
use crate::families::{Family, Slot};

/// The most values of a metadata array: vocabularies have some hundred thousand. A value takes more memory than the byte
/// that it may have in the file.
const MAX_LIST: u64 = 1 << 24;

/// A metadata value. Arrays of arrays are skipped: no model uses them.
#[derive(Debug, PartialEq)]
pub(super) enum Value<'a> {
    Int(i64),
    Float(f64),
    Bool(bool),
    Str(&'a str),
    Ints(Vec<i64>),
    Floats(Vec<f32>),
    Strs(Vec<&'a str>),
    Skipped,
}

/// Reads fields off the front of the file.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, len: u64, what: &str) -> Result<&'a [u8]> {
        let left = (self.bytes.len() - self.at) as u64;
        if len > left {
            return Err(Error::corrupted(format!(
                "the GGUF file ends inside {what} at byte {}: {len} bytes wanted, {left} left; download it again",
                self.at
            )));
        }
        let taken = &self.bytes[self.at..self.at + len as usize];
        self.at += len as usize;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N as u64, what)?);
        Ok(array)
    }

    fn u32(&mut self, what: &str) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    fn u64(&mut self, what: &str) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    fn string(&mut self, what: &str) -> Result<&'a str> {
        let len = self.u64(what)?;
        let at = self.at;
        std::str::from_utf8(self.take(len, what)?)
            .map_err(|error| Error::corrupted(format!("{what} at byte {at} of the GGUF file is not UTF-8: {error}")))
    }

    fn value(&mut self, kind: u32, key: &str) -> Result<Value<'a>> {
        Ok(match kind {
            0 => Value::Int(self.array::<1>(key)?[0].into()),
            1 => Value::Int(i8::from_le_bytes(self.array(key)?).into()),
            2 => Value::Int(u16::from_le_bytes(self.array(key)?).into()),
            3 => Value::Int(i16::from_le_bytes(self.array(key)?).into()),
            4 => Value::Int(self.u32(key)?.into()),
            5 => Value::Int(i32::from_le_bytes(self.array(key)?).into()),
            6 => Value::Float(f32::from_le_bytes(self.array(key)?).into()),
            7 => Value::Bool(self.array::<1>(key)?[0] != 0),
            8 => Value::Str(self.string(key)?),
            9 => self.list(key, 0)?,
            10 => Value::Int(self.u64(key)?.try_into().unwrap_or(i64::MAX)),
            11 => Value::Int(i64::from_le_bytes(self.array(key)?)),
            12 => Value::Float(f64::from_le_bytes(self.array(key)?)),
            _ => return Err(Error::corrupted(format!("{key} has the unknown GGUF value type {kind}"))),
        })
    }

    fn list(&mut self, key: &str, depth: u32) -> Result<Value<'a>> {
        let kind = self.u32(key)?;
        let len = self.u64(key)?;
        let least = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            9 => 12,
            _ => 8,
        };
        if len > (self.bytes.len() - self.at) as u64 / least {
            return Err(Error::corrupted(format!("{key} claims {len} values, more than the GGUF file has bytes for")));
        }
        if len > MAX_LIST {
            return Err(Error::corrupted(format!(
                "{key} has {len} values in the GGUF file; expected at most {MAX_LIST}"
            )));
        }
        if kind == 9 {
            if depth >= 4 {
                return Err(Error::corrupted(format!("{key} nests arrays too deeply")));
            }
            for _ in 0..len {
                self.list(key, depth + 1)?;
            }
            return Ok(Value::Skipped);
        }
        let (mut ints, mut floats, mut strs) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..len {
            match self.value(kind, key)? {
                Value::Int(value) => ints.push(value),
                Value::Bool(value) => ints.push(value.into()),
                Value::Float(value) => floats.push(value as f32),
                Value::Str(value) => strs.push(value),
                _ => return Ok(Value::Skipped),
            }
        }
        Ok(match kind {
            8 => Value::Strs(strs),
            6 | 12 => Value::Floats(floats),
            _ => Value::Ints(ints),
        })
    }
}

/// The metadata of a file, with accessors whose errors name the key.
pub(super) struct Metadata<'a>(BTreeMap<&'a str, Value<'a>>);

impl<'a> Metadata<'a> {
    pub(super) fn get(&self, key: &str) -> Option<&Value<'a>> {
        self.0.get(key)
    }

    pub(super) fn str(&self, key: &str) -> Option<&'a str> {
        match self.get(key) {
            Some(Value::Str(value)) => Some(value),
            _ => None,
        }
    }

    pub(super) fn id(&self, key: &str) -> Option<u32> {
        match self.get(key) {
            Some(Value::Int(value)) => u32::try_from(*value).ok(),
            _ => None,
        }
    }

    fn flag(&self, key: &str) -> Option<bool> {
        match self.get(key) {
            Some(Value::Bool(value)) => Some(*value),
            _ => None,
        }
    }

    fn float(&self, key: &str) -> Option<f32> {
        match self.get(key) {
            Some(Value::Float(value)) => Some(*value as f32),
            Some(Value::Int(value)) => Some(*value as f32),
            _ => None,
        }
    }

    fn size(&self, key: &str) -> Result<Option<usize>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Int(value)) => usize::try_from(*value)
                .map(Some)
                .map_err(|_| Error::corrupted(format!("the GGUF file's {key} is {value}"))),
            Some(_) => Err(Error::unsupported(format!("the GGUF file's {key} is not one number"))),
        }
    }

    fn required_size(&self, key: &str) -> Result<usize> {
        self.size(key)?.ok_or_else(|| Error::corrupted(format!("the GGUF file does not say its {key}")))
    }
}

/// Where a tensor's bytes are, as the file describes it.
struct TensorInfo<'a> {
    name: &'a str,
    /// `[rows, cols]` or `[n]`.
    shape: Vec<usize>,
    dtype: DType,
    offset: u64,
}

/// Reads a GGUF file. The tensors of the answer are slices of `bytes`.
///
/// # Errors
/// `Corrupted` for damaged files, `Unsupported` for architectures and encodings that the engine does not run.
pub fn gguf(bytes: Buffer, model_id: &str) -> Result<ModelTables> {
    let file = bytes.clone();
    let mut reader = Reader { bytes: file.as_slice(), at: 0 };
    let (tensor_count, pair_count) = header(&mut reader)?;
    let metadata = pairs(&mut reader, pair_count)?;
    let infos = tensor_infos(&mut reader, tensor_count)?;
    let data_start = data_start(&reader, &metadata)?;
    let family = family(&metadata)?;

    let layers = metadata.required_size(&format!("{}.block_count", family.gguf_name()))?;
    let tensors = tensors(&bytes, data_start, infos, family, layers)?;
    let mut files = BTreeMap::new();
    let tokenizer = gguf_tokenizer::tokenizer(&metadata)?;
    if let Some(tokenizer) = &tokenizer {
        files.insert(TOKENIZER_FILE.to_owned(), Buffer::from_vec(tokenizer.json.clone()));
    }
    let template = metadata.str("tokenizer.chat_template");
    if let Some(template) = template {
        files.insert(CHAT_TEMPLATE_FILE.to_owned(), Buffer::from_slice_ref(template.as_bytes()));
    }
    let mut config = config(&metadata, family, &tensors)?;
    if let Some(tokenizer) = tokenizer {
        config.tokenizer = Some(TOKENIZER_FILE.to_owned());
        config.bos_token_id = tokenizer.bos_token_id;
        config.eos_token_ids = tokenizer.eos_token_ids;
        config.add_bos_token = tokenizer.add_bos_token;
    }
    config.chat_template = template.map(|_| CHAT_TEMPLATE_FILE.to_owned());
    config.check()?;
    tables::assemble(model_id, &config, &tensors, files)
}

fn header(reader: &mut Reader<'_>) -> Result<(u64, u64)> {
    if reader.take(4, "its first four bytes")? != b"GGUF" {
        return Err(Error::corrupted("the file does not start with \"GGUF\"; give a GGUF model file"));
    }
    let version = reader.u32("the version")?;
    if !(2..=3).contains(&version) {
        return Err(Error::unsupported(format!(
            "GGUF version {version} is not supported; convert the file to version 3"
        )));
    }
    Ok((reader.u64("the number of tensors")?, reader.u64("the number of metadata pairs")?))
}

fn pairs<'a>(reader: &mut Reader<'a>, count: u64) -> Result<Metadata<'a>> {
    let mut pairs = BTreeMap::new();
    for _ in 0..count {
        let key = reader.string("a metadata key")?;
        let kind = reader.u32(key)?;
        if pairs.insert(key, reader.value(kind, key)?).is_some() {
            return Err(Error::corrupted(format!("the GGUF file says {key} twice")));
        }
    }
    Ok(Metadata(pairs))
}

fn tensor_infos<'a>(reader: &mut Reader<'a>, count: u64) -> Result<Vec<TensorInfo<'a>>> {
    let mut infos = Vec::new();
    let mut names = HashSet::new();
    for _ in 0..count {
        let name = reader.string("a tensor name")?;
        if !names.insert(name) {
            return Err(Error::corrupted(format!("the GGUF file has two tensors named {name}")));
        }
        let dims = reader.u32(name)?;
        if dims == 0 || dims > 4 {
            return Err(Error::corrupted(format!("tensor {name} has {dims} dimensions")));
        }
        let mut shape = Vec::new();
        for _ in 0..dims {
            let dim = reader.u64(name)?;
            let dim = usize::try_from(dim).ok().filter(|&dim| dim > 0 && dim <= i32::MAX as usize);
            shape.push(dim.ok_or_else(|| Error::corrupted(format!("tensor {name} has an impossible dimension")))?);
        }
        shape.reverse();
        let dtype = dtype(reader.u32(name)?, name)?;
        infos.push(TensorInfo { name, shape, dtype, offset: reader.u64(name)? });
    }
    Ok(infos)
}

fn dtype(kind: u32, name: &str) -> Result<DType> {
    Ok(match kind {
        0 => DType::F32,
        1 => DType::F16,
        2 => DType::Q4_0,
        3 => DType::Q4_1,
        6 => DType::Q5_0,
        7 => DType::Q5_1,
        8 => DType::Q8_0,
        12 => DType::Q4K,
        13 => DType::Q5K,
        14 => DType::Q6K,
        30 => DType::BF16,
        _ => {
            return Err(Error::unsupported(format!(
                "tensor {name} has the GGML type {kind}; convert the model to one of F32, F16, BF16, Q4_0, Q4_1, Q5_0, \
                 Q5_1, Q8_0, Q4_K, Q5_K, Q6_K"
            )));
        }
    })
}

fn data_start(reader: &Reader<'_>, metadata: &Metadata<'_>) -> Result<usize> {
    let alignment = metadata.size("general.alignment")?.unwrap_or(32);
    if !alignment.is_power_of_two() || alignment > 1 << 20 {
        return Err(Error::corrupted(format!("the GGUF file's general.alignment is {alignment}")));
    }
    Ok(reader.at.next_multiple_of(alignment))
}

fn family(metadata: &Metadata<'_>) -> Result<Family> {
    let name = metadata
        .str("general.architecture")
        .ok_or_else(|| Error::corrupted("the GGUF file does not say its general.architecture"))?;
    Family::ALL.into_iter().find(|family| family.generates() && family.gguf_name() == name).ok_or_else(|| {
        Error::unsupported(format!(
            "GGUF models of architecture {name} are not supported; use a model of one of llama, qwen2, qwen3"
        ))
    })
}

fn tensors(
    bytes: &Buffer,
    data_start: usize,
    infos: Vec<TensorInfo<'_>>,
    family: Family,
    layers: usize,
) -> Result<Vec<Tensor>> {
    let layers =
        i32::try_from(layers).map_err(|_| Error::corrupted(format!("the GGUF file claims {layers} layers")))?;
    let mut tensors = Vec::with_capacity(infos.len());
    let mut taken: BTreeMap<usize, (usize, &str)> = BTreeMap::new();
    for info in infos {
        let slot = Slot::of_gguf_name(info.name, layers).ok_or_else(|| {
            Error::unsupported(format!("tensor {} is not part of the {} family", info.name, family.name()))
        })?;
        let impossible =
            || Error::corrupted(format!("tensor {} lies outside the GGUF file; download it again", info.name));
        let (&cols, outer) = info.shape.split_last().ok_or_else(impossible)?;
        let rows = outer.iter().try_fold(1_usize, |rows, &dim| rows.checked_mul(dim)).ok_or_else(impossible)?;
        let len = tables::byte_len(info.dtype, rows, cols).ok_or_else(impossible)?;
        let start = usize::try_from(info.offset).ok().and_then(|offset| offset.checked_add(data_start));
        let start = start.ok_or_else(impossible)?;
        let end = start.checked_add(len).ok_or_else(impossible)?;
        if end > bytes.len() {
            return Err(impossible());
        }
        let before = taken.range(..end).next_back();
        if let Some((_, (_, other))) = before.filter(|(_, (other_end, _))| *other_end > start) {
            return Err(Error::corrupted(format!(
                "tensors {other} and {} of the GGUF file lie over one another; download it again",
                info.name
            )));
        }
        taken.insert(start, (end, info.name));
        let data = bytes.slice_with_length(start, len);
        tensors.push(Tensor { slot, dtype: info.dtype, shape: info.shape, data });
    }
    Ok(tensors)
}

fn config(metadata: &Metadata<'_>, family: Family, tensors: &[Tensor]) -> Result<ModelConfig> {
    let arch = family.gguf_name();
    let key = |name: &str| format!("{arch}.{name}");
    let hidden_size = metadata.required_size(&key("embedding_length"))?;
    let heads = metadata.required_size(&key("attention.head_count"))?;
    let shape_of = |name: &str| tensors.iter().find(|tensor| tensor.slot.name == name).map(|tensor| &tensor.shape);
    let embedding =
        shape_of("embed_tokens").ok_or_else(|| Error::corrupted("the GGUF file has no token_embd.weight"))?;
    if let Some(scaling) = metadata.str(&key("rope.scaling.type")).filter(|scaling| *scaling != "none") {
        return Err(Error::unsupported(format!("rope scaling of type {scaling} is not supported")));
    }
    Ok(ModelConfig {
        family,
        tasks: vec!["generate".to_owned()],
        vocab_size: embedding.first().copied().unwrap_or_default(),
        hidden_size,
        intermediate_size: metadata.required_size(&key("feed_forward_length"))?,
        num_hidden_layers: metadata.required_size(&key("block_count"))?,
        num_attention_heads: heads,
        num_key_value_heads: metadata.size(&key("attention.head_count_kv"))?.unwrap_or(heads),
        head_dim: match metadata.size(&key("attention.key_length"))? {
            Some(head_dim) => head_dim,
            None => hidden_size.checked_div(heads).unwrap_or_default(),
        },
        norm_eps: metadata.float(&key("attention.layer_norm_rms_epsilon")).unwrap_or(1e-5),
        context_length: metadata.required_size(&key("context_length"))?,
        activation: ActivationName::Silu,
        rope_scaling: None,
        embedding_size: None,
        image: None,
        vision: None,
        rope: Some(if family == Family::Llama { RopeStyle::Interleaved } else { RopeStyle::Neox }),
        rope_base: Some(metadata.float(&key("rope.freq_base")).unwrap_or(10_000.0)),
        tie_word_embeddings: shape_of("lm_head").is_none(),
        bos_token_id: None,
        eos_token_ids: Vec::new(),
        add_bos_token: metadata.flag("tokenizer.ggml.add_bos_token").unwrap_or(false),
        tokenizer: None,
        chat_template: None,
        pooling: None,
        max_input_tokens: None,
    })
}
