//! ONNX files taken apart and put together: the part of a graph that an output needs, and its weights.
//!
//! Invariant: a graph of this module reads no other file; tensors that say they lie elsewhere are refused. A file is
//! decoded once, so the weights of an import are copies of its bytes.

use std::collections::{HashMap, HashSet};

use arrow_buffer::Buffer;
use hypr_common::{Error, Result};
use hypr_tensor::DType;
use prost::Message;
use tract_onnx::pb::tensor_proto::{DataLocation, DataType};
use tract_onnx::pb::{GraphProto, ModelProto, TensorProto, TensorShapeProto, ValueInfoProto, type_proto};
use tract_onnx::pb::{TypeProto, tensor_shape_proto};

use super::{Layout, OnnxDescription, OnnxInput};
use crate::weights::Weights;

/// The layer that the weights of a graph are kept in.
pub(crate) const LAYER: i32 = 0;
/// A constant of fewer bytes is an operand, a scale or a threshold, and no weight.
const MIN_WEIGHT_BYTES: usize = 256;

/// A weight of a graph.
#[derive(Debug)]
pub(crate) struct Weight {
    pub name: String,
    pub dtype: DType,
    pub shape: Vec<usize>,
    pub data: Buffer,
}

/// A file taken apart.
#[derive(Debug)]
pub(crate) struct Imported {
    /// The graph without what is in `weights`, encoded.
    pub graph: Vec<u8>,
    pub weights: Vec<Weight>,
}

/// Cuts a graph down to what `description` needs and takes its weights out. `picture` is the height and width of an
/// image input. The description then names its output.
///
/// # Errors
/// `Corrupted` for bytes that are no ONNX model, `InvalidInput` for names that the graph lacks, `Unsupported` for
/// weights in other files.
pub(crate) fn import(bytes: &[u8], description: &mut OnnxDescription, picture: Option<[usize; 2]>) -> Result<Imported> {
    let mut model = decode(bytes)?;
    let graph = model.graph.as_mut().ok_or_else(|| Error::corrupted("the ONNX file holds no graph"))?;
    if description.output.is_none() {
        description.output = graph.output.first().map(|output| output.name.clone());
    }
    let Some(output) = description.output.clone() else {
        return Err(Error::invalid("the ONNX graph has no output; name a tensor of it as output"));
    };
    let mut outputs = vec![output];
    if let OnnxInput::Audio { state: Some(state), .. } = &description.input {
        outputs.push(state.output.clone());
    }
    prune(graph, &outputs)?;
    constants_to_initializers(graph);
    fix_inputs(graph, &description.input, picture)?;
    // Shapes that were noted for other sizes of the input would contradict the fixed ones.
    graph.value_info.clear();
    let weights = take_weights(graph)?;
    Ok(Imported { graph: model.encode_to_vec(), weights })
}

pub(super) fn decode(bytes: &[u8]) -> Result<ModelProto> {
    ModelProto::decode(bytes).map_err(|error| Error::corrupted(format!("the ONNX file cannot be read: {error}")))
}

/// The graph of a side file with its weights back in their places.
///
/// # Errors
/// `Corrupted` where one is missing.
pub(super) fn assemble(graph_file: &[u8], weights: &Weights) -> Result<ModelProto> {
    let mut model = decode(graph_file)?;
    let graph = model.graph.as_mut().ok_or_else(|| Error::corrupted("the model's graph is empty; import it again"))?;
    for tensor in graph.initializer.iter_mut().filter(|tensor| is_taken_out(tensor)) {
        let weight = weights
            .get(LAYER, &tensor.name)
            .ok_or_else(|| Error::corrupted(format!("the model has no weight {}; import it again", tensor.name)))?;
        tensor.raw_data = weight.pieces().iter().flat_map(|piece| piece.data.as_slice()).copied().collect();
    }
    Ok(model)
}

/// A tensor without the values that its shape asks for.
fn is_taken_out(tensor: &TensorProto) -> bool {
    dtype_of(tensor).is_some()
        && tensor.raw_data.is_empty()
        && tensor.float_data.is_empty()
        && tensor.int32_data.is_empty()
        && !tensor.dims.is_empty()
        && !tensor.dims.contains(&0)
}

fn dtype_of(tensor: &TensorProto) -> Option<DType> {
    match DataType::try_from(tensor.data_type) {
        Ok(DataType::Float) => Some(DType::F32),
        Ok(DataType::Float16) => Some(DType::F16),
        Ok(DataType::Bfloat16) => Some(DType::BF16),
        _ => None,
    }
}

