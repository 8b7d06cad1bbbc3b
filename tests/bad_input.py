"""Bad input to every public callable, as data: what is wrong, the exception, how its sentence begins, and the call.

`test_bad_input` runs every row and asserts, beside what the row says, that nothing was touched.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mmgl_losses import (
    DeepSupervisionDice,
    FeatureTaps,
    GlobalHead,
    LocalHead,
    MeanTeacher,
    MultiScaleGlobalContrast,
    MultiScaleLocalSupCon,
    SegmentationHead,
    TappedModel,
    UNet,
    attach_heads,
    copy_paste,
    discover_stages,
    halving,
    load_matching,
    plugins,
    pseudo_labels,
    sampling,
)
from mmgl_losses.contrast.unit import normalise
from mmgl_losses.functional import global_contrast, local_supcon, pair_logsumexp, pair_terms, soft_dice


@dataclass(frozen=True)
class Case:
    """A call that must fail with `error`, whose text begins with `text`; `covers`: the public name it belongs to."""

    covers: str
    error: type[Exception]
    text: str
    call: Callable[..., Any]
    args: tuple[Any, ...]
    options: dict[str, Any]


CASES: list[Case] = []


def wrong_value(text: str, call: Callable[..., Any], *args: Any, of: str = "", **options: Any) -> None:
    """A row whose call must raise a ValueError."""
    CASES.append(Case(of or name_of(call), ValueError, text, call, args, options))


def wrong_type(text: str, call: Callable[..., Any], *args: Any, of: str = "", **options: Any) -> None:
    """A row whose call must raise a TypeError."""
    CASES.append(Case(of or name_of(call), TypeError, text, call, args, options))


def name_of(call: Any) -> str:
    """The public name of a class, a function, an instance or a bound method."""
    owner = getattr(call, "__self__", call)
    return getattr(owner, "__name__", type(owner).__name__)


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A tensor on another device, on any machine."""
    return torch.zeros(shape, dtype=dtype, device="meta")


NAN, INF = math.nan, math.inf
X, Y = random(2, 3, 8, 8), torch.arange(128).view(2, 8, 8) % 3
E, IDS = random(4, 3), torch.tensor([0, 1, 0, 1])
FINITE = "Expected `{}` to be a finite number"

# fmt: off
# The primitive ----------------------------------------------------------------------------------------------------

terms = partial(pair_logsumexp, temperature=1.0)
P = "pair_logsumexp"
wrong_type("Expected `anchors` to be a floating-point tensor, got type torch.int64.", terms, E.long(), IDS, of=P)
wrong_type("Expected `anchors` to be a floating-point tensor, got type torch.complex64.", terms, E.cfloat(), IDS, of=P)
wrong_type("Expected `anchors` to be a tensor, got list.", terms, [1.0], IDS, of=P)
wrong_type("Expected `anchors` to be a dense tensor, got torch.sparse_coo. Call `.to_dense()` first.", terms, E.to_sparse(), IDS, of=P)
wrong_value("Expected `anchors` of shape (*groups, N, D), got (3,).", terms, E[0], IDS, of=P)
wrong_value("Expected `anchors` of at least one number each, got shape (4, 0).", terms, E[:, :0], IDS, of=P)
wrong_type("Expected `ids` to be a tensor, got list.", terms, E, [0, 1, 0, 1], of=P)
wrong_value("Expected `ids` of shape (4,), got (2,).", terms, E, IDS[:2], of=P)
wrong_value("Expected `ids` of shape (4,), got (4, 1).", terms, E, IDS[:, None], of=P)
wrong_type("Expected `ids` to be of a real type, got torch.complex64.", terms, E, IDS.cfloat(), of=P)
wrong_value("Expected `ids` on the device of `anchors` (cpu), got `ids` on meta.", terms, E, meta(4), of=P)
wrong_value("Expected `ids` that are numbers, got 1 NaN. NaN is no id", terms, E, torch.tensor([0.0, NAN, 0.0, 1.0]), of=P)
wrong_value("Expected `key_ids` that are numbers, got 1 NaN.", terms, E, IDS, keys=E, key_ids=torch.tensor([0.0, NAN, 0.0, 1.0]), of=P)
wrong_value("Expected `temperature` to be a finite number above 0, got 0.", pair_logsumexp, E, IDS, temperature=0)
wrong_value("Expected `temperature` to be a finite number above 0, got -1.0.", pair_logsumexp, E, IDS, temperature=-1.0)
wrong_value("Expected `temperature` to be a finite number above 0, got nan.", pair_logsumexp, E, IDS, temperature=NAN)
wrong_value("Expected `temperature` to be a finite number above 0, got inf.", pair_logsumexp, E, IDS, temperature=INF)
wrong_type("Expected `temperature` to be a finite number above 0, got True of type bool.", pair_logsumexp, E, IDS, temperature=True)
wrong_type("Expected `temperature` to be a finite number above 0, got '0.1' of type str.", pair_logsumexp, E, IDS, temperature="0.1")
wrong_type("Expected `temperature` to be a finite number above 0, got None of type NoneType.", pair_logsumexp, E, IDS, temperature=None)
wrong_value("Expected `temperature` to be a float or a 0-d floating-point tensor, got a tensor of shape (2,) and type torch.float32.", pair_logsumexp, E, IDS, temperature=torch.ones(2))
wrong_value("Expected `temperature` to be a float or a 0-d floating-point tensor, got a tensor of shape () and type torch.int64.", pair_logsumexp, E, IDS, temperature=torch.tensor(1))
wrong_value("Expected `temperature` to be a finite number above 0, got 0.0.", pair_logsumexp, E, IDS, temperature=torch.tensor(0.0))
wrong_value("Expected `temperature` to be a finite number above 0, got -0.5.", pair_logsumexp, E, IDS, temperature=nn.Parameter(torch.tensor(-0.5)))
wrong_value("Expected `temperature` to be a finite number above 0, got nan.", pair_logsumexp, E, IDS, temperature=torch.tensor(NAN))
wrong_value("Expected `key_ids` and `keys` together, as `key_ids` is needed with `keys`, got `keys` alone.", terms, E, IDS, keys=E, of=P)
wrong_value("Expected `key_ids` and `keys` together, as `key_ids` goes with `keys`, got `key_ids` alone.", terms, E, IDS, key_ids=IDS, of=P)
wrong_value("Expected `self_index` and `keys` together, as `self_index` goes with `keys`, got `self_index` alone.", terms, E, IDS, self_index=IDS, of=P)
wrong_value("Expected `keys` of shape (M, 3) for `anchors` of shape (4, 3), got (4, 2).", terms, E, IDS, keys=E[:, :2], key_ids=IDS, of=P)
wrong_type("Expected `keys` to be a floating-point tensor, got type torch.int64.", terms, E, IDS, keys=E.long(), key_ids=IDS, of=P)
wrong_value("Expected `keys` on the device of `anchors` (cpu), got `keys` on meta.", terms, E, IDS, keys=meta(4, 3), key_ids=IDS, of=P)
wrong_value("Expected `self_index` in -1 ... 3, got 4. -1 stands for", terms, E, IDS, keys=E, key_ids=IDS, self_index=torch.arange(4) + 1, of=P)
wrong_value("Expected `self_index` in -1 ... 3, got -2.", terms, E, IDS, keys=E, key_ids=IDS, self_index=torch.arange(4) - 2, of=P)
wrong_type("Expected `self_index` to be of a int64 type, got torch.int32.", terms, E, IDS, keys=E, key_ids=IDS, self_index=IDS.int(), of=P)
wrong_type("Expected `anchor_mask` to be of a bool type, got torch.float32.", terms, E, IDS, anchor_mask=torch.ones(4), of=P)
wrong_type("Expected `key_mask` to be of a bool type, got torch.int64.", terms, E, IDS, key_mask=IDS, of=P)
wrong_value("Expected `key_mask` of shape (4,), got (3,).", terms, E, IDS, key_mask=torch.ones(3).bool(), of=P)
wrong_value("Expected `key_log_weights` that need no gradient, got requires_grad=True. They are constants", terms, E, IDS, key_log_weights=torch.ones(4, requires_grad=True), of=P)
wrong_value("Expected finite `key_log_weights`, got nan. Leave keys of weight 0 out with `key_mask`.", terms, E, IDS, key_log_weights=torch.tensor([0.0, NAN, 0.0, 0.0]), of=P)
wrong_value("Expected finite `key_log_weights`, got -inf.", terms, E, IDS, key_log_weights=torch.tensor([0.0, -INF, 0.0, 0.0]), of=P)
wrong_type("Expected `key_log_weights` to be of a floating-point type, got torch.int64.", terms, E, IDS, key_log_weights=IDS, of=P)
wrong_value("Expected `key_log_weights` of shape (4,), got (5,).", terms, E, IDS, key_log_weights=torch.zeros(5), of=P)
wrong_value("Expected `tolerance` to be a finite number of at least 0, got -1.0.", terms, E, IDS, tolerance=-1.0, of=P)
wrong_value("Expected `tolerance` to be a finite number of at least 0, got nan.", terms, E, IDS, tolerance=NAN, of=P)
wrong_type("Expected `tolerance` to be a finite number of at least 0, got '1' of type str.", terms, E, IDS, tolerance="1", of=P)
wrong_value("Expected `bound` to be a finite number of at least 0, got nan.", terms, E, IDS, bound=NAN, of=P)
wrong_value("Expected `bound` to be a finite number of at least 0, got -1.", terms, E, IDS, bound=-1, of=P)
wrong_value("Expected `impl` to be one of 'auto', 'native', 'reference', 'fused', 'tiled', got 'tile'. Did you mean 'tiled'?", terms, E, IDS, impl="tile", of=P)
wrong_type("Expected `impl` to be one of 'auto', 'native', 'reference', 'fused', 'tiled', got None of type NoneType.", terms, E, IDS, impl=None, of=P)
wrong_type("Expected `precision` to be None or a floating-point type, as torch.bfloat16, got 'bfloat16'.", terms, E, IDS, precision="bfloat16", of=P)
wrong_type("Expected `precision` to be None or a floating-point type, as torch.bfloat16, got torch.int64.", terms, E, IDS, precision=torch.int64, of=P)
wrong_value("Expected `ids` of shape (4,), got (2,).", pair_terms, E, IDS[:2], temperature=1.0)
wrong_value("Expected `temperature` to be a finite number above 0, got 0.0.", pair_terms, E, IDS, temperature=0.0)
wrong_value("Expected `anchors` of at least one number each, got shape (4, 0).", pair_terms, E[:, :0], IDS, temperature=1.0)

