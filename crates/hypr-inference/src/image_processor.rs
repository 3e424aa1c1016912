//! Pictures as a vision model wants them: decoded, resized and normalised as its `preprocessor_config.json` says.
//!
//! The keys, their defaults and the order of the steps are those of Hugging Face's image processors; resizing is
//! Pillow's, with its filters. Invariant: the size of what comes out depends on the settings alone. Deliberately
//! absent: the orientation that a camera notes beside the pixels (Pillow ignores it too), and video.

use std::io::Cursor;

use fast_image_resize::images::Image;
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};
use hypr_common::{Error, Result};
use image::{ImageReader, Limits};
use serde_json::Value as Json;

/// The longest side of a picture that is decoded, in pixels.
const MAX_SIDE: u32 = 16_384;
/// The most pixels of a picture after resizing, padding or cropping: bounds what a very long and narrow one, or a
/// strange setting, costs.
const MAX_RESIZED_PIXELS: u64 = 1 << 26;
/// The settings that models in Hugging Face's form bring.
pub const PREPROCESSOR_FILE: &str = "preprocessor_config.json";

/// How a picture becomes numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageProcessor {
    resize: Option<Resize>,
    algorithm: ResizeAlg,
    /// Height and width that the picture is centred in, black around it.
    pad: Option<[u32; 2]>,
    /// Height and width that are cut from the middle.
    crop: Option<[u32; 2]>,
    /// What a value of 0 to 255 is multiplied by.
    rescale: f32,
    /// Subtracted from each channel, after the factor.
    mean: [f32; 3],
    /// What each channel is then divided by.
    std: [f32; 3],
    /// The channels are blue, green, red.
    flip_channels: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Resize {
    /// To this height and width, whatever becomes of the proportions.
    Exact([u32; 2]),
    /// The shorter side to this length.
    Shortest(u32),
    /// The longer side to this length.
    Longest(u32),
}

/// A picture as numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct Pixels {
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
    /// `[3, height, width]`.
    pub values: Vec<f32>,
}

impl ImageProcessor {
    /// Reads the settings of `preprocessor_config.json`.
    ///
    /// # Errors
    /// `InvalidInput` for settings that leave the size of the result open or have no meaning, naming the key.
    pub fn from_json(settings: &Json) -> Result<Self> {
        let flag = |key: &str, default| settings.get(key).and_then(Json::as_bool).unwrap_or(default);
        let number = |key: &str| settings.get(key).and_then(Json::as_f64).map(|value| value as f32);
        let crops = flag("do_center_crop", settings.get("crop_size").is_some());
        let normalizes = flag("do_normalize", true);
        let processor = Self {
            resize: match flag("do_resize", true) {
                true => Some(resize(settings.get("size"), crops)?),
                false => None,
            },
            algorithm: algorithm(settings)?,
            pad: match flag("do_pad", false) {
                true => Some(square("pad_size", settings.get("pad_size").or_else(|| settings.get("size")))?),
                false => None,
            },
            crop: match crops {
                true => Some(square("crop_size", settings.get("crop_size"))?),
                false => None,
            },
            rescale: if flag("do_rescale", true) { number("rescale_factor").unwrap_or(1.0 / 255.0) } else { 1.0 },
            mean: if normalizes { channels(settings, "image_mean", [0.5; 3])? } else { [0.0; 3] },
            std: if normalizes { channels(settings, "image_std", [0.5; 3])? } else { [1.0; 3] },
            flip_channels: flag("do_flip_channel_order", false),
        };
        if processor.std.contains(&0.0) {
            return Err(Error::invalid("image_std holds a zero; every channel is divided by it"));
        }
        processor.size()?;
        Ok(processor)
    }

    /// Height and width of every result.
    ///
    /// # Errors
    /// `InvalidInput` where they depend on the picture.
    pub fn size(&self) -> Result<[usize; 2]> {
        let exact = match self.resize {
            Some(Resize::Exact(size)) => Some(size),
            _ => None,
        };
        let [height, width] = self.crop.or(self.pad).or(exact).ok_or_else(|| {
            Error::invalid(format!(
                "{PREPROCESSOR_FILE} gives pictures of different sizes; set size to a height and a width, or crop_size"
            ))
        })?;
        Ok([height as usize, width as usize])
    }

