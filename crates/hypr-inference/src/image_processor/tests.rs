use image::{DynamicImage, ImageFormat, Rgb, RgbImage};
use serde_json::json;

use super::*;

/// A PNG file with the pixel `value(x, y)` at each place.
fn png(width: u32, height: u32, value: impl Fn(u32, u32) -> [u8; 3]) -> Vec<u8> {
    let picture = RgbImage::from_fn(width, height, |x, y| Rgb(value(x, y)));
    let mut file = Cursor::new(Vec::new());
    DynamicImage::ImageRgb8(picture).write_to(&mut file, ImageFormat::Png).unwrap();
    file.into_inner()
}

fn plain(settings: Json) -> ImageProcessor {
    let mut all = json!({"do_normalize": false, "do_rescale": false});
    all.as_object_mut().unwrap().extend(settings.as_object().unwrap().clone());
    ImageProcessor::from_json(&all).unwrap()
}

#[test]
fn the_steps_are_resize_pad_crop_and_normalise() {
    let file = png(4, 2, |x, y| [x as u8 * 10, y as u8 * 10, 200]);
    let exact = plain(json!({"size": 3, "resample": 0}));
    let pixels = exact.pixels(&file).unwrap();
    assert_eq!((pixels.height, pixels.width, pixels.values.len()), (3, 3, 27));
    assert_eq!(pixels.values[18..], [200.0; 9]);

    // 4 x 2 becomes 4 x 2 by its longest edge, in the middle of 4 x 4.
    let padded = plain(json!({"size": {"longest_edge": 4}, "do_pad": true, "resample": 0}));
    let red = &padded.pixels(&file).unwrap().values[..16];
    assert_eq!(red, [0., 0., 0., 0., 0., 10., 20., 30., 0., 10., 20., 30., 0., 0., 0., 0.]);

    let cropped = plain(json!({"size": 2, "crop_size": 2, "resample": 0}));
    assert_eq!(cropped.pixels(&file).unwrap().values[..4], [10., 20., 10., 20.]);
    let blue_first = plain(json!({"do_resize": false, "crop_size": 2, "do_flip_channel_order": true}));
    assert_eq!(blue_first.pixels(&file).unwrap().values[..4], [200.0; 4]);

    let settings =
        json!({"size": {"height": 2, "width": 4}, "image_mean": [0.0, 0.5, 1.0], "image_std": [1.0, 0.5, 2.0]});
    let normalized = ImageProcessor::from_json(&settings).unwrap().pixels(&file).unwrap();
    for (at, wanted) in [(3, 30.0 / 255.0), (8, -1.0), (16, (200.0 / 255.0 - 1.0) / 2.0)] {
        assert!((normalized.values[at] - wanted).abs() < 1e-6, "{at}: {}", normalized.values[at]);
    }
}

#[test]
fn a_side_is_scaled_in_proportion_and_never_to_nothing() {
    assert_eq!(Resize::Shortest(224).target([300, 451]), [224, 336]);
    assert_eq!(Resize::Shortest(224).target([451, 300]), [336, 224]);
    assert_eq!(Resize::Longest(224).target([300, 451]), [149, 224]);
    assert_eq!(Resize::Longest(10).target([1, 9000]), [1, 10]);
}

#[test]
fn settings_without_a_size_or_a_meaning_are_refused_by_name() {
    let refused = |settings: Json| ImageProcessor::from_json(&settings).unwrap_err().message().to_owned();
    assert!(refused(json!({})).contains("size"));
    assert!(refused(json!({"size": {"shortest_edge": 224}})).contains("different sizes"));
    assert!(refused(json!({"size": 0})).contains("size is 0"));
    assert!(refused(json!({"size": 9, "image_std": [1, 0, 1]})).contains("image_std"));
    assert!(refused(json!({"size": 9, "image_mean": [1, 2]})).contains("image_mean"));
    assert!(refused(json!({"size": 9, "resample": 9})).contains("resample is 9"));
    assert!(refused(json!({"size": 9, "do_center_crop": true})).contains("crop_size"));
}

#[test]
fn bytes_that_are_no_picture_and_pictures_that_cost_too_much_are_refused() {
    let processor = plain(json!({"size": {"shortest_edge": 224}, "crop_size": 224}));
    let refused = |bytes: &[u8]| processor.pixels(bytes).unwrap_err().message().to_owned();
    assert!(refused(b"not a picture").contains("13 bytes"));
    let file = png(8, 8, |x, _| [x as u8; 3]);
    assert!(refused(&file[..file.len() / 2]).contains("cannot be read"));
    assert!(refused(&png(16_384, 1, |_, _| [1; 3])).contains("too long and narrow"));
    // A header that promises 65,535 x 65,535 pixels.
    let mut hostile = png(1, 1, |_, _| [0; 3]);
    hostile[16..24].copy_from_slice(&[0, 0, 0xff, 0xff, 0, 0, 0xff, 0xff]);
    assert!(refused(&hostile).contains("cannot be read"));
}
