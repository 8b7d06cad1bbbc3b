"""`gather=True` in several processes is the loss and the gradient of one process with the whole batch.

The processes are started once for each number of them, and work through all cases.
"""

import warnings
from contextlib import nullcontext
from functools import partial

import pytest
import torch
import torch.distributed as dist

from mmgl_losses import DeepSupervisionDice, MultiScaleGlobalContrast, MultiScaleLocalSupCon
from mmgl_losses.distributed import COMPILES, gather, own_numbers, total
from tests import processes
from tests.problems import IMPLEMENTATIONS

# Rows of each process: alike, uneven, one without any.
SPLITS = {2: [(4, 4), (6, 2), (0, 4)], 4: [(2, 2, 2, 2), (4, 2, 6, 2), (2, 0, 4, 2)]}
GLOBAL = {"weights": (0.2, 0.3, 0.0, 0.5), "temperature": 0.3}
LOCAL = {"weights": (0.4, 0.6), "temperature": 0.3}
DICE = {"weights": (0.4, 0.6), "smooth": 0.1}


def random(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def embeddings(rows):
    return [random(rows, 5), random(rows, 5), torch.full((rows, 5), torch.nan), random(rows, 3)]


def halves(split):
    """What the default instances stand for: in each process two halves, of images that no other process has."""
    ids = [1000 * rank + torch.arange(rows // 2).repeat(2) for rank, rows in enumerate(split)]
    return torch.cat(ids)


def maps(rows):
    """Features or logits of two levels: more than two points of each label, and sizes that need resampling."""
    return [random(rows, 3, 2, 3), random(rows, 3, 4, 4)]


def labels(rows, split):
    """Labels of which the second process has but one point that is not 2, so no valid anchor if 2 is left out."""
    values = torch.randint(0, 3, (rows, 8, 8))
    values[split[0] : split[0] + split[1]] = 2
    return values


def cases(split):
    """(name, make the loss from `gather`, levels, other inputs with rows, the same for the whole batch)."""
    rows = sum(split)
    for formula in ("nt_xent", "decoupled", "mmgl"):
        make = partial(MultiScaleGlobalContrast, formula=formula, **GLOBAL)
        yield f"global {formula}", make, embeddings(rows), (), (halves(split),)
    for impl in IMPLEMENTATIONS:
        across = torch.randint(0, 3, (rows,))  # images with augmentations in several processes
        across[: split[0]] = torch.arange(10, 10 + split[0])  # the first process has no valid anchor
        make = partial(MultiScaleGlobalContrast, impl=impl, **GLOBAL)
        yield f"global across {impl}", make, embeddings(rows), (across,), (across,)
    positions = torch.arange(rows) / 4
    make = partial(MultiScaleGlobalContrast, tolerance=0.25, **GLOBAL)
    yield "global tolerance", make, embeddings(rows), (positions,), (positions,)
    yield "global, no valid anchor anywhere", make, embeddings(rows), (4 * positions,), (4 * positions,)
    y = labels(rows, split)
    for pairs in ("image", "batch"):
        for options in (
            {},
            {"background": "key", "formula": "mmgl"},
            {"background": "ignore", "formula": "supcon_in"},
            {"ignore_index": 2, "sampling": "foreground", "stride": 2},
            {"ignore_index": 2, "background": "key", "impl": "tiled"},
        ):
            make = partial(MultiScaleLocalSupCon, pairs=pairs, **options, **LOCAL)
            yield f"local {pairs} {options}", make, maps(rows), (y,), (y,)
    for options in (
        {},
        {"cross_entropy": 0.4, "ignore_index": 2},
        {"batch": False, "cross_entropy": 0.4, "ignore_index": 2},
        {"batch": False, "include_background": False, "squared": True},
        {"ignore_index": 2, "smooth": 0.0},
        {"cross_entropy": 0.7},  # every process has points, and uneven rows are uneven points
    ):
        make = partial(DeepSupervisionDice, **{**DICE, **options})
        yield f"dice {options}", make, maps(rows), (y,), (y,)


def value_and_gradients(loss, levels, rest):
    levels = [level.clone().requires_grad_() for level in levels]
    value = loss(levels, *rest)
    assert value.requires_grad
    return value.detach(), [
        torch.zeros_like(level) if gradient is None else gradient
        for level, gradient in zip(levels, torch.autograd.grad(value, levels, allow_unused=True), strict=True)
    ]


def check(name, make, split, levels, rest, whole, *, compiled=False):
    """The mean over processes, and of the gradients what DDP makes of them, against one process."""
    rank, world = dist.get_rank(), len(split)
    rows = slice(sum(split[:rank]), sum(split[: rank + 1]))
    loss = make(gather=True)
    if compiled:
        torch.compiler.reset()
        loss = torch.compile(loss, fullgraph=True, backend="aot_eager")
    value, gradients = value_and_gradients(loss, [x[rows] for x in levels], [x[rows] for x in rest])
    dist.all_reduce(value)
    expected, whole_gradients = value_and_gradients(make(), levels, whole)
    close = partial(torch.testing.assert_close, rtol=1e-12, atol=1e-13, msg=lambda m: f"{split} {name}: {m}")
    close(value / world, expected)
    for mine, theirs in zip(gradients, whole_gradients, strict=True):
        close(mine / world, theirs[rows])


def check_keys(split):
    """Keys of a momentum encoder: those of every process."""
    rank, world, rows = dist.get_rank(), len(split), sum(split)
    own = slice(sum(split[:rank]), sum(split[: rank + 1]))
    x, keys, ids = [random(rows, 4)], [random(rows, 4)], torch.randint(0, 3, (rows,))
    make = partial(MultiScaleGlobalContrast, weights=(1.0,))
    mine = x[0][own].clone().requires_grad_()
    share = make(gather=True)([mine], ids[own], keys=[keys[0][own]], key_instances=ids[own])
    (gradient,) = torch.autograd.grad(share, mine)
    whole = x[0].clone().requires_grad_()
    expected = make()([whole], ids, keys=keys, key_instances=ids)
    torch.testing.assert_close(gradient / world, torch.autograd.grad(expected, whole)[0][own], rtol=1e-12, atol=1e-13)
    value = share.detach()
    dist.all_reduce(value)
    torch.testing.assert_close(value / world, expected.detach(), rtol=1e-12, atol=0)


def check_each(split):
    """Without reduction a process has the losses of its own rows, as they are in the whole batch."""
    rank, rows = dist.get_rank(), sum(split)
    own = slice(sum(split[:rank]), sum(split[: rank + 1]))
    ids, y = torch.randint(0, 3, (rows,)), labels(rows, split)
    for make, levels, rest in (
        (partial(MultiScaleGlobalContrast, **GLOBAL), embeddings(rows), ids),
        (partial(MultiScaleLocalSupCon, ignore_index=2, pairs="image", **LOCAL), maps(rows), y),
        (partial(MultiScaleLocalSupCon, background="key", pairs="batch", **LOCAL), maps(rows), y),
    ):
        found = []
        for gathered, part in ((True, own), (False, slice(None))):
            leaves = [x[part].clone().requires_grad_() for x in levels]
            losses = list(make(gather=gathered, reduction="none")(leaves, rest[part]).values())
            gradients = torch.autograd.grad(sum(x.nansum() for x in losses), leaves, allow_unused=True)
            found.append((losses, [g for g in gradients if g is not None]))
        for mine, whole in zip(*(losses + gradients for losses, gradients in found), strict=True):
            torch.testing.assert_close(mine, whole[own], rtol=1e-12, atol=1e-13, equal_nan=True)


def check_trained_temperature(split):
    """A temperature is one parameter in all processes: its gradient is averaged as DDP does it."""
    from mmgl_losses.functional import global_contrast

    rank, rows = dist.get_rank(), sum(split)
    x = random(rows, 4)
    grads = []
    for gathered in (True, False):
        own = slice(sum(split[:rank]), sum(split[: rank + 1])) if gathered else slice(None)
        temperature = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
        loss = global_contrast(x[own], halves(split)[own], temperature=temperature, gather=gathered)
        grads.append(torch.autograd.grad(loss, temperature)[0])
    dist.all_reduce(grads[0])
    torch.testing.assert_close(grads[0] / len(split), grads[1], rtol=1e-12, atol=0)


def check_primitives(split):
    """Rows of every process, its own first; types as they were."""
    rank, world = dist.get_rank(), len(split)
    ids = own_numbers(split[rank], torch.device("cpu"))
    rows, mask = gather(ids, ids % 2 == 0)
    assert rows[: split[rank]].tolist() == ids.tolist()
    assert sorted(rows.tolist()) == sorted(k * world + r for r in range(world) for k in range(split[r]))
    assert mask.dtype == torch.bool
    assert torch.equal(mask, rows % 2 == 0)
    assert total(torch.tensor([rank, 1])).tolist() == [world * (world - 1) // 2, world]


def work(rank):
    world = dist.get_world_size()
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", message="Guards may run slower on Python 3.13.0")  # of torch's compiler
    for number, split in enumerate(SPLITS[world]):
        torch.manual_seed(number)
        for name, make, levels, rest, whole in cases(split):
            check(name, make, split, levels, rest, whole)
        check_keys(split)
        check_each(split)
        check_trained_temperature(split)
        check_primitives(split)
    for number, (name, make, levels, rest, whole) in enumerate(cases(SPLITS[world][1])):
        if world == 2 and number in (0, 14, 18):
            with (
                nullcontext()
                if COMPILES or name.startswith("dice")
                else pytest.raises(Exception, match="Expected torch 2.13 or newer where")
            ):
                check(f"compiled {name}", make, SPLITS[world][1], levels, rest, whole, compiled=True)


@pytest.mark.parametrize("world", [2, 4])
def test_processes_are_one(world, tmp_path):
    processes.run(work, world, tmp_path)


def test_without_a_process_group_it_is_the_loss_of_one_process():
    torch.manual_seed(0)
    for name, make, levels, rest, _ in cases((4, 4)):
        value, gradients = value_and_gradients(make(gather=True), levels, rest)
        expected, others = value_and_gradients(make(), levels, rest)
        assert torch.equal(value, expected), name
        assert all(map(torch.equal, gradients, others)), name
