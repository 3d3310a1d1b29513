"""Trains the demo's picture and text encoder from a generated catalogue, on a CPU, in minutes.

    python train.py --train CATALOGUE --valid OTHER_CATALOGUE --out models/demo-clip

A catalogue is a folder with topics/, labels.jsonl and media/, as `assay demo` writes it. The two must come from
different seeds. The architecture is transformers' own CLIPModel, with random weights at the start.

Texts never tell colour or pattern, so captions built from the labels are mixed in. A caption such as "something red"
fits many pictures of a batch; the contrastive target therefore spreads over every picture whose labels do not
contradict the text. Three linear heads for category, colour and pattern, shared by both encoders and thrown away at
the end, speed up the beginning.
"""

import argparse
import json
import math
import random
import time
from pathlib import Path

import numpy
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import nn
from torch.nn import functional
from transformers import CLIPConfig, CLIPModel

SIDE = 64
MARGIN = 8
VOCABULARY = 2000
POSITIONS = 48
MEAN = STD = 0.5
FACTS = ("category", "colour", "pattern")


class Catalogue:
    """Labels, texts and pictures of a folder, in the order of its labels."""

    def __init__(self, folder):
        messages = {}
        for path in sorted(Path(folder).glob("topics/*/*.jsonl")):
            for line in path.read_text().splitlines():
                message = json.loads(line)["value"]
                # A later state of the same asset, or a broken message, is no training material.
                if message and message.get("media") and ("title" in message or "headline" in message):
                    messages.setdefault(message["id"], message)
        labels = [json.loads(line) for line in (Path(folder) / "labels.jsonl").read_text().splitlines()]
        self.labels = [label for label in labels if label["id"] in messages]
        found = [messages[label["id"]] for label in self.labels]
        self.titles = [message.get("title") or message["headline"] for message in found]
        self.bodies = [message.get("description") or message.get("body") or "" for message in found]
        names = [message["media"][0]["url"].rsplit("/", 1)[1] for message in found]
        self.paths = [Path(folder) / "media" / name for name in names]
        pictures = [Image.open(path).convert("RGB") for path in self.paths]
        self.exact = torch.from_numpy(numpy.stack([squared(picture, SIDE) for picture in pictures]))
        self.wide = torch.from_numpy(numpy.stack([squared(picture, SIDE + MARGIN) for picture in pictures]))

    def text(self, index):
        return f"{self.titles[index]}. {self.bodies[index]}"


def squared(picture, side):
    """Shortest edge to `side`, then the middle: what CLIPImageProcessor does."""
    width, height = picture.size
    short = min(width, height)
    size = (side, int(side * height / width)) if width == short else (int(side * width / height), side)
    resized = numpy.asarray(picture.resize(size, Image.Resampling.BICUBIC))
    top, left = (resized.shape[0] - side) // 2, (resized.shape[1] - side) // 2
    return resized[top : top + side, left : left + side].transpose(2, 0, 1).copy()


def normalised(pixels):
    return (pixels.float() / 255.0 - MEAN) / STD


def noun_of(category, singular):
    noun = category.rsplit(" > ", 1)[1].lower()
    if not singular:
        return noun
    if noun.endswith(("sses", "ches")):
        return noun[:-2]
    return noun.removesuffix("s")


def caption(label, title, chance):
    """A text that tells some facts of the picture, and which: (text, facts told)."""
    colour, pattern = label["colour"], label["pattern"]
    noun = noun_of(label["category"], chance.random() < 0.6)
    kind = chance.randrange(9)
    if kind <= 2:
        return chance.choice(["", "a ", "a picture of a "]) + f"{colour} {pattern} {noun}", FACTS
    if kind == 3:
        return f"{colour} {pattern} {title}", FACTS
    if kind == 4:
        return chance.choice([f"{colour} {noun}", f"a {noun} in {colour}", f"{colour} {title}"]), FACTS[:2]
    if kind == 5:
        return chance.choice([f"{pattern} {noun}", f"a {pattern} {noun}"]), (FACTS[0], FACTS[2])
    if kind == 6:
        return chance.choice([f"something {colour}", f"{colour}", f"a {colour} thing"]), (FACTS[1],)
    if kind == 7:
        return chance.choice([noun, f"a {noun}", label["category"], title]), (FACTS[0],)
    return chance.choice([f"something {pattern}", f"{pattern}", f"a {pattern} thing"]), (FACTS[2],)


