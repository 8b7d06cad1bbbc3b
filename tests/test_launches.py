"""How many kernels a loss launches on a GPU, held as an upper bound: `benchmarks.launches` counts without one."""

import pytest
import torch

from benchmarks.launches import cases, counting, launches, maps
from mmgl_losses.functional import local_supcon

# Every case that the command lists. Beside the four kernels stands the start of the gradient, a fill; more than a few
# points are sorted by torch; labels of another size, masks, levels and weights of levels are operations of torch.
MOST = {
    "local supcon, 40²": 5, "local supcon_in, 40²": 5, "local mmgl, 40²": 5, "local, 40², float32": 5,
    "local, 40², labels of 160²": 6, "local, 40², ignore_index": 10,
    "local supcon, 80²": 12, "local supcon_in, 80²": 12, "local mmgl, 80²": 12, "local, 80², labels of 160²": 13,
    "global, one level": 7, "global module, three levels": 14, "local module, three levels": 18,
}  # fmt: skip


def test_no_more_launches_than_written_down():
    """Whatever waits for the device fails: there are no numbers to read, and a copy from the CPU is refused."""
    found = {name: count.total() for name, count in cases()}
    assert found == MOST


@pytest.mark.parametrize(
    "wait", [lambda x: x.item(), lambda x: x.nonzero(), lambda x: x.cpu(), lambda x: torch.ones(3).to(x.device)]
)
def test_what_waits_is_refused(wait):
    with pytest.raises((NotImplementedError, RuntimeError, AssertionError)), counting():
        wait(torch.empty((), device="meta"))


def test_what_is_counted():
    """Operations, those of the gradient, and the copy inside of a filled mask; no views, no new memory."""
    with counting() as found:
        x = torch.empty(4, 4, device="meta")
        (x.mT[1:] * 2).masked_fill(x[1:] > 0, 1.0)
    assert found == {"aten.mul": 1, "aten.gt": 1, "aten.masked_fill": 2}
    leaf = torch.empty(3, device="meta", requires_grad=True)
    assert launches(lambda leaves: (leaves[0] * 2).sum(), [leaf]).total() == 4


def test_terms_take_more():
    """A formula of one's own is made of operations of torch."""
    labels = torch.empty((8, 40, 40), dtype=torch.int64, device="meta")
    found = launches(
        lambda x: local_supcon(x[0], labels, impl="fused", formula=lambda t: t.negative_lse), [maps(8, 64, (40, 40))]
    )
    assert found["rows"] == found["results"] == found["weigh"] == 1
    assert 20 < found.total() <= 64
