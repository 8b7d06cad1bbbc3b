"""The faults, each as a rule: what is broken, what code means that, what it becomes, and which tests should notice.

A rule names no file and copies no line. It finds its place by names of torch, by public names and by the shape of a
formula (`tests.mutants.pattern`), so moving, renaming and formatting do not touch this list. One place is expected for
each pattern; with ``each=True`` there may be more, and the fault is planted in each by itself.
"""

from collections.abc import Mapping

from tests.mutants.planting import Rule

RULES: list[Rule] = []


def rule(
    what: str,
    changes: Mapping[str, str],
    *tests: str,
    each: bool = False,
    beside: tuple[str, ...] = (),
    inside: str = "",
    **env: str,
) -> None:
    """A row of the list; tests as ``file`` or ``file::test``."""
    files = [test.partition("::") for test in tests]
    paths = tuple(f"tests/{file}.py{colons}{name}" for file, colons, name in files)
    RULES.append(Rule(what, changes, paths, each, beside, inside, env))


# fmt: off
WEIGHTED = "test_reduction::test_levels_have_their_weights_and_keys"
NOT_FINITE = "test_reduction::test_features_that_are_not_finite_are_not_taken_for_points_that_do_not_count"
LOCAL = "test_functional::test_local_matches_loops"
GLOBAL = "test_functional::test_global_matches_loops"
SCOPES = "test_functional::test_pair_scopes_match_loops"
PAIRS = "test_contrast::test_matches_loops"
BAD = "test_bad_input"
DICE = "test_dice::test_matches_loops"
STRIPS = "test_known_pairs::test_few_classes_in_many_strips"
PARTS = "test_known_pairs::test_gradients_of_every_result_in_many_parts"
WEIGHTED = "test_known_pairs::test_weighted_keys_among_themselves_in_many_tiles"
TOLERANCE = "test_known_pairs::test_ids_exactly_as_far_apart_as_the_tolerance_are_positives"
TINY = "test_contrast::test_no_overflow_at_tiny_temperatures"
EQUAL = "test_known_pairs::test_many_equal_vectors_do_not_overflow"
PROCESSES = "test_gather::test_processes_are_one[2]"
FUSED = "interpreted_fused::test_agrees_with_the_reference"
INTERPRETED = {"TRITON_INTERPRET": "1"}

# Formulas and their means
rule("terms of a formula are exchanged or left out, or its mean over the positives is a sum",
     {"A / n_positives": "A",
      "logaddexp(positive_lse, negative_lse)": "negative_lse",
      "logaddexp(self_logit, A)": "A",
      "negative_lse - positive_lse": "positive_lse - negative_lse",
      "A - n_positives.to(...).log()": "A"},
     LOCAL, GLOBAL, each=True)
rule("anchors without negatives count where they must not",
     {"A & (n_negatives > 0)": "A"},
     LOCAL)
rule("images without a valid anchor count in the mean",
     {"(A > 0).sum()": "torch.ones_like(A).sum()"},
     "test_laws::test_images_are_independent")
rule("losses of anchors, or logits of pairs, that do not count are summed",
     {"losses.masked_fill(A, 0.0)": "losses",
      "(A * positive).sum(-1)": "A.sum(-1)"},
     LOCAL, PAIRS, each=True)
rule("an anchor that does not count has a loss, or one of NaN is taken for one that does not count",
     {"A.masked_fill(~valid, nan)": "A",
      "losses.masked_fill(losses.isnan(), inf)": "losses"},
     "test_reduction::test_each_is_that_of_a_plain_loop", NOT_FINITE, each=True)
rule("losses of points of augmentations are in the order of images",
     {"losses[A.argsort()]": "losses"},
     "test_reduction::test_augmentations_stay_in_the_order_of_the_batch")
rule("a formula sees the terms of anchors that do not count",
     {"A.masked_fill(B, C)": "A"},
     "test_laws::test_nothing_to_learn_from", "test_functional::test_a_callable_that_is_wild_on_empty_anchors_cannot_leak", inside="PairTerms(...)")

