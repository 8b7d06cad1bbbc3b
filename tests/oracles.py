"""Independent oracles: the definitions as loops over single points, in float64. Slow, and meant to be read."""

import math

import torch
from torch import Tensor

INF = float("inf")


def pair_logsumexp(
    anchors: Tensor,
    ids: Tensor,
    *,
    temperature,
    keys=None,
    key_ids=None,
    self_index=None,
    anchor_mask=None,
    key_mask=None,
    key_log_weights=None,
    tolerance=None,
):
    """(positives, negatives, n_positives, n_negatives, positive_sum) of one group, by definition."""
    own = keys is None
    z = anchors.double()
    k = z if own else keys.double()
    key_ids = ids if own else key_ids
    columns = ([], [], [], [], [])
    for i in range(len(z)):
        positive, negative = [], []
        for j in range(len(k)):
            itself = i == j if own else self_index is not None and int(self_index[i]) == j
            masked = (anchor_mask is not None and not anchor_mask[i]) or (key_mask is not None and not key_mask[j])
            if itself or masked:
                continue
            logit = (z[i] * k[j]).sum() / temperature
            near = ids[i] == key_ids[j] if tolerance is None else abs(float(ids[i]) - float(key_ids[j])) <= tolerance
            weight = 0.0 if key_log_weights is None else float(key_log_weights[j])
            (positive if near else negative).append((logit, weight))
        for column, group in zip(columns[:2], (positive, negative), strict=True):
            column.append(torch.stack([s + w for s, w in group]).logsumexp(0) if group else z.new_tensor(-INF))
        columns[2].append(len(positive))
        columns[3].append(len(negative))
        columns[4].append(torch.stack([s for s, _ in positive]).sum() if positive else z.new_zeros(()))
    return (
        torch.stack(columns[0]),
        torch.stack(columns[1]),
        torch.tensor(columns[2]),
        torch.tensor(columns[3]),
        torch.stack(columns[4]),
    )


def contrastive_loss(name: str, z: Tensor, ids: list, *, temperature: float, anchors=None, keys=None) -> Tensor | None:
    """The mean over valid anchors of one named formula, for unit vectors z (n, d); None without a valid anchor.

    `anchors` and `keys` are the indices that take part as such (all by default).
    """
    n = len(ids)
    anchors = range(n) if anchors is None else anchors
    keys = range(n) if keys is None else keys
    losses = []
    for i in anchors:
        s = {j: (z[i] * z[j]).sum() / temperature for j in keys}
        positives = [j for j in keys if j != i and ids[j] == ids[i]]
        negatives = [j for j in keys if j != i and ids[j] != ids[i]]
        if not positives or (not negatives and name in ("mmgl_local", "decoupled", "supcon_ratio")):
            continue
        e = {j: s[j].exp() for j in keys}
        others = sum(e[j] for j in positives + negatives)
        below = sum((e[j] for j in negatives), z.new_zeros(()))
        if name == "mmgl_global":
            # The printed denominator runs over I without the positive j: the anchor itself stays.
            own = ((z[i] * z[i]).sum() / temperature).exp()
            terms = [-(e[p] / (own + below)).log() for p in positives]
            losses.append(sum(terms) / len(terms))
        elif name == "mmgl_local":
            losses.append(-(sum(e[p] for p in positives) / below).log() / len(positives))
        elif name in ("nt_xent", "supcon"):
            losses.append(sum(-(e[p] / others).log() for p in positives) / len(positives))
        elif name == "decoupled":
            losses.append(sum(-(e[p] / below).log() for p in positives) / len(positives))
        elif name == "supcon_in":
            losses.append(-(sum(e[p] / others for p in positives) / len(positives)).log())
        else:
            raise AssertionError(name)
    return torch.stack(losses).mean() if losses else None


def places(size: int, m: int) -> list[int]:
    """The element of an axis that holds the point (i + 1/2) / m, found by comparing with the elements' borders."""
    from fractions import Fraction

    found = []
    for i in range(m):
        point = Fraction(2 * i + 1, 2 * m)
        found += [p for p in range(size) if Fraction(p, size) <= point < Fraction(p + 1, size)]
    return found


def soft_dice(
    logits,
    labels,
    *,
    include_background=True,
    regions=None,
    class_weights=None,
    batch=True,
    squared=False,
    smooth=1e-5,
    ignore_index=None,
    reduction="mean",
):
    """One minus the mean soft Dice of (B, C, n) logits and (B, n) labels, by loops."""
    wide = logits.double()
    probabilities = wide.softmax(1) if regions is None else 1 / (1 + (-wide).exp())
    samples, classes, n = logits.shape
    labels_of = [[c] for c in range(classes)] if regions is None else regions
    weights = [1.0] * classes if class_weights is None else class_weights
    chosen = range(0 if include_background else 1, classes)
    pools = [list(range(samples))] if batch else [[b] for b in range(samples)]
    scores, counted = [], 0
    for pool in pools:
        if all(int(labels[b, x]) == ignore_index for b in pool for x in range(n)):
            scores.append([wide.new_ones(()) for _ in chosen])
            continue
        counted += 1
        scores.append([])
        for c in chosen:
            intersection = predicted = true = logits.new_zeros((), dtype=torch.float64)
            for b in pool:
                for x in range(n):
                    if int(labels[b, x]) == ignore_index:
                        continue
                    p, t = probabilities[b, c, x], float(int(labels[b, x]) in labels_of[c])
                    intersection = intersection + p * t
                    predicted = predicted + (p * p if squared else p)
                    true = true + t
            scores[-1].append((2 * intersection + smooth) / (predicted + true + smooth))
    ones = 1 - torch.stack([torch.stack(row) for row in scores])
    if reduction == "none":
        return ones[0] if batch else ones
    total = sum(float(weights[c]) * ones[:, i].sum() for i, c in enumerate(chosen))
    return total / (counted * sum(float(weights[c]) for c in chosen))


def binary_cross_entropy(logits, labels, *, regions, class_weights=None, ignore_index=None):
    """The mean over the points that count and the regions of (B, R, n) logits, by loops."""
    weights = [1.0] * len(regions) if class_weights is None else class_weights
    above = below = logits.new_zeros((), dtype=torch.float64)
    for b in range(len(logits)):
        for x in range(logits.shape[2]):
            if int(labels[b, x]) == ignore_index:
                continue
            for r, region in enumerate(regions):
                p = 1 / (1 + (-logits[b, r, x].double()).exp())
                above = above - weights[r] * (p.log() if int(labels[b, x]) in region else (1 - p).log())
                below = below + weights[r]
    return above / below


def log(x: float) -> float:
    """Natural logarithm, -inf at 0."""
    return math.log(x) if x > 0 else -INF
