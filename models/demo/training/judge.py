"""Judges a checkpoint with transformers' own `generate`, greedily and without any grammar.

    python judge.py --model models/demo --catalogue TEST_CATALOGUE --items 300

This is the independent half of the figures in models/demo/README.md; the other half comes from Assay itself
(models/demo/measure.py).
"""

import argparse
import json
import random
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import Llama4ForConditionalGeneration

import catalogue
import network
import prompts

FIELDS = ["category", "brand", "condition", "colour", "pattern", "material"]


def answers(model, speller, asked, rows, pictures):
    """Greedy answers as texts. Prompts are padded on the left; temperature tuning is neutral at these lengths."""
    prefix = speller.prefix(asked)
    prompts_ = [prefix + speller.item(item)[0] for item in rows]
    length = max(map(len, prompts_))
    pad = speller.id("<|finetune_right_pad|>")
    ids = torch.tensor([[pad] * (length - len(one)) + one for one in prompts_])
    mask = torch.tensor([[0] * (length - len(one)) + [1] * len(one) for one in prompts_])
    values = torch.from_numpy(pictures).float() / 127.5 - 1
    given = {"pixel_values": values} if len(values) else {}
    written = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=120, do_sample=False, **given)
    texts = []
    for line in written[:, length:].tolist():
        line = line[: line.index(speller.end)] if speller.end in line else line
        texts.append(speller.tokenizer.decode([token for token in line if token != pad]))
    return texts


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--catalogue", type=Path, required=True)
    parser.add_argument("--items", type=int, default=300)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--show", type=int, default=0, help="answers to print")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    tokenizer = Tokenizer.from_file(str(args.model / "tokenizer.json"))
    speller = prompts.Speller(tokenizer, network.PATCH_TOKENS)
    model = Llama4ForConditionalGeneration.from_pretrained(args.model, dtype=torch.float32).eval()
    data = catalogue.read(args.catalogue, with_masks=False)
    draw = random.Random(0)
    for kind in ("product", "ad"):
        asked = prompts.shipped(kind)
        chosen = [index for index, truth in enumerate(data.truths) if truth["kind"] == kind][: args.items]
        items = [
            prompts.item(asked, data.messages[i], data.truths[i], (i, data.truths[i]), draw, plain=True) for i in chosen
        ]
        right = {name: 0 for name in asked.fields}
        parsed = whole = 0
        for at in range(0, len(items), 50):
            batch = items[at : at + 50]
            texts = answers(model, speller, asked, batch, data.pictures[chosen[at : at + 50]])
            for item, text in zip(batch, texts):
                if args.show:
                    args.show -= 1
                    print(item.text, "\n  truth ", json.dumps(item.answer), "\n  answer", text)
                try:
                    answer = json.loads(text)
                except ValueError:
                    continue
                parsed += 1
                whole += answer == item.answer
                for name in right:
                    right[name] += answer.get(name, "missing") == item.answer[name]
        figures = {name: round(count / len(items), 3) for name, count in right.items()}
        print(
            json.dumps(
                {"kind": kind, "items": len(items), "parse": round(parsed / len(items), 3)}
                | figures
                | {"all": round(whole / len(items), 3)}
            )
        )


if __name__ == "__main__":
    main()