# Masks and scopes
rule("`ignore_index`, `background_index` or `background` is not looked at",
     {"None if ignore_index is None else A != ignore_index": "None",
      "A != background_index": "A != 0",
      'A if background == "key" else B': 'B if background == "key" else A'},
     LOCAL, "test_laws::test_names_of_classes", "test_dice::test_cross_entropy_is_torch_s", each=True)
rule("what takes no part is multiplied by 0, so its NaN leaks",
     {"B if A is None else torch.where(A[S], B, 0.0)": "B if A is None else B * A[S]",
      "torch.where(A[:, None], B, 0.0)": "B * A[:, None]"},
     "test_contrast::test_rows_that_take_no_part_may_hold_nan", "test_dice::test_ignored_pixels_may_hold_nan")
rule("labels keep a type in which an index wraps round",
     {"A.long()": "A"},
     "test_laws::test_an_index_that_the_type_of_the_labels_cannot_hold", beside=('tensor("labels", ...)',))
rule('`pairs="batch"` is not looked at',
     {'pairs == "batch"': "False"},
     SCOPES, PROCESSES, each=True)
rule("augmentations are neighbours instead of halves",
     {"[A, A + B // 2]": "[2 * A, 2 * A + 1]",
      "torch.cat([A, A])": "A.repeat_interleave(2)"},
     SCOPES, "test_laws::test_two_halves_are_their_instances")

# Places and types
rule("places are off by half a cell",
     {"2 * torch.arange(A, ...) + 1": "2 * torch.arange(A, ...)",
      "slice(A // 2, None, A)": "slice(0, None, A)"},
     "test_sampling::test_places_hold_the_points", "test_sampling::test_resample_indexes_each_axis", each=True)
rule("the last, smaller cell of a stride is lost",
     {"(A + B - 1) // B": "max(A // B, 1)"},
     "test_sampling::test_resample_indexes_each_axis", "test_heads::test_gradients_reach_only_the_points_taken", beside=('integer("stride", ...)',))
rule("foreground sampling takes background",
     {"torch.where(A, B + 1, C)": "C"},
     "test_sampling::test_foreground_places_keep_what_a_cell_holds", beside=("torch.isin(...)",))
rule("lengths overflow, or vectors without a direction get a gradient",
     {"A.abs().amax(-1, keepdim=True)": "0 * A.abs().amax(-1, keepdim=True) + 1",
      "A.masked_fill(A == 0, torch.inf)": "A.masked_fill(A == 0, 1.0)"},
     "test_unit::test_normalise_at_any_length", "test_unit::test_normalise_of_zero_is_zero_with_zero_gradient")
rule("half precision stays half",
     {"A if A.dtype == torch.float64 else A.float()": "A"},
     "test_laws::test_half_precision_is_widened_first", "test_contrast::test_half_precision_is_summed_in_float32", "test_dice::test_half_precision_sums_in_float32", each=True)

# The primitive: which pairs
rule("the anchor's own key is not left out",
     {"A != B[S]": "A >= 0"},
     PAIRS, each=True, beside=("self_index", "torch.arange(...)"))
rule("the anchor's own key stays in what tiles, strips and sorted ranges sum and count",
     {"A.diagonal(...)._(...)": "A",
      "A[R, B[R]] = C": "pass",
      "A.sub_(B * C[S])": "A",
      "A - B * C[..., None]": "A",
      "(A - B.long(), C)": "(A, C)",
      "(A - B).long()": "A.long()"},
     PAIRS, STRIPS, PARTS, each=True)
rule("an end of a range of ids is off by one",
     {"A.abs() <= tolerance": "A.abs() < tolerance",
      "A + tolerance": "A + 0.999 * tolerance",
      "torch.searchsorted(A, B, right=True)": "torch.searchsorted(A, B)",
      "A < hi[S]": "A <= hi[S]"},
     "test_sampling::test_foreground_places_keep_what_a_cell_holds", PAIRS, TOLERANCE, FUSED, each=True, **INTERPRETED)