def train_tokenizer(catalogue, chance):
    """Byte-level BPE in lower case. The end token has the highest id, so that pooling at the first end token and
    pooling at the highest id (both are in use for CLIP) are the same."""
    texts = [catalogue.text(index) for index in range(len(catalogue.labels))]
    texts += [caption(label, "", chance)[0] for label in catalogue.labels]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 2, initial_alphabet=alphabet, special_tokens=["<|pad|>"], show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens(["<|startoftext|>", "<|endoftext|>"])
    begin, end = tokenizer.token_to_id("<|startoftext|>"), tokenizer.token_to_id("<|endoftext|>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|startoftext|> $A <|endoftext|>",
        special_tokens=[("<|startoftext|>", begin), ("<|endoftext|>", end)],
    )
    return tokenizer


def build_model(tokenizer):
    begin, end = tokenizer.token_to_id("<|startoftext|>"), tokenizer.token_to_id("<|endoftext|>")
    shared = {"hidden_size": 128, "intermediate_size": 512, "num_attention_heads": 4, "hidden_act": "quick_gelu"}
    text = {"vocab_size": tokenizer.get_vocab_size(), "max_position_embeddings": POSITIONS, "num_hidden_layers": 3}
    ends = {"bos_token_id": begin, "eos_token_id": end, "pad_token_id": 0}
    vision = {"image_size": SIDE, "patch_size": 8, "num_hidden_layers": 4}
    both = {"projection_dim": 64}
    config = CLIPConfig(
        text_config=shared | text | ends | both, vision_config=shared | vision | both, **both, logit_scale_init_value=2.6592
    )
    model = CLIPModel(config)
    with torch.no_grad():
        # Waves of both axes: a patch knows its neighbours from the first step on.
        grid = torch.arange(8.0)
        rates = 2.0 ** torch.arange(0, 4) * math.pi / 16
        waves = torch.stack([wave(grid[:, None] * rates) for wave in (torch.sin, torch.cos)], -1).flatten(1)
        down, across = waves[:, None].expand(8, 8, -1), waves[None].expand(8, 8, -1)
        table = torch.cat([down, across], -1).reshape(64, -1)
        embedding = model.vision_model.embeddings
        embedding.position_embedding.weight.normal_(0, 0.02)
        embedding.position_embedding.weight[1:, : table.shape[1]] = table * 0.3
        embedding.patch_embedding.weight.normal_(0, (3 * 64) ** -0.5)
    return model


class Heads(nn.Module):
    """Throw-away classifiers of each fact."""

    def __init__(self, width, sizes):
        super().__init__()
        self.heads = nn.ModuleDict({fact: nn.Linear(width, size) for fact, size in sizes.items()})

    def loss(self, features, facts):
        total = 0.0
        for fact, column in zip(FACTS, facts.T):
            if (column >= 0).any():
                weight = 1.5 if fact == "category" else 1.0
                total = total + weight * functional.cross_entropy(self.heads[fact](features), column, ignore_index=-1)
        return total


def outline(pixels):
    """Roughly which pixels belong to the thing, as 16 cells of each patch: those unlike their row's ends."""
    pixels = pixels.float()
    ends = torch.cat([pixels[..., :3], pixels[..., -3:]], -1).median(-1, keepdim=True).values
    thing = ((pixels - ends).abs().amax(1, keepdim=True) > 30).float()
    cells = functional.avg_pool2d(thing, 2)
    return functional.unfold(cells, 4, stride=4).transpose(1, 2)


def fits(pictures, texts):
    """Which text contradicts no fact of which picture: (pictures, texts), as shares of each row."""
    pairs = pictures[:, None, :] == texts[None, :, :]
    return (pairs | (texts < 0)[None]).all(-1).float()


def contrastive(logits, positive):
    """Cross-entropy both ways; a row or column without any positive counts for nothing."""
    total = 0.0
    for scores, wanted in ((logits, positive), (logits.T, positive.T)):
        count = wanted.sum(1)
        losses = -(functional.log_softmax(scores, 1) * wanted).sum(1) / count.clamp(min=1)
        total = total + losses.sum() / (count > 0).sum()
    return total / 2


