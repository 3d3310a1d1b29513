"""The work of `assay bench engine` by Hugging Face transformers: generate() in padded batches, on the same weights."""

import argparse
import json
import os
import time

parser = argparse.ArgumentParser()
parser.add_argument("directory")
parser.add_argument("prompts")
for name in ("answer", "threads"):
    parser.add_argument(f"--{name}", type=int, required=True)
parser.add_argument("--batch", type=int, default=8)
parser.add_argument("--device", default="cpu")
parser.add_argument("--dtype", default="float32")
args = parser.parse_args()
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import torch  # noqa: E402
import transformers  # noqa: E402
from transformers import AutoConfig  # noqa: E402

transformers.utils.logging.disable_progress_bar()
torch.set_num_threads(args.threads)
config = AutoConfig.from_pretrained(args.directory)
family = getattr(transformers, config.architectures[0])
model = family.from_pretrained(args.directory, dtype=getattr(torch, args.dtype), attn_implementation="sdpa").to(args.device).eval()
# Texts alone need no eyes.
writer = getattr(model, "language_model", None)
if hasattr(writer, "generate") and hasattr(writer, "lm_head"):
    model = writer
with open(args.prompts, encoding="utf-8") as file:
    prompts = json.load(file)


def answer(batch):
    longest = max(len(ids) for ids in batch)
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in batch], device=args.device)
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in batch], device=args.device)
    model.generate(input_ids=ids, attention_mask=mask, do_sample=False, max_new_tokens=args.answer,
                   min_new_tokens=args.answer, pad_token_id=0)


def now():
    if args.device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter()


with torch.inference_mode():
    answer(prompts[:1])
    start = now()
    for first in range(0, len(prompts), args.batch):
        answer(prompts[first:first + args.batch])
    seconds = now() - start

tokens = sum(len(ids) for ids in prompts)
print(json.dumps({
    "case": f"transformers {args.dtype}, batches of {args.batch}",
    "assets_per_second": len(prompts) / seconds,
    "prompt_tokens_per_second": tokens / seconds,
    "answer_tokens_per_second": len(prompts) * args.answer / seconds,
    "answer_tokens": args.answer,
    "forced_share": 0.0, "prefix_hit_share": 0.0, "prefill_seconds": 0.0, "decode_seconds": 0.0, "mixed_seconds": 0.0,
    "mask_seconds": 0.0, "vision_seconds": 0.0, "seconds": seconds, "peak_mebibytes": 0.0,
}))