rule("sorted keys are out of order, or the anchor's own is not among them",
     {"torch.where(A < B[S], C, D)": "C",
      "A.gather(1, B.argsort(...))": "B.argsort(...)",
      "torch.where(A >= 0, B, -1)": "torch.where(A > 0, B, -1)"},
     PAIRS)
rule("anchors that are masked count",
     {"A.masked_fill_(~anchor_mask, 0)": "pass"},
     PAIRS)
rule("a segment of a tile is taken for pure that is mixed",
     {'[A, "mixed", "positive", "mixed", B]': '[A, "positive", "positive", "positive", B]'},
     "test_contrast::test_tiles_cover_every_pair_once", PAIRS)

# The primitive: what is summed
rule("a wrong power of the temperature",
     {"A / temperature": "A * temperature",
      "temperature**-0.5": "temperature**-1"},
     "test_contrast::test_a_temperature_that_is_a_tensor_is_that_number",
     "test_contrast::test_a_bound_is_one_beside_a_temperature_that_is_a_tensor", PAIRS, TINY, EQUAL, each=True, beside=("Problem(...)",))
rule("Lightning's step forgets what the loss takes beside the embeddings",
     {"A.loss(embeddings, *B)": "A.loss(embeddings)"},
     "test_lightning")
rule("the logit with itself lacks its temperature",
     {"(A * A).sum(-1) * scale": "(A * A).sum(-1)",
      "A.masked_fill(B, scale)": "A.masked_fill(B, 1.0)"},
     "test_unit::test_engines_make_unit_vectors_as_normalise_does")
rule("the gradient of unit vectors is taken for that of the points",
     {"(A - B * (B * A).sum(-1, keepdim=True)) / C": "A"},
     "test_unit::test_engines_make_unit_vectors_as_normalise_does", "test_unit::test_normalise_gradcheck")
rule("weights of keys have the wrong sign",
     {"A if B is None else A + C * B[S]": "A if B is None else A - C * B[S]",
      "A += log_weights[S]": "A -= log_weights[S]"},
     WEIGHTED, PAIRS, each=True)
rule("the constant shift is not added again, or is 0 where sums of exponentials overflow",
     {"A.log_().add_(B)": "A.log_()",
      "max(0.0, A)": "0.0"},
     TINY, EQUAL, STRIPS, "interpreted_fused::test_many_equal_vectors_do_not_overflow", each=True, **INTERPRETED)
rule("positives and negatives have one another's factors",
     {"torch.where(A, B[S], C[S])": "torch.where(A, C[S], B[S])"},
     PAIRS, STRIPS, each=True)
rule("a share of the sums is not added",
     {"A[S] += B": "pass"},
     PAIRS, STRIPS, PARTS, WEIGHTED, each=True, beside=("sums",))
rule("a share of the gradients is not added",
     {"A[S].addmm_(...)": "pass",
      "A[S].baddbmm_(...)": "pass"},
     PAIRS, STRIPS, PARTS, each=True)
rule("what stands for its mirror image gives its columns nothing",
     {"torch.add(A, ...) if mirrored else A": "A",
      "A + B[S] * C if mirrored else A": "A",
      "(A + A.mT) @ B": "A @ B"},
     PAIRS, PARTS, WEIGHTED, each=True)
rule("the sum of the positives has no gradient, or half of it",
     {"A = A + B * C[S]": "pass",
      "A.baddbmm_(B[S].mT, C)": "pass",
      "A += B if C else B * D": "pass",
      "(A.add_(B), None)": "(A, None)"},
     PAIRS, PARTS, FUSED, each=True, **INTERPRETED)
