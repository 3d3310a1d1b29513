"""Trains the demo model in stages, each with a checkpoint: words, sight, text, joint.

    python train.py words --catalogue DIR --work WORK
    python train.py check --catalogue DIR --work WORK
    python train.py sight --catalogue DIR --work WORK --minutes 26        one core
    python train.py text  --catalogue DIR --work WORK --minutes 19        another core
    python train.py joint --catalogue DIR --work WORK --minutes 57 --processes 2
    python train.py save  --work WORK --out models/demo

`words` trains the tokenizer. `check` compares the forward pass used here with the class's own. `sight` trains the vision
tower alone, towards a code book of categories, colours and patterns. `text` trains the decoder alone, with the code book in
the place of pictures. Both can run side by side. `joint` trains everything on real pictures; `--start` goes on from a
checkpoint. `--minutes` are those of one
process on the processor; the learning rate follows them, so a run is repeated in kind, not bit by bit.
"""

import argparse
import json
import math
import os
import random
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from tokenizers import Tokenizer

import catalogue
import network
import prompts
import vocabulary

VOCABULARY = 2048
BATCH = 16
POOL = 6


class World:
    """The training catalogue, by category, and the code book."""

    def __init__(self, folder, with_masks):
        self.data = catalogue.read(folder, with_masks)
        truths = self.data.truths
        self.leaves = sorted(prompts.NOUNS)
        names = [self.leaves, prompts.COLOURS, prompts.PATTERNS]
        keys = ("category", "colour", "pattern")
        self.codes = torch.tensor([[row.index(t[key]) for row, key in zip(names, keys)] for t in truths])
        self.sizes = [len(row) for row in names]
        self.book = network.codebook(*self.sizes)
        self.by_category = {}
        self.kinds = {"product": [], "ad": []}
        for index, truth in enumerate(truths):
            self.by_category.setdefault(truth["category"], []).append(index)
            self.kinds[truth["kind"]].append(index)

    def targets(self, codes):
        """The feature that stands for codes [items, 3]: constant, category, colour, pattern."""
        offsets = torch.tensor([0, self.sizes[0], self.sizes[0] + self.sizes[1]])
        total = self.book[codes + offsets].sum(1)
        total[:, 0] = network.CONSTANT
        return total


def batches(world, speller, draw):
    """Endless batches of one question each, sorted by length within a pool; every fifth pool is of ads."""
    turn = draw.randint(0, 4)
    while True:
        turn += 1
        kind = "ad" if turn % 5 == 0 else "product"
        asked = prompts.question(kind, draw)
        prefix = speller.prefix(asked)
        rows = []
        for index in draw.choices(world.kinds[kind], k=BATCH * POOL):
            truth = world.data.truths[index]
            other = draw.choice(world.by_category[truth["category"]])
            item = prompts.item(asked, world.data.messages[index], truth, (other, world.data.truths[other]), draw)
            rows.append((item, *speller.item(item)))
        rows.sort(key=lambda row: len(row[1]) + len(row[2]))
        pool = [rows[at : at + BATCH] for at in range(0, len(rows), BATCH)]
        draw.shuffle(pool)
        for batch in pool:
            yield prefix, batch


def padded(batch, pad):
    """Ids [B, L], positions whose next token is of an answer, those tokens and their weights."""
    length = max(len(prompt) + len(answer) for _, prompt, answer, _ in batch)
    ids = torch.full((len(batch), length), pad)
    keep, wanted, weights = [], [], []
    for row, (_, prompt, answer, gains) in enumerate(batch):
        whole = prompt + answer
        ids[row, : len(whole)] = torch.tensor(whole)
        keep.append(torch.arange(len(prompt) - 1, len(whole) - 1) + row * length)
        wanted += answer
        weights += gains
    return ids, torch.cat(keep), torch.tensor(wanted), torch.tensor(weights)


