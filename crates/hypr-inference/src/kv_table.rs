//! Keys and values for reading: the sequences whose blocks the engine has, and the form in which a beginning of a text is
//! kept on disk.
//!
//! Invariant: whoever reads holds blocks that are full, as one more of their users, and a copy of the last that is not; so
//! reading neither waits for the engine nor makes it wait, and frees what it held when it is done.

use std::sync::Arc;

use arrow_buffer::Buffer;
use hypr_common::prefix::{Prefix, PrefixOrigin};
use hypr_common::{Error, ErrorKind, Result};
pub use hypr_tensor::KvPart;
use hypr_tensor::{KvBlock, KvPrecision, KvShape};

use crate::block_pool::{BlockPool, CacheIdentity, PrefixId};
use crate::kv_cache::KvCache;

/// What a sequence is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvState {
    /// It takes part in the engine's steps.
    Running,
    /// It waits for its first step, or for its next after it gave its blocks up.
    Waiting,
    /// It has ended; its full blocks are there until their memory is needed.
    Cached,
}

impl KvState {
    /// The word that `model_kv_cache` has for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Waiting => "waiting",
            Self::Cached => "cached",
        }
    }
}

/// One sequence, as it was between two steps.
#[derive(Debug)]
pub struct KvSequence {
    /// Unlike that of any other sequence of this process.
    pub id: String,
    /// What computed it.
    pub identity: CacheIdentity,
    /// What it is doing.
    pub state: KvState,
    /// When its newest full block was computed, or it was looked at where it has none; microseconds since the Unix epoch.
    pub computed_us: i64,
    /// Tokens whose keys and values there are.
    pub tokens: usize,
    /// What is kept of a token.
    pub shape: KvShape,
    pub(crate) pool: BlockPool,
    /// The last of its full blocks that the pool knows. Not held: a list of sequences takes no memory from them.
    pub(crate) leaf: Option<PrefixId>,
    /// Copies of the blocks behind it.
    pub(crate) rest: Arc<[KvBlock]>,
}

impl KvSequence {
    /// Holds its blocks for reading; `None` where their memory was needed for others meanwhile. Drop it soon: what it
    /// holds, sequences may wait for.
    pub fn open(&self) -> Option<KvReading> {
        let full = match self.leaf {
            Some(leaf) => self.pool.pin(leaf, self.shape)?,
            None => KvCache::new(self.pool.clone(), self.shape),
        };
        Some(KvReading { tokens: self.tokens, shape: self.shape, full, rest: Arc::clone(&self.rest) })
    }
}

/// Keys and values that are being read.
#[derive(Debug)]
pub struct KvReading {
    tokens: usize,
    shape: KvShape,
    full: KvCache,
    rest: Arc<[KvBlock]>,
}

impl KvReading {
    /// Keys or values of `layer`, `[tokens, width]`.
    pub fn states(&self, layer: usize, part: KvPart) -> Vec<f32> {
        let full = self.full.blocks.iter().map(Arc::as_ref);
        states(full.chain(self.rest.iter()), self.shape, self.tokens, layer, part)
    }
}

/// Keys or values of `layer` of the first `tokens` of `blocks`.
fn states<'a>(
    blocks: impl Iterator<Item = &'a KvBlock>,
    shape: KvShape,
    tokens: usize,
    layer: usize,
    part: KvPart,
) -> Vec<f32> {
    let mut states = Vec::with_capacity(tokens.next_multiple_of(KvBlock::TOKENS) * shape.width);
    blocks.for_each(|block| states.extend(block.to_f32(layer, part)));
    states.truncate(tokens * shape.width);
    states
}

/// What a chain of blocks begins with: where it is published, and what computes it.
#[derive(Debug)]
pub(crate) struct Root {
    pub root: PrefixId,
    pub identity: CacheIdentity,
    pub shape: KvShape,
    /// The kernels' instruction set.
    pub kernels: String,
    /// Of the prompt that was asked for.
    pub tokens: Vec<u32>,
}

impl Root {
    fn origin(&self) -> PrefixOrigin {
        PrefixOrigin {
            model_id: self.identity.model.clone(),
            model_version: self.identity.version,
            adapter_version: self.identity.adapter_version,
            kernels: self.kernels.clone(),
        }
    }

    /// The full blocks that are there of its tokens, for disk.
    ///
    /// # Errors
    /// `InvalidInput` where there is none.
    pub fn prefix(&self, pool: &BlockPool) -> Result<Prefix> {
        let mut cache = KvCache::new(pool.clone(), self.shape);
        let tokens = cache.adopt_prefix(self.root, &self.tokens);
        if tokens == 0 {
            return Err(Error::invalid(format!(
                "the prompt has {} tokens, and what is saved are full blocks of {} before the last; give a longer one",
                self.tokens.len(),
                KvBlock::TOKENS
            )));
        }
        let mut states = Vec::with_capacity(cache.blocks.len() * self.shape.block_bytes());
        cache.blocks.iter().for_each(|block| block.append_bytes(&mut states));
        Ok(Prefix {
            origin: self.origin(),
            layers: self.shape.layers,
            width: self.shape.width,
            encoding: encoding(self.shape.precision).to_owned(),
            tokens: self.tokens[..tokens].to_vec(),
            states: Buffer::from_vec(states),
        })
    }

