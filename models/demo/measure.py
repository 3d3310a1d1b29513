"""Measures the demo model through Assay itself, on a generated catalogue of the test split.

    cargo build --release
    target/release/assay demo --catalogue 1500 --split test --seed 103 --dir TEST
    python models/demo/measure.py --assay target/release/assay --catalogue TEST --work NEW_FOLDER

For each condition below it writes a deployment, runs the job over the catalogue's topics and judges the answers with
`assay eval`. It needs Python 3.11 and nothing else. Figures are printed as a table in Markdown.
"""

import argparse
import json
import subprocess
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
ONLY_CATEGORIES = "Candidate categories: {categories}"

# name: (number format, changes of the product job, whether only labels count whose text names the thing)
CONDITIONS = {
    "as shipped (f32)": ("f32", {}, False),
    "q8_0": ("q8_0", {}, False),
    "without the picture": ("f32", {"images = 1": "images = 0"}, False),
    "without the picture, text names the thing": ("f32", {"images = 1": "images = 0"}, True),
    "without the text": ("f32", {"prompt": ONLY_CATEGORIES}, False),
    "another wording, four fields in another order": (
        "f32",
        {
            "prompt": "{title}\n{description}\nChoose from: {categories}",
            "instruction": "Say what this is, for our shop:\n- colour: main colour.\n- condition: new or second_hand.\n"
            "- brand: brand name or null.\n- category: choose from the candidates.",
            "fields": ["colour", "condition", "brand", "category"],
        },
        False,
    ),
}


def nouns():
    """Category path to the nouns of the taxonomy."""
    found = {}
    for line in (PROJECT / "src/demo/taxonomy.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            path, words = line.split("|")[:2]
            found[path.strip()] = [word.strip() for word in words.split(";")]
    return found


def labels(catalogue, work, named):
    """The labels that count: all, or those whose title or description has a noun of the true category."""
    if not named:
        return catalogue / "labels.jsonl"
    texts, words = {}, nouns()
    for path in (catalogue / "topics/products").glob("*.jsonl"):
        for line in path.open():
            record = json.loads(line)
            texts[record["key"]] = f"{record['value']['title']} {record['value']['description']}".lower()
    kept = []
    for line in (catalogue / "labels.jsonl").open():
        truth = json.loads(line)
        if any(word in texts.get(truth["id"], "") for word in words[truth["category"]]):
            kept.append(line)
    path = work / "named.jsonl"
    path.write_text("".join(kept))
    return path


def deploy(folder, args, dtype, changes):
    """A configuration and the product job, changed as the condition wants it: texts, wordings, fields."""
    (folder / "jobs").mkdir(parents=True)
    media = (args.catalogue / "media").resolve().as_uri()
    topics = (args.catalogue / "topics").resolve()
    (folder / "config.toml").write_text(
        'jobs = "jobs"\n[source]\nkind = "replay"\n[source.replay.topics]\n'
        f'products = "{topics}/products"\nads = "{topics}/ads"\n[media]\nallow = ["{media}"]\n[tables]\nurl = "tables"\n'
        f'[models.llama]\npath = "{args.model.resolve()}"\ndtype = "{dtype}"\n[server]\naddress = "127.0.0.1:0"\n'
    )
    job = (PROJECT / "jobs/product-annotation.toml").read_text()
    name = "product-annotation.output.json"
    schema = json.loads((PROJECT / "jobs" / name).read_text())
    for old, new in changes.items():
        if old == "fields":
            schema |= {"required": new, "properties": {field: schema["properties"][field] for field in new}}
        elif old in ("prompt", "instruction"):
            start = job.index(f'{old} = """')
            end = job.index('"""', start + len(old) + 6) + 3
            job = f'{job[:start]}{old} = """\n{new}"""{job[end:]}'
        else:
            job = job.replace(old, new)
    (folder / "jobs/product-annotation.toml").write_text(job)
    (folder / "jobs" / name).write_text(json.dumps(schema))


def judge(args, folder, truth):
    job, config = ["--job", "product-annotation"], ["--config", str(folder / "config.toml")]
    if not (folder / "tables").exists():
        subprocess.run([args.assay, "run", *job, "--once", *config], check=True, stderr=subprocess.DEVNULL)
    told = subprocess.run(
        [args.assay, "eval", *job, "--labels", str(truth), "--format", "json", *config],
        check=True,
        capture_output=True,
        text=True,
    )
    return json.loads(told.stdout)


def named_material(args, folder):
    """Share of right materials where the text names one; eval's own share counts those without, too."""
    sql = "SELECT asset_id, material FROM latest"
    told = subprocess.run(
        [args.assay, "query", "--format", "json", "--config", str(folder / "config.toml"), sql],
        check=True,
        capture_output=True,
        text=True,
    )
    answers = {row["asset_id"]: row.get("material") for row in json.loads(told.stdout)}
    truths = [json.loads(line) for line in (args.catalogue / "labels.jsonl").open()]
    judged = [truth for truth in truths if truth["material"] and truth["id"] in answers]
    return sum(answers[truth["id"]] == truth["material"] for truth in judged) / len(judged)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--assay", required=True)
    parser.add_argument("--catalogue", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--model", type=Path, default=PROJECT / "models/demo")
    parser.add_argument("--only", nargs="*", help="names of conditions")
    args = parser.parse_args()
    print(
        "| condition | products | category hF1 | brand | second-hand F1 | colour | pattern | material | where named | valid |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for number, (name, (dtype, changes, named)) in enumerate(CONDITIONS.items()):
        if args.only and name not in args.only:
            continue
        # The subset with named things is judged on the answers of the condition before it.
        folder = args.work / (f"{number - 1}" if named else f"{number}")
        if not folder.exists():
            deploy(folder, args, dtype, changes)
        figures = judge(args, folder, labels(args.catalogue, args.work, named))
        fields = figures["fields"]
        row = [figures["category"]["f1"], figures["brand"]["share"], figures["is_secondhand"]["f1"]]
        row += [fields.get(name, {}).get("share") for name in ("colour", "pattern", "material")]
        row += [named_material(args, folder) if "material" in fields else None, figures["schema_validity"]["share"]]
        cells = " | ".join("" if value is None else f"{value:.3f}" for value in row)
        print(f"| {name} | {figures['assets']['judged']} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