# Contrast of images -----------------------------------------------------------------------------------------------

wrong_value("Expected `embeddings` of shape (A*B, D), got (2, 3, 8, 8). Pool the spatial axes first", global_contrast, X)
wrong_value("Expected `embeddings` of shape (A*B, D), got (3,).", global_contrast, E[0])
wrong_value("Expected `embeddings` of at least one number each, got shape (4, 0).", global_contrast, E[:, :0])
wrong_type("Expected `embeddings` to be a floating-point tensor, got type torch.int64.", global_contrast, E.long())
wrong_type("Expected `embeddings` to be a floating-point tensor, got type torch.bool.", global_contrast, E > 0)
wrong_type("Expected `embeddings` to be a tensor, got list.", global_contrast, E.tolist())
wrong_value("Expected an even number of rows in `embeddings`, got 3. Stack two augmentations", global_contrast, E[:3])
wrong_value("Expected `instances` of shape (4,), got (3,).", global_contrast, E, IDS[:3])
wrong_value("Expected `instances` of shape (4,), got (2, 2).", global_contrast, E, IDS.view(2, 2))
wrong_type("Expected `instances` to be a tensor or a sequence of numbers, one for each row, got ['a', 'b', 'a', 'b'] of type list. Number the names from 0 on.", global_contrast, E, ["a", "b", "a", "b"])
wrong_value("Expected `instances` on the device of `embeddings` (cpu), got `instances` on meta.", global_contrast, E, meta(4))
wrong_value("Expected `instances` that are numbers, got 4 NaN.", global_contrast, E, torch.full((4,), NAN))
wrong_type("Expected `instances` to be of a real type, got torch.complex64.", global_contrast, E, IDS.cfloat())
wrong_value("Expected `key_instances` that are numbers, got 1 NaN.", global_contrast, E, IDS, keys=E, key_instances=torch.tensor([0.0, NAN, 0.0, 1.0]))
wrong_value("Expected `instances` beside `keys`, got None.", global_contrast, E, keys=E)
wrong_value("Expected `keys` and `key_instances` together, got `keys` alone.", global_contrast, E, IDS, keys=E)
wrong_value("Expected `keys` and `key_instances` together, got `key_instances` alone.", global_contrast, E, IDS, key_instances=IDS)
wrong_value("Expected `keys` of shape (K, 3), got (4, 2).", global_contrast, E, IDS, keys=E[:, :2], key_instances=IDS)
wrong_value("Expected `key_instances` of shape (4,), got (3,).", global_contrast, E, IDS, keys=E, key_instances=IDS[:3])
wrong_value("Expected `keys` on the device of `embeddings` (cpu), got `keys` on meta.", global_contrast, E, IDS, keys=meta(4, 3), key_instances=IDS)
wrong_value("Expected `key_instances` on the device of `embeddings` (cpu), got `key_instances` on meta.", global_contrast, E, IDS, keys=E, key_instances=meta(4))
wrong_value("Expected `tolerance` to be a finite number of at least 0, got -1.0.", global_contrast, E, tolerance=-1.0)
wrong_value("Expected `instances` beside `tolerance`, got None. Say where each row is", global_contrast, E, tolerance=1.0)
wrong_type("Expected `gather` to be True or False, got 1 of type int.", global_contrast, E, gather=1)
wrong_value("Expected `instances` beside `tolerance`, got None.", global_contrast, E, tolerance=1.0, gather=True)
wrong_value("Expected `instances` of at most 2^53 beside `tolerance`, got one of 9007199254740993. Number them anew", global_contrast, E, IDS + 2**53, tolerance=1.0)
wrong_value("Expected `ids` of at most 2^53 beside `tolerance`, got one of 9007199254740993.", terms, E, IDS - 2**53 - 1, tolerance=1.0, of=P)
wrong_value("Expected `reduction` to be one of 'mean', 'none', got 'sum'.", global_contrast, E, reduction="sum")
wrong_type("Expected `reduction` to be one of 'mean', 'none', got None of type NoneType.", global_contrast, E, reduction=None)
wrong_value("Expected `formula` to be one of 'nt_xent', 'decoupled', 'mmgl', got 'nt_xnt'. Did you mean 'nt_xent'?", global_contrast, E, formula="nt_xnt")
wrong_type("Expected `formula` to be one of 'nt_xent', 'decoupled', 'mmgl', got None of type NoneType.", global_contrast, E, formula=None)
wrong_type("Expected `formula` to be one of 'nt_xent', 'decoupled', 'mmgl', got ['mmgl'] of type list.", global_contrast, E, formula=["mmgl"])
wrong_type("Expected `formula` to give a floating-point tensor of shape (1, 4), a loss for each anchor, got float. A formula leaves", global_contrast, E, formula=lambda terms: 3.0)
wrong_value("Expected `formula` to give a floating-point tensor of shape (1, 4), a loss for each anchor, got (). A formula leaves the mean", global_contrast, E, formula=lambda terms: terms.negative_lse.mean())
wrong_type("Expected `formula` to give a floating-point tensor of shape (1, 4), a loss for each anchor, got type torch.int64.", global_contrast, E, formula=lambda terms: terms.n_positives)

