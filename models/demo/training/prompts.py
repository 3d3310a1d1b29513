"""What the shipped jobs ask of an asset, and the answers that are true.

Instruction and prompt are those of jobs/*.toml. Three of five batches change them: other wordings, other and fewer fields in
another order, so that somebody who edits a job still gets sense.
"""

import json
import re
import string
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[3]
JOBS = PROJECT / "jobs"

CHILDREN, ADULTS = "Toys & Games", "Wine Glasses"

PRODUCT_OPENINGS = [
    "You annotate products of a catalogue. Look at the picture and read the text, then answer with one JSON object:",
    "Describe this product for our shop as JSON with these fields:",
    "Extract the facts about the article from its photo and its text. Reply with JSON only:",
    "Read the listing, look at the image, and fill in:",
    "Here is an article of a shop with its photo. Tell us, as JSON:",
    "Catalogue entry wanted. One JSON object with:",
    "Fill in this form about the product:",
]
PRODUCT_FIELDS = {
    "category": [
        "the one of the candidate categories that fits best.",
        "choose from the candidates.",
        "which of the listed categories it belongs to.",
    ],
    "brand": ["the brand as it is written, or null if none is named or shown.", "brand name or null.", "who makes it."],
    "condition": [
        "new, second_hand or refurbished; new unless the text says otherwise.",
        "new or second_hand.",
        "whether it was used before.",
    ],
    "colour": [
        "the main colour of the product, or null if it cannot be told.",
        "main colour.",
        "its colour in the photo.",
    ],
    "pattern": [
        "the pattern of its surface, plain if it has none, or null if it cannot be told.",
        "surface pattern or plain.",
        "plain, striped, checked, dotted, zigzag or marbled.",
    ],
    "material": [
        "what it is made of, or null if that is neither said nor plain to see.",
        "material or null.",
        "what the text says it is made of.",
    ],
    "attributes": [
        "up to six further facts that a buyer would ask for, such as size or capacity, as name and value.",
        "other facts as a list of name and value.",
        "further facts.",
    ],
}
PRODUCT_CLOSINGS = [
    "If picture and text disagree, believe the picture for colour and pattern and the text for the rest.",
    "Trust the photo for colour and pattern.",
    "",
]
PRODUCT_PROMPTS = [
    "Title: {title}\nDescription: {description}\nCandidate categories: {categories}",
    "{title}\n{description}\nAttributes: {attributes}\nCategories: {categories}",
    "Candidate categories: {categories}\nTitle: {title}\nText: {description}\nAttributes: {attributes}",
    "Name: {title}\nAbout: {description}\n{attributes}\nChoose from: {categories}",
]
AD_OPENINGS = [
    "You review advertisements. Look at the picture, read the texts and the markup of the landing page as code, then answer\n"
    "with one JSON object:",
    "Check this advertisement and its landing page. Answer as JSON:",
    "Read the ad and the page it leads to, then fill in:",
]
AD_FIELDS = {
    "product": ["what is advertised, in a few words.", "the thing on offer.", "the product."],
    "claims": [
        "up to four claims that the ad makes, as short sentences.",
        "what the ad promises.",
        "its claims.",
    ],
    "audience": [
        "whom it speaks to: everyone, adults, children, parents or professionals.",
        "everyone, adults or children.",
        "for whom it is.",
    ],
    "call_to_action": ["what the reader is asked to do, or null.", "the call to action.", "what to do next."],
    "policy_flags": [
        "what a reviewer must see: misleading_price, health_claim, adult_content, personal_data, broken_markup,\n"
        "  mismatch if the landing page shows another product than the ad. Empty if there is nothing.",
        "misleading_price, broken_markup or mismatch, if any.",
        "problems for the reviewer.",
    ],
}
AD_PROMPTS = [
    "Headline: {headline}\nBody: {body}\nCall to action: {call_to_action}\nLanding page:\n{landing_page}",
    "{headline}\n{body}\n{call_to_action}\nPage: {landing_page}",
]