def copies(vocabulary_size, draw):
    """Random tokens, then pieces of them again: only copying predicts them. Ids, positions, wanted tokens, weights."""
    ids, keep, wanted = [], [], []
    for row in range(BATCH):
        context = [draw.randrange(len(vocabulary.SPECIALS), vocabulary_size) for _ in range(112)]
        line = list(context)
        while len(line) < 150:
            size = draw.randint(3, 7)
            start = draw.randrange(len(context) - size)
            line += [draw.randrange(len(vocabulary.SPECIALS), vocabulary_size), *context[start : start + size]]
            for step in range(1, size):
                keep.append((row, len(line) - size + step - 1))
                wanted.append(context[start + step])
        ids.append(line)
    length = max(map(len, ids))
    ids = torch.tensor([line + [2] * (length - len(line)) for line in ids])
    return ids, torch.tensor([row * length + at for row, at in keep]), torch.tensor(wanted), torch.ones(len(wanted))


def answer_loss(model, prefix, own, keep, wanted, weights):
    """Nats per item, weighted; the plain nats per item; the balance loss."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits, balance = network.decode(model, prefix, own, keep)
    losses = F.cross_entropy(logits.float(), wanted, reduction="none")
    return (losses * weights).sum() / len(own), losses.detach().sum() / len(own), balance


def sight_loss(world, features, codes):
    """How well the mean of a picture's tokens points at its three codes, and how far the tokens are from their sum."""
    pointed = 8 * features.mean(1) @ world.book.T
    parts = pointed.split(world.sizes, 1)
    loss = sum(F.cross_entropy(part, codes[:, at]) * (1.5 if at == 0 else 1) for at, part in enumerate(parts))
    loss = loss + 0.1 * (features - world.targets(codes)[:, None]).square().sum(-1).mean()
    right = torch.stack([(part.argmax(1) == codes[:, at]).float().mean() for at, part in enumerate(parts)])
    return loss, right


def pictures_of(world, indices, draw):
    """Pictures [items, 3, 96, 96] and masks [items, 32, 32], mirrored and shifted by chance."""
    tiles = torch.from_numpy(world.data.pictures[indices])
    masks = torch.from_numpy(world.data.masks[indices]) if len(world.data.masks) else None
    if draw.random() < 0.5:
        tiles = tiles.flip(-1)
        masks = masks.flip(-1) if masks is not None else None
    right, down = draw.choice((-3, 0, 3)), draw.choice((-3, 0, 3))
    tiles = tiles.roll((down, right), (-2, -1))
    masks = masks.roll((down // 3, right // 3), (-2, -1)) if masks is not None else None
    return tiles, masks


class Schedule:
    """Learning rate by the processor's time: a short rise, then a cosine down to 2 %."""

    def __init__(self, minutes):
        self.start, self.minutes, self.share = time.process_time(), minutes, 0.0

    def spent(self):
        return (time.process_time() - self.start) / 60

    def move(self, processes):
        """Sets the share that is done, the same in all processes."""
        share = torch.tensor(min(1.0, self.spent() / self.minutes))
        if processes > 1:
            dist.broadcast(share, 0)
        self.share = share.item()

    def rate(self, step):
        return min(1.0, (step + 1) / 60) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * self.share)))


def decoder_groups(model, rate, share):
    """The parts that copy learn at a share of the rate: at the full one, what they start with is gone after a minute."""
    network.protect(model)
    slow = ("embed_tokens", "lm_head", "layers.0.self_attn", f"layers.{network.LAYERS - 1}.self_attn")
    named = list(model.language_model.named_parameters())
    is_slow = [any(part in name for part in slow) for name, _ in named]
    return [
        {"params": [weight for (_, weight), slow in zip(named, is_slow) if slow == wanted], "lr": rate * part}
        for wanted, part in ((False, 1.0), (True, share))
    ]