/// Keeps the nodes that `outputs` need, and makes those the graph's outputs.
fn prune(graph: &mut GraphProto, outputs: &[String]) -> Result<()> {
    let made_by: HashMap<&str, usize> = graph
        .node
        .iter()
        .enumerate()
        .flat_map(|(at, node)| node.output.iter().map(move |name| (&**name, at)))
        .collect();
    for output in outputs {
        if !made_by.contains_key(&**output) {
            let known: Vec<&str> = graph.output.iter().map(|output| &*output.name).collect();
            return Err(Error::invalid(format!(
                "the ONNX graph makes no tensor '{output}'; its outputs are {}, and any tensor inside can be named",
                known.join(", ")
            )));
        }
    }
    let mut needed: HashSet<usize> = HashSet::new();
    let mut names: HashSet<String> = HashSet::new();
    let mut open: Vec<String> = outputs.to_vec();
    while let Some(name) = open.pop() {
        if !names.insert(name.clone()) {
            continue;
        }
        let Some(&at) = made_by.get(&*name) else { continue };
        if needed.insert(at) {
            let node = &graph.node[at];
            open.extend(node.input.iter().cloned());
            let bodies = node.attribute.iter().flat_map(|attribute| attribute.g.iter().chain(&attribute.graphs));
            bodies.for_each(|body| names_in(body, &mut open));
        }
    }
    let mut at = 0;
    graph.node.retain(|_| {
        at += 1;
        needed.contains(&(at - 1))
    });
    // Exporters give one name to several nodes; tract wants each to have its own.
    for (at, node) in graph.node.iter_mut().enumerate() {
        node.name = format!("{}#{at}", node.name);
    }
    graph.initializer.retain(|tensor| names.contains(&tensor.name));
    graph.input.retain(|input| names.contains(&input.name));
    graph.output =
        outputs.iter().map(|name| ValueInfoProto { name: name.clone(), ..ValueInfoProto::default() }).collect();
    Ok(())
}

/// All names that the body of an `If` or a `Loop` reads, its own among them, which does no harm.
fn names_in(body: &GraphProto, names: &mut Vec<String>) {
    names.extend(body.output.iter().map(|output| output.name.clone()));
    for node in &body.node {
        names.extend(node.input.iter().cloned());
        let inner = node.attribute.iter().flat_map(|attribute| attribute.g.iter().chain(&attribute.graphs));
        inner.for_each(|body| names_in(body, names));
    }
}

/// Some exporters write weights as nodes of their own.
fn constants_to_initializers(graph: &mut GraphProto) {
    let initializers = &mut graph.initializer;
    graph.node.retain_mut(|node| {
        let value = node.attribute.iter_mut().find(|attribute| attribute.name == "value");
        let (true, [output], Some(tensor)) =
            (node.op_type == "Constant", &node.output[..], value.and_then(|value| value.t.as_mut()))
        else {
            return true;
        };
        if dtype_of(tensor).is_none() || tensor.dims.is_empty() || tensor.raw_data.len() < MIN_WEIGHT_BYTES {
            return true;
        }
        initializers.push(TensorProto { name: output.clone(), ..std::mem::take(tensor) });
        false
    });
}

/// Gives every input the one shape that it is asked with, and makes constants of those that have a number.
fn fix_inputs(graph: &mut GraphProto, description: &OnnxInput, picture: Option<[usize; 2]>) -> Result<()> {
    let known: HashSet<String> = graph.initializer.iter().map(|tensor| tensor.name.clone()).collect();
    graph.input.retain(|input| !known.contains(&input.name));
    let state = match description {
        OnnxInput::Audio { constants, state, .. } => {
            for (name, value) in constants {
                constant(graph, name, *value)?;
            }
            state.as_ref().map(|state| state.input.as_str())
        }
        OnnxInput::Image { .. } => None,
    };
    let expected = 1 + usize::from(state.is_some());
    if graph.input.len() != expected {
        let names: Vec<&str> = graph.input.iter().map(|input| &*input.name).collect();
        return Err(Error::invalid(format!(
            "the ONNX graph takes {} inputs ({}) and the description explains {expected}",
            names.len(),
            names.join(", ")
        )));
    }
    // The state comes last, whatever order the file has.
    graph.input.sort_by_key(|input| Some(input.name.as_str()) == state);
    if state.is_some_and(|state| graph.input.last().is_none_or(|last| last.name != state)) {
        return Err(Error::invalid("the ONNX graph has no input of the name that the description gives for its state"));
    }
    let shape = match (description, picture) {
        (OnnxInput::Image { layout, .. }, Some([height, width])) => match layout {
            Layout::ChannelsFirst => vec![1, 3, height, width],
            Layout::ChannelsLast => vec![1, height, width, 3],
        },
        (OnnxInput::Audio { window, context, .. }, _) => vec![1, window + context],
        (OnnxInput::Image { .. }, None) => return Err(Error::internal("a picture's size is not known")),
    };
    for (at, input) in graph.input.iter_mut().enumerate() {
        let shape = if at == 0 { Some(shape.as_slice()) } else { None };
        fix_shape(input, shape)?;
    }
    Ok(())
}

