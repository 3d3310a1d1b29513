"""Trains the small encoders that the cold-start study sets beside the demo model: a ResNet, a BERT and a CLIP.

    python encoders.py resnet --catalogue DIR --work WORK --minutes 14 --out models/demo-resnet
    python encoders.py bert   --catalogue DIR --work WORK --minutes 10 --out models/demo-bert
    python encoders.py clip   --catalogue DIR --work WORK --minutes 24 --out models/demo-clip
    python encoders.py golden --out models/demo-clip --pictures tests/data
    python encoders.py judge  --catalogue TEST_CATALOGUE --models models

All see the training catalogue of the demo model, which has masks, and no other. The ResNet learns category, colour and
pattern from the picture, the BERT category, condition and material from the text, each by linear heads that are thrown away;
the CLIP learns which text fits which picture, with the same help and, as the demo model's tower does, where in the picture
the thing is. ResNet and BERT together have the minutes that the CLIP has. `--minutes` are those of one thread on the
processor; the learning rate follows them, so a run is repeated in kind, not bit by bit.
"""

import argparse
import json
import math
import random
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import nn
from transformers import BertConfig, BertModel, CLIPConfig, CLIPModel, ResNetConfig, ResNetModel

import network
import prompts
from catalogue import cached, mapped
from train import Schedule

SIDE, BATCH = 96, 128
VOCABULARY, POSITIONS = 2000, 64
# Masks have a cell for 3 by 3 pixels; pictures are shifted by whole cells.
GRID, CELL = 32, 3
MEAN = STD = 0.5
SEEN = ("category", "colour", "pattern")
TOLD = ("category", "condition", "material")


class Catalogue:
    """Truths, texts and squeezed pictures of a catalogue folder, in the order of labels.jsonl."""

    def __init__(self, folder, with_masks=True):
        self.truths = [json.loads(line) for line in (folder / "labels.jsonl").open()]
        messages = {}
        for path in sorted((folder / "topics").glob("*/*.jsonl")):
            messages |= {record["key"]: record["value"] for record in map(json.loads, path.open())}
        found = [messages[truth["id"]] for truth in self.truths]
        self.titles = [message.get("title") or message.get("headline") for message in found]
        bodies = [message.get("description") or message.get("body") or "" for message in found]
        self.texts = [f"{title}. {body}" for title, body in zip(self.titles, bodies)]
        paths = [folder / "media" / Path(message["media"][0]["url"]).name for message in found]
        self.pictures = cached(folder / "squares.npy", lambda: mapped(square, paths))
        if with_masks:
            masks = [(folder / "masks" / path.name).with_suffix(".png") for path in paths]
            self.masks = cached(folder / "square-masks.npy", lambda: mapped(square_mask, masks))

    def facts(self, names, values):
        """Numbers of the facts, [items, facts]; `none` is a value like any other."""
        return torch.tensor([[values[name].index(str(truth[name])) for name in names] for truth in self.truths])


def square_mask(path):
    """Where the thing is seen in the whole picture, [32, 32]."""
    return np.asarray(Image.open(path).convert("L").resize((GRID, GRID), Image.Resampling.BOX)) > 127


def square(path):
    """The whole picture as [3, 96, 96] bytes, as the saved image processor makes it."""
    picture = Image.open(path).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    return np.asarray(picture).transpose(2, 0, 1).copy()


def normalised(pixels):
    return (pixels.float() / 255 - MEAN) / STD


def drawn(catalogue, chosen, draw):
    """Pictures [items, 3, 96, 96] and masks [items, 32, 32], mirrored and shifted by chance."""
    chosen = sorted(chosen)
    pixels, masks = torch.from_numpy(catalogue.pictures[chosen]), torch.from_numpy(catalogue.masks[chosen])
    if draw.random() < 0.5:
        pixels, masks = pixels.flip(-1), masks.flip(-1)
    right, down = (draw.randint(-1, 1) for _ in range(2))
    pixels = pixels.roll((down * CELL, right * CELL), (-2, -1))
    return normalised(pixels), masks.roll((down, right), (-2, -1))


def values_of(catalogue, names):
    return {name: sorted({str(truth[name]) for truth in catalogue.truths}) for name in names}


class Heads(nn.Module):
    """Throw-away classifiers of each fact; -1 is a fact that is not told."""

    def __init__(self, width, values):
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(width, len(names)) for names in values.values())

    def loss(self, features, facts):
        losses = [F.cross_entropy(head(features), column, ignore_index=-1) for head, column in zip(self.heads, facts.T)]
        return sum(loss for loss, column in zip(losses, facts.T) if (column >= 0).any())


