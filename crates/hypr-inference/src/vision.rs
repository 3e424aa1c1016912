//! Pictures through the shared transformer: patches become tokens, and the class token's state the embedding.
//!
//! Invariant: the transformer is the one that every family has; here is only what stands before and behind it.

use hypr_common::model::EMBEDDING_LAYER;
use hypr_common::{Error, Result};
use hypr_tensor::{Kernels, Scratch, WeightArray};

use crate::config::{ImageConfig, ModelConfig};
use crate::image_processor::{ImageProcessor, Pixels};
use crate::model::projected;
use crate::transformer::{Transformer, Workspace};
use crate::weights::{Vector, Weights};

/// Red, green, blue.
const CHANNELS: usize = 3;

/// A transformer over pictures.
#[derive(Debug)]
pub struct VisionTower {
    image: ImageConfig,
    processor: ImageProcessor,
    /// `[hidden, 3 * patch_size * patch_size]`.
    patch_proj: WeightArray,
    /// `[hidden]`.
    patch_bias: Option<Vector>,
    /// `[hidden]`.
    class_token: Vector,
    transformer: Transformer,
    /// `[joint, hidden]`, where a model has a joint space.
    projection: Option<WeightArray>,
}

impl VisionTower {
    /// Views the weights as the network of `config`.
    ///
    /// # Errors
    /// `Corrupted` where weights are missing or of the wrong shape.
    pub fn open(weights: &Weights, config: &ModelConfig) -> Result<Self> {
        let image = config.image.clone().ok_or_else(|| Error::corrupted("the model's pictures have no size"))?;
        let hidden = config.hidden_size;
        let patch = CHANNELS * image.patch_size * image.patch_size;
        let after = config.num_hidden_layers as i32;
        Ok(Self {
            processor: image.processor()?,
            patch_proj: weights.matrix(EMBEDDING_LAYER, "patch_proj", hidden, patch)?,
            patch_bias: weights.optional_vector(EMBEDDING_LAYER, "patch_proj.bias", hidden)?,
            class_token: weights.vector(EMBEDDING_LAYER, "class_token", hidden)?,
            transformer: Transformer::of_weights(weights, config.clone(), image.tokens())?,
            projection: match config.embedding_size {
                Some(joint) => Some(weights.matrix(after, "projection", joint, hidden)?),
                None => None,
            },
            image,
        })
    }

    /// Tokens of a picture: its patches and the class token.
    pub fn tokens(&self) -> usize {
        self.image.tokens()
    }

    /// How pictures are made ready.
    pub fn processor(&self) -> &ImageProcessor {
        &self.processor
    }

    /// The last states of `pictures`, `[pictures, tokens, hidden]`, in `work`.
    ///
    /// # Errors
    /// `InvalidInput` for a picture of another size.
    pub fn forward(&self, kernels: &Kernels, pictures: &[Pixels], work: &mut Workspace) -> Result<()> {
        let (side, hidden) = (self.image.image_size, self.transformer.config().hidden_size);
        if let Some(other) = pictures.iter().find(|pixels| (pixels.height, pixels.width) != (side, side)) {
            return Err(Error::invalid(format!(
                "a picture of {} x {} was given to a model of {side} x {side}",
                other.width, other.height
            )));
        }
        let patches: Vec<f32> = pictures.iter().flat_map(|pixels| self.patches(pixels)).collect();
        let rows = pictures.len() * (self.tokens() - 1);
        let mut embedded = vec![0.0; rows * hidden];
        let bias = self.patch_bias.as_ref().map(Vector::values);
        kernels.linear(&patches, rows, &self.patch_proj, bias, &mut embedded, &mut Scratch::default());
        let states = work.states(pictures.len() * self.tokens() * hidden);
        let pictures_out = states.chunks_exact_mut(self.tokens() * hidden);
        for (out, patches) in pictures_out.zip(embedded.chunks_exact((self.tokens() - 1) * hidden)) {
            out[..hidden].copy_from_slice(self.class_token.values());
            out[hidden..].copy_from_slice(patches);
        }
        self.transformer.forward_states(kernels, &vec![self.tokens(); pictures.len()], work)
    }

    /// Embeds pictures; a vector of the joint space each, or of `[hidden]` where the model has none.
    ///
    /// # Errors
    /// As [`VisionTower::forward`].
    pub fn embed(&self, kernels: &Kernels, pictures: &[Pixels], work: &mut Workspace) -> Result<Vec<Vec<f32>>> {
        self.forward(kernels, pictures, work)?;
        let hidden = self.transformer.config().hidden_size;
        let states = work.hidden().chunks_exact(self.tokens() * hidden);
        let classes = states.map(|picture| picture[..hidden].to_vec()).collect();
        Ok(projected(kernels, self.projection.as_ref(), classes))
    }

    /// `[patches, 3 * patch * patch]` of `[3, side, side]`: rows of patches from the top, in each the channels, rows and
    /// columns of the convolution's kernel.
    fn patches(&self, pixels: &Pixels) -> Vec<f32> {
        let (side, patch) = (self.image.image_size, self.image.patch_size);
        let across = side / patch;
        let mut out = Vec::with_capacity(across * across * CHANNELS * patch * patch);
        for at in 0..across * across {
            let (top, left) = (at / across * patch, at % across * patch);
            for channel in 0..CHANNELS {
                for row in 0..patch {
                    let start = (channel * side + top + row) * side + left;
                    out.extend_from_slice(&pixels.values[start..start + patch]);
                }
            }
        }
        out
    }
}
