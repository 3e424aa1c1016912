//! Keys and values of attention in blocks of a fixed number of tokens, so that memory is dealt out and taken back by
//! the block and sequences that begin alike share blocks (PagedAttention, Kwon et al., arXiv:2309.06180).
//!
//! Layout of a block: `[layers][keys, values][KvBlock::TOKENS][width]`. Invariant: its size never changes, so a
//! kernel that found a row inside it once finds it there always.

use std::sync::Arc;

use half::f16;
use half::slice::HalfFloatSliceExt;

/// How keys and values are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum KvPrecision {
    /// Half precision: half the memory and bandwidth.
    #[default]
    F16,
    /// Single precision, to check the arithmetic of everything else.
    F32,
}

/// What a network keeps of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KvShape {
    /// Layers of the network.
    pub layers: usize,
    /// Values of a key, and of a value, in one layer: `kv_heads * head_dim`.
    pub width: usize,
    /// How they are kept.
    pub precision: KvPrecision,
}

impl KvShape {
    /// Elements of a block.
    fn elements(self) -> usize {
        self.layers * 2 * KvBlock::TOKENS * self.width
    }

    /// Bytes of a block.
    pub fn block_bytes(self) -> usize {
        let element = match self.precision {
            KvPrecision::F16 => size_of::<f16>(),
            KvPrecision::F32 => size_of::<f32>(),
        };
        self.elements() * element
    }
}

/// Keys or values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvPart {
    /// Keys.
    Keys,
    /// Values.
    Values,
}

/// Keys and values of [`KvBlock::TOKENS`] consecutive tokens in all layers.
#[derive(Clone, Debug)]
pub struct KvBlock {
    shape: KvShape,
    elements: Elements,
}

#[derive(Clone, Debug)]
enum Elements {
    F16(Box<[f16]>),
    F32(Box<[f32]>),
}

impl KvBlock {
    /// Tokens in a block: the keys that the kernels take in one step.
    pub const TOKENS: usize = 16;

    /// A block of zeros.
    pub fn new(shape: KvShape) -> Self {
        let elements = match shape.precision {
            KvPrecision::F16 => Elements::F16(vec![f16::ZERO; shape.elements()].into()),
            KvPrecision::F32 => Elements::F32(vec![0.0; shape.elements()].into()),
        };
        Self { shape, elements }
    }

    /// What it was made for.
    pub fn shape(&self) -> KvShape {
        self.shape
    }

    /// Writes the keys and values of tokens `first ..` of the block in `layer`, `[n, width]` each.
    ///
    /// # Panics
    /// When they do not fit.
    pub fn write(&mut self, layer: usize, first: usize, keys: &[f32], values: &[f32]) {
        for (part, rows) in [(KvPart::Keys, keys), (KvPart::Values, values)] {
            let run = run(self.shape, layer, part);
            let first = run.start + first * self.shape.width;
            assert!(first + rows.len() <= run.end, "rows past the end of a block of keys and values");
            match &mut self.elements {
                Elements::F16(elements) => elements[first..first + rows.len()].convert_from_f32_slice(rows),
                Elements::F32(elements) => elements[first..first + rows.len()].copy_from_slice(rows),
            }
        }
    }

    /// Appends all its elements to `bytes`, little-endian, in their order.
    pub fn append_bytes(&self, bytes: &mut Vec<u8>) {
        match &self.elements {
            Elements::F16(elements) => elements.iter().for_each(|v| bytes.extend_from_slice(&v.to_le_bytes())),
            Elements::F32(elements) => elements.iter().for_each(|v| bytes.extend_from_slice(&v.to_le_bytes())),
        }
    }

    /// Takes all its elements from `bytes`, which [`KvBlock::append_bytes`] made of a block of the same shape.
    ///
    /// # Panics
    /// When they are too few or too many.
    pub fn copy_from_bytes(&mut self, bytes: &[u8]) {
        assert_eq!(bytes.len(), self.shape.block_bytes(), "bytes of a block of another shape");
        match &mut self.elements {
            Elements::F16(elements) => {
                for (element, own) in elements.iter_mut().zip(bytes.chunks_exact(2)) {
                    *element = f16::from_le_bytes([own[0], own[1]]);
                }
            }
            Elements::F32(elements) => {
                for (element, own) in elements.iter_mut().zip(bytes.chunks_exact(4)) {
                    *element = f32::from_le_bytes([own[0], own[1], own[2], own[3]]);
                }
            }
        }
    }

    /// Keys or values of `layer`, widened, `[TOKENS, width]`.
    pub fn to_f32(&self, layer: usize, part: KvPart) -> Vec<f32> {
        let run = run(self.shape, layer, part);
        match &self.elements {
            Elements::F16(elements) => elements[run].iter().map(|v| v.to_f32()).collect(),
            Elements::F32(elements) => elements[run].to_vec(),
        }
    }
}

/// Where keys or values of a layer lie in a block, `[TOKENS, width]`.
fn run(shape: KvShape, layer: usize, part: KvPart) -> std::ops::Range<usize> {
    let len = KvBlock::TOKENS * shape.width;
    let first = (2 * layer + usize::from(part == KvPart::Values)) * len;
    first..first + len
}

/// An element of a block.
pub(crate) trait KvElement: Copy {
    /// Keys or values of a layer, `[TOKENS, width]`; panics when the block is of another precision.
    fn rows(block: &KvBlock, layer: usize, part: KvPart) -> &[Self];
}

impl KvElement for f16 {
    #[inline(always)]
    fn rows(block: &KvBlock, layer: usize, part: KvPart) -> &[Self] {
        match &block.elements {
            Elements::F16(elements) => &elements[run(block.shape, layer, part)],
            Elements::F32(_) => panic!("a sequence's blocks are of two precisions"),
        }
    }
}

impl KvElement for f32 {
    #[inline(always)]
    fn rows(block: &KvBlock, layer: usize, part: KvPart) -> &[Self] {
        match &block.elements {
            Elements::F32(elements) => &elements[run(block.shape, layer, part)],
            Elements::F16(_) => panic!("a sequence's blocks are of two precisions"),
        }
    }
}

/// Keys or values of one sequence in one layer: its table of blocks.
#[derive(Clone, Copy, Debug)]
pub struct KvPages<'a> {
    /// The blocks in order of position.
    pub blocks: &'a [Arc<KvBlock>],
    /// The layer.
    pub layer: usize,
    /// Keys or values.
    pub part: KvPart,
    /// Tokens that count; those behind them in the last block are not looked at.
    pub tokens: usize,
}

impl<'a> KvPages<'a> {
    /// The rows of block `index`, `[TOKENS, width]`.
    #[inline(always)]
    pub(crate) fn rows<T: KvElement>(&self, index: usize) -> &'a [T] {
        T::rows(&self.blocks[index], self.layer, self.part)
    }

    /// The precision of the blocks.
    pub(crate) fn precision(&self) -> KvPrecision {
        self.blocks.first().map(|block| block.shape.precision).unwrap_or_default()
    }
}
