"""What a type checker says of calls; never run: `make lint` reads it. Each comment that ignores must be needed."""
# pyright: reportUnnecessaryTypeIgnoreComment=true

from typing import Any

import numpy as np
from torch import Tensor
from typing_extensions import assert_type

from mmgl_losses import (
    DeepSupervisionDice,
    MultiScaleGlobalContrast,
    MultiScaleLocalSupCon,
    PairTerms,
    TappedModel,
    UNet,
    pair_logsumexp,
    plugins,
)
from mmgl_losses.functional import global_contrast, local_supcon, pair_terms, soft_dice


def calls(tapped: TappedModel, x: Tensor, labels: Tensor) -> None:
    """A call has the type of what it returns."""
    output, embeddings = tapped(x)
    assert_type(output, Any)
    assert_type(embeddings, dict[str, Tensor])
    assert_type(MultiScaleGlobalContrast()(embeddings), Tensor)
    assert_type(MultiScaleLocalSupCon()(embeddings, labels), Tensor)
    assert_type(MultiScaleGlobalContrast(reduction="none")(embeddings), dict[str | int, Tensor])
    assert_type(MultiScaleLocalSupCon(stride=4, reduction="none")([x], labels), dict[str | int, Tensor])
    assert_type(MultiScaleLocalSupCon(reduction="mean")([x], labels), Tensor)
    assert_type(DeepSupervisionDice()([x], labels), Tensor)
    assert_type(DeepSupervisionDice(reduction="none")([x], labels), dict[str | int, Tensor])
    assert_type(soft_dice(x, labels, reduction="none"), Tensor)
    MultiScaleLocalSupCon()(embeddings)  # pyright: ignore[reportCallIssue]
    MultiScaleGlobalContrast()(embeddings, instance=labels)  # pyright: ignore[reportCallIssue]


def rows(x: Tensor, labels: Tensor, numbers: list[int], array: np.ndarray) -> None:
    """Which rows are one image: a tensor, an array of numpy, or a sequence."""
    for instances in (labels, numbers, array, (0, 1), None):
        global_contrast(x, instances, keys=x, key_instances=instances)
        MultiScaleGlobalContrast()([x], instances)
        local_supcon(x, labels, instances)
        MultiScaleLocalSupCon()([x], labels, instances)
    global_contrast(x, "01")  # pyright: ignore[reportArgumentType]


def own_formula(terms: PairTerms) -> Tensor:
    """Any callable of the terms is a formula."""
    return terms.negative_lse


def choices(x: Tensor, ids: Tensor) -> None:
    """A name that does not exist is found before anything runs."""
    MultiScaleGlobalContrast(formula="nt_xent", impl="tiled")
    MultiScaleGlobalContrast(formula=own_formula)
    MultiScaleGlobalContrast(formula="nt_xnt")  # pyright: ignore[reportArgumentType]
    MultiScaleGlobalContrast(formula="supcon")  # pyright: ignore[reportArgumentType]
    MultiScaleGlobalContrast(impl="cuda")  # pyright: ignore[reportArgumentType]
    MultiScaleLocalSupCon(formula="nt_xent")  # pyright: ignore[reportArgumentType]
    MultiScaleLocalSupCon(reduction="sum")  # pyright: ignore[reportArgumentType]
    MultiScaleLocalSupCon(pairs="images")  # pyright: ignore[reportArgumentType]
    MultiScaleLocalSupCon(background="none")  # pyright: ignore[reportArgumentType]
    global_contrast(x, formula="ntxent")  # pyright: ignore[reportArgumentType]
    local_supcon(x, ids, sampling="random")  # pyright: ignore[reportArgumentType]
    pair_terms(x, ids, temperature=0.1, impl="dense")  # pyright: ignore[reportArgumentType]
    pair_terms(x, ids, temperature=0.1, masks=ids)  # pyright: ignore[reportCallIssue]
    pair_logsumexp(x, ids, temperature=0.1, impl="dense")  # pyright: ignore[reportArgumentType]
    soft_dice(x, ids, reduction="sum")  # pyright: ignore[reportArgumentType]
    UNet(norm="group")  # pyright: ignore[reportArgumentType]
    plugins.available("losses")  # pyright: ignore[reportArgumentType]
