"""Figures of the README are those of the committed results, and pages say what their JSON says."""

import re
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from regraft.files import load_json
from regraft.recipes.recipe import load_recipe
from regraft.recipes.selection import SELECTION
from regraft.report import Claim, wording
from regraft.report.document import escape_markdown

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results"
README = (ROOT / "README.md").read_text()


@cache
def results(name):
    return load_json(RESULTS / f"{name}.json", ours=True)["rows"]


def row(name, setting, arm, metric="test_accuracy"):
    (one,) = [
        r for r in results(name) if (r["setting"], r["arm"], r["metric"]) == (setting, arm, metric)
    ]
    return one


def mean(r):
    return f"{r['mean']:.1f}%"


def gain(r, digits=1, minus="-"):
    ends = (r["paired_difference"], r["paired_low"], r["paired_high"])
    text = "{:+.{d}f} [{:.{d}f}, {:.{d}f}]".format(*ends, d=digits)
    return text.replace("-", minus)


def iterand():
    for width in (0.25, 0.5, 1.0, 1.5):
        setting = f"fashion_mnist/conv_small/uniform/width={width:g}"
        plain, redrawn, dense = (
            row("iterand", setting, arm) for arm in ("edge_popup", "iterand", "dense")
        )
        yield f"| ×{width:g} (", [mean(plain), mean(redrawn), gain(redrawn), mean(dense)]


def frozen():
    # The ticket that the page's rule takes for the aim of fifty times: the best on validation.
    for name, arm in (("gcn", "frozen"), ("gin", "frozen_coded"), ("gat", "frozen")):
        setting = f"cora/full/{name}"
        dense, ticket = (row("frozen", setting, a) for a in ("dense", arm))
        most = 1.1 * ticket["stored_bytes"]
        rivals = [
            r for r in results("frozen")
            if (r["setting"], r["metric"]) == (setting, "test_accuracy")
            and "same_bytes" in r["arm"] and r["stored_bytes"] <= most
        ]  # fmt: skip
        rival = max(rivals, key=lambda r: r["mean"])
        times = dense["stored_bytes"] / ticket["stored_bytes"]
        assert times >= 50
        yield (
            f"| {name.upper()} |",
            [
                f"{mean(dense)}, {wording.size(dense['stored_bytes'])}",
                f"{mean(ticket)}, {wording.size(ticket['stored_bytes'])} ({times:.0f}x smaller)",
                gain(ticket, 2),
                f"{mean(rival)}, {wording.size(rival['stored_bytes'])}",
            ],
        )


def merging():
    own = {
        arm: row("merging", "mnist+fashion_mnist/mlp", arm)
        for arm in (
            "parent_a",
            "parent_b",
            "average",
            "weight_matching",
            "weight_matching_repair",
            "ste_condensed",
            "ste_herding",
            "ste_full",
            "ensemble",
        )
    }
    yield "| either network by itself", [f"{mean(own['parent_a'])}, {mean(own['parent_b'])}"]
    repaired = row("merging", "mnist+fashion_mnist/mlp", "average_repair")
    yield "| plain average, activations", [mean(repaired)]
    yield "| aligned by weights, no data", [mean(own["weight_matching"])]
    for words, arm in (
        ("plain average |", "average"),
        ("aligned by weights, with REPAIR", "weight_matching_repair"),
        ("aligned on 10 condensed", "ste_condensed"),
        ("aligned on 10 real", "ste_herding"),
        ("aligned on all data", "ste_full"),
        ("ensemble of both", "ensemble"),
    ):
        yield f"| {words}", [mean(own[arm]), gain(own[arm], minus="−")]


def transfer():
    for words, setting in (
        ("MNIST, MLP 512-512", "mnist/mlp=512-512"),
        ("MNIST, MLP 1024", "mnist/mlp=1024"),
        ("Fashion-MNIST, conv net with BatchNorm, twice as wide", "fashion_mnist/conv_small=2"),
    ):
        naive, start, fgmt, oracle = (
            row("transfer", setting, arm, "untrained_best_accuracy")
            for arm in ("naive", "initial_weights", "fgmt", "oracle")
        )
        carried = f"{mean(fgmt)} ({gain(fgmt)})"
        yield f"| {words} |", [mean(naive), mean(start), carried, mean(oracle)]


