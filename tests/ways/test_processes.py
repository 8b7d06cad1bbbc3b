"""Two processes, DDP and FSDP2, with the gathered losses: the training of one process with the whole batch."""

import warnings
from dataclasses import asdict

import pytest
import torch
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.multiprocessing.spawn import ProcessRaisedException
from torch.nn.parallel import DistributedDataParallel

from tests import processes
from tests.ways import plain

SHARES = [torch.tensor([0, 2, 1]), torch.tensor([3])]  # rows of each process; image 0 and 1 are looks at one image
INSTANCES = torch.tensor([0, 0, 1, 2])


def gathered(loss):
    return type(loss)(weights=loss.weights, **{**asdict(loss.options), "gather": True})


def loss_of(result, labels, instances, *, gather, output):
    """Global and local contrast, and Dice where the output takes part."""
    make = gathered if gather else (lambda loss: loss)
    logits, features = result
    total = make(plain.GLOBAL)({name: features[name] for name in plain.GLOBAL.weights}, instances)
    total = total + make(plain.LOCAL)({name: features[name] for name in plain.LOCAL.weights}, labels)
    return total + make(plain.DICE)([logits], labels) if output else total


def train(model, rows, *, gather, output):
    steps = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
    for images, labels in plain.batches():
        steps.zero_grad()
        loss_of(model(images[rows]), labels[rows], INSTANCES[rows], gather=gather, output=output).backward()
        steps.step()


def compare(model, reference, name):
    mine = {key.removeprefix("module."): p for key, p in model.named_parameters()}
    fresh = plain.model()
    moved = 0
    for key, expected in reference.named_parameters():
        value = mine[key].full_tensor() if isinstance(mine[key], DTensor) else mine[key]
        torch.testing.assert_close(
            value, expected, rtol=1e-9, atol=1e-11, msg=lambda text, key=key: f"{name} {key}: {text}"
        )
        moved += not torch.equal(expected, fresh.get_parameter(key))
    assert moved > 10


def model():
    """In eval mode: batch normalisation is the one part that sees only its own process."""
    return plain.model().eval()


def work(rank):
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", message="Guards may run slower on Python 3.13.0")  # of torch's compiler
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")  # nobody writes into it
    images, labels = plain.batches()[0]
    for output in (True, False):
        reference, mine = model(), model()
        train(reference, torch.arange(4), gather=False, output=output)
        if not output:
            loss = loss_of(mine(images), labels, INSTANCES, gather=False, output=False)
            assert mine.freeze_unused(loss)
        wrapped = DistributedDataParallel(mine)
        train(wrapped, SHARES[rank], gather=True, output=output)
        compare(wrapped, reference, f"DDP, output={output}")
    sharded, reference = model(), model()
    train(reference, torch.arange(4), gather=False, output=True)
    for part in (*sharded.net.encoder.blocks, sharded.net.decoder, *sharded.heads.values(), sharded):
        fully_shard(part)
    train(sharded, SHARES[rank], gather=True, output=True)
    compare(sharded, reference, "FSDP2")


def test_two_processes_train_as_one(tmp_path):
    processes.run(work, 2, tmp_path)


def fail(rank):
    assert rank == 0, "the second process failed"


def test_a_failure_in_one_process_is_a_failure(tmp_path):
    with pytest.raises(ProcessRaisedException, match="the second process failed"):
        processes.run(fail, 2, tmp_path)
