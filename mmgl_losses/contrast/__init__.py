"""The primitive of every contrastive loss here: log-sum-exp over positive and over negative pairs."""

from typing import Any, NamedTuple, TypedDict, Unpack

import torch
from torch import Tensor

from mmgl_losses import checks
from mmgl_losses.contrast import classes, operation, reference
from mmgl_losses.contrast.pairs import comparable, layout

DENSE, DENSE_GPU = 1 << 15, 1 << 18  # pairs up to which plain code is chosen: it dispatches less and never waits


class PairOptions(TypedDict, total=False):
    """The optional arguments that `pair_terms` hands to the primitive; see `pair_logsumexp`."""

    keys: Tensor | None
    key_ids: Tensor | None
    self_index: Tensor | None
    anchor_mask: Tensor | None
    key_mask: Tensor | None
    key_log_weights: Tensor | None
    tolerance: float | None
    bound: float | None


class PairLogSumExp(NamedTuple):
    """What `pair_logsumexp` returns, each (*groups, N)."""

    positives: Tensor  #: log-sum-exp over the positives, -inf where there are none
    negatives: Tensor  #: log-sum-exp over the negatives, -inf where there are none
    n_positives: Tensor  #: int64
    n_negatives: Tensor  #: int64


class PairTerms(NamedTuple):
    """All that a formula may need to know of an anchor, each (*groups, N).

    A formula is any callable from these to losses of the same shape.
    """

    positive_lse: Tensor  #: log-sum-exp over the positives
    negative_lse: Tensor  #: log-sum-exp over the negatives
    positive_sum: Tensor  #: sum of the logits of the positives (without weights of the keys)
    self_logit: Tensor  #: logit of the anchor with itself
    n_positives: Tensor  #: number of positives, int64
    n_negatives: Tensor  #: number of negatives, int64


def pair_logsumexp(
    anchors: Tensor,
    ids: Tensor,
    *,
    temperature: float | Tensor,
    keys: Tensor | None = None,
    key_ids: Tensor | None = None,
    self_index: Tensor | None = None,
    anchor_mask: Tensor | None = None,
    key_mask: Tensor | None = None,
    key_log_weights: Tensor | None = None,
    tolerance: float | None = None,
    bound: float | None = None,
    impl: str = "auto",
    precision: torch.dtype | None = None,
) -> PairLogSumExp:
    r"""Log-sum-exp of each anchor's logits, over the keys of its own id and over the others.

    .. math::
        \mathrm{positives}_i = \log \sum_{j \in P(i)} w_j \exp(s_{ij}), \quad
        \mathrm{negatives}_i = \log \sum_{j \in N(i)} w_j \exp(s_{ij}), \quad
        s_{ij} = \mathrm{anchors}_i \cdot \mathrm{keys}_j / \tau

    with P(i) the keys of the same id, the anchor's own key left out, and N(i) the keys of other ids. In plain
    torch, for one group, with the anchors as keys::

        logits = anchors @ anchors.T / temperature
        same = ids[:, None] == ids
        positives = logits.masked_fill(~same | eye, -inf).logsumexp(1)
        negatives = logits.masked_fill(same, -inf).logsumexp(1)

    Args:
        anchors: (*groups, N, D), floating point. Leading dimensions are independent groups.
        ids: (*groups, N), of any real type: equal ids are positives of one another.
        temperature: positive float, or a 0-d tensor, which then has a gradient.
        keys: (*groups, M, D); the anchors where not given.
        key_ids: (*groups, M); needed with `keys`.
        self_index: (*groups, N) int64, with `keys` only: which key is the anchor itself, -1 for none (default).
        anchor_mask: (*groups, N) bool: anchors that count. The others return -inf and 0, and may hold anything.
        key_mask: (*groups, M) bool: keys that count. The others may hold anything, NaN included; where the
            anchors are the keys, a row may hold anything when both masks leave it out.
        key_log_weights: (*groups, M), finite: log w; a constant (it gets no gradient).
        tolerance: positives are the keys with ``|id_i - id_j| <= tolerance``; equal ids where not given.
        bound: a promise that ``|anchor · key| <= bound`` (1 for unit vectors). With it, one constant shift keeps
            exp in range down to small temperatures, instead of a maximum for each row.
        impl: ``"reference"`` forms all pairs (memory N·M); ``"tiled"`` is exact with memory linear in N and M;
            ``"fused"`` is the latter in Triton kernels, for CUDA, where they have not been run yet; ``"auto"``
            picks between the first two by size.
        precision: the type in which ``"fused"`` multiplies features, the anchors' own by default: in ``bfloat16`` and
            ``float16`` tensor cores are fastest. Features are scaled first and rounded once; sums are float32.

    Returns:
        `PairLogSumExp`; the log-sum-exps in float32 (float64 for float64), whatever autocast says.

    Raises:
        TypeError: a tensor of a wrong type.
        ValueError: shapes that do not fit, a bad temperature, bound or tolerance, an unknown `impl`.

    Example:
        >>> anchors = torch.eye(3)
        >>> result = pair_logsumexp(anchors, torch.tensor([0, 0, 1]), temperature=1.0)
        >>> result.positives
        tensor([0., 0., -inf])
        >>> result.n_negatives
        tensor([1, 1, 2])
    """
    positives, negatives, _, n_positives, n_negatives = _contrast(
        anchors,
        ids,
        temperature=temperature,
        keys=keys,
        key_ids=key_ids,
        self_index=self_index,
        anchor_mask=anchor_mask,
        key_mask=key_mask,
        key_log_weights=key_log_weights,
        tolerance=tolerance,
        bound=bound,
        impl=impl,
        precision=precision,
    )
    return PairLogSumExp(positives, negatives, n_positives, n_negatives)


