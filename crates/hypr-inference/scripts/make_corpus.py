"""Makes tests/corpus: tiny model files that are damaged or hostile, each with a part of what must be said of it.

    python3 crates/hypr-inference/scripts/make_corpus.py

A name is KIND-WHAT.EXT; `expected.json` maps it to a part of the error's message, or to null where the file is sound.
Files that once crashed a reader are kept here too. Needs nothing but Python.
"""

import json
import struct
from pathlib import Path

OUT = Path(__file__).parent.parent / "tests" / "corpus"
HUGE = 1 << 62
HIDDEN, INNER, VOCABULARY = 4, 4, 6

expected = {}


def put(name, data, part):
    data = data if isinstance(data, bytes) else json.dumps(data).encode()
    assert len(data) < 4096, (name, len(data))
    assert name not in expected, name
    (OUT / name).write_bytes(data)
    expected[name] = part


# GGUF ---------------------------------------------------------------------------------------------------------------

U8, U32, F32, BOOL, STRING, ARRAY, U64 = 0, 4, 6, 7, 8, 9, 10


def string(text):
    data = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(data)) + data


def strings(values):
    return struct.pack("<IQ", STRING, len(values)) + b"".join(string(value) for value in values)


def pairs():
    u32 = lambda value: (U32, struct.pack("<I", value))
    return {
        "general.architecture": (STRING, string("llama")),
        "llama.block_count": u32(1),
        "llama.context_length": u32(32),
        "llama.embedding_length": u32(HIDDEN),
        "llama.feed_forward_length": u32(INNER),
        "llama.attention.head_count": u32(2),
        "tokenizer.ggml.model": (STRING, string("gpt2")),
        "tokenizer.ggml.tokens": (ARRAY, strings(["a", "b", "c", "ab", "bc", "abc"])),
        "tokenizer.ggml.merges": (ARRAY, strings(["a b", "b c", "ab c"])),
    }