def encode_texts(tokenizer, texts):
    rows = [encoding.ids for encoding in tokenizer.encode_batch(texts)]
    rows = [row if len(row) <= POSITIONS else row[: POSITIONS - 1] + row[-1:] for row in rows]
    width = max(map(len, rows))
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(row)
    return ids


def image_features(model, pixels):
    output = model.vision_model(pixel_values=pixels, output_hidden_states=True)
    return model.visual_projection(output.pooler_output), output.last_hidden_state[:, 1:].mean(1), output.hidden_states


def text_features(model, ids):
    return model.text_projection(model.text_model(input_ids=ids).pooler_output)


def batches(catalogue, facts, size, captions, chance):
    while True:
        order = list(range(len(catalogue.labels)))
        chance.shuffle(order)
        for start in range(0, len(order) - size + 1, size):
            chosen = order[start : start + size]
            if chance.random() < 0.5:
                pixels = catalogue.exact[chosen]
            else:
                top, left = chance.randrange(MARGIN + 1), chance.randrange(MARGIN + 1)
                pixels = catalogue.wide[chosen][:, :, top : top + SIDE, left : left + SIDE]
            pixels = pixels.flip(-1) if chance.random() < 0.5 else pixels
            told = torch.full((captions, len(FACTS)), -1)
            texts = []
            for row, index in enumerate(chosen[:captions]):
                text, names = catalogue.text(index), FACTS[:1]
                if chance.random() < 0.6:
                    text, names = caption(catalogue.labels[index], catalogue.titles[index], chance)
                texts.append(text)
                for column, fact in enumerate(FACTS):
                    if fact in names:
                        told[row, column] = facts[index, column]
            yield normalised(pixels), outline(pixels), facts[chosen], texts, told


@torch.no_grad()
def embed(model, tokenizer, catalogue, texts):
    model.eval()
    pictures = [image_features(model, normalised(part))[0] for part in catalogue.exact.split(100)]
    rows = [text_features(model, encode_texts(tokenizer, texts[at : at + 100])) for at in range(0, len(texts), 100)]
    model.train()
    return functional.normalize(torch.cat(pictures), dim=1), functional.normalize(torch.cat(rows), dim=1)


def neighbours_share(vectors, labels, fact):
    near = (vectors @ vectors.T).fill_diagonal_(-9).argmax(1)
    return sum(labels[a][fact] == labels[b][fact] for a, b in enumerate(near.tolist())) / len(labels)


def evaluate(model, tokenizer, catalogue):
    labels = catalogue.labels
    plain = [catalogue.text(index) for index in range(len(labels))]
    told = [f"a {label['colour']} {label['pattern']} {noun_of(label['category'], True)}" for label in labels]
    pictures, texts = embed(model, tokenizer, catalogue, plain)
    _, captions = embed(model, tokenizer, catalogue, told)
    figures = {f"picture_neighbour_{fact}": neighbours_share(pictures, labels, fact) for fact in FACTS}
    figures["text_neighbour_category"] = neighbours_share(texts, labels, "category")
    for name, rows in (("text", texts), ("caption", captions)):
        best = (pictures[:200] @ rows[:200].T).argmax(1).tolist()
        figures[f"{name}_recall_at_1_of_200"] = sum(a == b for a, b in enumerate(best)) / 200
        share = [labels[a]["category"] == labels[b]["category"] for a, b in enumerate(best)]
        figures[f"{name}_best_of_200_shares_category"] = sum(share) / 200
    paths = sorted({label["category"] for label in labels})
    for fact, build in (("category", lambda name: f"a {noun_of(name, True)}"), ("colour", "something {}".format)):
        names = paths if fact == "category" else sorted({label[fact] for label in labels})
        prompts = embed(model, tokenizer, catalogue, [build(name) for name in names])[1]
        guess = (pictures @ prompts.T).argmax(1).tolist()
        figures[f"zero_shot_{fact}"] = sum(names[g] == label[fact] for g, label in zip(guess, labels)) / len(labels)
    return {name: round(value, 3) for name, value in figures.items()}