# Contrast of points -----------------------------------------------------------------------------------------------

wrong_type("Expected `labels` to be an integer tensor, got type torch.float32. Labels are class indices", local_supcon, X, Y.float())
wrong_type("Expected `labels` to be an integer tensor, got type torch.bool.", local_supcon, X, Y.bool())
wrong_type("Expected `labels` to be an integer tensor, got type torch.complex64.", local_supcon, X, Y.cfloat())
wrong_type("Expected `labels` to be a tensor, got list.", local_supcon, X, Y.tolist())
wrong_type("Expected `labels` to be a dense tensor, got torch.sparse_coo.", local_supcon, X, Y.to_sparse())
wrong_value("Expected `labels` of shape (2, H, W) for `features` of shape (2, 3, 8, 8), got (2, 1, 8, 8). Remove the channel axis", local_supcon, X, Y[:, None])
wrong_value("Expected `labels` of shape (2, H, W) for `features` of shape (2, 3, 8, 8), got (2, 3, 8, 8).", local_supcon, X, Y[:, None].expand(2, 3, 8, 8))
wrong_value("Expected `labels` of shape (2, H, W) for `features` of shape (2, 3, 8, 8), got (1, 8, 8).", local_supcon, X, Y[:1])
wrong_value("Expected `labels` of shape (2, H, W) for `features` of shape (2, 3, 8, 8), got (2, 64).", local_supcon, X, Y.flatten(1))
wrong_value("Expected `labels` of at least one point along each axis, got (2, 0, 8).", local_supcon, X, Y[:, :0])
wrong_value("Expected `labels` as large along each axis as `features` of shape (2, 3, 8, 4), by one factor, got (2, 4, 8). Are its axes in another order?", local_supcon, X[..., :4], Y[:, :4])
wrong_value("Expected `labels` as large along each axis as `features` of shape (1, 2, 5, 4), by one factor, got (1, 32, 40).", local_supcon, torch.randn(1, 2, 5, 4), torch.zeros(1, 32, 40).long())
wrong_value("Expected `labels` as large along each axis as `features` of shape (1, 2, 5, 4, 4), by one factor, got (1, 8, 10, 8).", local_supcon, torch.randn(1, 2, 5, 4, 4), torch.zeros(1, 8, 10, 8).long())
wrong_type("Expected `labels` to be an integer tensor, got type torch.float32. Labels are class indices; convert them with `labels.squeeze(1).long()`.", local_supcon, X, Y[:, None].float())
wrong_type("Expected `labels` to be an integer tensor, got type torch.float32. Labels are class indices; convert them with `labels.argmax(1)`.", soft_dice, X, X)
wrong_value("Expected `labels` of shape (2, H, W) for `features` of shape (2, 3, 8, 8), got (2, 3, 8, 8). Remove the channel axis with `labels.argmax(1)`.", local_supcon, X, X.long())
wrong_value("Expected no `background_index` with background='anchor', got background_index=2. Points of the background count", local_supcon, X, Y, background_index=2)
wrong_value("Expected no `background_index` with background='anchor', got background_index=2.", MultiScaleLocalSupCon, background_index=2)
wrong_value("Expected `labels` on the device of `features` (cpu), got `labels` on meta.", local_supcon, X, meta(2, 8, 8, dtype=torch.int64))
wrong_value("Expected `features` of shape (B, C, *spatial), got (8, 8).", local_supcon, X[0, 0], Y)
wrong_value("Expected `features` of at least one channel and one point, got shape (2, 0, 8, 8).", local_supcon, X[:, :0], Y)
wrong_value("Expected `features` of at least one channel and one point, got shape (2, 3, 0, 8).", local_supcon, X[:, :, :0], Y)
wrong_type("Expected `features` to be a floating-point tensor, got type torch.int64.", local_supcon, X.long(), Y)
wrong_type("Expected `features` to be a floating-point tensor, got type torch.complex64.", local_supcon, X.cfloat(), Y)
wrong_type("Expected `features` to be a tensor, got list.", local_supcon, [X], Y)
wrong_type("Expected `features` to be a dense tensor, got torch.sparse_coo.", local_supcon, X.to_sparse(), Y)
wrong_value("Expected `formula` to be one of 'supcon', 'supcon_in', 'mmgl', got 'sup_con'. Did you mean 'supcon'?", local_supcon, X, Y, formula="sup_con")
wrong_value("Expected `formula` to be one of 'supcon', 'supcon_in', 'mmgl', got 'nt_xent'.", local_supcon, X, Y, formula="nt_xent")
wrong_value("Expected `formula` to give a floating-point tensor of shape (2, 64), a loss for each anchor, got (2,). A formula leaves the mean to the library.", local_supcon, X, Y, formula=lambda terms: terms.self_logit.mean(1))
wrong_value("Expected `pairs` to be one of 'image', 'augmentations', 'batch', got 'view'.", local_supcon, X, Y, pairs="view")
wrong_type("Expected `pairs` to be one of 'image', 'augmentations', 'batch', got 1 of type int.", local_supcon, X, Y, pairs=1)
wrong_value("Expected `background` to be one of 'anchor', 'key', 'ignore', got 'drop'.", local_supcon, X, Y, background="drop")
wrong_type("Expected `background` to be one of 'anchor', 'key', 'ignore', got False of type bool.", local_supcon, X, Y, background=False)
wrong_type("Expected `background_index` to be an integer, got '0' of type str.", local_supcon, X, Y, background_index="0")
wrong_type("Expected `background_index` to be an integer, got None of type NoneType.", local_supcon, X, Y, background_index=None)
wrong_type("Expected `ignore_index` to be an integer, got 'void' of type str.", local_supcon, X, Y, ignore_index="void")
wrong_type("Expected `ignore_index` to be an integer, got True of type bool.", local_supcon, X, Y, ignore_index=True)
wrong_value("Expected `sampling` to be one of 'grid', 'foreground', got 'max'.", local_supcon, X, Y, sampling="max")
wrong_value("Expected `stride` to be an integer of at least 1, got 0.", local_supcon, X, Y, stride=0)
wrong_type("Expected `stride` to be an integer of at least 1, got 2.0 of type float.", local_supcon, X, Y, stride=2.0)
wrong_type("Expected `stride` to be an integer of at least 1, got True of type bool.", local_supcon, X, Y, stride=True)
wrong_value("Expected `temperature` to be a finite number above 0, got 0.0.", local_supcon, X, Y, temperature=0.0)
wrong_value("Expected `impl` to be one of 'auto', 'native', 'reference', 'fused', 'tiled', got 'triton'.", local_supcon, X, Y, impl="triton")
wrong_type("Expected `gather` to be True or False, got None of type NoneType.", local_supcon, X, Y, gather=None)
wrong_value("Expected an even batch, got 1. Stack two augmentations", local_supcon, X[:1], Y[:1], pairs="augmentations")
wrong_value("Expected `instances` in which each image occurs equally often, got the counts {0: 3, 1: 1}.", local_supcon, X.repeat(2, 1, 1, 1), Y.repeat(2, 1, 1), [0, 0, 0, 1], pairs="augmentations")
wrong_value("Expected `instances` to be a tensor or sequence of 2 integers, one for each row, got 3.", local_supcon, X, Y, [0, 0, 0], pairs="augmentations")
wrong_value("Expected `instances` to be a tensor or sequence of 2 integers, one for each row, got (2, 1).", local_supcon, X, Y, torch.zeros(2, 1).long(), pairs="augmentations")
wrong_type("Expected `instances` to be a tensor or sequence of 2 integers, one for each row, got [0.5, 0.5].", local_supcon, X, Y, torch.full((2,), 0.5), pairs="augmentations")
wrong_type("Expected `instances` to be a tensor or sequence of 2 integers, one for each row, got [True, False].", local_supcon, X, Y, torch.tensor([True, False]), pairs="augmentations")
wrong_type("Expected `instances` to be a tensor or sequence of 2 integers, one for each row, got 7 of type int.", local_supcon, X, Y, 7, pairs="augmentations")
wrong_value("Expected no `instances` with pairs='image', got `instances`. Pass `pairs='augmentations'`", local_supcon, X, Y, [0, 0])
wrong_value("Expected no `instances` with pairs='batch', got `instances`.", local_supcon, X, Y, torch.zeros(2).long(), pairs="batch")

