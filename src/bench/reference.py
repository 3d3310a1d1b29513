"""The work of `assay bench model` by Hugging Face transformers, on the same weights and threads."""

import argparse
import json
import os
import time

parser = argparse.ArgumentParser()
parser.add_argument("directory")
for name in ("prompt", "batch", "decode", "threads"):
    parser.add_argument(f"--{name}", type=int, required=True)
parser.add_argument("--device", default="cpu")
parser.add_argument("--dtype", default="float32")
args = parser.parse_args()
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import torch  # noqa: E402
import transformers  # noqa: E402
from transformers import AutoModelForCausalLM, DynamicCache  # noqa: E402

transformers.utils.logging.disable_progress_bar()
torch.set_num_threads(args.threads)
torch.manual_seed(1)
model = AutoModelForCausalLM.from_pretrained(args.directory, dtype=getattr(torch, args.dtype), attn_implementation="sdpa")
model = model.to(args.device).eval()
prompts = torch.randint(3, model.config.vocab_size, (args.batch, args.prompt), device=args.device)


def now():
    if args.device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter()


def forward(ids, cache):
    return model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1].argmax(-1, keepdim=True)


with torch.inference_mode():
    forward(prompts[:1], DynamicCache())
    start = now()
    for row in prompts:
        forward(row[None], DynamicCache())
    prefill = now() - start
    cache = DynamicCache()
    ids = forward(forward(prompts, cache), cache)
    start = now()
    for _ in range(args.decode):
        ids = forward(ids, cache)
    decode = now() - start

print(json.dumps({
    "case": f"transformers {args.dtype}",
    "prefill_tokens_per_second": args.batch * args.prompt / prefill,
    "decode_tokens_per_second": args.batch * args.decode / decode,
    "held_mebibytes": 0.0,
    "loaded_mebibytes": 0.0,
    "prefill_share": 0.0,
    "decode_share": 0.0,
}))
