//! What can be embedded: text, pictures and sound, and which task each asks for.

use std::fmt;
use std::sync::Arc;

use arrow_buffer::Buffer;
use hypr_common::model::ModelMetadata;
use hypr_common::{ErrorKind, Result};
use sha2::{Digest, Sha256};

use crate::api::{Inference, Task};

/// One thing to embed.
#[derive(Clone, PartialEq)]
pub enum EmbedInput {
    /// Text.
    Text(String),
    /// An encoded picture or a WAV file; which of them, the model decides.
    Binary(Buffer),
    /// Sound of one channel, from -1 to 1, at the rate that the model takes.
    Samples(Arc<[f32]>),
}

impl EmbedInput {
    /// What it is.
    pub fn kind(&self) -> InputKind {
        match self {
            Self::Text(_) => InputKind::Text,
            Self::Binary(_) => InputKind::Binary,
            Self::Samples(_) => InputKind::Samples,
        }
    }
}

impl From<String> for EmbedInput {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<&str> for EmbedInput {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

/// Bytes and samples show their SHA-256: equal inputs look equal, others do not, and a picture fits a line.
impl fmt::Debug for EmbedInput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut digest = Sha256::new();
        match self {
            Self::Text(text) => return f.debug_tuple("Text").field(text).finish(),
            Self::Binary(bytes) => digest.update(bytes.as_slice()),
            Self::Samples(samples) => samples.iter().for_each(|sample| digest.update(sample.to_le_bytes())),
        }
        write!(f, "{:?}(", self.kind())?;
        digest.finalize().iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        f.write_str(")")
    }
}

/// The form that an input comes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum InputKind {
    /// [`EmbedInput::Text`].
    Text,
    /// [`EmbedInput::Binary`].
    Binary,
    /// [`EmbedInput::Samples`].
    Samples,
}

impl InputKind {
    /// The tasks that inputs of this kind may be for.
    pub fn tasks(self) -> &'static [Task] {
        match self {
            Self::Text => &[Task::Embed],
            Self::Binary => &[Task::EmbedImage, Task::EmbedAudio],
            Self::Samples => &[Task::EmbedAudio],
        }
    }

    /// The model that would embed inputs of this kind, and the task that it would do, by [`Inference::resolve`].
    ///
    /// # Errors
    /// As [`Inference::resolve`], for the first task that may be meant.
    pub fn resolve(self, inference: &dyn Inference, name: Option<&str>) -> Result<(Task, ModelMetadata)> {
        let mut refused = None;
        for &task in self.tasks() {
            match inference.resolve(task, name) {
                Ok(model) => return Ok((task, model)),
                // Several models can do it: that is an answer, and the next task is none.
                Err(error) if name.is_none() && error.kind() != ErrorKind::NotFound => return Err(error),
                Err(error) => refused = refused.or(Some(error)),
            }
        }
        Err(refused.unwrap_or_else(|| hypr_common::Error::internal("an input without a task")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inputs_look_equal_exactly_where_they_are() {
        let looks = |input: EmbedInput| format!("{input:?}");
        let bytes = |bytes: &[u8]| looks(EmbedInput::Binary(Buffer::from(bytes)));
        assert_eq!(bytes(b"abc"), bytes(b"abc"));
        assert_ne!(bytes(b"abc"), bytes(b"abd"));
        assert!(bytes(b"abc").contains("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"));
        let samples = |samples: &[f32]| looks(EmbedInput::Samples(samples.into()));
        assert_ne!(samples(&[0.0]), samples(&[-0.0]));
        assert_eq!(looks("abc".into()), "Text(\"abc\")");
    }
}
