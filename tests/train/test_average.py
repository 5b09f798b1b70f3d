import copy

import pytest
import torch
from training import Stop, equal, network, runtime, stop_at, train

from regraft.config import OptimConfig
from regraft.errors import InputError
from regraft.train import Average, finished_state, load_state


def moved(model, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point():
                value.add_(torch.randn(value.shape, generator=generator))
            else:
                value.add_(1)


def test_it_is_the_recursion_written_out():
    model = network()
    average = Average(model, decay=0.6)
    wanted = copy.deepcopy(model.state_dict())
    for step in range(1, 9):
        moved(model, step)
        average.step()
        decay = min(0.6, (1 + step) / (10 + step))
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                wanted[name] = decay * wanted[name] + (1 - decay) * value
            else:
                wanted[name] = value.clone()
    assert average.averaged().keys() == wanted.keys()
    for name, value in average.averaged().items():
        torch.testing.assert_close(value, wanted[name])


def test_it_is_in_the_network_only_while_applied():
    model = network()
    average = Average(model, decay=0.9)
    moved(model, 1)
    average.step()
    before = copy.deepcopy(model)

    def interrupted():
        with average.applied():
            state = model.state_dict()
            assert all(torch.equal(v, average.averaged()[k]) for k, v in state.items())
            assert not equal(model, before)
            raise Stop

    with pytest.raises(Stop):
        interrupted()
    assert equal(model, before)


@pytest.mark.parametrize("decay", [-0.1, 1.0, float("nan")])
def test_a_decay_out_of_range_is_refused(decay):
    with pytest.raises(InputError, match=r"ema=.*\[0, 1\)"):
        Average(network(), decay=decay)


@pytest.mark.parametrize("select", ["last", "best"])
def test_the_averaged_network_is_what_is_evaluated_and_left(tmp_path, select):
    optim = OptimConfig(lr=0.3, epochs=3, schedule="cosine", select=select)
    model = network()
    average = Average(model, decay=0.5)
    result = train(tmp_path / "run", model, optim=optim, average=average)
    plain = network()
    other = train(tmp_path / "plain", plain, optim=optim)
    assert not equal(model, plain)
    assert result["metrics"] != other["metrics"]
    stored = finished_state(load_state(tmp_path / "run" / "checkpoint.safetensors"))
    assert all(torch.equal(v, stored[k]) for k, v in model.state_dict().items())
    if select == "last":
        assert all(torch.equal(v, average.averaged()[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("select", ["last", "best"])
@pytest.mark.parametrize("step", [1, 5, 12, 15])
def test_a_run_with_an_average_goes_on_with_the_same_bits(tmp_path, step, select):
    optim = OptimConfig(lr=0.3, epochs=3, schedule="cosine", select=select)

    def run(name, **more):
        model = network()
        found = train(
            tmp_path / name, model, optim=optim, average=Average(model, decay=0.8), **more
        )
        return model, found["metrics"]

    whole, metrics = run("whole")
    with pytest.raises(Stop):
        run("run", progress=stop_at(step), run=runtime(checkpoint_seconds=0.0))
    again, found = run("run")
    assert equal(whole, again)
    assert found == metrics
