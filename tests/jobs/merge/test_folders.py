"""The folder of a merge: one process at a time, and still readable by what read its models."""

import json

import pytest
import torch
from safetensors import safe_open

from regraft.cli.align import Align
from regraft.cli.merge import Merge
from regraft.errors import RegraftError


@pytest.fixture
def pair(tmp_path):
    """Two folders as `save_pretrained` writes them, with a tied head, in shards where told so."""
    transformers = pytest.importorskip("transformers")

    def call(shard="5GB"):
        config = transformers.GPT2Config(
            vocab_size=40, n_positions=16, n_embd=8, n_layer=1, n_head=2
        )
        models = []
        for seed in (1, 2):
            torch.manual_seed(seed)
            models.append(transformers.GPT2LMHeadModel(config))
            models[-1].save_pretrained(tmp_path / str(seed), max_shard_size=shard)
            (tmp_path / str(seed) / "tokenizer_config.json").write_text(f'{{"of": {seed}}}')
            (tmp_path / str(seed) / "trainer_state.json").write_text("{}")
        return models, (tmp_path / "1", tmp_path / "2")

    return call


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("shard", ["5GB", "3KB"])
def test_a_merge_of_hugging_face_folders_is_one(shard, stream, pair, tmp_path, capsys):
    import transformers

    models, paths = pair(shard)
    out = tmp_path / "out"
    assert Merge.of(checkpoints=paths, out=out, match="none", stream=stream, json=True).run() == 0
    card = json.loads(capsys.readouterr().out)
    loaded, info = transformers.GPT2LMHeadModel.from_pretrained(out, output_loading_info=True)
    assert not any(info.values())
    states = [model.state_dict() for model in models]
    for name, tensor in loaded.state_dict().items():
        torch.testing.assert_close(tensor, (states[0][name] + states[1][name]) / 2)
    assert (out / "config.json").read_bytes() == (paths[0] / "config.json").read_bytes()
    assert json.loads((out / "tokenizer_config.json").read_text()) == {"of": 1}
    assert not (out / "trainer_state.json").exists()
    weights = {p.name for p in out.glob("model*")}
    assert weights == {p.name for p in paths[0].glob("model*")}
    assert (len(weights) > 2) is (shard == "3KB")
    assert weights | {"config.json", "tokenizer_config.json"} <= set(card["files"])
    for file in out.glob("*.safetensors"):
        with (
            safe_open(file, framework="pt") as opened,
            safe_open(paths[0] / file.name, framework="pt") as first,
        ):
            assert opened.metadata()["format"] == "pt"
            assert set(opened.keys()) == set(first.keys())
    # And the folder can be merged again.
    again = tmp_path / "again"
    assert Merge.of(checkpoints=(out, paths[1]), out=again, match="none", json=True).run() == 0


@pytest.mark.parametrize("verb", [Merge, Align])
def test_a_second_process_is_refused_whatever_the_moment(verb, pair, tmp_path, monkeypatch):
    from regraft.jobs.merge import verbs

    _, paths = pair()
    out, refused = tmp_path / "out", []
    (tmp_path / "spec.json").write_text("no spec")
    options = {"match": "none"} if verb is Merge else {"spec": tmp_path / "spec.json"}
    command = verb.of(checkpoints=paths, out=out, json=True, **options)

    def second():
        before = {p.name: p.stat().st_mtime_ns for p in out.iterdir()}
        with pytest.raises(RegraftError, match="is being written by another process: wait"):
            command.run()
        assert {p.name: p.stat().st_mtime_ns for p in out.iterdir()} == before
        refused.append(len(before))

    # A merge is interrupted at its end, an alignment that is going to be refused at its beginning.
    name = "card_of" if verb is Merge else "read_models"
    real = getattr(verbs, name)

    def at(*args, **more):
        monkeypatch.undo()
        second()
        return real(*args, **more)

    monkeypatch.setattr(verbs, name, at)
    if verb is Merge:
        assert command.run() == 0
    else:
        with pytest.raises(RegraftError, match="spec"):
            command.run()
        assert not out.exists()
    assert refused