/// Sets the shape to `wanted`, or every open dimension to 1.
fn fix_shape(input: &mut ValueInfoProto, wanted: Option<&[usize]>) -> Result<()> {
    let name = input.name.clone();
    let tensor = match &mut input.r#type {
        Some(TypeProto { value: Some(type_proto::Value::TensorType(tensor)), .. }) => tensor,
        _ => return Err(Error::invalid(format!("the ONNX input {name} is no tensor"))),
    };
    let shape = tensor.shape.get_or_insert_with(TensorShapeProto::default);
    let fixed = |dim: &tensor_shape_proto::Dimension| match dim.value {
        Some(tensor_shape_proto::dimension::Value::DimValue(size)) if size > 0 => Some(size),
        _ => None,
    };
    let declared: Vec<Option<i64>> = shape.dim.iter().map(fixed).collect();
    let sizes: Vec<i64> = match wanted {
        None => declared.into_iter().map(|size| size.unwrap_or(1)).collect(),
        Some(wanted) => {
            let wanted: Vec<i64> = wanted.iter().map(|&size| size as i64).collect();
            let fits = |(declared, wanted): (&Option<i64>, &i64)| declared.is_none_or(|size| size == *wanted);
            if declared.len() != wanted.len() || !declared.iter().zip(&wanted).all(fits) {
                let dims: Vec<String> =
                    declared.iter().map(|size| size.map_or("any".to_owned(), |size| size.to_string())).collect();
                return Err(Error::invalid(format!(
                    "the ONNX input {name} takes [{}] and the description gives it {wanted:?}",
                    dims.join(", ")
                )));
            }
            wanted
        }
    };
    shape.dim = sizes
        .into_iter()
        .map(|size| tensor_shape_proto::Dimension {
            value: Some(tensor_shape_proto::dimension::Value::DimValue(size)),
            ..Default::default()
        })
        .collect();
    Ok(())
}

/// Makes the input `name` a constant.
fn constant(graph: &mut GraphProto, name: &str, value: i64) -> Result<()> {
    let before = graph.input.len();
    graph.input.retain(|input| input.name != name);
    if graph.input.len() == before {
        // What an output does not need was cut off with the rest.
        return Ok(());
    }
    graph.initializer.push(TensorProto {
        name: name.to_owned(),
        data_type: DataType::Int64 as i32,
        int64_data: vec![value],
        ..TensorProto::default()
    });
    Ok(())
}

/// Takes the values of floating-point tensors out.
fn take_weights(graph: &mut GraphProto) -> Result<Vec<Weight>> {
    let mut weights = Vec::new();
    for tensor in &mut graph.initializer {
        if tensor.data_location.is_some_and(|location| location == DataLocation::External as i32) {
            return Err(Error::unsupported(format!(
                "the ONNX file keeps {} in another file; save it as one file",
                tensor.name
            )));
        }
        let Some(dtype) = dtype_of(tensor) else { continue };
        if tensor.dims.is_empty() || tensor.raw_data.is_empty() {
            continue;
        }
        let damaged = || Error::corrupted(format!("the ONNX tensor {} does not fill its shape", tensor.name));
        let shape: Vec<usize> = tensor
            .dims
            .iter()
            .map(|&dim| usize::try_from(dim).ok().filter(|&dim| dim > 0).ok_or_else(damaged))
            .collect::<Result<_>>()?;
        let values = shape.iter().try_fold(1_usize, |product, &dim| product.checked_mul(dim)).ok_or_else(damaged)?;
        if values.checked_mul(dtype.block_bytes()) != Some(tensor.raw_data.len()) {
            return Err(damaged());
        }
        let data = Buffer::from_vec(std::mem::take(&mut tensor.raw_data));
        weights.push(Weight { name: tensor.name.clone(), dtype, shape, data });
    }
    Ok(weights)
}