def run(args, parts, rate, step):
    """Steps until the minutes are spent. `step` gives a loss and the number of items."""
    groups = [
        {"params": [p for p in parts.parameters() if (p.dim() > 1) == wide], "weight_decay": decay}
        for wide, decay in ((True, 0.05), (False, 0.0))
    ]
    optimiser = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98), fused=True)
    schedule, count, items, said, losses = Schedule(args.minutes), 0, 0, time.time(), []
    while True:
        schedule.move(1)
        if schedule.share >= 1:
            break
        loss, size = step()
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parts.parameters(), 1.0)
        for group in optimiser.param_groups:
            group["lr"] = rate * schedule.rate(count)
        optimiser.step()
        count, items = count + 1, items + size
        losses.append(loss.item())
        if time.time() - said > 20:
            line = {"minutes": round(schedule.spent(), 2), "items": items, "loss": round(sum(losses) / len(losses), 4)}
            with (args.work / f"{args.stage}.jsonl").open("a") as log:
                log.write(json.dumps(line) + "\n")
            said, losses = time.time(), []
    print(f"{args.stage}: {items} items in {count} steps, {schedule.spent():.1f} minutes")


def resnet(args):
    catalogue, draw = Catalogue(args.catalogue), random.Random(11)
    values = values_of(catalogue, SEEN)
    facts = catalogue.facts(SEEN, values)
    config = ResNetConfig(
        embedding_size=32, hidden_sizes=[32, 64, 128, 192], depths=[1, 1, 1, 1], layer_type="basic", hidden_act="relu"
    )
    model = ResNetModel(config).to(memory_format=torch.channels_last)
    heads = Heads(192, values)

    def step():
        chosen = sorted(draw.sample(range(len(facts)), BATCH))
        pixels = drawn(catalogue, chosen, draw)[0].contiguous(memory_format=torch.channels_last)
        features = model(pixels).pooler_output.flatten(1)
        return heads.loss(features, facts[chosen]), BATCH

    run(args, nn.ModuleList([model, heads]), 2e-3, step)
    model.half().save_pretrained(args.out)
    save_processor(args.out)


def tokenizer_of(catalogue, begin, end, pad, extra=()):
    """Byte-level BPE in lower case. The end token has the highest id: pooling at it and at the highest id are the same."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 2, initial_alphabet=alphabet, special_tokens=[pad], show_progress=False
    )
    tokenizer.train_from_iterator([*catalogue.texts[:12000], *extra], trainer)
    tokenizer.add_special_tokens([begin, end])
    ids = [(name, tokenizer.token_to_id(name)) for name in (begin, end)]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{begin} $A {end}", special_tokens=ids)
    return tokenizer


def rows_of(tokenizer, texts):
    """Ids [texts, longest] and which of them are there."""
    rows = [encoding.ids for encoding in tokenizer.encode_batch(texts)]
    rows = [row if len(row) <= POSITIONS else row[: POSITIONS - 1] + row[-1:] for row in rows]
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(row)
    return ids, torch.arange(ids.shape[1]) < torch.tensor([len(row) for row in rows])[:, None]


def sentence(model, tokenizer, texts):
    """The mean of the tokens' states."""
    ids, there = rows_of(tokenizer, texts)
    states = model(input_ids=ids, attention_mask=there.long()).last_hidden_state
    return (states * there[..., None]).sum(1) / there.sum(1, keepdim=True)


