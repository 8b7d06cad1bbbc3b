r"""Losses across processes: the one module that touches collectives.

Each process returns its share of a global mean so that **the mean over processes is the loss of the whole batch**.
DDP and FSDP average the gradients of parameters over processes, and this is the same average, so their gradient is
exactly that of one process with the whole batch:

- *Sums*: a process returns ``world * local sum / global count``.
- *Keys from other processes*: the gradient that reaches a row is the sum, over the processes, of what their losses send
  it. The adjoint of gathering is that sum, with factor 1: the average that follows divides once, as it does for the
  anchors. (A factor ``1 / world`` here, or keys without a gradient, would be the gradient of something else.)

Numbers of rows may differ between processes, and may be 0. Every process must take part in the forward pass and in the
backward pass. Without a process group, or with one process, all of it is nothing: the loss is that of one process.
"""

import torch
import torch.distributed as dist
from torch import Tensor

from mmgl_losses.checks import message

# Older compilers refuse results of unknown size or, told to take them (`capture_dynamic_output_shape_ops`), compute
# something else.
COMPILES = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 13)


def world() -> int:
    """The number of processes; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def own_numbers(n: int, device: torch.device) -> Tensor:
    """`n` numbers that no other process has, int64 (n,): 0, 1, 2 ... in one process.

    Example:
        >>> own_numbers(3, torch.device("cpu"))
        tensor([0, 1, 2])
    """
    numbers = torch.arange(n, device=device)
    return numbers if world() == 1 else numbers * world() + dist.get_rank()


def total(x: Tensor) -> Tensor:
    """The sum of `x` over the processes, in each of them; gradients are summed over the processes too.

    Args:
        x: of the same shape in every process.

    Example:
        >>> total(torch.tensor([1.0, 2.0]))
        tensor([1., 2.])
    """
    return x if world() == 1 else _total(x)


def gather(*values: Tensor) -> tuple[Tensor, ...]:
    """Rows of every process, one below the other, this process's own first.

    The adjoint is exact: the gradient of a row is the sum of the gradients of its copies in all processes.

    Args:
        *values: each (n, ...), with n of this process in all of them; beyond n of the same shape and type in every
            process.

    Returns:
        Each (sum of all n, ...): rows 0 ... n - 1 are this process's own.

    Raises:
        NotImplementedError: in compiled code, with torch older than 2.13.

    Example:
        >>> rows, ids = gather(torch.zeros(3, 2), torch.arange(3))
        >>> rows.shape
        torch.Size([3, 2])
    """
    if world() == 1:
        return values
    if torch.compiler.is_compiling() and not COMPILES:
        _refuse()
    return tuple(_gather(list(values))[:-1])


def _refuse() -> None:
    cure = "Compile the network and call the loss outside of it, or update torch."
    expected = "torch 2.13 or newer where a loss with gather=True is compiled"
    raise NotImplementedError(message(expected, torch.__version__, cure))


# Called while it compiles: of an error in what is compiled, the message is lost. What `assume_constant_result` of
# torch.compiler does, without the compiler, which that imports.
_refuse._dynamo_marked_constant = True  # pyright: ignore[reportFunctionMemberAccess]


def gather_points(x: Tensor, ids: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Points (G, n, D) of every process with ids and mask (G, n), along the second axis, this process's own first."""
    ids = ids if ids.is_floating_point() else ids.long()  # one type in all processes
    values = [x, ids] if mask is None else [x, ids, mask]
    x, ids, *masks = (rows.movedim(0, 1) for rows in gather(*(value.movedim(1, 0) for value in values)))
    return x, ids, masks[0] if masks else None


@torch.library.custom_op("mmgl_losses::total", mutates_args=())
def _total(x: Tensor) -> Tensor:
    x = x.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(x)
    return x


@_total.register_fake
def _(x):
    return torch.empty_like(x, memory_format=torch.contiguous_format)


_total.register_autograd(lambda ctx, grad: _total(grad))


# Functional collectives of torch want rows of one number in every process. This operation finds the numbers out itself,
# so compiled code holds it as one node whose result has a size that is known when it runs.
@torch.library.custom_op("mmgl_losses::gather", mutates_args=())
def _gather(values: list[Tensor]) -> list[Tensor]:
    device, n = values[0].device, values[0].shape[0]
    sizes = torch.empty(world(), 1, dtype=torch.int64, device=device)
    dist.all_gather(list(sizes.unbind()), torch.tensor([n], device=device))
    numbers = sizes.flatten().tolist()
    order = [*range(dist.get_rank(), world()), *range(dist.get_rank())]
    results = []
    for value in values:
        rows = value.to(torch.uint8) if value.dtype == torch.bool else value  # backends do not send bool
        padded = rows.new_zeros(max(numbers), *rows.shape[1:])
        padded[:n] = rows
        received = [torch.empty_like(padded) for _ in numbers]
        dist.all_gather(received, padded)
        results.append(torch.cat([received[r][: numbers[r]] for r in order]).to(value.dtype))
    return [*results, sizes]


@_gather.register_fake
def _(values):
    rows = torch.library.get_ctx().new_dynamic_size()
    results = [value.new_empty(rows, *value.shape[1:]) for value in values]
    return [*results, values[0].new_empty(world(), 1, dtype=torch.int64)]


@torch.library.custom_op("mmgl_losses::gather_backward", mutates_args=())
def _gather_backward(grad: Tensor, sizes: Tensor, n: int) -> Tensor:
    numbers = sizes.flatten().tolist()
    order = [*range(dist.get_rank(), world()), *range(dist.get_rank())]
    padded = [grad.new_zeros(max(numbers), *grad.shape[1:]) for _ in numbers]
    for r, rows in zip(order, grad.split([numbers[r] for r in order]), strict=True):
        padded[r][: numbers[r]] = rows
    own = torch.empty_like(padded[0])
    dist.reduce_scatter(own, padded)
    return own[:n].clone()


@_gather_backward.register_fake
def _(grad, sizes, n):
    return grad.new_empty(n, *grad.shape[1:])


# What the gradient of one's own rows depends on is the gradient of every copy of them: the adjoint gathers again.
_gather_backward.register_autograd(
    lambda ctx, grad: (_gather([grad])[0], None, None),
)


def _setup_context(ctx, inputs, output) -> None:
    (values,) = inputs
    ctx.n = values[0].shape[0]
    ctx.floating = [value.is_floating_point() for value in values]
    ctx.save_for_backward(output[-1])


def _autograd(ctx, grads):
    (sizes,) = ctx.saved_tensors
    return [
        _gather_backward(grad, sizes, ctx.n) if floating and grad is not None else None
        for grad, floating in zip(grads, ctx.floating, strict=False)
    ]


_gather.register_autograd(_autograd, setup_context=_setup_context)