class Run:
    """Optimiser, log and checkpoints of one stage."""

    def __init__(self, args, groups):
        self.args, self.step, self.items = args, 0, 0
        split = []
        for group in groups:
            for wide in (True, False):
                params = [p for p in group["params"] if (p.dim() > 1) == wide]
                split.append({"params": params, "top": group["lr"], "weight_decay": 0.05 if wide else 0.0})
        self.optimiser = torch.optim.AdamW(split, lr=1e-3, betas=(0.9, 0.98), fused=True)
        self.params = [weight for group in groups for weight in group["params"]]
        self.schedule = Schedule(args.minutes)
        self.log, self.sums, self.said, self.saved = args.work / f"{args.stage}.jsonl", {}, time.time(), time.time()

    def update(self, loss, processes=1):
        self.optimiser.zero_grad(set_to_none=False)
        loss.backward()
        if processes > 1:
            flat = torch.cat([p.grad.flatten() for p in self.params])
            dist.all_reduce(flat)
            flat /= processes
            at = 0
            for p in self.params:
                p.grad.copy_(flat[at : at + p.numel()].view_as(p))
                at += p.numel()
        torch.nn.utils.clip_grad_norm_(self.params, 1.0)
        for group in self.optimiser.param_groups:
            group["lr"] = group["top"] * self.schedule.rate(self.step)
        self.optimiser.step()
        self.step += 1

    def note(self, items, **values):
        """Averages until the next line of the log, every 20 seconds."""
        self.items += items
        for name, value in values.items():
            total, count = self.sums.get(name, (0.0, 0))
            self.sums[name] = (total + float(value), count + 1)
        if time.time() - self.said > 20 and self.args.rank == 0:
            line = {
                "minutes": round(self.schedule.spent(), 2),
                "step": self.step,
                "items": self.items,
            }
            line |= {name: round(total / count, 4) for name, (total, count) in self.sums.items()}
            with self.log.open("a") as log:
                log.write(json.dumps(line) + "\n")
            self.sums, self.said = {}, time.time()

    def is_done(self, processes=1):
        self.schedule.move(processes)
        return self.schedule.share >= 1.0

    def keep(self, model, force=False):
        if self.args.rank == 0 and (force or time.time() - self.saved > 300):
            path = self.args.work / f"{self.args.stage}.pt"
            torch.save({"model": model.state_dict(), "step": self.step, "items": self.items}, path.with_suffix(".new"))
            path.with_suffix(".new").rename(path)
            self.saved = time.time()


def words(args):
    """Trains the tokenizer on texts of the catalogue and on answers, without brands."""
    world, draw = World(args.catalogue, False), random.Random(1)
    texts = []
    for index in draw.sample(range(len(world.data)), min(len(world.data), 12000)):
        truth, message = world.data.truths[index], world.data.messages[index]
        asked = prompts.question(truth["kind"], draw) if draw.random() < 0.05 else prompts.shipped(truth["kind"])
        item = prompts.item(asked, message, truth, (index, truth), draw, plain=True)
        text = f"{item.text}\n{json.dumps(item.answer)}"
        if draw.random() < 0.05:
            text = f"{asked.instruction}\n{text}"
        texts.append(text.replace(truth["brand"], "") if truth["brand"] else text)
    tokenizer = vocabulary.train(texts, VOCABULARY)
    vocabulary.save(tokenizer, args.work)
    speller = prompts.Speller(tokenizer, network.PATCH_TOKENS)
    for kind in ("product", "ad"):
        asked = prompts.shipped(kind)
        lengths = []
        for index in world.kinds[kind][:300]:
            truth = world.data.truths[index]
            item = prompts.item(asked, world.data.messages[index], truth, (index, truth), draw, plain=True)
            lengths.append([len(part) for part in speller.item(item)[:2]])
        own, answer = map(list, zip(*lengths))
        print(
            f"{kind}: instruction {len(speller.prefix(asked))} tokens, own {sum(own) / len(own):.0f} (at most {max(own)}),",
            end=" ",
        )
        print(f"answer {sum(answer) / len(answer):.0f} (at most {max(answer)})")


def load_words(args):
    tokenizer = Tokenizer.from_file(str(args.work / "tokenizer.json"))
    return tokenizer, prompts.Speller(tokenizer, network.PATCH_TOKENS)


