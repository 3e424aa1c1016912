//! Layers of a model that is larger than the memory it may take, in memory only while they are computed.
//!
//! A pass goes through the layers in one order, so what is used longest ago is what comes next: letting the least
//! recently used page go would read every page of every pass again. So as many layers stay as there is room for, always
//! the same, and the others are asked for one layer ahead and let go of behind. Invariant: what stays, the layer that is
//! computed and the one that is asked for take no more than the limit together. Advice changes no bit of a weight.
//! Deliberately absent: models of which a caller holds the weights on the heap; there is nothing to let go of.

use std::collections::BTreeMap;
use std::ops::Range;

use arrow_array::cast::AsArray;
use hypr_common::model::{EMBEDDING_LAYER, LayerTable, ModelTables};
use hypr_common::{Error, ErrorKind, Result};
use hypr_tensor::MappedFile;

/// The column with the bytes of a piece.
const WEIGHT_DATA: &str = "weight_data";
/// The output head of a model that has one of its own.
const HEAD: &str = "lm_head";

/// What stands in memory at which point of a pass.
#[derive(Debug)]
pub struct Paging {
    /// By `layer_id`, the embeddings first.
    layers: BTreeMap<i32, Layer>,
    /// Whether the embeddings are the output head too.
    tied: bool,
    /// Whether there is room for the next layer beside the one that is computed.
    ahead: bool,
}

#[derive(Debug)]
struct Layer {
    pages: Vec<(MappedFile, Range<usize>)>,
    stays: bool,
}

/// The bytes of a model's weights.
pub fn weight_bytes(tables: &ModelTables) -> usize {
    tables.layers.iter().map(layer_bytes).sum()
}

/// The least memory that a pass over a model takes, in bytes: its largest layer, or the output head.
pub fn least_bytes(tables: &ModelTables) -> usize {
    let head = head_bytes(tables);
    tables.layers.iter().map(layer_bytes).max().unwrap_or(0).max(head)
}

fn layer_bytes(layer: &LayerTable) -> usize {
    slices(layer).map(<[u8]>::len).sum()
}

/// The layer that ends a pass, with the embeddings where they are the head.
fn head_bytes(tables: &ModelTables) -> usize {
    let embeddings = tables.layers.iter().find(|layer| layer.layer_id == EMBEDDING_LAYER);
    let last = tables.layers.last().map_or(0, layer_bytes);
    last + if is_tied(tables) { embeddings.map_or(0, layer_bytes) } else { 0 }
}

fn is_tied(tables: &ModelTables) -> bool {
    let is_head =
        |name: Option<&arrow_array::StringArray>| name.is_some_and(|name| name.iter().any(|n| n == Some(HEAD)));
    let names = tables.layers.iter().flat_map(|layer| &layer.pieces);
    let mut names = names.map(|piece| piece.column_by_name("parameter_name")?.as_string_opt::<i32>());
    !names.any(is_head)
}

/// The bytes of a layer, piece by piece.
pub(crate) fn slices(layer: &LayerTable) -> impl Iterator<Item = &[u8]> {
    let column = |piece: &'_ arrow_array::RecordBatch| -> Option<usize> { piece.schema().index_of(WEIGHT_DATA).ok() };
    layer.pieces.iter().filter_map(move |piece| {
        let data = piece.column(column(piece)?).as_binary_opt::<i64>()?;
        let (start, end) = (*data.value_offsets().first()? as usize, *data.value_offsets().last()? as usize);
        data.value_data().get(start..end)
    })
}

/// Where a layer lies: from its first byte to its last in each file, or the whole of a file that only this layer is in.
fn pages(layer: &LayerTable, users: &BTreeMap<usize, usize>) -> Vec<(MappedFile, Range<usize>)> {
    let mut files: BTreeMap<usize, (MappedFile, Range<usize>)> = BTreeMap::new();
    for (file, range) in slices(layer).filter_map(MappedFile::of) {
        let alone = users.get(&file.id()) == Some(&1);
        let range = if alone { 0..file.bytes() } else { range };
        match files.get_mut(&file.id()) {
            Some((_, known)) => *known = known.start.min(range.start)..known.end.max(range.end),
            None => drop(files.insert(file.id(), (file, range))),
        }
    }
    files.into_values().collect()
}

impl Paging {
    /// Decides what of a model stays in `limit` bytes of memory, and lets go of the rest.
    ///
    /// # Errors
    /// `ResourceExhausted` where a single layer takes more, saying how much it takes.
    pub fn new(tables: &ModelTables, limit: usize) -> Result<Self> {
        let largest = least_bytes(tables);
        if largest > limit {
            return Err(Error::new(
                ErrorKind::ResourceExhausted,
                format!(
                    "a layer of model '{}' takes {largest} bytes, more than the {limit} bytes that there are for it",
                    tables.metadata.model_id
                ),
            ));
        }
        let ahead = 2 * largest <= limit;
        let mut room = limit - if ahead { 2 * largest } else { largest };
        let mut users: BTreeMap<usize, usize> = BTreeMap::new();
        for layer in &tables.layers {
            let mut files: Vec<usize> = slices(layer).filter_map(MappedFile::of).map(|(file, _)| file.id()).collect();
            files.dedup();
            files.into_iter().for_each(|file| *users.entry(file).or_default() += 1);
        }
        let mut layers = BTreeMap::new();
        // What ends a pass stays first: each token goes through it whole, and it is the smallest or the head.
        for layer in tables.layers.iter().rev() {
            let bytes = layer_bytes(layer);
            let stays = bytes <= room;
            room -= if stays { bytes } else { 0 };
            layers.insert(layer.layer_id, Layer { pages: pages(layer, &users), stays });
        }
        let paging = Self { layers, tied: is_tied(tables), ahead };
        paging.layers.keys().for_each(|&layer| paging.leave(layer));
        Ok(paging)
    }

    /// A pass is about to compute `layer`: the one behind it is asked for.
    pub(crate) fn enter(&self, layer: i32) {
        let next = self.layers.range(layer + 1..).next().map(|(id, _)| *id);
        if let (true, Some(next)) = (self.ahead, next) {
            self.advise(next, |file, range| file.prefetch(range));
            if self.tied && self.is_last(next) {
                self.advise(EMBEDDING_LAYER, |file, range| file.prefetch(range));
            }
        }
    }

    /// A pass is done with `layer`.
    pub(crate) fn leave(&self, layer: i32) {
        self.advise(layer, |file, range| file.release(range));
        if self.tied && self.is_last(layer) {
            self.advise(EMBEDDING_LAYER, |file, range| file.release(range));
        }
    }

    fn is_last(&self, layer: i32) -> bool {
        self.layers.last_key_value().is_some_and(|(last, _)| *last == layer)
    }

    fn advise(&self, layer: i32, advice: impl Fn(&MappedFile, Range<usize>) -> std::io::Result<()>) {
        let Some(layer) = self.layers.get(&layer).filter(|layer| !layer.stays) else { return };
        for (file, range) in &layer.pages {
            if let Err(error) = advice(file, range.clone()) {
                tracing::debug!(%error, "advice on a layer's pages was refused");
            }
        }
    }
}
