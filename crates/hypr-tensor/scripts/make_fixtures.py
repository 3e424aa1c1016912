"""Encodes values in every block format with GGML itself, for the tests of `quant::quantize`.

    python crates/hypr-tensor/scripts/make_fixtures.py

Needs llama-cpp-python (0.3.36 made the files that are checked in) and numpy. Writes `values.f32`, 2,048 values little
endian, and `<format>.bin`, what `ggml_quantize_chunk` makes of them, to `crates/hypr-tensor/src/quant/fixtures`.
"""

import ctypes
import pathlib

import llama_cpp
import numpy

FIXTURES = pathlib.Path(__file__).parent.parent / "src/quant/fixtures"
# enum ggml_type, and bytes and values of a block
FORMATS = {
    "q4_0": (2, 18, 32),
    "q4_1": (3, 20, 32),
    "q5_0": (6, 22, 32),
    "q5_1": (7, 24, 32),
    "q8_0": (8, 34, 32),
    "q4_k": (12, 144, 256),
    "q5_k": (13, 176, 256),
    "q6_k": (14, 210, 256),
}


def values() -> numpy.ndarray:
    """Like weights: near zero, few large; one block of zeros, one constant, one positive, one with an outlier."""
    random = numpy.random.default_rng(7)
    blocks = random.standard_t(5, (8, 256)) * random.uniform(0.005, 0.05, (8, 1))
    blocks[1] = 0
    blocks[2] = 0.25
    blocks[3] = numpy.abs(blocks[3])
    blocks[4, 77] = -3
    return blocks.astype("<f4").ravel()


def main() -> None:
    library = next(pathlib.Path(llama_cpp.__file__).parent.glob("lib/libggml-base*"))
    ggml = ctypes.CDLL(str(library))
    ggml.ggml_quantize_chunk.restype = ctypes.c_size_t
    ggml.ggml_quantize_chunk.argtypes = [
        ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p,
    ]
    plain = values()
    FIXTURES.mkdir(exist_ok=True)
    plain.tofile(FIXTURES / "values.f32")
    for name, (kind, block_bytes, block) in FORMATS.items():
        encoded = numpy.zeros(plain.size // block * block_bytes, dtype=numpy.uint8)
        written = ggml.ggml_quantize_chunk(kind, plain.ctypes.data, encoded.ctypes.data, 0, plain.size // 256, 256, None)
        assert written == encoded.size, (name, written)
        encoded.tofile(FIXTURES / f"{name}.bin")


if __name__ == "__main__":
    main()