def sight(args):
    """The vision tower and the projector alone."""
    torch.set_num_threads(args.threads)
    world, draw = World(args.catalogue, True), random.Random(2)
    tokenizer, _ = load_words(args)
    model = network.build(tokenizer.get_vocab(), seed=1)
    if args.start:
        model.load_state_dict(torch.load(args.start)["model"])
    cells = torch.nn.Linear(network.SIGHT, 16)
    seen = [*model.vision_model.parameters(), *model.multi_modal_projector.parameters()]
    run = Run(args, [{"params": [*seen, *cells.parameters()], "lr": args.sight_rate}])
    while not run.is_done():
        indices = sorted(draw.sample(range(len(world.data)), 64))
        tiles, masks = pictures_of(world, indices, draw)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            features, early = network.see(model, tiles)
        loss, right = sight_loss(world, features, world.codes[indices])
        covered = network.covering_loss(cells, early, masks)
        run.update(loss + 4 * covered)
        run.note(64, loss=loss, mask=covered, leaf=right[0], colour=right[1], pattern=right[2])
        run.keep(model)
    run.keep(model, force=True)


def text(args):
    """The decoder alone; what a picture shows is given by the code book."""
    torch.set_num_threads(args.threads)
    world, draw = World(args.catalogue, False), random.Random(3)
    tokenizer, speller = load_words(args)
    model = network.build(tokenizer.get_vocab(), seed=1)
    run = Run(args, decoder_groups(model, 1.5e-3, 0.2))
    embed, supply = model.language_model.model.embed_tokens, batches(world, speller, draw)
    nothing = torch.zeros(0, network.WIDTH)
    while not run.is_done():
        if run.step % 5 == 4:
            ids, keep, wanted, weights = copies(VOCABULARY, draw)
            loss, _, balance = answer_loss(model, nothing, embed(ids), keep, wanted, weights)
            run.update(0.3 * loss + 0.01 * balance)
            run.note(0, copying=loss * BATCH / len(wanted))
            continue
        prefix, batch = next(supply)
        ids, keep, wanted, weights = padded(batch, speller.id("<|finetune_right_pad|>"))
        own = embed(ids)
        shown = [row for row, (item, *_) in enumerate(batch) if item.picture is not None]
        features = world.targets(world.codes[[batch[row][0].picture for row in shown]])
        features = features[:, None].expand(-1, network.PATCH_TOKENS, -1)
        features = features + 0.05 * torch.randn(features.shape)
        own = own.masked_scatter((ids == speller.patch)[..., None], features.reshape(-1))
        loss, nats, balance = answer_loss(model, embed(torch.tensor(prefix)), own, keep, wanted, weights)
        run.update(loss + 0.01 * balance)
        run.note(len(batch), **{f"{batch[0][0].kind}s": nats})
        run.keep(model)
    run.keep(model, force=True)


def joint(args):
    """Everything, on real pictures."""
    torch.set_num_threads(args.threads)
    if args.processes > 1:
        dist.init_process_group(
            "gloo", init_method=f"file://{args.work}/meet-{args.port}", rank=args.rank, world_size=args.processes
        )
    world, draw = World(args.catalogue, True), random.Random(100 + args.rank + 17 * args.seed)
    torch.manual_seed(args.rank)
    tokenizer, speller = load_words(args)
    model = network.build(tokenizer.get_vocab(), seed=1)
    state = torch.load(args.start or args.work / "text.pt")["model"]
    if args.sight or not args.start:
        seen = torch.load(args.sight or args.work / "sight.pt")["model"]
        state |= {name: weight for name, weight in seen.items() if "language_model" not in name}
    model.load_state_dict(state)
    eyes = [*model.vision_model.parameters(), *model.multi_modal_projector.parameters()]
    groups = decoder_groups(model, args.rate, 0.6)
    if args.frozen:
        for weight in eyes:
            weight.requires_grad_(False)
    else:
        groups.append({"params": eyes, "lr": args.rate * 0.35})
    run = Run(args, groups)
    embed, supply = model.language_model.model.embed_tokens, batches(world, speller, draw)
    nothing = torch.zeros(0, network.WIDTH)
    while not run.is_done(args.processes):
        if run.step % 8 == 7:
            ids, keep, wanted, weights = copies(VOCABULARY, draw)
            loss, _, balance = answer_loss(model, nothing, embed(ids), keep, wanted, weights)
            # The tower has no part in this; gradients of zero keep the processes in step.
            run.update(0.3 * loss + 0.01 * balance + 0 * sum(p.sum() for p in eyes), args.processes)
            run.note(0, copying=loss * BATCH / len(wanted))
            continue
        prefix, batch = next(supply)
        ids, keep, wanted, weights = padded(batch, speller.id("<|finetune_right_pad|>"))
        shown = [item.picture for item, *_ in batch if item.picture is not None]
        own, figures = embed(ids), {}
        # Without any picture the tower has no part; gradients of zero keep the processes in step.
        seen = 0 * sum(p.sum() for p in eyes)
        if shown:
            tiles, _ = pictures_of(world, shown, draw)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                features, _ = network.see(model, tiles)
            seen, right = sight_loss(world, features, world.codes[shown])
            own = own.masked_scatter((ids == speller.patch)[..., None], features.reshape(-1))
            figures = dict(zip(("leaf", "colour", "pattern"), right))
        loss, nats, balance = answer_loss(model, embed(torch.tensor(prefix)), own, keep, wanted, weights)
        run.update(loss + 0.3 * seen + 0.01 * balance, args.processes)
        run.note(len(batch), **figures, **{f"{batch[0][0].kind}s": nats})
        run.keep(model)
    run.keep(model, force=True)