def adarand():
    for words, name in (
        ("MNIST", "mnist"),
        ("Fashion-MNIST", "fashion_mnist"),
        ("digits", "digits"),
    ):
        scratch, plain, ours, still = (
            row("adarand", f"emnist-to-{name}/shots=5", arm)
            for arm in ("scratch", "plain", "adarand", "randreg_class")
        )
        carried = f"{mean(ours)} ({gain(ours)})"
        yield f"| {words} | {mean(scratch)}", [mean(plain), carried, mean(still)]


def mgr():
    for words, name in (("Fashion-MNIST", "fashion_mnist"), ("MNIST", "mnist")):
        base, *others = (
            row("mgr", f"{name}/50", arm)
            for arm in ("base", "gda_naive", "gda", "pcr", "mgr", "real_pcr")
        )
        changed = [f"{mean(arm)} ({gain(arm, minus='−')})" for arm in others]
        yield f"| {words}, 50 labels", [mean(base), *changed]


def pseudo():
    for words, setting in (
        ("three convolutions, pairs of digits", "coarse_to_fine_mnist/conv_small/n=30"),
        ("ResNet-8, pairs of digits", "coarse_to_fine_mnist/resnet8/n=30"),
        ("small ViT, pairs of digits", "coarse_to_fine_mnist/vit/n=30"),
        ("three convolutions, letters", "letters_to_digits/conv_small/n=20"),
    ):
        scratch, *others = (
            row("pseudo", setting, arm)
            for arm in ("scratch", "logit_matching", "soft_targets", "pp", "pp_pssl", "ssl_target")
        )
        changed = [f"{mean(arm)} ({gain(arm, minus='−')})" for arm in others]
        yield f"| {words}", [mean(scratch), *changed]


TABLES = {
    "pseudo": pseudo,
    "mgr": mgr,
    "iterand": iterand,
    "frozen": frozen,
    "merging": merging,
    "transfer": transfer,
    "adarand": adarand,
}
LINES = [line for line in README.splitlines() if line.startswith("|")]


@pytest.mark.parametrize("name", TABLES)
def test_the_tables_are_those_of_the_results(name):
    for start, cells in TABLES[name]():
        (line,) = [line for line in LINES if line.startswith(start)]
        shown = [cell.strip() for cell in line.strip("|").split("|")]
        assert [cell for cell in cells if cell not in shown] == [], line


def test_every_line_with_an_accuracy_is_held_to_the_results():
    starts = tuple(start for table in TABLES.values() for start, _ in table())
    of_tables = [line for line in LINES if re.search(r"\d%", line)]
    assert [line for line in of_tables if not line.startswith(starts)] == []


def test_the_sentences_about_the_first_table_are_of_the_results():
    text = " ".join(README.split())
    plain, redrawn, dense = (
        row("iterand", f"fashion_mnist/conv_small/{law}/width=1", arm)
        for law, arm in (("constant", "edge_popup"), ("constant", "iterand"), ("uniform", "dense"))
    )
    assert (
        f"the ticket of width ×1 is {wording.size(plain['stored_bytes'])} for {mean(plain)} "
        f"({wording.size(redrawn['stored_bytes'])} and {mean(redrawn)} with IteRand, which of them is "
        "better is undecided), against "
        f"{wording.size(dense['stored_bytes'])} of float32"
    ) in text
    assert "95% intervals" in text


def test_the_sentence_about_training_on_is_of_the_results():
    ours = row("transfer", "fashion_mnist/conv_small=2/then=adamw", "fgmt")
    assert f"still ahead of it, by {gain(ours)} points" in " ".join(README.split())


ELSEWHERE = {
    ("fewshot.md", "[58.3, 70.4]"): "photographs, by the commands that stand there",
    ("fewshot.md", "[57.1, 69.2]"): "photographs, by the commands that stand there",
    ("symmetry.md", "[-0.006, 0.011]"): "a pilot of the start of `match`",
}
"""Intervals of the documentation that no results file holds, and where they come from."""