    /// Puts `prefix` where sequences find it. Returns its number of tokens.
    ///
    /// # Errors
    /// `Conflict` for one of other weights, another adapter or other kernels; `Corrupted` where it is not what it says;
    /// `ResourceExhausted` where the cache has no room.
    pub fn restore(&self, prefix: &Prefix, pool: &BlockPool) -> Result<usize> {
        let origin = self.origin();
        if prefix.origin != origin {
            return Err(Error::new(ErrorKind::Conflict, differs(&prefix.origin, &origin)));
        }
        let shape = shape_of(prefix)?;
        if shape != self.shape {
            return Err(Error::corrupted(format!(
                "the saved prefix has {} layers of width {} and model {} has {} of {}",
                shape.layers, shape.width, origin.model_id, self.shape.layers, self.shape.width
            )));
        }
        let mut cache = KvCache::new(pool.clone(), shape);
        if !cache.reserve(prefix.tokens.len()) {
            return Err(Error::new(
                ErrorKind::ResourceExhausted,
                format!(
                    "the key-value cache has no room for {} more tokens: raise `engine.kv_cache_mb`, or try again when \
                     fewer requests run",
                    prefix.tokens.len()
                ),
            ));
        }
        cache.fill(&prefix.states, prefix.tokens.len());
        cache.publish(self.root, &prefix.tokens);
        if cache.last_published().is_none() {
            let id = &origin.model_id;
            return Err(Error::new(
                ErrorKind::Conflict,
                format!("the weights of {id} have just changed: save it again"),
            ));
        }
        Ok(prefix.tokens.len())
    }
}

/// Why a prefix does not fit: what is different.
fn differs(saved: &PrefixOrigin, now: &PrefixOrigin) -> String {
    let id = &saved.model_id;
    if saved.model_version != now.model_version || saved.adapter_version != now.adapter_version {
        return format!(
            "the prefix was computed by version {} of {id} (adapter {}), which is now at {} (adapter {}): save it again",
            saved.model_version, saved.adapter_version, now.model_version, now.adapter_version
        );
    }
    format!(
        "the prefix of {id} was computed with {} kernels, and this process has {}, which round otherwise: save it again",
        saved.kernels, now.kernels
    )
}

fn encoding(precision: KvPrecision) -> &'static str {
    match precision {
        KvPrecision::F16 => "F16",
        KvPrecision::F32 => "F32",
    }
}

fn shape_of(prefix: &Prefix) -> Result<KvShape> {
    let precision = match prefix.encoding.as_str() {
        "F16" => KvPrecision::F16,
        "F32" => KvPrecision::F32,
        other => return Err(Error::corrupted(format!("the saved prefix holds {other}, which is no format of keys"))),
    };
    let shape = KvShape { layers: prefix.layers, width: prefix.width, precision };
    let blocks = prefix.tokens.len() / KvBlock::TOKENS;
    let is_whole = prefix.tokens.len().is_multiple_of(KvBlock::TOKENS) && blocks > 0;
    let bytes = prefix.layers.checked_mul(prefix.width).and_then(|elements| elements.checked_mul(1 << 8));
    if !is_whole
        || bytes.is_none()
        || shape.block_bytes() == 0
        || shape.block_bytes().checked_mul(blocks) != Some(prefix.states.len())
    {
        return Err(Error::corrupted(format!(
            "the saved prefix holds {} bytes for {} tokens of {} layers of width {}",
            prefix.states.len(),
            prefix.tokens.len(),
            prefix.layers,
            prefix.width
        )));
    }
    Ok(shape)
}

/// Keys or values of `layer` of a saved prefix, `[tokens, width]`.
///
/// # Errors
/// `Corrupted` where it is not what it says.
pub fn saved_states(prefix: &Prefix, layer: usize, part: KvPart) -> Result<Vec<f32>> {
    let shape = shape_of(prefix)?;
    if layer >= shape.layers {
        return Err(Error::invalid(format!("the saved prefix has {} layers, and no layer {layer}", shape.layers)));
    }
    let blocks = prefix.states.as_slice().chunks_exact(shape.block_bytes()).map(|bytes| {
        let mut block = KvBlock::new(shape);
        block.copy_from_bytes(bytes);
        block.to_f32(layer, part)
    });
    Ok(blocks.flatten().collect())
}