rule("running sums cancel in float32",
     {"A.double().cumsum(1)": "A.cumsum(1)"},
     "test_precision::test_running_sums_keep_their_digits")

# The operation
rule("a gradient that is asked for is not given",
     {"needs_input_grad[A]": "False"},
     PAIRS, "test_contrast::test_gradients_of_one_side_alone", each=True)
rule("saved results are exchanged",
     {"A.save_for_backward(..., B, C, D, E)": "A.save_for_backward(..., C, B, D, E)"},
     PAIRS)
rule("gradients of rows without pairs are NaN, or what arrives there goes on",
     {"A.masked_fill(B, torch.inf)": "A",
      "A.masked_fill(B, 0.0)": "A"},
     "test_contrast::test_what_arrives_in_rows_without_pairs_goes_no_further", "test_unit", "test_laws::test_nothing_to_learn_from", DICE,
     "test_dice::test_a_sample_that_is_all_ignored_is_as_if_left_out", PAIRS, NOT_FINITE, each=True)
rule("gradients in the caller's order meet sorted rows",
     {"A.at(B)": "A"},
     PAIRS, PARTS, FUSED, each=True, **INTERPRETED)
rule("a wrong second derivative instead of a refusal",
     {"if is_grad_enabled():\n    ...": "if False:\n    ..."},
     "test_contrast::test_second_derivatives_are_right_or_refused")

# Several processes
rule("a process's share is not multiplied by their number",
     {"A * world()": "A"},
     PROCESSES, each=True)
rule("the mean is a mean of the processes' means: counts are not summed over them",
     {"total(A)": "A"},
     PROCESSES, each=True)
rule("gradients from other processes are dropped",
     {"dist.reduce_scatter(A, B)": "A.copy_(B[dist.get_rank()])",
      "A.register_autograd(lambda _, _: B(C))": "A.register_autograd(lambda ctx, grad: C)"},
     PROCESSES)
rule("rows of several processes are in another order, or padding is among them",
     {"[*range(A, B), *range(A)]": "[*range(B)]",
      "torch.cat([A[I][: B[I]] for I in C])": "torch.cat([A[I] for I in C])"},
     PROCESSES, each=True)

# Dice
REGIONS, CLASSES = "test_dice::test_regions_match_loops", "test_dice::test_the_loss_of_each_class_matches_loops"
rule("a term of Dice is wrong",
     {"2 * hit": "hit",
      "A + smooth": "A",
      "A.sum(1, keepdim=True)": "A.mean(1, keepdim=True)",
      "1 - A, counted": "1 - A, torch.ones_like(counted)"},
     DICE, "test_dice::test_a_sample_that_is_all_ignored_is_as_if_left_out", beside=("2 * hit",))
rule("the shares of Dice and cross-entropy are exchanged",
     {"(1 - S) * A - S * B / C": "S * A - (1 - S) * B / C"},
     "test_dice::test_cross_entropy_is_torch_s")
rule("squares, sums or cross-entropy of regions are wrong",
     {"A.square() if squared else A": "A",
      "torch.where(A, B, 0.0)": "B",
      "2.0 * A - 1.0": "2.0 * A",
      "torch.stack(A).any(0)": "torch.stack(A).all(0)"},
     DICE, REGIONS, each=True, beside=("sum(2)",))
rule("classes or regions are not weighted",
     {"(A * B).sum() / B.sum()": "A.mean()",
      "torch.ones_like(A) if weights is None else B": "torch.ones_like(A)",
      "weights[first :]": "weights[: len(weights) - first]"},
     DICE, REGIONS, "test_dice::test_cross_entropy_is_torch_s", each=True)
rule("the loss of each class is that of other classes",
     {"[A.squeeze(0) for A in B] if batch else B": "B"},
     CLASSES)
rule("`include_background` means its opposite",
     {"0 if include_background else 1": "1 if include_background else 0"},
     DICE, "test_losses::test_diagnostics_of_dice", each=True)