    /// The numbers of an encoded picture: PNG, JPEG, WebP, GIF (its first frame) or BMP. Transparency is left out.
    ///
    /// # Errors
    /// `InvalidInput` for bytes that are no such picture or one that is too large.
    pub fn pixels(&self, encoded: &[u8]) -> Result<Pixels> {
        let (mut picture, mut size) = decode(encoded)?;
        if let Some(resize) = self.resize {
            let to = resize.target(size);
            if to != size {
                picture = self.resized(picture, size, to)?;
                size = to;
            }
        }
        for window in [self.pad, self.crop].into_iter().flatten() {
            picture = centred(&picture, size, window);
            size = window;
        }
        Ok(self.normalized(&picture, size))
    }

    fn resized(&self, picture: Vec<u8>, [height, width]: [u32; 2], to: [u32; 2]) -> Result<Vec<u8>> {
        let pixels = u64::from(to[0]) * u64::from(to[1]);
        if pixels > MAX_RESIZED_PIXELS {
            return Err(Error::invalid(format!(
                "a picture of {width} x {height} is too long and narrow to be resized to {} x {}",
                to[1], to[0]
            )));
        }
        let failed =
            |error: String| Error::internal(format!("a picture of {width} x {height} was not resized: {error}"));
        let from =
            Image::from_vec_u8(width, height, picture, PixelType::U8x3).map_err(|error| failed(error.to_string()))?;
        let mut result = Image::new(to[1], to[0], PixelType::U8x3);
        let options = ResizeOptions::new().resize_alg(self.algorithm);
        Resizer::new().resize(&from, &mut result, &options).map_err(|error| failed(error.to_string()))?;
        Ok(result.into_vec())
    }

    /// `[height, width, 3]` bytes as `[3, height, width]` numbers.
    fn normalized(&self, picture: &[u8], [height, width]: [u32; 2]) -> Pixels {
        let (height, width) = (height as usize, width as usize);
        let mut values = vec![0.0; 3 * height * width];
        for (channel, plane) in values.chunks_exact_mut((height * width).max(1)).enumerate() {
            let from = if self.flip_channels { 2 - channel } else { channel };
            let (mean, std) = (self.mean[channel], self.std[channel]);
            for (value, pixel) in plane.iter_mut().zip(picture.chunks_exact(3)) {
                *value = (f32::from(pixel[from]) * self.rescale - mean) / std;
            }
        }
        Pixels { height, width, values }
    }
}

impl Resize {
    /// The height and width that a picture of `size` gets.
    fn target(self, [height, width]: [u32; 2]) -> [u32; 2] {
        let (short, long) = (height.min(width), height.max(width));
        let scaled = |side: u32, to: u32, of: u32| ((u64::from(side) * u64::from(to)) / u64::from(of)).max(1) as u32;
        match self {
            Self::Exact(size) => size,
            Self::Shortest(to) if height <= width => [to, scaled(long, to, short)],
            Self::Shortest(to) => [scaled(long, to, short), to],
            Self::Longest(to) if height >= width => [to, scaled(short, to, long)],
            Self::Longest(to) => [scaled(short, to, long), to],
        }
    }
}

/// `[height, width, 3]` bytes, and height and width.
fn decode(encoded: &[u8]) -> Result<(Vec<u8>, [u32; 2])> {
    let refused = |error: String| {
        Error::invalid(format!("the picture cannot be read: {error}; give PNG, JPEG, WebP, GIF or BMP"))
    };
    let mut reader =
        ImageReader::new(Cursor::new(encoded)).with_guessed_format().map_err(|error| refused(error.to_string()))?;
    if reader.format().is_none() {
        return Err(refused(format!("its {} bytes are of no format that is known", encoded.len())));
    }
    let mut limits = Limits::default();
    limits.max_image_width = Some(MAX_SIDE);
    limits.max_image_height = Some(MAX_SIDE);
    reader.limits(limits);
    let picture = reader.decode().map_err(|error| refused(error.to_string()))?.into_rgb8();
    let size = [picture.height(), picture.width()];
    if size.contains(&0) {
        return Err(refused("it has no pixels".to_owned()));
    }
    Ok((picture.into_raw(), size))
}