@dataclass
class Question:
    """An instruction, a template and the fields that are asked for; the same for a whole batch."""

    kind: str
    instruction: str
    template: str
    fields: list[str]


@dataclass
class Item:
    """One asset with its answer. `ordered`: all fields of the shipped job, in its order."""

    kind: str
    text: str
    answer: dict
    picture: int | None
    ordered: bool


@cache
def shipped(kind):
    """The question of the job that ships."""
    job = tomllib.loads((JOBS / f"{kind}-annotation.toml").read_text())["annotate"]
    schema = json.loads((JOBS / f"{kind}-annotation.output.json").read_text())
    return Question(kind, job["instruction"], job["prompt"], list(schema["properties"]))


def question(kind, draw):
    """The shipped question in two of five cases, else a variation."""
    asked = shipped(kind)
    if draw.random() < 0.4:
        return asked
    fields, openings, prompts = (
        (PRODUCT_FIELDS, PRODUCT_OPENINGS, PRODUCT_PROMPTS)
        if kind == "product"
        else (AD_FIELDS, AD_OPENINGS, AD_PROMPTS)
    )
    names = list(fields)
    if draw.random() < 0.8:
        draw.shuffle(names)
    if draw.random() < 0.6:
        names = names[: draw.randint(2, len(names))]
    lines = [f"- {name}: {draw.choice(fields[name]) if draw.random() < 0.6 else fields[name][0]}" for name in names]
    if draw.random() < 0.15:
        lines = [f"- {name}" for name in names]
    closing = draw.choice(PRODUCT_CLOSINGS) if kind == "product" else ""
    instruction = "\n".join([draw.choice(openings), *lines, closing]).strip()
    template = asked.template if draw.random() < 0.4 else draw.choice(prompts)
    return Question(kind, instruction, template, names)


