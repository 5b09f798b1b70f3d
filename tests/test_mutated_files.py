"""Files of every format with bytes changed, cut, doubled and added: refused in our words, or as before.

`REGRAFT_MUTATIONS=2000` tries that many for each format instead of the share of every run of the tests.
"""

import json
import os
import random
import resource

import pytest
import torch
from foreign_generators import digits
from networks import conv_net
from safetensors.torch import save_file
from searches import search

from regraft.checkpoints.read import read_checkpoint
from regraft.checkpoints.stream import write_stream
from regraft.errors import RegraftError
from regraft.files import write_json, write_tensors
from regraft.generators.condensed_set import CondensedSet
from regraft.generators.sources import CachedBank, ModuleSource
from regraft.generators.sources.bank import write_bank
from regraft.jobs.predict.used_images import Seen
from regraft.recipes.again import read_committed
from regraft.report.card import ResultCard, read_card, write_card
from regraft.report.runs import read_run
from regraft.symmetry import PermutationSpec, TrajectoryRecorder
from regraft.symmetry.spec.group import Group, Site
from regraft.symmetry.transfer.recorded import read_index
from regraft.tickets import gather, load_ticket
from regraft.tickets.file.packed import write_ticket
from regraft.tickets.file.unpacked import read_unpacked, write_unpacked
from regraft.tickets.quantise import load_quantised, quantise, save_quantised
from regraft.train import RunFolder, read_json
from regraft.train.checkpoint import load_state, save_state

COUNT = int(os.environ.get("REGRAFT_MUTATIONS", "40"))
MOST_MEMORY = 1 << 30
"""Bytes that reading a small file may take at most, as docs/runs.md says."""

STATE = {"a.weight": torch.arange(24.0).reshape(4, 6), "a.bias": torch.ones(4)}
ABOUT = {
    "model": {"name": "conv4", "width": 0.5, "options": {}},
    "input": {"channels": 3, "image_size": 8},
    "classes": ["a", "b"],
}


def model(folder):
    write_tensors(folder / "f", STATE, {"regraft.model": json.dumps(ABOUT), "format": "pt"})
    return folder / "f", lambda p: dict(read_checkpoint(p))


def streamed(folder):
    write_stream(folder / "f", STATE, STATE.items(), {"regraft.model": json.dumps(ABOUT)})
    return folder / "f", lambda p: dict(read_checkpoint(p))


def training(folder):
    save_state(folder / "f", {"model": STATE, "step": 3, "losses": [0.5, 0.25]})
    return folder / "f", load_state


def condensed(folder):
    images = torch.linspace(0, 1, 96).reshape(4, 1, 4, 6)[..., :4].contiguous()
    labels = torch.tensor([0, 0, 1, 1])
    CondensedSet(images, labels, ("a", "b"), (0.5,), (0.2,), "dsa", {}).save(folder / "f")

    def read(path):
        got = CondensedSet.load(path)
        return {"images": got.images, "labels": got.labels, "rest": (got.classes, got.mean)}

    return folder / "f", read


def quantised(folder):
    save_quantised(folder / "f", quantise(conv_net(), 4))
    return folder / "f", lambda p: vars(load_quantised(p))


def ticket(folder):
    write_ticket(folder / "f", gather(search()))
    return folder / "f", lambda p: load_ticket(p).state


def unpacked(folder):
    write_unpacked(folder / "t", gather(search()))
    return folder / "t" / "ticket.json", lambda p: read_unpacked(p.parent) and None


def theirs(folder):
    save_file(STATE, folder / "f")
    return folder / "f", lambda p: read_checkpoint(p) and None


def pickled(folder):
    torch.save({"state_dict": STATE, "epoch": 3}, folder / "f.pth.tar")
    return folder / "f.pth.tar", lambda p: read_checkpoint(p) and None