# Dice -------------------------------------------------------------------------------------------------------------

wrong_value("Expected `labels` in 0 ... 2, got [3, 4, 5]. Pass `ignore_index` for a label that is to be left out.", soft_dice, X, Y + 3)
wrong_value("Expected `labels` in 0 ... 2, got [-1].", soft_dice, X, Y - 1)
wrong_value("Expected `labels` in 0 ... 2, got [255].", soft_dice, X, torch.full_like(Y, 255, dtype=torch.uint8), ignore_index=-1)
wrong_value("Expected `labels` in 0 ... 2, got [4, 5].", soft_dice, X, Y + 3, ignore_index=3)
wrong_type("Expected `labels` to be an integer tensor, got type torch.float32.", soft_dice, X, Y.float())
wrong_type("Expected `labels` to be a tensor, got ndarray.", soft_dice, X, Y.numpy())
wrong_value("Expected `labels` of shape (2, H, W) for `logits` of shape (2, 3, 8, 8), got (2, 1, 8, 8). Remove the channel axis", soft_dice, X, Y[:, None])
wrong_value("Expected `labels` as large along each axis as `logits` of shape (2, 3, 8, 4), by one factor, got (2, 4, 8).", soft_dice, X[..., :4], Y[:, :4])
wrong_value("Expected logits of at least 2 channels, got 1. For one foreground structure use two channels", soft_dice, X[:, :1], Y)
wrong_type("Expected `class_weights` to be a sequence of numbers, one for each channel, got 2.0 of type float.", soft_dice, X, Y, class_weights=2.0)
wrong_type("Expected `class_weights[1]` to be a finite number of at least 0, got 'x' of type str.", soft_dice, X, Y, class_weights=(1, "x", 1))
wrong_value("Expected `class_weights[0]` to be a finite number of at least 0, got -1.", soft_dice, X, Y, class_weights=(-1, 1, 1))
wrong_value("Expected `class_weights[2]` to be a finite number of at least 0, got nan.", soft_dice, X, Y, class_weights=(1, 1, NAN))
wrong_value("Expected at least one of `class_weights` above 0, got (0, 0, 0).", soft_dice, X, Y, class_weights=(0, 0, 0))
wrong_value("Expected `logits` of 2 channels, one for each of `class_weights`, got 3.", soft_dice, X, Y, class_weights=(1, 1))
wrong_value("Expected one of `class_weights` above 0 beside the background's, got (1, 0, 0).", soft_dice, X, Y, class_weights=(1, 0, 0), include_background=False)
REGIONS = "Expected `regions` to be a sequence with the labels of each region, such as ((1, 2, 3), (2, 3), (3,)), got "
wrong_type(REGIONS + "3 of type int.", soft_dice, X, Y, regions=3)
wrong_type(REGIONS + "{1, 2} of type set.", soft_dice, X, Y, regions={1, 2})
wrong_value(REGIONS + "().", soft_dice, X, Y, regions=())
wrong_value(REGIONS + "((1,), (), (2,)).", soft_dice, X, Y, regions=((1,), (), (2,)))
wrong_type("Expected `regions[1]` to be an integer of at least 1, got 'core' of type str.", soft_dice, X, Y, regions=(1, "core", 2))
wrong_value("Expected `regions[0]` to be an integer of at least 1, got 0.", soft_dice, X, Y, regions=((0, 1), 1, 2))
wrong_value("Expected `regions` without ignore_index=2, got ((1, 2), 1, 1).", soft_dice, X, Y, regions=((1, 2), 1, 1), ignore_index=2)
wrong_value("Expected include_background=True with `regions`, got False.", soft_dice, X, Y, regions=(1, 2, 2), include_background=False)
wrong_value("Expected `logits` of 2 channels, one for each of `regions`, got 3.", soft_dice, X, Y, regions=(1, 2))
wrong_value("Expected `labels` in 0 ... 254, or in one of `regions`, got [-1]. Pass `ignore_index`", soft_dice, X, Y - 1, regions=(1, 1, 1))
wrong_value("Expected `labels` in 0 ... 254, or in one of `regions`, got [255].", soft_dice, X, Y + 253, regions=(1, 1, 1), ignore_index=254)
wrong_value("Expected `reduction` to be one of 'mean', 'none', got 'sum'.", soft_dice, X, Y, reduction="sum")
wrong_type("Expected `reduction` to be one of 'mean', 'none', got None of type NoneType.", soft_dice, X, Y, reduction=None)
wrong_value("Expected a mean of the losses, reduction='mean', got reduction='none' with `cross_entropy`.", soft_dice, X, Y, reduction="none", cross_entropy=0.5)
wrong_value("Expected a mean of the losses, reduction='mean', got reduction='none' with `class_weights`.", soft_dice, X, Y, reduction="none", class_weights=(1, 1, 1))
wrong_value("Expected `logits` of shape (B, C, *spatial), got (2, 3).", soft_dice, X[:, :, 0, 0], Y)
wrong_value("Expected `logits` of at least one channel and one point, got shape (2, 3, 8, 0).", soft_dice, X[..., :0], Y)
wrong_value("Expected `labels` of shape (3, H) for `logits` of shape (3, 8, 8), got (2, 8, 8).", soft_dice, X[0], Y)
wrong_type("Expected `logits` to be a floating-point tensor, got type torch.int64.", soft_dice, X.long(), Y)
wrong_value("Expected `labels` on the device of `logits` (cpu), got `labels` on meta.", soft_dice, X, meta(2, 8, 8, dtype=torch.int64))
wrong_value("Expected `smooth` to be a finite number of at least 0, got -1.0.", soft_dice, X, Y, smooth=-1.0)
wrong_value("Expected `smooth` to be a finite number of at least 0, got nan.", soft_dice, X, Y, smooth=NAN)
wrong_type("Expected `smooth` to be a finite number of at least 0, got '1e-5' of type str.", soft_dice, X, Y, smooth="1e-5")
wrong_value("Expected `cross_entropy` to be a finite number of at least 0 and at most 1, got 1.5.", soft_dice, X, Y, cross_entropy=1.5)
wrong_type("Expected `cross_entropy` to be a finite number of at least 0 and at most 1, got True of type bool.", soft_dice, X, Y, cross_entropy=True)
wrong_type("Expected `batch` to be True or False, got 1 of type int.", soft_dice, X, Y, batch=1)
wrong_type("Expected `squared` to be True or False, got 'no' of type str.", soft_dice, X, Y, squared="no")
wrong_type("Expected `gather` to be True or False, got 1 of type int.", soft_dice, X, Y, gather=1)
wrong_type("Expected `include_background` to be True or False, got None of type NoneType.", soft_dice, X, Y, include_background=None)
wrong_type("Expected `gather` to be True or False, got 'all' of type str.", soft_dice, X, Y, gather="all")
wrong_type("Expected `ignore_index` to be an integer, got 1.5 of type float.", soft_dice, X, Y, ignore_index=1.5)

