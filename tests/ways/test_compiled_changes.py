"""What changes from step to step under ``torch.compile(fullgraph=True)``: a last, smaller batch, a number on a schedule."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from mmgl_losses import DeepSupervisionDice, MultiScaleGlobalContrast, MultiScaleLocalSupCon
from mmgl_losses.functional import global_contrast, local_supcon, pair_terms, soft_dice


def levels(batch, channels=4, sizes=(4, 8, 16)):
    return [torch.randn(batch, channels, size, size, requires_grad=True) for size in sizes]


def labels(batch, size=32, classes=4):
    return torch.randint(classes, (batch, size, size))


def rows(n, width=5):
    return torch.randn(n, width, requires_grad=True)


GLOBAL, LOCAL, DICE = MultiScaleGlobalContrast(), MultiScaleLocalSupCon(), DeepSupervisionDice()
BATCHES = {
    "local_supcon": (local_supcon, lambda b: (levels(b)[1], labels(b))),
    "local_supcon, every option": (
        lambda x, y: local_supcon(
            x, y, pairs="batch", background="key", ignore_index=3, stride=2, sampling="foreground", formula="mmgl"
        ),
        lambda b: (levels(b)[1], labels(b)),
    ),
    "local_supcon of augmentations": (
        lambda x, y: local_supcon(x, y, pairs="augmentations"),
        lambda b: (levels(2 * b)[1], labels(2 * b)),
    ),
    "global_contrast": (global_contrast, lambda b: (rows(2 * b),)),
    "global_contrast with keys": (
        lambda x, i, k, j: global_contrast(x, i, keys=k, key_instances=j),
        lambda b: (rows(b), torch.arange(b), rows(7).detach(), torch.arange(7)),
    ),
    "soft_dice": (soft_dice, lambda b: (levels(b)[1], labels(b))),
    "MultiScaleGlobalContrast": (lambda *x: GLOBAL(x), lambda b: [rows(2 * b) for _ in range(3)]),
    "MultiScaleLocalSupCon": (lambda y, *x: LOCAL(x, y), lambda b: (labels(b), *levels(b))),
    "DeepSupervisionDice": (lambda y, *x: DICE(x, y), lambda b: (labels(b), *levels(b))),
}
NUMBERS = {
    "local_supcon": (lambda x, y, t: local_supcon(x, y, temperature=t), lambda: (levels(2)[1], labels(2))),
    "global_contrast": (lambda x, t: global_contrast(x, temperature=t), lambda: (rows(8),)),
    "soft_dice": (lambda x, y, t: soft_dice(x, y, cross_entropy=t), lambda: (levels(2)[1], labels(2))),
    "pair_terms": (
        lambda x, i, t: pair_terms(x, i, temperature=t, tolerance=1.0, bound=20.0).negative_lse.sum(),
        lambda: (rows(9).detach().double().requires_grad_(), torch.arange(9)),
    ),
}


def outcome(function, arguments):
    value = function(*arguments)
    trained = [x for x in arguments if isinstance(x, torch.Tensor) and x.requires_grad]
    return value.detach(), *torch.autograd.grad(value, trained)


ALL_SYMBOLS = ["local_supcon", "global_contrast", "soft_dice"]  # every size a symbol from the first step on


@pytest.mark.parametrize(
    ("name", "dynamic"), [*((name, None) for name in BATCHES), *((name, True) for name in ALL_SYMBOLS)]
)
def test_a_last_smaller_batch(name, dynamic):
    function, make = BATCHES[name]
    torch.compiler.reset()
    compiled = torch.compile(function, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for batch in (4, 3, 1):
        arguments = make(batch)
        torch.testing.assert_close(outcome(compiled, arguments), outcome(function, arguments))


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_on_a_schedule_compiles_twice_at_most(name):
    function, make = NUMBERS[name]
    torch.compiler.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(function, fullgraph=True, backend=counter)
    arguments = make()
    for number in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9):
        given = (*arguments, number)
        torch.testing.assert_close(outcome(compiled, given), outcome(function, given))
    assert counter.frame_count <= 2
