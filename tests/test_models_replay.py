"""Passes that begin in the middle give what whole passes give, and divergences are exact."""

import math

import pytest
import torch
from torch import nn

from precision_explorer.models.replay import Replay, find_blocks, kl_nats
from tests.test_formats_apply import bert, llama

IDS = torch.arange(12).reshape(2, 6)
LAYERS = [f"model.layers.{i}.mlp.up_proj" for i in (0, 1)]


@pytest.fixture(autouse=True)
def inference():
    with torch.inference_mode():
        yield


def passes(model):
    return [lambda row=row: model(row[None]).logits[0] for row in IDS]


def test_the_stack_of_blocks_is_found():
    assert find_blocks(llama(True), LAYERS)[0] == "model.layers"
    name = "bert.encoder.layer.1.output.dense"
    assert find_blocks(bert(), [name])[0] == "bert.encoder.layer"
    assert find_blocks(nn.Sequential(nn.Linear(2, 2)), ["0"]) is None


def test_a_pass_begun_at_the_changed_block_is_a_whole_one():
    model = llama(True).eval()
    replay = Replay(model, passes(model), LAYERS)
    assert replay.shortcut
    assert replay.kl([LAYERS[1]]) == 0
    with torch.no_grad():
        model.get_submodule(LAYERS[1]).weight.mul_(1.5)
    begun = list(replay.run([LAYERS[1]]))
    assert all(torch.equal(a, one()) for a, one in zip(begun, passes(model), strict=True))
    assert replay.kl([LAYERS[1]]) > 0


def test_blocks_before_the_changed_one_are_not_run():
    model = llama(True).eval()
    replay = Replay(model, passes(model), LAYERS)
    ran = []
    for i, block in enumerate(model.model.layers):
        block.mlp.register_forward_hook(lambda *given, i=i: ran.append(i))
    list(replay.run([LAYERS[1]]))
    assert ran == [1, 1]
    ran.clear()
    list(replay.run(LAYERS))
    assert ran == [0, 1, 0, 1]
    # A layer outside the stack: everything after it may have changed.
    ran.clear()
    list(replay.run(["lm_head"]))
    assert ran == [0, 1, 0, 1]


class Leaky(nn.Module):
    """Blocks that hand something on behind each other's back."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(4))
        self.seen = 0.0

    def forward(self, x):
        self.seen = 0.0
        for block in self.blocks:
            y = block(x)
            self.seen = self.seen + block.forward(x).sum() * 0.1
            x = y + self.seen
        return x


def test_a_model_whose_blocks_see_more_than_outputs_gets_whole_passes():
    torch.manual_seed(0)
    model = Leaky().eval()

    class Counting(nn.Linear):
        def forward(self, x):
            model.seen = model.seen + 1.0
            return super().forward(x)

    for i in range(4):
        model.blocks[i] = Counting(4, 4)
    x = torch.randn(3, 4)
    replay = Replay(model, [lambda: model(x)], [f"blocks.{i}" for i in range(4)])
    assert not replay.shortcut
    assert torch.equal(next(iter(replay.run(["blocks.3"]))), model(x))


def test_divergence_by_hand():
    p, q = torch.tensor([[0.5, 0.25, 0.25]]), torch.tensor([[0.25, 0.5, 0.25]])
    expected = 0.5 * math.log(2) + 0.25 * math.log(0.5)
    assert float(kl_nats(p.log(), q.log() + 7.0)) == pytest.approx(expected, rel=1e-6)


def test_small_divergences_are_not_lost_in_float32():
    """Second order: half of the variance of the difference under p."""
    generator = torch.Generator().manual_seed(0)
    scores = 10 * torch.randn(8, 5000, generator=generator)
    step = 1e-4 * torch.randn(8, 5000, generator=generator)
    p = scores.double().softmax(-1)
    mean = (p * step).sum(-1, keepdim=True)
    expected = 0.5 * (p * (step - mean) ** 2).sum(-1)
    found = kl_nats(scores.log_softmax(-1), scores.double() + step)
    assert torch.allclose(found, expected, rtol=0.05, atol=0)


def test_divergence_of_what_has_no_mass_is_finite():
    p = torch.tensor([[0.0, -200.0]]).log_softmax(-1)
    assert math.isfinite(float(kl_nats(p, torch.tensor([[0.0, 0.0]]))))