# The three modules ------------------------------------------------------------------------------------------------

for make, levels, rest in (
    (MultiScaleGlobalContrast, [E, E], ()),
    (MultiScaleLocalSupCon, [X[..., ::2, ::2], X], (Y,)),
    (DeepSupervisionDice, [X[..., ::2, ::2], X], (Y,)),
):
    weights = "Expected `weights` to be a non-empty sequence or mapping of numbers, one per level, got "
    wrong_value(weights + "().", make, weights=())
    wrong_value(weights + "{}.", make, weights={})
    wrong_type(weights + "0.5 of type float.", make, weights=0.5)
    wrong_type(weights + "'abc' of type str.", make, weights="abc")
    wrong_type("Expected `weights[0]` to be a finite number of at least 0, got [1.0] of type list.", make, weights=torch.ones(2, 1))
    wrong_type(weights + "None of type NoneType.", make, weights=None)
    wrong_value("Expected `weights[1]` to be a finite number of at least 0, got -0.1.", make, weights=(0.5, -0.1))
    wrong_value("Expected `weights[1]` to be a finite number of at least 0, got nan.", make, weights=(0.5, NAN))
    wrong_value("Expected `weights[0]` to be a finite number of at least 0, got inf.", make, weights=(INF, 0.5))
    wrong_type("Expected `weights[0]` to be a finite number of at least 0, got True of type bool.", make, weights=(True, 0.5))
    wrong_type("Expected `weights['a']` to be a finite number of at least 0, got '1' of type str.", make, weights={"a": "1"})
    wrong_type("Expected the keys of `weights` to be the names of levels, got 0 of type int.", make, weights={0: 0.5, 1: 0.5})
    wrong_value("Expected at least one of `weights` above 0, got (0.0, 0.0).", make, weights=(0.0, 0.0))
    loss, named = make(weights=(0.5, 0.5)), make(weights={"a": 0.5, "b": 0.5})
    argument = {MultiScaleGlobalContrast: "embeddings", MultiScaleLocalSupCon: "features"}.get(make, "logits")
    for call in (loss, loss.diagnose, named):  # as many weights as the pair has parts
        wrong_type(f"Expected `{argument}` to be a sequence or mapping of tensors, one per level, got the pair that a tapped model returns. Take it apart", call, (levels[0], {"a": levels[1]}), *rest)
    for call in (loss, loss.diagnose):
        wrong_value(f"Expected 2 levels in `{argument}`, one per weight of (0.5, 0.5), got 1. Give as many", call, levels[1:], *rest)
        wrong_type(f"Expected `{argument}` to be a sequence or mapping of tensors, one per level, got a tensor of shape", call, levels[0], *rest)
        wrong_type(f"Expected `{argument}` to be a sequence or mapping of tensors, one per level, got NoneType.", call, None, *rest)
        wrong_type(f"Expected `{argument}` to be a sequence or mapping of tensors, one per level, got set.", call, set(levels), *rest)
        wrong_type("Expected `", call, ["a", "b"], *rest)  # named as the level, or as the argument
    wrong_value(f"Expected `{argument}` to be a mapping with the keys of `weights`, ['a', 'b'], got ['a', 'c'].", named, dict(zip("ac", levels, strict=True)), *rest)
    wrong_value(f"Expected `{argument}` to be a mapping with the keys of `weights`, ['a', 'b'], got list.", named, levels, *rest)