def pair_terms(
    anchors: Tensor,
    ids: Tensor,
    *,
    temperature: float | Tensor,
    impl: str = "auto",
    precision: torch.dtype | None = None,
    **options: Unpack[PairOptions],
) -> PairTerms:
    r"""All that a formula needs of each anchor: `pair_logsumexp` and two numbers that need no pairs.

    .. math::
        \mathrm{positive\_sum}_i = \sum_{j \in P(i)} s_{ij}
            = \mathrm{anchors}_i \cdot \Big(\sum_{j \in P(i)} \mathrm{keys}_j\Big) / \tau, \quad
        \mathrm{self\_logit}_i = \mathrm{anchors}_i \cdot \mathrm{anchors}_i / \tau

    Args:
        anchors: (*groups, N, D), floating point.
        ids: (*groups, N), of any real type.
        temperature: positive float, or a 0-d tensor.
        impl: as in `pair_logsumexp`.
        precision: as in `pair_logsumexp`.
        **options: as in `pair_logsumexp`.

    Returns:
        `PairTerms`, each (*groups, N).

    Example:
        >>> pair_terms(torch.eye(3), torch.tensor([0, 0, 1]), temperature=0.5).self_logit
        tensor([2., 2., 2.])
    """
    positives, negatives, total, n_positives, n_negatives = _contrast(
        anchors, ids, temperature=temperature, impl=impl, precision=precision, **options
    )
    wide = _select(_wide(anchors), options.get("anchor_mask"))
    return PairTerms(positives, negatives, total, wide.square().sum(-1) / temperature, n_positives, n_negatives)


def _contrast(
    anchors: Tensor,
    ids: Tensor,
    *,
    temperature: float | Tensor,
    impl: str,
    precision: torch.dtype | None,
    **options: Unpack[PairOptions],
) -> tuple[Tensor, ...]:
    """Check, bring into one form, and compute: log-sum-exps, the sum of positive logits, and the counts."""
    checks.implementation(impl)
    checks.precision(precision)
    checks.temperature(temperature)
    checks.contrast(anchors, ids, **options)
    shape, dims = ids.shape, anchors.ndim - 2
    bound, tolerance = options.get("bound"), options.get("tolerance")
    flat: dict[str, Any] = {name: _flatten(value, dims) for name, value in options.items() if name != "bound"}
    keys, anchor_mask, key_mask = (flat.pop(name, None) for name in ("keys", "anchor_mask", "key_mask"))
    own_ids, key_ids = comparable(_flatten(ids, dims), flat.pop("key_ids", None), tolerance)
    if flat.get("key_log_weights") is not None:
        flat["key_log_weights"] = flat["key_log_weights"].detach().to(_wide(anchors).dtype)
    with torch.autocast(anchors.device.type, enabled=False):
        wide = _flatten(_wide(anchors), dims)
        if keys is None:
            # Half of the scale on either side keeps the product symmetric, and gives the temperature its gradient.
            used = None if key_mask is None or anchor_mask is None else key_mask | anchor_mask
            wide = _select(wide, used) * (temperature**-0.5)
        else:
            wide, keys = _select(wide, anchor_mask) / temperature, _select(keys.to(wide.dtype), key_mask)
        if impl == "auto" or not ids.numel():  # without anchors there is nothing to cut into tiles
            pairs = wide.shape[0] * wide.shape[1] * (wide if keys is None else keys).shape[1]
            impl = "reference" if pairs <= (DENSE if wide.device.type == "cpu" else DENSE_GPU) else "tiled"
        if impl == "reference":
            result = reference.contrast(
                wide, keys, own_ids, key_ids, anchor_mask=anchor_mask, key_mask=key_mask, **flat
            )
        else:
            # `as_tensor` keeps a temperature that is a tensor on its device: nothing waits for its value.
            limit = None if bound is None else torch.as_tensor(bound / temperature, dtype=wide.dtype).detach()
            precision = precision or anchors.dtype
            if impl == "tiled" and keys is None and all(value is None for value in flat.values()):
                result = classes.contrast(wide, own_ids, anchor_mask=anchor_mask, key_mask=key_mask, limit=limit)
            else:
                order = layout(own_ids, key_ids=key_ids, key_mask=key_mask, limit=limit, **flat)
                result = operation.contrast(wide, keys, anchor_mask, order, impl=impl, precision=precision)
    return tuple(x.view(shape) for x in result)


def _wide(x: Tensor) -> Tensor:
    """float32 for half precision: products of logits are summed in no less."""
    return x if x.dtype == torch.float64 else x.float()


def _select(x: Tensor, mask: Tensor | None) -> Tensor:
    """Rows that take part, zeros for the others, whatever those hold: NaN times 0 would still be NaN."""
    return x if mask is None else torch.where(mask[..., None], x, 0.0)


def _flatten(value: Any, dims: int) -> Any:
    """A tensor with its `dims` leading group dimensions made one; anything else as it is."""
    if not isinstance(value, Tensor):
        return value
    return value.unsqueeze(0) if dims == 0 else value.flatten(0, dims - 1)