def first_nouns():
    """The first noun of each category path, from the taxonomy of the generator."""
    nouns = {}
    for line in (PROJECT / "src/demo/taxonomy.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            path, words = line.split("|")[:2]
            nouns[path.strip()] = words.split(";")[0].strip()
    return nouns


NOUNS = first_nouns()


def render(template, message):
    """As the pipeline fills a template in."""
    values = {name: message.get(name) or "" for name in ("title", "description", "headline", "body", "landing_page")}
    values["call_to_action"] = message.get("call_to_action") or ""
    values["attributes"] = "; ".join(
        f"{name}: {value}" for name, value in sorted(message.get("attributes", {}).items())
    )
    values["categories"] = "; ".join(message.get("candidate_categories", []))
    return re.sub(r"\{(\w+)\}", lambda match: values[match[1]], template)


def spelled(draw):
    """A brand of no pattern at all: reading is the only way to know it."""
    if draw.random() < 0.5:
        pairs = [draw.choice(string.ascii_lowercase) + draw.choice("aeiouy") for _ in range(draw.randint(2, 4))]
        word = "".join(pairs) + draw.choice(["", "n", "x", "rt", "ng", "sk", "m"])
    else:
        word = "".join(draw.choice(string.ascii_lowercase) for _ in range(draw.randint(4, 10)))
    word = word.capitalize()
    return (
        f"{word} {draw.choice(['& Co', 'Atelier', 'Goods', 'House', 'Nord', '& Sons'])}"
        if draw.random() < 0.1
        else word
    )


def item(asked, message, truth, shown, draw, plain=False):
    """One asset's text and true answer.

    `shown` is (index, truth) of the picture that goes with the text: of the same category, but with a colour and a pattern
    of its own. `plain` leaves texts and pictures as they are, for judging.
    """
    picture, seen = shown
    message, brand = dict(message), truth["brand"]
    material = truth["material"]
    if not plain:
        if brand and draw.random() < 0.35:
            other = spelled(draw)
            for name in ("title", "description", "headline", "body", "landing_page"):
                if message.get(name):
                    message[name] = message[name].replace(brand, other)
            brand = other
        chance = draw.random()
        if chance < 0.3:
            picture = None
        elif chance < 0.33 and asked.kind == "product":
            message["title"], message["description"], brand, material = "", "", None, None
            truth = truth | {"condition": "new"}
        if draw.random() < 0.5:
            draw.shuffle(message.setdefault("candidate_categories", []))
    text = render(asked.template, message)
    colour, pattern = seen["colour"], seen["pattern"]
    if picture is None:
        words = set(re.findall(r"[a-z]+", text.split("Candidate")[0].lower()))
        told = [value for value in COLOURS if value in words]
        colour = told[0] if told else None
        told = [value for value in PATTERNS if value in words]
        pattern = told[0] if told else None
    if asked.kind == "product":
        size = message.get("attributes", {}).get("size")
        facts = {
            "category": truth["category"],
            "brand": brand,
            "condition": truth["condition"],
            "colour": colour,
            "pattern": pattern,
            "material": material,
            "attributes": [{"name": "size", "value": size}] if size and size in text else [],
        }
    else:
        noun = NOUNS[truth["category"]]
        look = [] if picture is None else [colour] + ([] if pattern == "plain" else [pattern])
        sentences = [sentence.strip(".") for sentence in message["body"].split(". ")]
        top = truth["category"].split(" > ")
        facts = {
            "product": " ".join([*look, noun]),
            "claims": [sentence for sentence in sentences if not any(letter.isdigit() for letter in sentence)],
            "audience": "children" if top[0] == CHILDREN else "adults" if top[-1] == ADULTS else "everyone",
            "call_to_action": truth["call_to_action"],
            "policy_flags": truth["policy_flags"],
        }
    answer = {name: facts[name] for name in asked.fields}
    return Item(asked.kind, text, answer, picture, asked.fields == shipped(asked.kind).fields)


COLOURS = ["red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white", "grey", "beige"]
PATTERNS = ["plain", "striped", "checked", "dotted", "zigzag", "marbled"]


class Speller:
    """Token ids of questions and items, as the chat template and the processor lay them out."""

    def __init__(self, tokenizer, patches):
        self.tokenizer = tokenizer
        self.id = tokenizer.token_to_id
        self.patches = patches
        self.end = self.id("<|eot|>")
        self.patch = self.id("<|patch|>")

    def ids(self, text):
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def prefix(self, asked):
        """What all items of a question begin with."""
        return self.ids(
            "<|begin_of_text|><|header_start|>system<|header_end|>\n\n"
            f"{asked.instruction}<|eot|><|header_start|>user<|header_end|>\n\n"
        )

    def item(self, one):
        """Ids of the prompt after the prefix, ids of the answer, and a weight for each of the answer's tokens."""
        picture = []
        if one.picture is not None:
            run = [self.patch] * self.patches
            picture = [self.id("<|image_start|>"), self.id("<|image|>"), *run, self.id("<|image_end|>")]
        prompt = picture + self.ids(f"{one.text}<|eot|><|header_start|>assistant<|header_end|>\n\n")
        text = json.dumps(one.answer, ensure_ascii=False)
        encoded = self.tokenizer.encode(text, add_special_tokens=False)
        # Which key comes next in an order of somebody's own is for the grammar to know, and hard to read off an instruction.
        free = 0.0 if not one.ordered else 1.0
        weights = [free if token.startswith('"') and ":" in token else 1.0 for token in encoded.tokens]
        weights[-1] = free
        # Without a picture the text must say which category it is, and that is learned more slowly.
        blind = ("category", (2.0, 2.0, 2.0)) if one.picture is None else ("category", (1.0, 1.0, 1.0))
        for name, gain in (
            blind,
            ("brand", (2.0, 3.0, 1.5)),
            ("material", (2.0, 1.5, 1.5)),
            ("policy_flags", (1.5, 2.0, 1.5)),
        ):
            if name not in one.answer:
                continue
            start = text.index(f'"{name}": ') + len(name) + 4
            end = start + len(json.dumps(one.answer[name], ensure_ascii=False))
            inside = [at for at, (left, _) in enumerate(encoded.offsets) if start <= left < end]
            for order, at in enumerate(inside):
                weights[at] = gain[min(order, 2)]
        return prompt, [*encoded.ids, self.end], [*weights, 1.0]