wrong_value("Expected as many rows at each level of `embeddings`, got [4, 2].", MultiScaleGlobalContrast(weights=(0.5, 0.5)), [E, E[:2]])
wrong_value("Expected `keys` and `key_instances` together, got `key_instances` alone.", MultiScaleGlobalContrast(weights=(1.0,)), [E], IDS, key_instances=IDS)
wrong_value("Expected 1 level in `keys`, one per weight of (1.0,), got 2.", MultiScaleGlobalContrast(weights=(1.0,)), [E], IDS, keys=[E, E], key_instances=IDS)
wrong_value("Expected `temperature` to be a finite number above 0, got -1.0.", MultiScaleGlobalContrast, temperature=-1.0)
wrong_type("Expected `temperature` to be a finite number above 0, got a tensor. A loss module has no parameters", MultiScaleGlobalContrast, temperature=nn.Parameter(torch.tensor(0.1)))
wrong_type("Expected `temperature` to be a finite number above 0, got a tensor. A loss module has no parameters", MultiScaleLocalSupCon, temperature=torch.tensor(0.1, requires_grad=True))
wrong_value("Expected `formula` to be one of 'nt_xent', 'decoupled', 'mmgl', got 'supcon'.", MultiScaleGlobalContrast, formula="supcon")
wrong_value("Expected `tolerance` to be a finite number of at least 0, got -0.5.", MultiScaleGlobalContrast, tolerance=-0.5)
wrong_type("Expected `gather` to be True or False, got 'all' of type str.", MultiScaleGlobalContrast, gather="all")
wrong_type("Expected `gather` to be True or False, got 'all' of type str.", MultiScaleLocalSupCon, gather="all")
wrong_type("Expected `gather` to be True or False, got 'all' of type str.", DeepSupervisionDice, gather="all")
wrong_value("Expected `reduction` to be one of 'mean', 'none', got 'sum'.", MultiScaleGlobalContrast, reduction="sum")
wrong_value("Expected `reduction` to be one of 'mean', 'none', got 'sum'.", MultiScaleLocalSupCon, reduction="sum")
wrong_value("Expected `impl` to be one of 'auto', 'native', 'reference', 'fused', 'tiled', got 'fast'.", MultiScaleGlobalContrast, impl="fast")
wrong_value("Expected `pairs` to be one of 'image', 'augmentations', 'batch', got 'all'.", MultiScaleLocalSupCon, pairs="all")
wrong_value("Expected `background` to be one of 'anchor', 'key', 'ignore', got 'off'.", MultiScaleLocalSupCon, background="off")
wrong_value("Expected `sampling` to be one of 'grid', 'foreground', got 'max'.", MultiScaleLocalSupCon, sampling="max")
wrong_value("Expected `stride` to be an integer of at least 1, got 0.", MultiScaleLocalSupCon, stride=0)
wrong_type("Expected `ignore_index` to be an integer, got 255.0 of type float.", MultiScaleLocalSupCon, ignore_index=255.0)
wrong_type("Expected `background_index` to be an integer, got None of type NoneType.", MultiScaleLocalSupCon, background_index=None)
wrong_value("Expected `smooth` to be a finite number of at least 0, got -1.0.", DeepSupervisionDice, smooth=-1.0)
wrong_value("Expected `cross_entropy` to be a finite number of at least 0 and at most 1, got 2.0.", DeepSupervisionDice, cross_entropy=2.0)
for make in (MultiScaleGlobalContrast, MultiScaleLocalSupCon, DeepSupervisionDice):
    wrong_type("Expected `gather` to be True or False, got 1 of type int.", make, gather=1)
wrong_type("Expected `batch` to be True or False, got 0 of type int.", DeepSupervisionDice, batch=0)
wrong_type("Expected `ignore_index` to be an integer, got '255' of type str.", DeepSupervisionDice, ignore_index="255")
for make, argument in ((MultiScaleLocalSupCon, "features"), (DeepSupervisionDice, "logits")):
    loss = make(weights=(0.5, 0.5))
    fine_first = f"Expected `{argument}` ordered from coarse to fine, got [(8, 8), (4, 4)]. They are ordered fine to coarse: reverse"
    wrong_value(fine_first, loss, [X, X[..., ::2, ::2]], Y)
    wrong_value(fine_first, loss.diagnose, [X, X[..., ::2, ::2]], Y)
    wrong_value(f"Expected `{argument}` ordered from coarse to fine, got [(8, 8), (8, 8)]. Give `weights` as a mapping", loss, [X, X], Y)
wrong_value("Expected `labels` in 0 ... 2, got [3, 4, 5].", DeepSupervisionDice(weights=(1.0,)).diagnose, [X], Y + 3)
wrong_type("Expected `labels` to be an integer tensor, got type torch.float32.", MultiScaleLocalSupCon(weights=(1.0,)).diagnose, [X], Y.float())

# Heads ------------------------------------------------------------------------------------------------------------

for make in (GlobalHead, LocalHead, partial(SegmentationHead, out_channels=4)):
    name = name_of(getattr(make, "func", make))
    wrong_value("Expected `in_channels` to be an integer of at least 1, got 0.", make, 0, of=name)
    wrong_type("Expected `in_channels` to be an integer of at least 1, got '3' of type str.", make, "3", of=name)
    wrong_type("Expected `in_channels` to be an integer of at least 1, got True of type bool.", make, True, of=name)
    head = make(3)
    wrong_value("Expected `x` of shape (B, 3, *spatial), got (2, 4, 5, 5). The channel axis is the second", head, torch.zeros(2, 4, 5, 5))
    wrong_value("Expected `x` of shape (B, C, *spatial), got (2, 3).", head, torch.zeros(2, 3))
    wrong_value("Expected `x` of at least one channel and one point, got shape (2, 3, 0, 5).", head, torch.zeros(2, 3, 0, 5))
    wrong_type("Expected `x` to be a floating-point tensor, got type torch.int64.", head, torch.zeros(2, 3, 4).long())
    wrong_type("Expected `x` to be a tensor, got tuple.", head, (X,))
wrong_type("Expected `out_channels` to be an integer of at least 1, got 1.5 of type float.", GlobalHead, 3, 1.5)
wrong_value("Expected `out_channels` to be an integer of at least 1, got 0.", SegmentationHead, 3, 0)
wrong_value("Expected `stride` to be an integer of at least 1, got 0.", LocalHead, 3, stride=0)
wrong_type("Expected `hidden_channels` to be an integer of at least 1, got True of type bool.", LocalHead, 3, hidden_channels=True)
norm = "Expected `norm` to make a layer for rows (N, channels), "
wrong_type(norm + "got BatchNorm2d. Use `nn.BatchNorm1d`", LocalHead, 3, norm=nn.BatchNorm2d)
wrong_type(norm + "called with the number of channels, got 'x' of type str.", LocalHead, 3, norm=lambda channels: "x")
wrong_type(norm + "called with the number of channels, got 'batch' of type str.", GlobalHead, 3, norm="batch")
wrong_type(norm + "called with the number of channels, got LayerNorm((256,), eps=1e-05", LocalHead, 3, norm=nn.LayerNorm(256))
activation = "Expected `activation` to make an activation, called with nothing, got "
wrong_type(activation + "ReLU() of type ReLU. Pass the class: `nn.ReLU`, not `nn.ReLU()`.", GlobalHead, 3, activation=nn.ReLU())
wrong_type(activation + "'relu' of type str.", LocalHead, 3, activation="relu")
wrong_type(activation + "3 of type int.", LocalHead, 3, activation=lambda: 3)

# Networks, stages and taps ----------------------------------------------------------------------------------------