@cache
def intervals():
    """Return all intervals of all results: of rows, and those that claims speak of."""
    found = set()

    def walk(value):
        if isinstance(value, dict):
            for low, high in (("low", "high"), ("paired_low", "paired_high")):
                if value.get(low) is not None and value.get(high) is not None:
                    found.add((value[low], value[high]))
            value = list(value.values())
        if isinstance(value, list):
            for item in value:
                walk(item)
        elif isinstance(value, str):
            pairs = re.findall(r"\[(-?[\d.]+), (-?[\d.]+)\]", value)
            found.update((float(low), float(high)) for low, high in pairs)

    for file in RESULTS.glob("*.json"):
        walk(load_json(file, ours=True))
    return found


@pytest.mark.parametrize("page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))])
def test_every_interval_is_one_of_the_results(page):
    """A new measurement makes no sentence stale unnoticed; a loss may be written without its sign."""
    for text in re.findall(r"\[-?\d+\.\d+, -?\d+\.\d+\]", page.read_text().replace("−", "-")):
        low, high = map(float, text.strip("[]").split(", "))
        # Claims are rounded once already, to two digits.
        near = 0.5 * 10.0 ** -len(text.split(",")[0].partition(".")[2]) + 0.0051
        ends = [(low, high), (-high, -low)]
        known = (page.name, text) in ELSEWHERE or any(
            abs(x - a) <= near and abs(y - b) <= near for x, y in intervals() for a, b in ends
        )
        assert known, text


@pytest.mark.parametrize("file", sorted(RESULTS.glob("*.json")), ids=lambda f: f.stem)
def test_results_are_as_a_command_wrote_them(file):
    """Every committed file has the digest of its numbers: none was changed by hand."""
    assert load_json(file, ours=True)


@pytest.mark.parametrize("name", TABLES)
def test_pages_and_json_state_the_same_claims(name):
    data = load_json(RESULTS / f"{name}.json", ours=True)
    page = (ROOT / "docs" / "results" / f"{name}.md").read_text()
    states = {True: "held", False: "did not hold", None: "undecided"}
    for one in data["claims"]:
        claim = Claim(
            paper=one["paper"], held=one["held"], evidence=one["evidence"], note=one["note"]
        )
        claim.check(r["setting"] for r in data["rows"])
        assert one["state"] == claim.state == states[one["held"]]
        start = claim.to_markdown().split(" Evidence:")[0]
        assert (
            f"- **{start[4:].split(':**')[0]}:** {escape_markdown(claim.paper.rstrip('.'))}."
            in page
        )
    assert len(re.findall(r"^- \*\*(?:Held|Did not hold|Undecided):\*\* ", page, re.M)) == len(
        data["claims"]
    )


def test_the_quickstart_ends_as_its_results_do():
    for one in results("iterand_smoke"):
        low, high = one["low"], one["high"]
        accuracy = f"{one['mean']:.1f} [{low:.1f}, {high:.1f}]"
        (line,) = [line for line in README.splitlines() if line.startswith(f" {one['arm']} ")]
        assert accuracy in line
        assert line.split()[-2:] == wording.size(one["stored_bytes"]).split()


HEDGES = re.compile(r"\b([Uu]ndecided|not|no|nothing|neither|cannot|in the mean)\b")


def sentences(page):
    """Return the sentences of a page, without its tables and code."""
    text = re.sub(r"^```.*?^```|^\|.*?$", "", page.read_text(), flags=re.M | re.S)
    parts = re.split(r"\n\s*\n|\n(?=- )|(?<=[.!?;])\s+(?=\S)", text)
    return [" ".join(part.split()) for part in parts]


@pytest.mark.parametrize("page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))])
def test_an_interval_that_holds_zero_proves_nothing(page):
    """A sentence that states one says that it is undecided, or what is not shown."""
    for sentence in sentences(page):
        ends = re.findall(r"\[(-?\d+\.\d+), (-?\d+\.\d+)\]", sentence.replace("−", "-"))
        if any(float(low) <= 0 <= float(high) for low, high in ends):
            assert HEDGES.search(sentence), sentence


def test_counts_in_words_are_those_of_the_results():
    words = {3: "Three", 6: "Six", 8: "Eight", 10: "Ten"}
    text = " ".join(README.split())
    for name, setting, arm, metric, said in (
        ("iterand", "fashion_mnist/conv_small/uniform/width=1", "iterand", None, "weights, {} seeds"),
        ("frozen", "cora/full/gcn", "frozen", None, "float32 values, {} seeds"),
        ("merging", "mnist+fashion_mnist/mlp", "ste_full", None, "{} seeds, 95% intervals. Ten condensed"),
        ("transfer", "mnist/mlp=1024", "fgmt", "untrained_best_accuracy", "{} pairs of networks"),
        ("adarand", "emnist-to-mnist/shots=5", "adarand", None, "{} seeds, 95% intervals, every arm"),
        ("mgr", "mnist/50", "mgr", None, "{} seeds, against the baseline"),
    ):  # fmt: skip
        n = row(name, setting, arm, metric or "test_accuracy")["n"]
        assert any(said.format(count) in text for count in (n, words.get(n))), said
    assert len(results("architectures")) == 21
    for page in (README, (ROOT / "docs" / "symmetry.md").read_text()):
        assert "twenty-one architectures" in page.lower()
    (seconds,) = [r["seconds"] for r in results("architectures") if r["network"] == "ResNet-50"]
    assert f"ResNet-50 in {words[round(seconds)].lower()} seconds" in text


def test_the_table_of_the_guide_to_transfer_is_of_the_results():
    lines = (ROOT / "docs" / "transfer.md").read_text().splitlines()
    for start, setting in (
        ("| MNIST, perceptron 512-512 |", "mnist/mlp=512-512"),
        ("| MNIST, perceptron 1024, no biases |", "mnist/mlp=1024"),
        ("| Fashion-MNIST, three convolutions", "fashion_mnist/conv_small=2"),
    ):
        (line,) = [line for line in lines if line.startswith(start)]
        arms = ("naive", "initial_weights", "fgmt", "gmt", "oracle")
        found = [row("transfer", setting, arm, "untrained_best_accuracy")["mean"] for arm in arms]
        assert line.strip("|").replace(" ", "").split("|")[1:] == [f"{x:.1f}" for x in found]


DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "src").rglob("notes.md")),
]