def tensors():
    square = [HIDDEN, HIDDEN]
    shapes = {"token_embd": [HIDDEN, VOCABULARY], "output_norm": [HIDDEN]}
    for part in ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"]:
        shapes["blk.0." + part] = square
    shapes["blk.0.attn_norm"] = shapes["blk.0.ffn_norm"] = [HIDDEN]
    result, offset = [], 0
    for name, shape in shapes.items():
        size = 4
        for dim in shape:
            size *= dim
        result.append([name + ".weight", shape, 0, offset])
        offset += -(-size // 32) * 32
    return result, offset


def gguf(change=None, counts=None, value=0.1, cut=None):
    """`change(pairs, tensors)` edits what is written; `counts` replaces the header's two counts."""
    metadata, (infos, size) = pairs(), tensors()
    metadata = list(metadata.items())
    if change:
        change(metadata, infos)
    count = counts or (len(infos), len(metadata))
    head = b"GGUF" + struct.pack("<IQQ", 3, *count)
    for key, (kind, data) in metadata:
        head += string(key) + struct.pack("<I", kind) + data
    for name, shape, kind, offset in infos:
        head += string(name) + struct.pack("<I", len(shape)) + b"".join(struct.pack("<Q", dim) for dim in shape)
        head += struct.pack("<IQ", kind, offset)
    head += b"\0" * (-len(head) % 32)
    file = head + struct.pack("<f", value) * (size // 4)
    return file if cut is None else file[: len(head) + cut if cut < 0 else cut]


def setting(key, kind, data):
    def change(metadata, infos):
        metadata[:] = [(k, v) for k, v in metadata if k != key] + [(key, (kind, data))]

    return change


def tensor(at, field, value):
    def change(metadata, infos):
        infos[at][field] = value

    return change


def u32_setting(key, value):
    return setting(key, U32, struct.pack("<I", value))


def make_gguf():
    put("gguf-sound.gguf", gguf(), None)
    put("gguf-nan-weights.gguf", gguf(value=float("nan")), None)
    put("gguf-infinite-weights.gguf", gguf(value=float("inf")), None)
    put("gguf-empty.gguf", b"", "GGUF file ends")
    put("gguf-other-kind.gguf", b"PK\3\4" + bytes(60), 'does not start with "GGUF"')
    put("gguf-version-1.gguf", b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "version 1")
    put("gguf-huge-tensor-count.gguf", gguf(counts=(HUGE, 9)), "dimensions")
    put("gguf-huge-pair-count.gguf", gguf(counts=(11, HUGE)), "GGUF file")
    put("gguf-cut-in-data.gguf", gguf()[:-200], "lies outside the GGUF file")
    put("gguf-cut-in-tensors.gguf", gguf()[:700], "GGUF file ends")
    put("gguf-huge-string.gguf", gguf(setting("k", STRING, struct.pack("<Q", HUGE))), "GGUF file ends inside k")
    put("gguf-huge-list.gguf", gguf(setting("k", ARRAY, struct.pack("<IQ", U8, HUGE))), "k claims")
    nested = struct.pack("<IQ", ARRAY, 1) * 40 + struct.pack("<IQ", U8, 0)
    put("gguf-nested-lists.gguf", gguf(setting("k", ARRAY, nested)), "nests arrays too deeply")
    put("gguf-unknown-value-type.gguf", gguf(setting("k", 99, b"")), "unknown GGUF value type 99")
    put("gguf-key-not-utf8.gguf", gguf(lambda m, t: m.append((b"\xff\xfe", (U8, b"\0")))), "not UTF-8")
    put("gguf-name-not-utf8.gguf", gguf(tensor(0, 0, b"\xc3(")), "not UTF-8")
    put("gguf-key-twice.gguf", gguf(lambda m, t: m.append(m[1])), "says llama.block_count twice")
    put("gguf-tensor-twice.gguf", gguf(lambda m, t: t.append(t[2])), "two tensors named")
    put("gguf-layer-twice.gguf", gguf(lambda m, t: t.append(["blk.00.attn_q.weight", [4, 4], 0, t[3][3]])), "lie over")
    put("gguf-offset-outside.gguf", gguf(tensor(2, 3, HUGE)), "lies outside")
    put("gguf-offset-wraps.gguf", gguf(tensor(2, 3, (1 << 64) - 32)), "lies outside")
    put("gguf-overlap.gguf", gguf(tensor(2, 3, 32)), "lie over one another")
    put("gguf-no-dimensions.gguf", gguf(tensor(2, 1, [])), "has 0 dimensions")
    put("gguf-five-dimensions.gguf", gguf(tensor(2, 1, [1] * 5)), "has 5 dimensions")
    put("gguf-zero-dimension.gguf", gguf(tensor(2, 1, [4, 0])), "impossible dimension")
    put("gguf-huge-dimensions.gguf", gguf(tensor(2, 1, [(1 << 31) - 1] * 4)), "lies outside")
    put("gguf-dimension-64-bit.gguf", gguf(tensor(2, 1, [HUGE, 1])), "impossible dimension")
    put("gguf-unknown-encoding.gguf", gguf(tensor(2, 2, 77)), "GGML type 77")
    put("gguf-other-encoding.gguf", gguf(tensor(2, 2, 12)), "attn_q")
    put("gguf-other-shape.gguf", gguf(tensor(2, 1, [2, 8])), "q_proj of layer 0 has the shape")
    put("gguf-tensor-missing.gguf", gguf(lambda m, t: t.pop(2)), "no q_proj in layer 0")
    put("gguf-no-embedding.gguf", gguf(lambda m, t: t.pop(0)), "no token_embd.weight")
    put("gguf-unknown-tensor.gguf", gguf(tensor(2, 0, "blk.0.ssm_in.weight")), "not part of the llama family")
    put("gguf-layer-outside.gguf", gguf(tensor(2, 0, "blk.7.attn_q.weight")), "not part of the llama family")
    put("gguf-no-architecture.gguf", gguf(lambda m, t: m.pop(0)), "general.architecture")
    put("gguf-architecture-number.gguf", gguf(u32_setting("general.architecture", 1)), "general.architecture")
    put("gguf-other-architecture.gguf", gguf(setting("general.architecture", STRING, string("rwkv"))), "rwkv")
    put("gguf-alignment-zero.gguf", gguf(u32_setting("general.alignment", 0)), "general.alignment is 0")
    put("gguf-alignment-odd.gguf", gguf(u32_setting("general.alignment", 7)), "general.alignment is 7")
    put("gguf-alignment-huge.gguf", gguf(u32_setting("general.alignment", 1 << 31)), "general.alignment")
    for key, value, part in [
        ("block_count", 0, "not part of the llama family"),
        ("block_count", (1 << 32) - 1, "layers"),
        ("block_count", 1 << 20, "import it again"),
        ("context_length", 0, "context_length is 0"),
        ("context_length", (1 << 32) - 1, "context_length"),
        ("embedding_length", 0, "hidden_size is 0"),
        ("embedding_length", 1 << 30, "hidden_size"),
        ("embedding_length", 8, "shape"),
        ("feed_forward_length", 0, "intermediate_size is 0"),
        ("feed_forward_length", 1 << 24, "shape"),
        ("attention.head_count", 0, "is 0"),
        ("attention.head_count", (1 << 32) - 1, "num_attention_heads"),
        ("attention.head_count", 1 << 24, "head_dim is 0"),
        ("attention.head_count", 3, "cannot rotate in pairs"),
        ("attention.head_count_kv", 0, "num_key_value_heads is 0"),
        ("attention.head_count_kv", 3, "cannot share"),
        ("attention.key_length", 3, "cannot rotate in pairs"),
        ("attention.key_length", 1 << 24, "heads of width|shape"),
    ]:
        name = key.replace(".", "-").replace("_", "-")
        put(f"gguf-{name}-{value}.gguf", gguf(u32_setting("llama." + key, value)), part)
    negative = setting("llama.block_count", 5, struct.pack("<i", -1))
    put("gguf-negative-layers.gguf", gguf(negative), "block_count is -1")
    put("gguf-layers-text.gguf", gguf(setting("llama.block_count", STRING, string("many"))), "not one number")
    for name, value in [("nan", float("nan")), ("infinite", float("inf")), ("negative", -1.0), ("zero", 0.0)]:
        base = setting("llama.rope.freq_base", F32, struct.pack("<f", value))
        put(f"gguf-rope-base-{name}.gguf", gguf(base), "rope_base")
        if name != "zero":
            eps = setting("llama.attention.layer_norm_rms_epsilon", F32, struct.pack("<f", value))
            put(f"gguf-norm-eps-{name}.gguf", gguf(eps), "norm_eps")
    put("gguf-tokens-not-text.gguf", gguf(setting("tokenizer.ggml.tokens", ARRAY, struct.pack("<IQ", U8, 0))), "no tokens")
    unknown = setting("tokenizer.ggml.merges", ARRAY, strings(["x y"]))
    put("gguf-merge-of-unknown.gguf", gguf(unknown), "tokenizer")
    put("gguf-merge-of-one.gguf", gguf(setting("tokenizer.ggml.merges", ARRAY, strings(["ab"]))), "tokenizer")
    more = setting("tokenizer.ggml.tokens", ARRAY, strings(["a", "b", "c", "ab", "bc", "abc"] + [str(i) for i in range(9)]))
    put("gguf-more-tokens-than-rows.gguf", gguf(more), "knows 15 tokens")
    types = setting("tokenizer.ggml.token_type", ARRAY, struct.pack("<IQ", U32, 1) + struct.pack("<I", 3))
    put("gguf-token-types-too-few.gguf", gguf(types), "token types do not match")
    put("gguf-unknown-split.gguf", gguf(setting("tokenizer.ggml.pre", STRING, string("klingon"))), "klingon")
    put("gguf-template-broken.gguf", gguf(setting("tokenizer.chat_template", STRING, string("{% for"))), "chat template")


# safetensors --------------------------------------------------------------------------------------------------------

CONFIG = {
    "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": 1,
    "num_attention_heads": 2, "vocab_size": VOCABULARY, "max_position_embeddings": 32, "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
}


def safetensors(change=None, header=None, value=0.1):
    shapes = {"model.embed_tokens.weight": [VOCABULARY, HIDDEN], "model.norm.weight": [HIDDEN]}
    layer = "model.layers.0."
    for part in ["q_proj", "k_proj", "v_proj", "o_proj"]:
        shapes[f"{layer}self_attn.{part}.weight"] = [HIDDEN, HIDDEN]
    for part in ["gate_proj", "up_proj", "down_proj"]:
        shapes[f"{layer}mlp.{part}.weight"] = [HIDDEN, HIDDEN]
    for part in ["input_layernorm", "post_attention_layernorm"]:
        shapes[f"{layer}{part}.weight"] = [HIDDEN]
    entries, offset = {}, 0
    for name, shape in shapes.items():
        size = 4
        for dim in shape:
            size *= dim
        entries[name] = {"dtype": "F32", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    if change:
        change(entries)
    text = json.dumps(entries).encode() if header is None else header(entries)
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + struct.pack("<f", value) * (offset // 4)


Q = "model.layers.0.self_attn.q_proj.weight"


def entry(**fields):
    return lambda entries: entries[Q].update(fields)


def make_safetensors():
    damaged = "not a valid safetensors file"
    put("safetensors-sound.safetensors", safetensors(), None)
    put("safetensors-nan-weights.safetensors", safetensors(value=float("nan")), None)
    put("safetensors-empty.safetensors", b"", damaged)
    put("safetensors-seven-bytes.safetensors", bytes(7), damaged)
    put("safetensors-huge-header.safetensors", struct.pack("<Q", HUGE) + b"{}", damaged)
    put("safetensors-header-all-ones.safetensors", b"\xff" * 64, damaged)
    put("safetensors-header-beyond-file.safetensors", struct.pack("<Q", 4096) + b"{}", damaged)
    put("safetensors-header-not-json.safetensors", struct.pack("<Q", 8) + b"{{{{{{{{", damaged)
    put("safetensors-header-not-utf8.safetensors", struct.pack("<Q", 8) + b"\xff" * 8, damaged)
    put("safetensors-header-nested.safetensors", struct.pack("<Q", 2000) + b"[" * 2000, damaged)
    put("safetensors-no-tensors.safetensors", struct.pack("<Q", 8) + b"{}      ", "no tensors")
    put("safetensors-cut.safetensors", safetensors()[:-4], damaged)
    put("safetensors-longer.safetensors", safetensors() + bytes(8), damaged)
    put("safetensors-offsets-reversed.safetensors", safetensors(entry(data_offsets=[64, 0])), damaged)
    put("safetensors-offsets-outside.safetensors", safetensors(entry(data_offsets=[HUGE, HUGE + 64])), damaged)
    put("safetensors-offsets-negative.safetensors", safetensors(entry(data_offsets=[-64, 0])), damaged)
    put("safetensors-overlap.safetensors", safetensors(entry(data_offsets=[0, 64])), damaged)
    put("safetensors-shape-wraps.safetensors", safetensors(entry(shape=[1 << 32, 1 << 32])), damaged)
    put("safetensors-shape-zero.safetensors", safetensors(entry(shape=[0, 4])), damaged)
    put("safetensors-shape-larger.safetensors", safetensors(entry(shape=[8, 8])), damaged)
    put("safetensors-shape-other.safetensors", safetensors(entry(shape=[2, 8])), "q_proj of layer 0 has the shape")
    put("safetensors-no-dimensions.safetensors", safetensors(entry(shape=[])), damaged)
    put("safetensors-unknown-dtype.safetensors", safetensors(entry(dtype="F3")), damaged)
    put("safetensors-dtype-of-ints.safetensors", safetensors(entry(dtype="I32")), "is I32")
    put("safetensors-dtype-half.safetensors", safetensors(entry(dtype="F16")), damaged)
    put("safetensors-missing.safetensors", safetensors(lambda e: e.pop("model.norm.weight")), damaged)
    put("safetensors-unknown.safetensors", safetensors(lambda e: e.update(x=e.pop(Q))), "not part of the llama family")
    other = lambda e: e.update({Q.replace(".0.", ".9."): e.pop(Q)})
    put("safetensors-layer-outside.safetensors", safetensors(other), "not part of the llama family")
    alike = lambda e: e.update({Q.replace("model.layers.0.", "layers.00."): e.pop(Q.replace("q_proj", "k_proj"))})
    put("safetensors-layer-twice.safetensors", safetensors(alike), "twice")
    twice = lambda e: (json.dumps(e)[:-1] + f', "{Q}": ' + json.dumps(e[Q]) + "}").encode()
    put("safetensors-name-twice.safetensors", safetensors(header=twice), "q_proj.weight twice")


# config.json --------------------------------------------------------------------------------------------------------


def make_configs():
    put("config-sound.json", CONFIG, None)
    put("config-empty.json", b"", "config.json is not valid JSON")
    put("config-list.json", [], "models of type unknown")
    put("config-nested.json", b"[" * 4000, "config.json is not valid JSON")
    put("config-not-utf8.json", b'{"model_type": "\xff"}', "config.json is not valid JSON")
    put("config-other-type.json", {**CONFIG, "model_type": "mamba"}, "models of type mamba")
    put("config-infinite.json", json.dumps(CONFIG).replace("1e-05", "1e999").encode(), "config.json is not valid JSON")
    for key, value, part in [
        ("hidden_size", 0, "hidden_size is 0"), ("hidden_size", -1, "hidden_size is -1"),
        ("hidden_size", 1e300, "hidden_size is"), ("hidden_size", 1 << 63, "hidden_size"),
        ("hidden_size", "4", "hidden_size is"), ("hidden_size", 8, "shape"),
        ("num_hidden_layers", 0, "not part of the llama family"), ("num_hidden_layers", 1 << 62, "num_hidden_layers|family"),
        ("num_hidden_layers", (1 << 24), "import it again"), ("num_attention_heads", 0, "is 0"),
        ("num_attention_heads", 1 << 40, "is 0|num_attention_heads"), ("num_key_value_heads", 0, "is 0"),
        ("num_key_value_heads", 3, "cannot share"), ("head_dim", 0, "head_dim is 0"),
        ("head_dim", 1 << 24, "heads of width|shape"), ("vocab_size", 0, "vocab_size is 0"),
        ("vocab_size", 7, "shape"), ("vocab_size", 1 << 60, "vocab_size"),
        ("max_position_embeddings", 0, "context_length is 0"), ("max_position_embeddings", 1 << 50, "context_length"),
        ("intermediate_size", 1 << 24, "shape"), ("hidden_act", "relu", "relu"), ("hidden_act", None, "activation"),
        ("rms_norm_eps", -1.0, "norm_eps"), ("rms_norm_eps", 1e300, "norm_eps"), ("rope_theta", 0.0, "rope_base"),
        ("rope_theta", -5.0, "rope_base"), ("rope_theta", 1e300, "rope_base"),
        ("rope_scaling", {"type": "yarn"}, "yarn"), ("rope_scaling", {"type": "linear"}, "factor"),
        ("rope_scaling", {"type": "linear", "factor": 0.0}, "rope scaling"),
        ("use_sliding_window", True, "sliding window"),
    ]:
        shown = "".join(c if c.isalnum() else "-" for c in str(value)).strip("-")[:24] or "empty"
        put(f"config-{key}-{shown}.json".replace("_", "-"), {**CONFIG, key: value}, part)


# tokenizer.json -----------------------------------------------------------------------------------------------------

TOKENIZER = {
    "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
    "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": None, "decoder": None,
    "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
              "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
              "vocab": {"a": 0, "b": 1, "c": 2, "ab": 3, "bc": 4, "abc": 5}, "merges": ["a b", "b c", "ab c"]},
}


def model(**fields):
    return {**TOKENIZER, "model": {**TOKENIZER["model"], **fields}}


def make_tokenizers():
    loads = "tokenizer.json does not load"
    put("tokenizer-sound.json", TOKENIZER, None)
    put("tokenizer-empty.json", b"", loads)
    put("tokenizer-null.json", None, loads)
    put("tokenizer-list.json", [], loads)
    put("tokenizer-nested.json", b'{"model":' + b"[" * 3000, loads)
    put("tokenizer-not-utf8.json", b'{"model": {"type": "\xff"}}', loads)
    put("tokenizer-cut.json", json.dumps(TOKENIZER).encode()[:200], loads)
    put("tokenizer-no-model.json", {k: v for k, v in TOKENIZER.items() if k != "model"}, loads)
    put("tokenizer-other-model.json", model(type="Magic"), loads)
    put("tokenizer-merge-of-unknown.json", model(merges=["x y"]), loads)
    put("tokenizer-merge-to-unknown.json", model(merges=["c a"]), loads)
    put("tokenizer-merge-of-one.json", model(merges=["ab"]), loads)
    put("tokenizer-merge-of-three.json", model(merges=["a b c"]), loads)
    put("tokenizer-merge-of-number.json", model(merges=[1]), loads)
    # Merges that lead to one another, and to themselves: each pair is merged once, so encoding ends.
    cyclic = model(vocab={"a": 0, "": 1, "b": 2, "ab": 3}, merges=[["a", ""], ["", "a"], ["", ""], ["a", "b"]])
    put("tokenizer-merges-in-a-circle.json", cyclic, None)
    put("tokenizer-merge-twice.json", model(merges=["a b", "a b", "a b"]), None)
    # The library cuts the prefix off the second part without looking whether it is there, or where a character ends.
    put("tokenizer-merge-shorter-than-prefix.json", model(continuing_subword_prefix="########"), "without the prefix")
    split = model(vocab={"a": 0, "é": 1, "aé": 2}, merges=["a é"], continuing_subword_prefix="x")
    put("tokenizer-prefix-splits-a-character.json", split, "without the prefix")
    put("tokenizer-id-negative.json", model(vocab={"a": -1}, merges=[]), loads)
    put("tokenizer-id-64-bit.json", model(vocab={"a": HUGE}, merges=[]), loads)
    put("tokenizer-id-beyond-network.json", model(vocab={"a": 4294967295}, merges=[]), "knows 4294967296 tokens")
    put("tokenizer-ids-twice.json", model(vocab={"a": 0, "b": 0, "c": 0}, merges=[]), None)
    put("tokenizer-no-tokens.json", model(vocab={}, merges=[]), None)
    put("tokenizer-dropout-two.json", model(dropout=2.0), loads)
    put("tokenizer-unk-unknown.json", model(unk_token="<nothing>"), "cannot be tokenized")
    word_level = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "<nothing>"}
    put("tokenizer-words-without-unknown.json", {**TOKENIZER, "model": word_level}, "cannot be tokenized")
    unigram = {"type": "Unigram", "unk_id": 7, "vocab": [["a", -1.0]], "byte_fallback": False}
    put("tokenizer-unigram-unk-outside.json", {**TOKENIZER, "model": unigram}, loads)
    put("tokenizer-unigram-empty.json", {**TOKENIZER, "model": {**unigram, "unk_id": 0, "vocab": []}}, loads)
    piece = {"type": "WordPiece", "vocab": {"a": 0}, "unk_token": "[UNK]", "continuing_subword_prefix": "##",
             "max_input_chars_per_word": 0}
    put("tokenizer-pieces-without-unknown.json", {**TOKENIZER, "model": piece}, "cannot be tokenized")
    added = lambda **fields: {"id": 0, "content": "<s>", "single_word": False, "lstrip": False, "rstrip": False,
                              "normalized": False, "special": True, **fields}
    put("tokenizer-added-id-outside.json", {**TOKENIZER, "added_tokens": [added(id=4294967295)]}, "knows 7 tokens")
    put("tokenizer-added-empty.json", {**TOKENIZER, "added_tokens": [added(content="")]}, None)
    put("tokenizer-added-twice.json", {**TOKENIZER, "added_tokens": [added(), added(id=1)]}, "knows 7 tokens")
    put("tokenizer-added-negative.json", {**TOKENIZER, "added_tokens": [added(id=-1)]}, loads)
    regex = lambda pattern: {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    put("tokenizer-regex-broken.json", {**TOKENIZER, "pre_tokenizer": regex("(((")}, loads)
    put("tokenizer-regex-backtracks.json", {**TOKENIZER, "pre_tokenizer": regex("(a+)+$")}, None)
    put("tokenizer-regex-empty.json", {**TOKENIZER, "pre_tokenizer": regex("")}, None)
    replace = {"type": "Replace", "pattern": {"String": ""}, "content": "aaaaaaaa"}
    put("tokenizer-replaces-nothing.json", {**TOKENIZER, "normalizer": replace}, None)
    many = {"type": "Sequence", "normalizers": [{**replace, "pattern": {"String": "a"}}] * 30}
    put("tokenizer-normalizer-grows.json", {**TOKENIZER, "normalizer": many}, "times longer")
    decoders = {"type": "Sequence", "decoders": many["normalizers"]}
    put("tokenizer-decoder-grows.json", {**TOKENIZER, "decoder": decoders}, "times longer")
    precompiled = {"type": "Precompiled", "precompiled_charsmap": "/////wAAAAA="}
    put("tokenizer-charsmap-huge.json", {**TOKENIZER, "normalizer": precompiled}, "shorter than it says")
    put("tokenizer-charsmap-empty.json", {**TOKENIZER, "normalizer": {**precompiled, "precompiled_charsmap": ""}}, loads)
    template = {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}], "pair": [],
                "special_tokens": {}}
    put("tokenizer-template-without-token.json", {**TOKENIZER, "post_processor": template}, loads)
    put("tokenizer-decoder-unknown.json", {**TOKENIZER, "decoder": {"type": "Magic"}}, loads)


if __name__ == "__main__":
    OUT.mkdir(exist_ok=True)
    for old in OUT.iterdir():
        old.unlink()
    make_gguf()
    make_safetensors()
    make_configs()
    make_tokenizers()
    (OUT / "expected.json").write_text(json.dumps(expected, indent=1, ensure_ascii=False) + "\n")
    print(len(expected), "files,", sum(path.stat().st_size for path in OUT.iterdir()), "bytes")
