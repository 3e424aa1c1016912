//! Element and block formats of weights.

use std::fmt;

use hypr_common::{Error, Result};

/// How the values of a tensor are encoded. Names, block lengths and byte layouts are GGML's (`ggml-common.h`);
/// the byte grammar of each block format is in [`crate::quant`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// IEEE 754 binary32, little endian.
    F32,
    /// IEEE 754 binary16, little endian.
    F16,
    /// The upper half of a binary32, little endian.
    BF16,
    /// 4 bits, one scale for 32 values.
    Q4_0,
    /// 4 bits, one scale and one minimum for 32 values.
    Q4_1,
    /// 5 bits, one scale for 32 values.
    Q5_0,
    /// 5 bits, one scale and one minimum for 32 values.
    Q5_1,
    /// 8 bits, one scale for 32 values.
    Q8_0,
    /// 4 bits, scale and minimum of 6 bits for 32 values, in blocks of 256.
    Q4K,
    /// 5 bits, scale and minimum of 6 bits for 32 values, in blocks of 256.
    Q5K,
    /// 6 bits, scale of 8 bits for 16 values, in blocks of 256.
    Q6K,
}

impl DType {
    /// Every format, in the order of the declaration.
    pub const ALL: [Self; 11] = [
        Self::F32,
        Self::F16,
        Self::BF16,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q4K,
        Self::Q5K,
        Self::Q6K,
    ];

    /// The name GGML gives the format, such as `Q4_K`.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q8_0 => "Q8_0",
            Self::Q4K => "Q4_K",
            Self::Q5K => "Q5_K",
            Self::Q6K => "Q6_K",
        }
    }

    /// The format of this name, in any case.
    ///
    /// # Errors
    /// `Unsupported`, listing the names that are known.
    pub fn parse(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|dtype| dtype.name().eq_ignore_ascii_case(name)).ok_or_else(|| {
            let known: Vec<_> = Self::ALL.into_iter().map(Self::name).collect();
            Error::new(
                hypr_common::ErrorKind::Unsupported,
                format!("weight encoding '{name}' is not supported: convert the tensor to one of {}", known.join(", ")),
            )
        })
    }

    /// Values in one block; 1 for plain elements.
    pub const fn block_len(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::BF16 => 1,
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 => 32,
            Self::Q4K | Self::Q5K | Self::Q6K => 256,
        }
    }

    /// Bytes of one block.
    pub const fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::Q4K => 144,
            Self::Q5K => 176,
            Self::Q6K => 210,
        }
    }

    /// True for the block formats, whose products run on integers.
    pub const fn is_quantized(self) -> bool {
        self.block_len() > 1
    }

    /// Bytes of one row of `cols` values.
    ///
    /// # Errors
    /// `InvalidInput` when `cols` is not a whole number of blocks, or the size overflows.
    pub fn row_bytes(self, cols: usize) -> Result<usize> {
        if !cols.is_multiple_of(self.block_len()) {
            return Err(Error::invalid(format!(
                "a row of {cols} values cannot be {}: its length must be a multiple of {}",
                self.name(),
                self.block_len()
            )));
        }
        (cols / self.block_len())
            .checked_mul(self.block_bytes())
            .ok_or_else(|| Error::invalid(format!("a row of {cols} values is too long")))
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_unknown_ones_list_the_known() {
        for dtype in DType::ALL {
            assert_eq!(DType::parse(dtype.name()).unwrap(), dtype);
            assert_eq!(DType::parse(&dtype.name().to_lowercase()).unwrap(), dtype);
        }
        let error = DType::parse("IQ2_XS").unwrap_err();
        assert!(error.message().contains("Q4_K"), "{error}");
    }

    #[test]
    fn rows_are_whole_blocks() {
        assert_eq!(DType::Q4_1.row_bytes(576).unwrap(), 360);
        assert_eq!(DType::Q6K.row_bytes(512).unwrap(), 420);
        assert!(DType::Q4K.row_bytes(576).is_err());
        assert!(DType::F32.row_bytes(usize::MAX / 2).is_err());
    }
}
