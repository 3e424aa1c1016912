"""Writes all-MiniLM-L6-v2 as ONNX, for the stack that bench/rag.py compares with.

    python bench/export_minilm.py MODEL_DIR OUT.onnx

MODEL_DIR is the model as it is published (safetensors). Needs torch, transformers, onnx and onnxscript. The graph takes
`input_ids` and `attention_mask`, `[batch, tokens]`, and gives `last_hidden_state`, `[batch, tokens, 384]`.
"""

import sys

import torch
import transformers


class Encoder(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask):
        return self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state


def main(model_dir: str, out: str) -> None:
    model = transformers.AutoModel.from_pretrained(model_dir, attn_implementation="eager").eval()
    example = (torch.ones(2, 16, dtype=torch.long), torch.ones(2, 16, dtype=torch.long))
    batch, tokens = torch.export.Dim("batch", min=1, max=64), torch.export.Dim("tokens", min=2, max=512)
    shapes = {name: {0: batch, 1: tokens} for name in ("input_ids", "attention_mask")}
    program = torch.onnx.export(
        Encoder(model),
        example,
        dynamo=True,
        input_names=["input_ids", "attention_mask"],
        output_names=["last_hidden_state"],
        dynamic_shapes=shapes,
    )
    program.save(out)


if __name__ == "__main__":
    main(*sys.argv[1:])