# Levels
rule("levels are not weighted",
     {"weight * A": "A",
      "torch.dot(losses, A)": "losses.sum()"},
     "test_losses::test_is_the_weighted_sum", "test_losses::test_progress_is_weighted", WEIGHTED, each=True)
rule("weights meet the levels the wrong way round",
     {"zip(A, weights, ...)": "zip(A, list(weights)[::-1], ...)"},
     "test_losses::test_diagnostics_hold_the_weight_and_the_loss_of_each_level", "test_losses::test_is_the_weighted_sum", WEIGHTED, "test_reduction::test_levels_of_dice_have_their_weights_and_keys",
     "test_reduction::test_levels_have_their_weights_and_keys", each=True)
rule("a level of weight 0 leaks NaN",
     {"[A for B in C if weight]": "[A for B in C]"},
     "test_losses::test_weight_zero_skips_the_level", WEIGHTED, each=True)
rule("levels of one size are taken in any order",
     {"all(A < B for A, B in pairwise(C))": "all(A <= B for A, B in pairwise(C))"},
     BAD)

# Diagnostics, names, checks, and the kit for plug-ins
rule("the floor is the worst, not the best",
     {"A(B, S, -S)": "A(B, -S, S)"},
     "test_losses::test_diagnostics_of_local_features")
rule("NaN is called nothing to learn from",
     {"not math.isfinite(A)": "False"},
     "test_bad_input::test_what_is_not_finite_is_not_hidden")
rule("a plug-in takes a name that is taken",
     {"A in available(B)": "False",
      "A.name in B": "False"},
     "test_plugins::test_two_distributions_with_one_name", BAD, beside=("raise ValueError(...)",))
rule("bad input passes: True and infinity for numbers, a label beyond the last class, NaN for an id",
     {"isinstance(A, bool)": "False",
      "-math.inf < A < math.inf": "True",
      "(A < 0) | (A >= B)": "(A < 0) | (A > B)",
      "A.isnan() if B is None else A.isnan() & B": "A.isinf() if B is None else A.isinf() & B"},
     BAD, each=True)
rule("a formula that repels positives passes",
     {"(A < -1e-6).any()": "(A < -1e6).any()"},
     "test_testing::test_broken_formulas_fail_by_name")

# Networks
rule("a head maps the corners of cells",
     {"subsample(A, S)": "A[(..., *[slice(None, None, S)] * (A.ndim - 2))]"},
     "test_heads::test_local_head_is_two_convolutions_then_sampling")
rule("hooks stay",
     {"A.remove()": "A"},
     "test_taps::test_hooks_go", "test_taps::test_attaching_touches_nothing_but_hooks", "test_taps::test_a_network_that_needs_values_runs_once_for_real_and_is_put_back",
     "test_flow::test_a_model_closes_and_says_so", "test_stages", each=True)
rule("what is overwritten in place passes",
     {"_version(A) != B": "_version(A) < B"},
     "test_taps::test_misuse_is_named_everywhere", "test_taps::test_a_network_that_needs_values_runs_once_for_real_and_is_put_back", each=True)
rule("a module that runs twice is not noticed",
     {"A.calls += 1": "A.calls = 1"},
     "test_taps::test_misuse_is_named_everywhere")
rule("a stride forgets the strides before it",
     {"stride * factor": "factor"},
     "test_flow", "test_stages", each=True)

# Fused kernels, in Triton's interpreter
rule("off by one at the first positive",
     {"(A >= lo) & (B < hi)": "(A > lo) & (B < hi)"},
     PAIRS, FUSED, each=True, **INTERPRETED)
rule("tiles of a kernel do not credit their columns",
     {"tl.atomic_add(A, tl.sum(B, 0), ...)": "pass"},
     FUSED, each=True, **INTERPRETED)
rule("sums are not brought to the new maximum",
     {"A * tl.exp2(B - C) + D": "A + D"},
     FUSED, **INTERPRETED)
