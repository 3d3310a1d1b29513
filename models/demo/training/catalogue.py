"""Reads a catalogue that `assay demo --catalogue` wrote: messages, truths, pictures as the reference processor sees them.

Pictures are kept as bytes of one tile, [items, 3, 96, 96]; masks as [items, 32, 32] bits. Both are cached beside the
catalogue, because resizing fifty thousand pictures takes minutes.
"""

import json
from dataclasses import dataclass
from multiprocessing import Pool
from pathlib import Path

import numpy as np
import torch
from PIL import Image

TILE = 96
MASK = 32


@dataclass
class Catalogue:
    """Items in the order of labels.jsonl."""

    messages: list[dict]
    truths: list[dict]
    pictures: np.ndarray
    masks: np.ndarray

    def __len__(self):
        return len(self.truths)


def image_processor():
    """The reference's image processor, with one tile of 96 pixels."""
    from transformers import Llama4ImageProcessor

    size = {"height": TILE, "width": TILE}
    return Llama4ImageProcessor(size=size, max_patches=1, resize_to_max_canvas=False)


def read(folder, with_masks=True):
    """Everything of a catalogue folder."""
    folder = Path(folder)
    truths = [json.loads(line) for line in (folder / "labels.jsonl").open()]
    by_id = {}
    for path in sorted((folder / "topics").glob("*/*.jsonl")):
        for line in path.open():
            record = json.loads(line)
            by_id[record["key"]] = record["value"]
    messages = [by_id[truth["id"]] for truth in truths]
    names = [Path(message["media"][0]["url"]).name for message in messages]
    pictures = cached(folder / "pictures.npy", lambda: mapped(_picture, [folder / "media" / name for name in names]))
    masks = np.zeros((0, MASK, MASK), bool)
    if with_masks:
        paths = [(folder / "masks" / name).with_suffix(".png") for name in names]
        masks = cached(folder / "masks.npy", lambda: mapped(_mask, paths))
    return Catalogue(messages, truths, pictures, masks)


def cached(path, make):
    """What `make` makes, kept in a file, because that takes minutes."""
    if not path.exists():
        np.save(path, make())
    return np.load(path, mmap_mode="r")


def mapped(work, paths):
    """What `work` makes of each path, stacked."""
    with Pool(2) as pool:
        return np.stack(pool.map(work, paths, chunksize=256))


_processor = None


def _picture(path):
    """One tile as bytes: the processor's output, before it is brought to [-1, 1]."""
    global _processor
    if _processor is None:
        torch.set_num_threads(1)
        _processor = image_processor()
    values = _processor(Image.open(path).convert("RGB"), return_tensors="pt")["pixel_values"][0]
    return ((values.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).numpy()


def _mask(path):
    """Where the thing is seen, on a grid of 32 by 32 cells, in the place that the processor puts the picture."""
    mask = Image.open(path).convert("L")
    scale = TILE / max(mask.size)
    width, height = (max(1, round(side * scale)) for side in mask.size)
    tile = Image.new("L", (TILE, TILE))
    tile.paste(mask.resize((width, height), Image.Resampling.BOX), (0, 0))
    return np.asarray(tile.resize((MASK, MASK), Image.Resampling.BOX)) > 127