def shards(folder):
    save_file({"a.bias": STATE["a.bias"]}, folder / "m-1.safetensors")
    index = {"metadata": {}, "weight_map": {"a.bias": "m-1.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder / "model.safetensors.index.json", lambda p: read_checkpoint(p) and None


def specification(folder):
    index = torch.arange(6).reshape(1, 6, 1)
    group = Group("units", 6, (Site("w", 0, index), Site("b", 0, index)))
    spec = PermutationSpec({"units": group}, {"w": (6, 3), "b": (6,)})
    (folder / "f").write_text(spec.to_json())
    return (
        folder / "f",
        lambda p: PermutationSpec.from_json(p.read_text("utf-8", "replace")).to_json(),
    )


def _run(folder):
    config = {"data": {"name": "digits"}, "rate": 0.1}
    with RunFolder(folder, config=config, setting="s", arm="a", seed=1) as run:
        run.log({"split": "train", "step": 1, "loss": 0.5})
        run.finish({"metrics": {"test_accuracy": 90.5}, "seconds": 1.5, "stored_bytes": 12})


def run_config(folder):
    _run(folder)
    return folder / "regraft.json", lambda p: read_run(p.parent)


def run_result(folder):
    _run(folder)
    return folder / "result.json", lambda p: read_run(p.parent)


def run_metrics(folder):
    _run(folder)
    return folder / "metrics.jsonl", lambda p: read_run(p.parent)


def environment(folder):
    _run(folder)
    return folder / "environment.json", lambda p: read_run(p.parent)


def pinned(folder):
    """What a job keeps as JSON beside its result: data.json, search.json, choice.json, evaluation.json."""
    write_json(folder / "search.json", {"chosen": {"lr": 0.01}, "trials": [{"accuracy": 91.25}]})
    return folder / "search.json", read_json


def resumed_metrics(folder):
    """The metrics of a run that was killed after a checkpoint."""
    with RunFolder(folder, config={"a": 1}, setting="s", arm="a", seed=1) as run:
        for step in range(3):
            run.log({"split": "train", "step": step, "loss": 0.5 + step})
        run.save_checkpoint({"length": run.sync_metrics()})

    def read(path):
        with RunFolder(folder, config={"a": 1}, setting="s", arm="a", seed=1) as run:
            run.truncate_metrics(run.load_checkpoint()["length"])
        return path.read_bytes()

    return folder / "metrics.jsonl", read


def split(folder):
    with RunFolder(folder, config={}, arm="a", seed=1) as run:
        (folder / "split.csv").write_text("image,class,split\na/1.png,a,train\na/2.png,a,test\n")
        run.finish({"metrics": {}, "seconds": 1.5})
    return folder / "split.csv", lambda p: Seen.of(p.parent / "model.safetensors").rows


def committed(folder):
    """Results of a recipe as they are committed."""
    rows = [
        {"setting": "s", "arm": "a", "metric": "test_accuracy", "mean": 90.5, "values": {"1": 90.5}}
    ]
    write_json(folder / "tiny.json", {"recipe": "tiny", "scale": "cpu", "rows": rows}, indent=1)
    return folder / "tiny.json", lambda p: read_committed(p, "tiny")


def card(folder):
    write_card(folder, ResultCard(kind="merge", title="A merge", lines=["It was merged."]))
    return folder / "card.json", lambda p: read_card(p.parent).to_json()


def bank(folder):
    source = ModuleSource(digits(), classes=10)
    write_bank(source, folder, count=20, seed=1)
    return folder / "images.npy", lambda p: CachedBank(p.parent).pixels.clone()


def bank_labels(folder):
    return bank(folder)[0].with_name("labels.npy"), lambda p: CachedBank(p.parent).notes


def trajectory(folder):
    network = torch.nn.Linear(3, 2)
    recorder = TrajectoryRecorder(folder, network)
    recorder.step()
    return folder / "index.json", lambda p: read_index(p.parent)


FORMATS = (
    model, streamed, training, condensed, quantised, ticket, unpacked, theirs, pickled, shards,
    specification, run_config, run_result, run_metrics, environment, pinned, resumed_metrics, split, card,
    trajectory, bank, bank_labels, committed,
)  # fmt: skip

WORDS = (
    b"null", b"-1", b"1e999", b"9" * 400, b"[" * 5000, b"{}", b'"\\ud800"', b"NaN", b"true", b"[]",
    b"281474976710656", b'"../../x"', b"\x1b[31m", b"0.5", b"\xff\xfe",
)  # fmt: skip


def mutated(chance, data):  # noqa: PLR0911
    kind = chance.randrange(7)
    at, n = chance.randrange(len(data)), chance.randint(1, 40)
    if kind == 0:
        return data[:at]
    if kind == 1:
        return data[:at] + data[at + n :]
    if kind == 2:
        return data[:at] + chance.randbytes(n) + data[at + n :]
    if kind == 3:
        return data[:at] + data[at : at + n] + data[at:]
    if kind == 4:
        return data + chance.randbytes(n)
    if kind == 5:
        # A number or a word of JSON becomes something that a reader may not expect there.
        ends = [i for i, c in enumerate(data) if c in b":,[ "] or [at]
        start = chance.choice(ends) + 1
        stop = next((i for i in range(start, len(data)) if data[i] in b",]}\n"), len(data))
        return data[:start] + chance.choice(WORDS) + data[stop:]
    out = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 8))):
        out[chance.randrange(len(out))] ^= 1 << chance.randrange(8)
    return bytes(out)


def same(a, b):
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.mark.parametrize(
    "form",
    [run_config, run_result, run_metrics, environment, pinned, resumed_metrics, split, card,
     trajectory, specification, unpacked, committed],
    ids=lambda form: form.__name__,
)  # fmt: skip
def test_a_changed_digit_is_refused(form, tmp_path):
    file, read = form(tmp_path)
    read(file)
    whole = file.read_bytes()
    ends = whole.find(b"regraft.digest") if file.suffix == ".json" else len(whole)
    digits = [i for i in range(max(ends, 0) or len(whole)) if whole[i : i + 1].isdigit()]
    assert digits
    for i in digits:
        other = whole[:i] + b"%d" % (int(whole[i : i + 1]) % 9 + 1) + whole[i + 1 :]
        if file.suffix == ".json" and json.loads(other) == json.loads(whole):
            continue  # the last digit of a float, which is the same number
        file.write_bytes(other)
        with pytest.raises(RegraftError, match=r"not as Regraft wrote it|another run"):
            read(file)


def test_an_unpacked_ticket_may_be_changed_by_who_takes_its_digest_out(tmp_path):
    file, _ = unpacked(tmp_path)
    header = json.loads(file.read_text())
    header.pop("regraft.digest")
    header["about"] = {"note": "mine"}
    file.write_text(json.dumps(header))
    assert read_unpacked(file.parent).about == {"note": "mine"}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("form", FORMATS, ids=[f.__name__ for f in FORMATS])
def test_a_mutated_file_is_refused_in_our_own_words_or_reads_as_before(form, tmp_path):
    chance = random.Random(form.__name__)
    file, read = form(tmp_path)
    whole = file.read_bytes()
    expected = read(file)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(COUNT):
        data = mutated(chance, whole)
        file.write_bytes(data)
        try:
            got = read(file)
        except RegraftError:
            continue
        assert same(expected, got), data
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown << 10 < MOST_MEMORY
