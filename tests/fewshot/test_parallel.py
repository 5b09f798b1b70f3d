import torch
from two_fewshot_processes import gradients, learners, tasks, worker


def test_two_processes_have_the_gradient_of_one(tmp_path):
    torch.multiprocessing.spawn(worker, (str(tmp_path),), nprocs=2)
    for name, learner in learners().items():
        learner(tasks()).backward()
        one = gradients(learner)
        assert one
        for rank in (0, 1):
            two = torch.load(tmp_path / f"{name}-{rank}", weights_only=True)
            assert two.keys() == one.keys()
            for key, value in one.items():
                torch.testing.assert_close(two[key], value, rtol=0, atol=1e-12, msg=f"{name} {key}")
