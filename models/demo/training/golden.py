"""Writes what transformers answers to a few test assets, for Assay's own tests.

    python golden.py --model models/demo --catalogue TEST_CATALOGUE --out tests/data/demo

Writes golden.json and the pictures that it names. Must be run again when the weights change.
"""

import argparse
import json
import random
import shutil
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import Llama4ForConditionalGeneration

import catalogue
import judge
import network
import prompts


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--catalogue", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    speller = prompts.Speller(Tokenizer.from_file(str(args.model / "tokenizer.json")), network.PATCH_TOKENS)
    model = Llama4ForConditionalGeneration.from_pretrained(args.model, dtype=torch.float32).eval()
    data = catalogue.read(args.catalogue, with_masks=False)
    cases = []
    for kind, count in (("product", 6), ("ad", 2)):
        asked = prompts.shipped(kind)
        chosen = [index for index, truth in enumerate(data.truths) if truth["kind"] == kind][:count]
        draw = random.Random(0)
        items = [
            prompts.item(asked, data.messages[i], data.truths[i], (i, data.truths[i]), draw, plain=True) for i in chosen
        ]
        for index, text in zip(chosen, judge.answers(model, speller, asked, items, data.pictures[chosen])):
            message = data.messages[index]
            name = Path(message["media"][0]["url"]).name
            shutil.copy(args.catalogue / "media" / name, args.out / name)
            message = {key: value for key, value in message.items() if key != "media"}
            cases.append({"kind": kind, "picture": name, "message": message, "answer": json.loads(text)})
    (args.out / "golden.json").write_text(json.dumps(cases, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
