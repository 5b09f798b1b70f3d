from dataclasses import replace

import pytest
import torch

from checkpoints import digits
from regraft.config import OptimConfig
from regraft.jobs.transfer.config import TransferConfig
from regraft.jobs.transfer.engine import _chosen
from regraft.jobs.transfer.images import Images

SAME = "on the same {} images that the scores are of, which flatters them"


@pytest.mark.parametrize(
    ("missing", "text"),
    [
        ((), None),
        (("test",), SAME.format("validation")),
        (
            ("validation",),
            "digits has no validation images: the best step was chosen on training ones",
        ),
        (("test", "validation"), SAME.format("training")),
    ],
)
def test_what_choices_were_made_on_is_said_unless_they_were_made_apart(missing, text):
    splits = replace(digits(), **dict.fromkeys(missing))
    images = Images(splits, TransferConfig(), device=torch.device("cpu"), seed=0)
    note = images.note_on_choices(["the best step"])
    assert (note is None) == (text is None)
    assert text is None or text in note
    assert images.note_on_choices([]) is None
    both = images.note_on_choices(["the best step", "the best epoch"])
    assert text is None or "the best step and the best epoch were chosen on" in both


def test_what_is_chosen_is_a_step_or_an_epoch_or_nothing():
    class Networks:
        images = trained = None

    def chosen(**options):
        return _chosen(Networks(), TransferConfig(controls=False, **options))

    last, best = OptimConfig(), OptimConfig(select="best")
    assert chosen(match="fgmt") == ["the best step"]
    assert chosen(match="fgmt", then=best) == ["the best step", "the best epoch"]
    assert chosen(match="scratch", then=best) == ["the best epoch"]
    assert chosen(match="scratch", then=last) == []