NET = UNet(1, 2, channels=(2, 3, 4))
IMAGE, UP = torch.rand(2, 1, 16, 16), "encoder.up"
wrong_type("Expected `channels` to be a sequence of at least 2 integers, one per level and one for the bottleneck, got {4, 5} of type set.", UNet, channels={4, 5})
wrong_type("Expected `channels` to be a sequence of at least 2 integers, one per level and one for the bottleneck, got '46' of type str.", UNet, channels="46")
wrong_value("Expected `channels` to be a sequence of at least 2 integers, one per level and one for the bottleneck, got (4,).", UNet, channels=(4,))
wrong_value("Expected `channels[1]` to be an integer of at least 1, got 0.", UNet, channels=(4, 0))
wrong_type("Expected `channels[0]` to be an integer of at least 1, got 2.5 of type float.", UNet, channels=(2.5, 4))
wrong_value("Expected `spatial_dims` to be one of 2, 3, got 4.", UNet, spatial_dims=4)
wrong_type("Expected `spatial_dims` to be one of 2, 3, got 2.0 of type float.", UNet, spatial_dims=2.0)
wrong_type("Expected `spatial_dims` to be one of 2, 3, got True of type bool.", UNet, spatial_dims=True)
wrong_type("Expected `spatial_dims` to be one of 2, 3, got '2' of type str.", UNet, spatial_dims="2")
wrong_value("Expected `norm` to be one of 'instance', 'batch', got 'instnce'. Did you mean 'instance'?", UNet, norm="instnce")
wrong_type("Expected `norm` to be one of 'instance', 'batch', got <class 'torch.nn.modules.batchnorm.BatchNorm2d'> of type type.", UNet, norm=nn.BatchNorm2d)
wrong_value("Expected `in_channels` to be an integer of at least 1, got 0.", UNet, 0)
wrong_type("Expected `out_channels` to be an integer of at least 1, got None of type NoneType.", UNet, 1, None)
wrong_value("Expected `x` of shape (B, 1, H, W), got (2, 3, 16, 16).", NET, torch.rand(2, 3, 16, 16))
wrong_value("Expected `x` of shape (B, 1, H, W), got (1, 16, 16).", NET, IMAGE[0])
wrong_value("Expected `x` with at least 4 elements along each spatial axis, got (2, 1, 16, 3). Use larger images", NET, IMAGE[..., :3])
wrong_value("Expected `x` with at least 8 elements along one spatial axis, got (2, 1, 4, 4). The bottleneck is one element", NET, IMAGE[..., :4, :4])
wrong_type("Expected `x` to be a floating-point tensor, got type torch.uint8.", NET, IMAGE.byte())

wrong_type("Expected `net` to be a torch.nn.Module, got str.", discover_stages, "net", IMAGE)
wrong_type("Expected `net` to be a torch.nn.Module, got type.", discover_stages, UNet, IMAGE)

wrong_type("Expected `net` to be a torch.nn.Module, got NoneType.", FeatureTaps, None, [UP])
names = "Expected `names` to be names of modules, or a mapping from names to selectors, got "
wrong_type(names + "'encoder.up' of type str. Put a single name in a list.", FeatureTaps, NET, UP)
wrong_type(names + "None of type NoneType.", FeatureTaps, NET, None)
wrong_value(names + "none.", FeatureTaps, NET, [])
wrong_type("Expected the name of a module of the network, got 3 of type int.", FeatureTaps, NET, [3])
wrong_value("Expected the name of a module of the network, got 'encoder.upp'. Close matches: 'encoder.up'", FeatureTaps, NET, ["encoder.upp"])
selector = "Expected the selector of 'encoder.up' to be an index, a key, an attribute's name or a function, got "
wrong_type(selector + "1.5 of type float.", FeatureTaps, NET, {UP: 1.5})
wrong_type(selector + "True of type bool.", FeatureTaps, NET, {UP: True})
wrong_value("Expected the tapped module 'encoder.up' to run once in a forward pass, got no call.", FeatureTaps(NET, [UP]).read, of="FeatureTaps")

IDENTITY = {UP: nn.Identity()}
wrong_type("Expected `net` to be a torch.nn.Module, got int.", TappedModel, 3, IDENTITY)
heads = "Expected `heads` to be a non-empty mapping from names of modules to heads, got "
wrong_type(heads + "list. Write `{name: GlobalHead for name in names}`.", TappedModel, NET, [UP])
wrong_value(heads + "an empty one.", TappedModel, NET, {})
wrong_type("Expected `encoder.up` to be a torch.nn.Module, got type.", TappedModel, NET, {UP: GlobalHead})
wrong_value("Expected the name of a module of the network, got 'up'.", TappedModel, NET, {"up": nn.Identity()})
wrong_type("Expected `output` to be True or False, got 0 of type int.", TappedModel, NET, IDENTITY, output=0)
wrong_type("Expected `selectors` to be a mapping from names to selectors, got 0 of type int.", TappedModel, NET, IDENTITY, selectors=0)
wrong_value("Expected the name of a tapped module in `selectors`, got 'classifier'.", TappedModel, NET, IDENTITY, selectors={"classifier": 0})
wrong_type(selector + "None of type NoneType.", TappedModel, NET, IDENTITY, selectors={UP: None})

wrong_type("Expected `net` to be a torch.nn.Module, got int.", attach_heads, 3, IMAGE, {UP: GlobalHead})
wrong_type(heads + "list.", attach_heads, NET, IMAGE, [UP])
wrong_value(heads + "an empty one.", attach_heads, NET, IMAGE, {})
wrong_type("Expected `heads['encoder.up']` to be a module, or to make one from a number of channels, got int.", attach_heads, NET, IMAGE, {UP: 128})
wrong_type("Expected `heads['encoder.up']` to make a torch.nn.Module, got int.", attach_heads, NET, IMAGE, {UP: lambda channels: channels})
wrong_type("Expected `heads['encoder.up']` to make a head from the number of channels alone, got one that says: missing a required argument: 'out_channels'. Give the rest with `functools.partial`", attach_heads, NET, IMAGE, {UP: SegmentationHead})
wrong_type("Expected `heads['encoder.up']` to make a head from the number of channels alone, got one that says: too many", attach_heads, NET, IMAGE, {UP: lambda: nn.Identity()})
wrong_value("Expected the name of a module of the network, got 'encoder.blocks.7'. Close matches: 'encoder.blocks", attach_heads, NET, IMAGE, {"encoder.blocks.7": GlobalHead})
wrong_type("Expected the name of a module of the network, got 7 of type int.", attach_heads, NET, IMAGE, {7: GlobalHead})
wrong_type("Expected `output` to be True or False, got 'no' of type str.", attach_heads, NET, IMAGE, {UP: GlobalHead}, output="no")
wrong_type("Expected `selectors` to be a mapping from names to selectors, got ['x'] of type list.", attach_heads, NET, IMAGE, {UP: GlobalHead}, selectors=["x"])
wrong_value("Expected the name of a tapped module in `selectors`, got 'x'.", attach_heads, NET, IMAGE, {UP: GlobalHead}, selectors={"x": 0})
wrong_value("Expected the output of 'encoder' to have 9, got list of 3.", attach_heads, NET, IMAGE, {"encoder": GlobalHead}, selectors={"encoder": 9})
wrong_type("Expected the module 'encoder' to return a tensor, got list of 3. Pick one by a selector", attach_heads, NET, IMAGE, {"encoder": GlobalHead})
wrong_value("Expected the feature of 'encoder.blocks.0.1' to stay as it was, got it overwritten in place. Tap the module that overwrites it", attach_heads, NET, IMAGE, {"encoder.blocks.0.1": GlobalHead})