def bert(args):
    catalogue, draw = Catalogue(args.catalogue), random.Random(12)
    values = values_of(catalogue, TOLD)
    facts = catalogue.facts(TOLD, values)
    tokenizer = tokenizer_of(catalogue, "[CLS]", "[SEP]", "[PAD]")
    config = BertConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=512,
        max_position_embeddings=POSITIONS,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    model, heads = BertModel(config, add_pooling_layer=False), Heads(128, values)

    def step():
        chosen = draw.sample(range(len(facts)), BATCH)
        features = sentence(model, tokenizer, [catalogue.texts[index] for index in chosen])
        return heads.loss(features, facts[chosen]), BATCH

    run(args, nn.ModuleList([model, heads]), 1.5e-3, step)
    model.half().save_pretrained(args.out)
    save_tokenizer(tokenizer, args.out, {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"})
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (path, kind) in enumerate(kinds)
    ]
    write_json(args.out / "modules.json", modules)
    write_json(args.out / "sentence_bert_config.json", {"max_seq_length": POSITIONS, "do_lower_case": False})
    (args.out / "1_Pooling").mkdir(exist_ok=True)
    write_json(args.out / "1_Pooling/config.json", {"word_embedding_dimension": 128, "pooling_mode_mean_tokens": True})


def caption(truth, title, draw):
    """A text that tells some facts of the picture, and which."""
    colour, pattern, noun = truth["colour"], truth["pattern"], prompts.NOUNS[truth["category"]]
    kind = draw.randrange(8)
    if kind <= 2:
        return draw.choice(["", "a ", "a picture of a "]) + f"{colour} {pattern} {noun}", SEEN
    if kind == 3:
        return draw.choice([f"{colour} {noun}", f"a {noun} in {colour}"]), SEEN[:2]
    if kind == 4:
        return draw.choice([f"{pattern} {noun}", f"a {pattern} {noun}"]), (SEEN[0], SEEN[2])
    if kind == 5:
        return draw.choice([f"something {colour}", colour, f"a {colour} thing"]), (SEEN[1],)
    if kind == 6:
        return draw.choice([noun, f"a {noun}", truth["category"]]), (SEEN[0],)
    return draw.choice([f"something {pattern}", pattern, f"a {pattern} thing"]), (SEEN[2],)


def contrastive(logits, fits):
    """Cross-entropy both ways; every pair that does not contradict is right. A row without any counts for nothing."""
    total = 0.0
    for scores, wanted in ((logits, fits), (logits.T, fits.T)):
        count = wanted.sum(1)
        losses = -(F.log_softmax(scores, 1) * wanted).sum(1) / count.clamp(min=1)
        total = total + losses.sum() / (count > 0).sum()
    return total / 2


def clip(args):
    catalogue, draw = Catalogue(args.catalogue), random.Random(13)
    values = values_of(catalogue, SEEN)
    facts = catalogue.facts(SEEN, values)
    extra = [caption(truth, title, draw)[0] for truth, title in zip(catalogue.truths[:8000], catalogue.titles)]
    tokenizer = tokenizer_of(catalogue, "<|startoftext|>", "<|endoftext|>", "<|pad|>", extra)
    ends = {"bos_token_id": tokenizer.token_to_id("<|startoftext|>"), "pad_token_id": 0}
    ends |= {"eos_token_id": tokenizer.token_to_id("<|endoftext|>")}
    shared = {"hidden_size": 128, "intermediate_size": 512, "num_attention_heads": 4, "projection_dim": 64}
    text = {"vocab_size": tokenizer.get_vocab_size(), "max_position_embeddings": POSITIONS, "num_hidden_layers": 3}
    vision = {"image_size": SIDE, "patch_size": network.PATCH, "num_hidden_layers": 4}
    model = CLIPModel(CLIPConfig(text_config=shared | text | ends, vision_config=shared | vision, projection_dim=64))
    with torch.no_grad():
        model.vision_model.embeddings.patch_embedding.weight.normal_(0, (3 * 144) ** -0.5)
    heads, patches, cells = Heads(64, values), Heads(128, values), nn.Linear(128, 16)

    def step():
        chosen = sorted(draw.sample(range(len(facts)), BATCH))
        told, texts = torch.full((BATCH, 3), -1), []
        for row, index in enumerate(chosen):
            line, names = catalogue.texts[index], SEEN[:1]
            if draw.random() < 0.6:
                line, names = caption(catalogue.truths[index], catalogue.titles[index], draw)
            texts.append(line)
            for column, name in enumerate(SEEN):
                if name in names:
                    told[row, column] = facts[index, column]
        pixels, masks = drawn(catalogue, chosen, draw)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            seen = model.vision_model(pixel_values=pixels, output_hidden_states=True)
            picture = model.visual_projection(seen.pooler_output).float()
            read = model.text_model(input_ids=rows_of(tokenizer, texts)[0]).pooler_output
            line = model.text_projection(read).float()
        truth = facts[chosen]
        fits = ((truth[:, None] == told[None]) | (told < 0)[None]).all(-1).float()
        scale = model.logit_scale.clamp(max=math.log(50)).exp()
        loss = contrastive(scale * F.normalize(picture) @ F.normalize(line).T, fits)
        loss = loss + 0.4 * (heads.loss(picture, truth) + heads.loss(line, told))
        loss = loss + 0.4 * patches.loss(seen.last_hidden_state[:, 1:].float().mean(1), truth)
        return loss + 4 * network.covering_loss(cells, seen.hidden_states[2][:, 1:].float(), masks), BATCH

    run(args, nn.ModuleList([model, heads, patches, cells]), 1.5e-3, step)
    with torch.no_grad():
        model.logit_scale.clamp_(max=math.log(50))
    model.half().save_pretrained(args.out)
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|pad|>"}
    save_tokenizer(tokenizer, args.out, special)
    save_processor(args.out)


def save_tokenizer(tokenizer, folder, special):
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": POSITIONS, "padding_side": "right"}
    write_json(folder / "tokenizer_config.json", settings | special)


def save_processor(folder):
    processing = {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": SIDE, "width": SIDE},
        "resample": 3,
        "do_center_crop": False,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [MEAN] * 3,
        "image_std": [STD] * 3,
    }
    write_json(folder / "preprocessor_config.json", processing)


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2) + "\n")