/// The middle of `picture`, or `picture` in the middle of black where the window is larger, by side.
fn centred(picture: &[u8], [height, width]: [u32; 2], window: [u32; 2]) -> Vec<u8> {
    let [rows, columns] = window.map(|side| side as usize);
    let (height, width) = (height as usize, width as usize);
    // Where a side begins in the picture and in the window, and how much of it is in both.
    let side = |of: usize, to: usize| (of.saturating_sub(to) / 2, to.saturating_sub(of) / 2, of.min(to));
    let (from_row, to_row, shared_rows) = side(height, rows);
    let (from_column, to_column, shared_columns) = side(width, columns);
    let mut result = vec![0; rows * columns * 3];
    for row in 0..shared_rows {
        let from = ((from_row + row) * width + from_column) * 3;
        let to = ((to_row + row) * columns + to_column) * 3;
        result[to..to + shared_columns * 3].copy_from_slice(&picture[from..from + shared_columns * 3]);
    }
    result
}

fn side(key: &str, value: &Json) -> Result<u32> {
    value
        .as_u64()
        .filter(|side| (1..=u64::from(MAX_SIDE)).contains(side))
        .map(|side| side as u32)
        .ok_or_else(|| Error::invalid(format!("{PREPROCESSOR_FILE} says {key} is {value}; expected 1 to {MAX_SIDE}")))
}

/// A height and a width, or one number for both.
fn square(key: &str, value: Option<&Json>) -> Result<[u32; 2]> {
    let missing = || Error::invalid(format!("{PREPROCESSOR_FILE} does not say its {key}"));
    let value = value.ok_or_else(missing)?;
    let [height, width] = match (value.get("height"), value.get("width")) {
        (Some(height), Some(width)) => [side(key, height)?, side(key, width)?],
        _ if value.is_number() => [side(key, value)?; 2],
        _ => match value.get("longest_edge").or_else(|| value.get("shortest_edge")) {
            Some(edge) => [side(key, edge)?; 2],
            None => return Err(missing()),
        },
    };
    if u64::from(height) * u64::from(width) > MAX_RESIZED_PIXELS {
        return Err(Error::invalid(format!(
            "{PREPROCESSOR_FILE} says {key} is {width} x {height}, which is too large"
        )));
    }
    Ok([height, width])
}

/// One number is the shorter side where a crop follows, and both sides where none does.
fn resize(size: Option<&Json>, crops: bool) -> Result<Resize> {
    let size = size.ok_or_else(|| Error::invalid(format!("{PREPROCESSOR_FILE} does not say its size")))?;
    if let Some(edge) = size.get("shortest_edge") {
        return Ok(Resize::Shortest(side("size", edge)?));
    }
    if let Some(edge) = size.get("longest_edge") {
        return Ok(Resize::Longest(side("size", edge)?));
    }
    match size.is_number() && crops {
        true => Ok(Resize::Shortest(side("size", size)?)),
        false => Ok(Resize::Exact(square("size", Some(size))?)),
    }
}

/// Pillow's numbers of its filters.
fn algorithm(settings: &Json) -> Result<ResizeAlg> {
    Ok(ResizeAlg::Convolution(match settings.get("resample").and_then(Json::as_u64) {
        Some(0) => return Ok(ResizeAlg::Nearest),
        Some(1) => FilterType::Lanczos3,
        None | Some(2) => FilterType::Bilinear,
        Some(3) => FilterType::CatmullRom,
        Some(4) => FilterType::Box,
        Some(5) => FilterType::Hamming,
        Some(other) => {
            return Err(Error::invalid(format!("{PREPROCESSOR_FILE} says resample is {other}; expected 0 to 5")));
        }
    }))
}

fn channels(settings: &Json, key: &str, default: [f32; 3]) -> Result<[f32; 3]> {
    let Some(value) = settings.get(key).filter(|value| !value.is_null()) else { return Ok(default) };
    let numbers = value.as_array().map(|values| values.iter().filter_map(Json::as_f64).collect::<Vec<_>>());
    match numbers.as_deref() {
        Some(&[red, green, blue]) => Ok([red as f32, green as f32, blue as f32]),
        _ => Err(Error::invalid(format!("{PREPROCESSOR_FILE} says {key} is {value}; expected three numbers"))),
    }
}

#[cfg(test)]
mod tests;
