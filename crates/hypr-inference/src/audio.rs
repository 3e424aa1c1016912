//! Sound as an audio model wants it: samples from a WAV file.
//!
//! ```text
//! "RIFF" size:u32 "WAVE" { id:[u8; 4] size:u32 data:[u8; size] pad to even }*
//! "fmt " : format:u16 channels:u16 rate:u32 bytes_per_second:u32 block:u16 bits:u16 ..   1 is integers, 3 floats,
//!          0xfffe has the format at byte 24
//! "data" : samples, channel after channel
//! ```
//! All numbers are little-endian; integers of 8 bits are unsigned. Deliberately absent: compressed formats, and
//! changing the sampling rate.

use hypr_common::{Error, Result};

const INTEGERS: u16 = 1;
const FLOATS: u16 = 3;
const EXTENSIBLE: u16 = 0xfffe;

/// Sound of one channel.
#[derive(Clone, Debug, PartialEq)]
pub struct Wave {
    /// Samples a second.
    pub sample_rate: u32,
    /// From -1 to 1; several channels are averaged.
    pub samples: Vec<f32>,
}

#[derive(Clone, Copy)]
struct Format {
    kind: u16,
    channels: usize,
    sample_rate: u32,
    bits: u16,
}

/// Reads a WAV file.
///
/// # Errors
/// `InvalidInput` for bytes that are none, or of an encoding that is not supported.
pub fn decode_wav(bytes: &[u8]) -> Result<Wave> {
    let mut rest = match (bytes.get(..4), bytes.get(8..12)) {
        (Some(b"RIFF"), Some(b"WAVE")) => &bytes[12..],
        _ => return Err(Error::invalid(format!("the {} bytes are no WAV file; give WAV, or samples", bytes.len()))),
    };
    let mut format = None;
    while rest.len() >= 8 {
        let (head, body) = rest.split_at(8);
        let size = u32::from_le_bytes([head[4], head[5], head[6], head[7]]) as usize;
        // A recorder that was stopped leaves sizes larger than the file.
        let data = &body[..size.min(body.len())];
        match (&head[..4], format) {
            (b"fmt ", _) => format = Some(read_format(data)?),
            (b"data", Some(format)) => return samples(data, format),
            _ => {}
        }
        rest = body.get(size.saturating_add(size % 2)..).unwrap_or_default();
    }
    Err(Error::invalid("the WAV file has no sound in it"))
}

fn read_format(data: &[u8]) -> Result<Format> {
    let short = |at: usize| data.get(at..at + 2).map(|bytes| u16::from_le_bytes([bytes[0], bytes[1]]));
    let missing = || Error::invalid("the WAV file does not say its format");
    let rate = data.get(4..8).ok_or_else(missing)?;
    let kind = match short(0).ok_or_else(missing)? {
        EXTENSIBLE => short(24).ok_or_else(missing)?,
        kind => kind,
    };
    let format = Format {
        kind,
        channels: usize::from(short(2).ok_or_else(missing)?),
        sample_rate: u32::from_le_bytes([rate[0], rate[1], rate[2], rate[3]]),
        bits: short(14).ok_or_else(missing)?,
    };
    if format.channels == 0 || format.sample_rate == 0 {
        return Err(missing());
    }
    Ok(format)
}

fn samples(data: &[u8], format: Format) -> Result<Wave> {
    let width = usize::from(format.bits / 8);
    let sample: fn(&[u8]) -> f32 = match (format.kind, format.bits) {
        (INTEGERS, 8) => |bytes| (f32::from(bytes[0]) - 128.0) / 128.0,
        (INTEGERS, 16) => |bytes| f32::from(i16::from_le_bytes([bytes[0], bytes[1]])) / 32_768.0,
        (INTEGERS, 24) => |bytes| i32::from_le_bytes([0, bytes[0], bytes[1], bytes[2]]) as f32 / 2_147_483_648.0,
        (INTEGERS, 32) => |bytes| i32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as f32 / 2_147_483_648.0,
        (FLOATS, 32) => |bytes| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
        (kind, bits) => {
            return Err(Error::invalid(format!(
                "WAV of format {kind} with {bits} bits is not supported; use integers of 8, 16, 24 or 32 bits or \
                 floats of 32"
            )));
        }
    };
    let frames = data.chunks_exact(width * format.channels);
    let mono = frames.map(|frame| frame.chunks_exact(width).map(sample).sum::<f32>() / format.channels as f32);
    Ok(Wave { sample_rate: format.sample_rate, samples: mono.collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A WAV file of `data`, with a chunk of odd size before the sound.
    fn wav(kind: u16, channels: u16, bits: u16, data: &[u8]) -> Vec<u8> {
        let mut file = b"RIFF\0\0\0\0WAVELIST\x03\0\0\0abc\0fmt \x10\0\0\0".to_vec();
        for short in [kind, channels] {
            file.extend(short.to_le_bytes());
        }
        file.extend(16_000_u32.to_le_bytes());
        file.extend([0; 6]);
        file.extend(bits.to_le_bytes());
        file.extend(b"data");
        file.extend((data.len() as u32).to_le_bytes());
        file.extend(data);
        file
    }

    #[test]
    fn every_encoding_gives_the_same_samples() {
        let wanted = [0.5_f32, -0.25];
        let files = [
            wav(1, 1, 8, &[192, 96]),
            wav(1, 1, 16, &[0, 0x40, 0, 0xe0]),
            wav(1, 1, 24, &[0, 0, 0x40, 0, 0, 0xe0]),
            wav(1, 1, 32, &[0, 0, 0, 0x40, 0, 0, 0, 0xe0]),
            wav(3, 1, 32, &[wanted[0].to_le_bytes(), wanted[1].to_le_bytes()].concat()),
            wav(3, 2, 32, &[1.0_f32, 0.0, -1.0, 0.5].map(f32::to_le_bytes).concat()),
        ];
        for file in files {
            assert_eq!(decode_wav(&file).unwrap(), Wave { sample_rate: 16_000, samples: wanted.to_vec() });
        }
    }

    #[test]
    fn what_is_no_wave_is_refused_with_a_reason_and_nothing_panics() {
        assert!(decode_wav(b"OggS").unwrap_err().message().contains("no WAV file"));
        assert!(decode_wav(&wav(2, 1, 4, &[0; 4])).unwrap_err().message().contains("format 2 with 4 bits"));
        assert!(decode_wav(&wav(1, 0, 16, &[0; 4])).unwrap_err().message().contains("its format"));
        let whole = wav(1, 2, 16, &[1; 10]);
        for end in 0..whole.len() {
            if let Ok(wave) = decode_wav(&whole[..end]) {
                assert!(wave.samples.len() <= 2);
            }
        }
    }
}