TAPPED = attach_heads(UNet(1, 2, channels=(2, 3, 4)), IMAGE, {UP: GlobalHead})
wrong_type("Expected `loss` to be a tensor, got float.", TAPPED.freeze_unused, 0.5, of="TappedModel")
wrong_value("Expected a loss that depends on parameters of this model, got one that does not.", TAPPED.freeze_unused, torch.zeros(()), of="TappedModel")

wrong_type("Expected `net` to be a torch.nn.Module, got str.", load_matching, "net", {})
wrong_type("Expected `weights` to be a mapping from names to tensors, a state_dict, got 'weights.pt' of type str. Load the file first", load_matching, NET, "weights.pt")
wrong_type("Expected `weights` to be a mapping from names to tensors, a state_dict, got dict under 'state_dict'. Give what is in it, such as `weights['state_dict']`.", load_matching, NET, {"state_dict": {}})
wrong_type("Expected `weights` to be a mapping from names to tensors, a state_dict, got int under 'epoch'.", load_matching, NET, {"epoch": 3})
wrong_value("Expected weights of which at least one parameter fits the network by name and shape, got none: names such as 'w' beside", load_matching, NET, {"w": X})
wrong_type("Expected `levels` to be an integer of at least 1, got 2.0 of type float.", halving, 2.0)
wrong_value("Expected `levels` to be an integer of at least 1, got 0.", halving, 0)
wrong_value("Expected `levels` to be an integer of at least 2, got 1.", halving, 1, coarsest=False)
wrong_type("Expected `coarsest` to be True or False, got 1 of type int.", halving, 3, coarsest=1)
# Self-training -----------------------------------------------------------------------------------------------------

PICTURES, MAPS = torch.rand(2, 1, 6, 6), torch.zeros(2, 6, 6, dtype=torch.long)
wrong_type("Expected `model` to be a torch.nn.Module, got int.", MeanTeacher, 3)
wrong_value("Expected `momentum` to be a finite number of at least 0 and at most 1, got 1.5.", MeanTeacher, nn.Linear(1, 1), momentum=1.5)
wrong_type("Expected `momentum` to be a finite number of at least 0 and at most 1, got '1' of type str.", MeanTeacher, nn.Linear(1, 1), momentum="1")
wrong_type("Expected `logits` to be a tensor, got tuple.", pseudo_labels, (PICTURES, {}))
wrong_type("Expected `logits` to be a floating-point tensor, got type torch.int64.", pseudo_labels, MAPS)
wrong_value("Expected `logits` of shape (B, C, *spatial) with two or more channels, got (2, 1, 6, 6).", pseudo_labels, PICTURES)
wrong_value("Expected `confidence` to be a finite number of at least 0 and at most 1, got 2.", pseudo_labels, PICTURES.expand(2, 2, 6, 6), confidence=2)
wrong_type("Expected `ignore_index` to be an integer, got None of type NoneType.", pseudo_labels, PICTURES.expand(2, 2, 6, 6), ignore_index=None)
wrong_value("Expected `images` of shape (B, C, *spatial), got (6, 6).", copy_paste, PICTURES[0, 0], MAPS, PICTURES, MAPS)
wrong_value("Expected `others` of shape (2, 1, 6, 6), got (1, 1, 6, 6). Take as many", copy_paste, PICTURES, MAPS, PICTURES[:1], MAPS)
wrong_value("Expected `labels` of shape (2, 6, 6), got (2, 1, 6, 6).", copy_paste, PICTURES, MAPS[:, None], PICTURES, MAPS)
wrong_value("Expected `other_labels` of shape (2, 6, 6), got (1, 6, 6).", copy_paste, PICTURES, MAPS, PICTURES, MAPS[:1])
wrong_type("Expected `labels` to be an integer tensor, got type torch.float32. Labels are class indices", copy_paste, PICTURES, MAPS.float(), PICTURES, MAPS)
wrong_value("Expected `side` to be a finite number of at least 0 and at most 1, got -0.1.", copy_paste, PICTURES, MAPS, PICTURES, MAPS, side=-0.1)
wrong_value("Expected `others` on the device of `images` (cpu), got `others` on meta.", copy_paste, PICTURES, MAPS, PICTURES.to("meta"), MAPS)
wrong_type("Expected `ignore_index` to be an integer, got 'x' of type str.", copy_paste, PICTURES, MAPS, PICTURES, MAPS, ignore_index="x")

# Names ------------------------------------------------------------------------------------------------------------

for register, kind in ((plugins.register_loss, "loss"), (plugins.register_head, "head")):
    wrong_type(f"Expected the name of a {kind} to be a string, got 3 of type int.", register, 3, dict)
    wrong_value(f"Expected the name of a {kind} not to be empty, got ''.", register, "", dict)
    wrong_type(f"Expected a callable that makes the {kind}, got str.", register, "Mine", "MyLoss")
wrong_value("Expected a new name for a loss, got 'DeepSupervisionDice'. It is taken.", plugins.register_loss, "DeepSupervisionDice", dict)
wrong_value("Expected a new name for a head, got 'LocalHead'. It is taken.", plugins.register_head, "LocalHead", dict)
wrong_value("Expected `kind` to be one of 'loss', 'head', got 'metric'.", plugins.create, "metric", "Dice")
wrong_type("Expected `kind` to be one of 'loss', 'head', got [] of type list.", plugins.create, [], "Dice")
wrong_value("Expected `head` to be one of 'GlobalHead', 'LocalHead', 'SegmentationHead', got 'LocalHaed'. Did you mean 'LocalHead'?", plugins.create, "head", "LocalHaed", 4)
wrong_type("Expected the name of a loss to be a string, got None of type NoneType.", plugins.create, "loss", None)
wrong_value("Expected `in_channels` to be an integer of at least 1, got 0.", plugins.create, "head", "LocalHead", 0)
wrong_value("Expected `kind` to be one of 'loss', 'head', got 'losses'. Did you mean 'loss'?", plugins.available, "losses")

# Sampling ---------------------------------------------------------------------------------------------------------

wrong_value("Expected `size` to be an integer of at least 1, got 0.", sampling.places, 0, 1)
wrong_value("Expected `m` to be an integer of at least 1, got -3.", sampling.places, 5, -3)
wrong_type("Expected `size` to be an integer of at least 1, got 5.0 of type float.", sampling.places, 5.0, 1)
wrong_value("Expected `stride` to be an integer of at least 1, got 0.", sampling.strided, 5, 0)
wrong_type("Expected `stride` to be an integer of at least 1, got 0.5 of type float.", sampling.strided, 5, 0.5)
wrong_value("Expected `stride` to be an integer of at least 1, got -1.", sampling.subsample, X, -1)
wrong_value("Expected `x` of at least 2 axes, one for each size, got shape (3,).", sampling.resample, E[0], (2, 2))
wrong_type("Expected `x` to be a tensor, got list.", sampling.resample, [1], (2,))
wrong_value("Expected `m` to be an integer of at least 1, got 0.", sampling.resample, E, (0,))
wrong_type("Expected `x` to be a floating-point tensor, got type torch.int64.", normalise, IDS)