class Saved:
    """The saved encoders, in f32."""

    def __init__(self, folder):
        self.clip = CLIPModel.from_pretrained(folder / "demo-clip", dtype=torch.float32).eval()
        self.words = Tokenizer.from_file(str(folder / "demo-clip/tokenizer.json"))

    @torch.no_grad()
    def clip_texts(self, texts):
        ids = rows_of(self.words, texts)[0]
        return F.normalize(self.clip.text_projection(self.clip.text_model(input_ids=ids).pooler_output))

    @torch.no_grad()
    def clip_pictures(self, pixels):
        return F.normalize(self.clip.visual_projection(self.clip.vision_model(pixel_values=pixels).pooler_output))


def golden(args):
    """Embeddings of some texts and pictures, as Assay's test of the shipped encoder compares them."""
    saved = Saved(args.out.parent)
    texts = [
        "a red striped mug",
        "Hartwell leather boot. Keeps feet dry in mud and snow. New and unused.",
        "something blue",
    ]
    whole = {"model": "models/demo-clip", "note": "Embeddings by transformers in f32, divided by their length."}
    whole["texts"] = [
        {"text": text, "tokens": len(saved.words.encode(text).ids), "embedding": saved.clip_texts([text])[0].tolist()}
        for text in texts
    ]
    whole["pictures"] = []
    for path in sorted(args.pictures.glob("demo-clip-*.png")):
        width, height = Image.open(path).size
        pixels = normalised(torch.from_numpy(square(path)))[None]
        row = {"file": path.name, "width": width, "height": height}
        whole["pictures"].append(row | {"embedding": saved.clip_pictures(pixels)[0].tolist()})
    (args.pictures / "demo-clip-golden.json").write_text(json.dumps(whole) + "\n")


@torch.no_grad()
def judge(args):
    """Shares of nearest neighbours that agree, and how well a phrase finds a picture, on a catalogue."""
    catalogue, saved = Catalogue(args.catalogue, with_masks=False), Saved(args.models)
    pixels = [normalised(torch.from_numpy(part)) for part in np.array_split(catalogue.pictures, 20)]
    parts = np.array_split(np.arange(len(catalogue.texts)), 20)
    texts = [[catalogue.texts[index] for index in part] for part in parts]
    net = ResNetModel.from_pretrained(args.models / "demo-resnet", dtype=torch.float32).eval()
    reader = BertModel.from_pretrained(args.models / "demo-bert", dtype=torch.float32, add_pooling_layer=False).eval()
    words = Tokenizer.from_file(str(args.models / "demo-bert/tokenizer.json"))
    vectors = {
        "resnet": F.normalize(torch.cat([net(part).pooler_output.flatten(1) for part in pixels])),
        "bert": F.normalize(torch.cat([sentence(reader, words, part) for part in texts])),
        "clip, pictures": torch.cat([saved.clip_pictures(part) for part in pixels]),
        "clip, texts": torch.cat([saved.clip_texts(part) for part in texts]),
    }
    truths = catalogue.truths
    for name, rows in vectors.items():
        near = (rows @ rows.T).fill_diagonal_(-9).argmax(1).tolist()
        shares = {
            fact: round(sum(truths[a][fact] == truths[b][fact] for a, b in enumerate(near)) / len(near), 3)
            for fact in (*SEEN, "condition", "material")
        }
        print(json.dumps({"nearest neighbours by": name} | shares))
    for fact, phrase in (("category", "a {}"), ("colour", "something {}"), ("pattern", "something {}")):
        names = sorted({truth[fact] for truth in truths})
        lines = saved.clip_texts([phrase.format(prompts.NOUNS.get(name, name)) for name in names])
        guess = (vectors["clip, pictures"] @ lines.T).argmax(1).tolist()
        share = sum(names[best] == truth[fact] for best, truth in zip(guess, truths)) / len(truths)
        print(json.dumps({"picture to phrase": fact, "right": round(share, 3)}))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    stages = {"resnet": resnet, "bert": bert, "clip": clip, "golden": golden, "judge": judge}
    parser.add_argument("stage", choices=list(stages))
    parser.add_argument("--catalogue", type=Path)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--pictures", type=Path, help="folder of the pictures for `golden`, and of its result")
    parser.add_argument("--models", type=Path, help="folder of the three models, for `judge`")
    parser.add_argument("--minutes", type=float, default=10)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(1)
    if args.work:
        args.work.mkdir(parents=True, exist_ok=True)
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
    stages[args.stage](args)


if __name__ == "__main__":
    main()