def optimizers_for(parts, rate):
    """Muon for the matrices inside the layers, AdamW for everything else."""
    inner = [value for name, value in parts.named_parameters() if ".layers." in name and value.ndim == 2]
    chosen = {id(value) for value in inner}
    rest = [value for value in parts.parameters() if id(value) not in chosen]
    groups = [
        {"params": [value for value in rest if value.ndim >= 2], "weight_decay": 0.05},
        {"params": [value for value in rest if value.ndim < 2], "weight_decay": 0.0},
    ]
    muon = torch.optim.Muon(inner, lr=2.5 * rate, weight_decay=0.05, adjust_lr_fn="match_rms_adamw")
    optimizers = [muon, torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98))]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
    return optimizers


def train(options, train_set, valid_set, tokenizer, chance):
    model = build_model(tokenizer)
    values = {fact: sorted({label[fact] for label in train_set.labels}) for fact in FACTS}
    facts = torch.tensor([[values[fact].index(label[fact]) for fact in FACTS] for label in train_set.labels])
    sizes = {fact: len(names) for fact, names in values.items()}
    heads, patch_heads, outline_head = Heads(64, sizes), Heads(128, sizes), nn.Linear(128, 16)
    parts = nn.ModuleList([model, heads, patch_heads, outline_head])
    optimizers = optimizers_for(parts, options.rate)
    start, shown, seen = time.time(), 0.0, 0
    stream = batches(train_set, facts, options.batch, options.captions, chance)
    for step, (pixels, thing, truth, texts, told) in enumerate(stream):
        elapsed = (time.time() - start) / 60
        if elapsed >= options.minutes:
            break
        share = min(1.0, (step + 1) / 100) * (0.02 + 0.98 * (1 + math.cos(math.pi * elapsed / options.minutes)) / 2)
        picture, patches, layers = image_features(model, pixels)
        text = text_features(model, encode_texts(tokenizer, texts))
        scale = model.logit_scale.clamp(max=math.log(50)).exp()
        logits = scale * functional.normalize(picture, dim=1) @ functional.normalize(text, dim=1).T
        loss = contrastive(logits, fits(truth, told))
        shape = functional.binary_cross_entropy_with_logits(outline_head(layers[2][:, 1:]), thing)
        auxiliary = heads.loss(picture, truth) + heads.loss(text, told) + patch_heads.loss(patches, truth)
        parts.zero_grad()
        (loss + 0.4 * auxiliary + 3.0 * shape).backward()
        nn.utils.clip_grad_norm_(parts.parameters(), 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * share
            optimizer.step()
        seen += options.batch
        if elapsed - shown >= options.report:
            shown = elapsed
            speed = seen / (time.time() - start)
            figures = evaluate(model, tokenizer, valid_set)
            losses = f"loss {loss.item():.2f} {auxiliary.item():.2f} {shape.item():.3f}"
            print(f"{elapsed:.1f} min, {step} steps, {speed:.0f}/s, {losses}", figures, flush=True)
    return model


def save(model, tokenizer, folder):
    folder.mkdir(parents=True, exist_ok=True)
    with torch.no_grad():
        model.logit_scale.clamp_(max=math.log(50))
    model.half().save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|pad|>"}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": POSITIONS, "padding_side": "right"}
    write_json(folder / "tokenizer_config.json", settings | special)
    processing = {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": SIDE},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": SIDE, "width": SIDE},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [MEAN] * 3,
        "image_std": [STD] * 3,
    }
    write_json(folder / "preprocessor_config.json", processing)


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--valid", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=18.0, help="wall time of the training loop")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--captions", type=int, default=40, help="how many pictures of a batch come with their text")
    parser.add_argument("--report", type=float, default=2.0, help="minutes between two evaluations")
    parser.add_argument("--rate", type=float, default=1.5e-3)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    chance = random.Random(options.seed)
    train_set, valid_set = Catalogue(options.train), Catalogue(options.valid)
    tokenizer = train_tokenizer(train_set, chance)
    model = train(options, train_set, valid_set, tokenizer, chance)
    save(model, tokenizer, options.out)
    reloaded = CLIPModel.from_pretrained(options.out, dtype=torch.float32)
    print("saved", json.dumps(evaluate(reloaded, tokenizer, valid_set)), flush=True)


if __name__ == "__main__":
    main()
