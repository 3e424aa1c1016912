use std::io::Write;

use proptest::prelude::*;

use super::*;
use crate::map_file;

#[test]
fn rows_point_into_the_mapping() {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&vec![7u8; 64 + 10 * 360]).unwrap();
    let map = map_file(&file).unwrap();
    let pieces = vec![map.slice_with_length(64, 4 * 360), map.slice_with_length(64 + 4 * 360, 6 * 360)];
    let weight = WeightArray::new(DType::Q4_1, vec![10, 576], pieces).unwrap();
    for row in 0..10 {
        assert_eq!(weight.row_bytes(row).as_ptr(), map.as_slice()[64 + row * 360..].as_ptr());
    }
    let copy = weight.clone();
    drop(weight);
    assert_eq!(copy.row_bytes(9).as_ptr(), map.as_slice()[64 + 9 * 360..].as_ptr());
}

#[test]
fn wrong_sizes_are_refused_with_the_numbers() {
    let bytes = |n: usize| Buffer::from(vec![0u8; n]);
    let error = WeightArray::new(DType::F32, vec![2, 3], vec![bytes(23)]).unwrap_err();
    assert!(error.message().contains("23 bytes") && error.message().contains("12 bytes"), "{error}");
    let error = WeightArray::new(DType::F32, vec![2, 3], vec![bytes(12), bytes(24)]).unwrap_err();
    assert!(error.message().contains("hold 3 rows") && error.message().contains("needs 2"), "{error}");
    assert!(WeightArray::new(DType::F32, vec![], vec![]).is_err());
    assert!(WeightArray::new(DType::F32, vec![0, 4], vec![]).is_err());
    assert!(WeightArray::new(DType::F32, vec![usize::MAX, 2, 4], vec![]).is_err());
    assert!(WeightArray::new(DType::F32, vec![2, 4], vec![bytes(16), bytes(0), bytes(16)]).is_err());
}

#[test]
fn plain_values_are_borrowed() {
    let weight = WeightArray::from_f32(&[1.0, -2.0, 3.5], vec![3]).unwrap();
    assert_eq!((weight.rows(), weight.cols()), (1, 3));
    assert_eq!(weight.as_f32().unwrap(), [1.0, -2.0, 3.5]);
    assert_eq!(weight.as_f32().unwrap().as_ptr().cast::<u8>(), weight.row_bytes(0).as_ptr());
    assert_eq!(weight.to_f32(), [1.0, -2.0, 3.5]);
}

proptest! {
    /// Accepted exactly when the pieces are whole, non-empty runs of rows that add up to the shape.
    #[test]
    fn any_byte_counts_are_accepted_or_refused(
        dtype in prop::sample::select(DType::ALL.to_vec()),
        rows in 0usize..6, blocks in 0usize..4, extra in 0usize..40,
        pieces in prop::collection::vec(0usize..1200, 0..4), aligned: bool,
    ) {
        let cols = blocks * dtype.block_len() + if dtype.block_len() > 1 { extra % 2 } else { 0 };
        let row_bytes = dtype.row_bytes(cols);
        let lengths: Vec<usize> = match (&row_bytes, aligned) {
            (Ok(bytes), true) => pieces.iter().map(|n| n % 4 * bytes).collect(),
            _ => pieces,
        };
        let buffers = lengths.iter().map(|&n| Buffer::from(vec![0u8; n])).collect();
        let made = WeightArray::new(dtype, vec![rows, cols], buffers);
        let valid = rows > 0 && cols > 0 && row_bytes.as_ref().is_ok_and(|&bytes| {
            lengths.iter().all(|&n| n > 0 && n % bytes == 0) && lengths.iter().sum::<usize>() == rows * bytes
        });
        prop_assert_eq!(made.is_ok(), valid);
        if let Ok(weight) = made {
            prop_assert_eq!(weight.to_f32().len(), rows * cols);
            prop_assert_eq!((0..rows).map(|row| weight.row_bytes(row).len()).sum::<usize>(), weight.bytes());
        }
    }
}