def check(args):
    """How far the faster forward pass is from the class's own, on one shipped prompt with its answer."""
    torch.set_num_threads(args.threads)
    world, (tokenizer, speller) = World(args.catalogue, False), load_words(args)
    model = network.build(tokenizer.get_vocab(), seed=1)
    if args.start:
        model.load_state_dict(torch.load(args.start)["model"])
    index, asked = world.kinds["product"][0], prompts.shipped("product")
    truth = world.data.truths[index]
    item = prompts.item(asked, world.data.messages[index], truth, (index, truth), random.Random(0), plain=True)
    prompt, answer, _ = speller.item(item)
    picture = torch.from_numpy(world.data.pictures[index])
    apart, largest = network.check(model, speller.prefix(asked), prompt + answer, picture)
    print(f"logits up to {largest:.1f} are {apart:.1e} apart at most")


def save(args):
    """Writes the checkpoint as transformers does, in bf16, with everything that a processor needs beside it."""
    tokenizer, _ = load_words(args)
    model = network.build(tokenizer.get_vocab(), seed=1)
    model.load_state_dict(torch.load(args.start or args.work / "joint.pt")["model"])
    model.bfloat16().save_pretrained(args.out)
    vocabulary.save(tokenizer, args.out)
    processor = catalogue.image_processor().to_dict() | {"processor_class": "Llama4Processor"}
    processor["resample"] = int(processor["resample"])
    (args.out / "preprocessor_config.json").write_text(json.dumps(processor, indent=2, default=str) + "\n")
    layout = {"processor_class": "Llama4Processor", "patch_size": network.PATCH, "pixel_shuffle_ratio": 0.5}
    (args.out / "processor_config.json").write_text(json.dumps(layout, indent=2) + "\n")
    # Releases 4.x of transformers know the old names of the rotary settings alone; with both, both agree.
    path = args.out / "config.json"
    config = json.loads(path.read_text())
    for part, theta in (("text_config", 10000.0), ("vision_config", 100.0)):
        config[part] |= {"rope_theta": theta, "rope_scaling": None}
    path.write_text(json.dumps(config, indent=2) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["words", "check", "sight", "text", "joint", "save"])
    parser.add_argument("--catalogue", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--minutes", type=float, default=25)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--rate", type=float, default=1.0e-3, help="learning rate of the decoder in the joint stage")
    parser.add_argument("--sight-rate", type=float, default=1.5e-3, help="learning rate of the sight stage")
    parser.add_argument("--start", type=Path, help="checkpoint to go on from")
    parser.add_argument("--sight", type=Path, help="checkpoint whose vision tower the joint stage takes, with --start")
    parser.add_argument("--frozen", action="store_true", help="the joint stage leaves the vision tower as it is")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.work = args.work.resolve()
    args.work.mkdir(parents=True, exist_ok=True)
    args.rank, args.port = 0, os.getpid()
    if args.stage == "joint" and args.processes > 1:
        for rank in range(1, args.processes):
            if os.fork() == 0:
                args.rank = rank
                break
    {"words": words, "check": check, "sight": sight, "text": text, "joint": joint, "save": save}[args.stage](args)


if __name__ == "__main__":
    main()