@pytest.mark.parametrize("page", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_that_a_document_names_are_there(page):
    named = re.findall(r"\b(?:tests|benchmarks|examples|docs)/[\w./-]+\w", page.read_text())
    assert [n for n in named if "NAME" not in n and not (ROOT / n).exists()] == []


PAGES = sorted(RESULTS.glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_the_command_of_a_page_is_one_that_a_reader_can_give(page):
    (command,) = re.findall(
        r"^(?:- Command: )?`?((?:\w+ )?[\w/]+(?:\.py)?(?: \w+)* --[^`\n]*)", page.read_text(), re.M
    )
    assert command.startswith(("regraft reproduce ", "python benchmarks/"))
    assert " /" not in command


@pytest.mark.parametrize("file", sorted(RESULTS.glob("*.json")), ids=lambda f: f.stem)
def test_a_page_of_an_earlier_recipe_says_so(file):
    """A page either has every arm and seed of the recipe as it is, or begins with what it lacks."""
    data = load_json(file, ours=True)
    if "recipe" not in data:
        return
    recipe = load_recipe(data["recipe"], data["scale"])
    compared = Counter((j.setting, j.arm) for j in recipe.jobs if getattr(j, "control", None))
    measured = {(r["setting"], r["arm"]): r["n"] for r in data["rows"]}
    if any(
        measured.get(key) != n for key, n in compared.items() if not key[0].startswith(SELECTION)
    ):
        said = re.findall(r"^> .*", file.with_suffix(".md").read_text(), re.M)
        assert re.search("earlier version|settings of this scale", " ".join(said)), (
            "the recipe has other arms or seeds: say so at the head of the page, after '> '"
        )
