//! Typed, shaped views over Arrow buffers, and the kernels that run on them.
//!
//! [`map_file`] maps a file once; a [`WeightArray`] is a tensor whose rows lie in such buffers and are never
//! copied; [`Kernels`] computes on it with the best instructions the processor has, over the threads of a
//! [`Pool`].
//!
//! Invariants: a kernel reads weights in the block layout of the file they were mapped from; for a given
//! [`Level`] the result for one row of activations does not depend on which rows it was batched with, nor
//! on the number of threads. This is the only crate of the workspace with `unsafe`, and every block says
//! why it is sound.
//!
//! Deliberately absent: model architectures, file formats other than GGML's block encodings, and
//! configuration (the caller picks the level and the number of threads). A tensor knows its [`Device`], so
//! that a second one can be added beside the processor.

mod dtype;
pub mod kernels;
mod kv;
mod map;
mod pool;
pub mod quant;
mod weight;

pub use dtype::DType;
pub use kernels::{
    Attention, CODE_ZERO, Distances, Kernels, KvRows, Level, Linear, Mask, RopeStyle, RopeTable, Scratch,
};
pub use kv::{KvBlock, KvPages, KvPart, KvPrecision, KvShape};
pub use map::{MappedFile, map_file, resident_bytes};
pub use pool::Pool;
pub use weight::{Device, Piece, WeightArray};
