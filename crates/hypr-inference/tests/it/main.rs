//! The engine against PyTorch and against itself: fixtures in `tests/fixtures` (see `scripts/make_fixtures.py`),
//! and the real models where `HYPRSTREAM_TEST_MODELS` names a directory that holds them.

// A failed helper is a failed test.
#![allow(clippy::unwrap_used)]

mod engine;
mod hostile;
mod lifecycle;
#[cfg(target_os = "linux")]
mod memory;
mod minilm;
mod onnx;
mod packaged;
mod serving;
#[cfg(target_os = "linux")]
mod shapes;
mod speculation;
mod structured;
mod support;
mod tiny;
mod vision;
