//! A model's tables as weights, without a copy.
//!
//! Invariant: every [`WeightArray`] handed out is made of slices of the tables' own buffers. Only a vector whose
//! stored form is not aligned `F32` is decoded, once; these are norms and biases, a few kilobytes.

use std::collections::HashMap;

use arrow_array::cast::AsArray;
use arrow_array::types::Int32Type;
use arrow_array::{Array, RecordBatch};
use arrow_buffer::Buffer;
use hypr_common::model::ModelTables;
use hypr_common::{Error, Result};
use hypr_tensor::{DType, WeightArray};

/// All tensors of a model, by layer and name.
#[derive(Debug)]
pub struct Weights {
    tensors: HashMap<(i32, String), WeightArray>,
}

/// The pieces of one tensor as they are collected.
struct Pieces {
    dtype: DType,
    shape: Vec<usize>,
    data: Vec<(i32, Buffer)>,
}

impl Weights {
    /// Collects the pieces of every tensor.
    ///
    /// # Errors
    /// `Corrupted` where a column is missing, a piece is missing or twice there, or pieces do not fill the shape.
    pub fn new(tables: &ModelTables) -> Result<Self> {
        let mut found: HashMap<(i32, String), Pieces> = HashMap::new();
        for batch in tables.layers.iter().flat_map(|layer| &layer.pieces) {
            for row in 0..batch.num_rows() {
                collect(batch, row, &mut found)?;
            }
        }
        let mut tensors = HashMap::with_capacity(found.len());
        for ((layer, name), mut pieces) in found {
            pieces.data.sort_by_key(|(shard, _)| *shard);
            if pieces.data.iter().zip(0..).any(|((shard, _), wanted)| *shard != wanted) {
                return Err(Error::corrupted(format!("tensor {name} of layer {layer} has a piece missing or twice")));
            }
            let data = pieces.data.into_iter().map(|(_, data)| data).collect();
            let array = WeightArray::new(pieces.dtype, pieces.shape, data)
                .map_err(|error| Error::corrupted(format!("tensor {name} of layer {layer}: {error}")))?;
            tensors.insert((layer, name), array);
        }
        Ok(Self { tensors })
    }

    /// The tensors whose names begin with `prefix`, without it.
    pub fn tower(&self, prefix: &str) -> Self {
        let of = |((layer, name), array): (&(i32, String), &WeightArray)| {
            Some(((*layer, name.strip_prefix(prefix)?.to_owned()), array.clone()))
        };
        Self { tensors: self.tensors.iter().filter_map(of).collect() }
    }

    /// Every tensor, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (&(i32, String), &WeightArray)> {
        self.tensors.iter()
    }

    /// The tensor `name` of `layer`, if the model has it.
    pub fn get(&self, layer: i32, name: &str) -> Option<&WeightArray> {
        self.tensors.get(&(layer, name.to_owned()))
    }

    /// The matrix `name` of `layer`, `[rows, cols]`.
    ///
    /// # Errors
    /// `Corrupted` where it is missing or of another shape.
    pub fn matrix(&self, layer: i32, name: &str, rows: usize, cols: usize) -> Result<WeightArray> {
        let array = self
            .get(layer, name)
            .ok_or_else(|| Error::corrupted(format!("the model has no {name} in layer {layer}; import it again")))?;
        if array.shape() != [rows, cols] {
            return Err(Error::corrupted(format!(
                "{name} of layer {layer} has the shape {:?} and not [{rows}, {cols}]",
                array.shape()
            )));
        }
        Ok(array.clone())
    }

    /// The vector `name` of `layer`, `[len]`, if the model has it.
    ///
    /// # Errors
    /// `Corrupted` where it is of another shape.
    pub fn optional_vector(&self, layer: i32, name: &str, len: usize) -> Result<Option<Vector>> {
        let Some(array) = self.get(layer, name) else { return Ok(None) };
        if array.shape() != [len] {
            return Err(Error::corrupted(format!(
                "{name} of layer {layer} has the shape {:?} and not [{len}]",
                array.shape()
            )));
        }
        Ok(Some(Vector::new(array.clone())))
    }

    /// The vector `name` of `layer`, `[len]`.
    ///
    /// # Errors
    /// `Corrupted` where it is missing or of another shape.
    pub fn vector(&self, layer: i32, name: &str, len: usize) -> Result<Vector> {
        self.optional_vector(layer, name, len)?
            .ok_or_else(|| Error::corrupted(format!("the model has no {name} in layer {layer}; import it again")))
    }
}

fn collect(batch: &RecordBatch, row: usize, found: &mut HashMap<(i32, String), Pieces>) -> Result<()> {
    let column = |name: &str| {
        batch.column_by_name(name).ok_or_else(|| Error::corrupted(format!("a layer of the model has no column {name}")))
    };
    let wrong = |name: &str| Error::corrupted(format!("the column {name} of a layer has an unexpected type"));
    let int = |name: &str| -> Result<i32> {
        Ok(column(name)?.as_primitive_opt::<Int32Type>().ok_or_else(|| wrong(name))?.value(row))
    };
    let text = |name: &str| -> Result<String> {
        Ok(column(name)?.as_string_opt::<i32>().ok_or_else(|| wrong(name))?.value(row).to_owned())
    };
    let shape = column("shape")?.as_list_opt::<i32>().ok_or_else(|| wrong("shape"))?.value(row);
    let shape = shape.as_primitive_opt::<Int32Type>().ok_or_else(|| wrong("shape"))?;
    let shape: Vec<usize> = shape.values().iter().map(|&dim| usize::try_from(dim).unwrap_or(0)).collect();
    let dtype = DType::parse(&text("encoding")?)?;
    let data = column("weight_data")?.as_binary_opt::<i64>().ok_or_else(|| wrong("weight_data"))?;
    if data.is_null(row) {
        return Err(Error::corrupted("a piece of the model has no weight_data"));
    }
    let (start, end) = (data.value_offsets()[row] as usize, data.value_offsets()[row + 1] as usize);
    let bytes = data.values().slice_with_length(start, end - start);

    let key = (int("layer_id")?, text("parameter_name")?);
    let pieces = found.entry(key).or_insert_with(|| Pieces { dtype, shape: shape.clone(), data: Vec::new() });
    if pieces.dtype != dtype || pieces.shape != shape {
        return Err(Error::corrupted(format!("the pieces of {} disagree", text("parameter_name")?)));
    }
    pieces.data.push((int("weight_shard_id")?, bytes));
    Ok(())
}

/// A norm or bias as `f32` values.
#[derive(Debug)]
pub struct Vector {
    array: WeightArray,
    /// Only where `array` cannot be read as it is.
    decoded: Option<Box<[f32]>>,
}

impl Vector {
    fn new(array: WeightArray) -> Self {
        let decoded = match array.as_f32() {
            Some(_) => None,
            None => Some(array.to_f32().into_boxed_slice()),
        };
        Self { array, decoded }
    }

    /// The values.
    pub fn values(&self) -> &[f32] {
        match &self.decoded {
            Some(decoded) => decoded,
            None => self.array.as_f32().unwrap_or_default(),
        }
    }
}
