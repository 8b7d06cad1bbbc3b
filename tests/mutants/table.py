"""The faults, as data: where, the exact text, what to put in its place, what that breaks, and who should notice.

A text that is not found exactly once is an error: a fault must be kept up to date with the code it is planted in.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Mutant:
    """A fault: `old` occurs exactly once in the modules that begin with `where`; `tests` are what pytest is given."""

    where: str
    old: str
    new: str
    what: str
    tests: tuple[str, ...]
    env: dict[str, str] = field(default_factory=dict)


MUTANTS: list[Mutant] = []


def fault(where: str, old: str, new: str, what: str, *tests: str, **env: str) -> None:
    """A row of the table; tests as ``file`` or ``file::test``."""
    files = [test.partition("::") for test in tests]
    paths = tuple(f"tests/{file}.py{colons}{name}" for file, colons, name in files)
    MUTANTS.append(Mutant(where, old, new, what, paths, env))


# fmt: off
LAWS, LOCAL, GLOBAL = "test_laws", "test_functional::test_local_matches_loops", "test_functional::test_global_matches_loops"
INTERPRETED = "interpreted_fused::test_agrees_with_the_reference"
LOOPS, BAD = "test_contrast::test_matches_loops", "test_bad_input"

# Formulas and their mean
fault("formulas", "logaddexp(terms.positive_lse, terms.negative_lse) - terms.positive_sum / terms.n_positives", "logaddexp(terms.positive_lse, terms.negative_lse) - terms.positive_sum", "supcon forgets 1/|P|", LOCAL)
fault("formulas", "mean_inside = terms.positive_lse - terms.n_positives.to(terms.positive_lse.dtype).log()", "mean_inside = terms.positive_lse", "supcon_in takes the sum inside the log, not the mean", LOCAL)
fault("formulas", "return terms.negative_lse - terms.positive_sum / terms.n_positives", "return terms.positive_lse - terms.positive_sum / terms.n_positives", "decoupled repels positives", GLOBAL)
fault("formulas", "torch.logaddexp(terms.self_logit, terms.negative_lse)", "torch.logaddexp(terms.positive_lse, terms.negative_lse)", "the printed denominator without the self pair", GLOBAL)
fault("formulas", "(terms.negative_lse - terms.positive_lse) / terms.n_positives", "(terms.positive_lse - terms.negative_lse) / terms.n_positives", "P and N swapped", LOCAL)
fault("formulas", "(terms.negative_lse - terms.positive_lse) / terms.n_positives", "(terms.negative_lse - terms.positive_lse)", "the printed local loss forgets 1/|P|", LOCAL)
fault("formulas", "return valid & (terms.n_negatives > 0) if needs_negatives(formula) else valid", "return valid", "anchors without negatives count where they must not", LOCAL)
fault("formulas", "(count > 0).sum()", "torch.ones_like(count).sum()", "images without a valid anchor count in the mean", f"{LAWS}::test_images_are_independent")
fault("formulas", "torch.where(valid, losses, 0.0).sum(-1)", "losses.sum(-1)", "anchors that are not valid count in the sum", LOCAL)

# The functions
fault("functional", 'key_mask = part if background == "key" else anchor_mask', 'key_mask = part if background == "ignore" else anchor_mask', "background policies swapped", LOCAL)
fault("functional", "foreground = y != background_index", "foreground = y != 0", "background_index is not looked at", f"{LAWS}::test_names_of_classes")
fault("functional", "part = None if ignore_index is None else y != ignore_index", "part = None", "ignore_index is not looked at", LOCAL)
fault("functional", "z = torch.where(key_mask[..., None], z, 0.0)", "z = z * key_mask[..., None]", "ignored points are multiplied by 0: NaN leaks", f"{LAWS}::test_ignored_points")
fault("functional", "labels = checks.label_map(labels, features).long()", "labels = checks.label_map(labels, features)", "indices wrap around in narrow label types", f"{LAWS}::test_an_index_that_the_type_of_the_labels_cannot_hold")
fault("checks/", "[[i, i + batch // 2] for i in range(batch // 2)]", "[[2 * i, 2 * i + 1] for i in range(batch // 2)]", "augmentations are neighbours instead of halves", "test_functional::test_pair_scopes_match_loops")
fault("functional", "z, y = z.flatten(0, 1)[None], y.flatten()[None]", "pass", 'pairs="batch" stays within images', "test_functional::test_pair_scopes_match_loops")

# Places and types
fault("sampling", "(2 * torch.arange(m) + 1) * size // (2 * m)", "(2 * torch.arange(m)) * size // (2 * m)", "places off by half a cell", "test_sampling::test_places_hold_the_points")
fault("sampling", "x = x.index_select(axis, places(x.shape[axis], m).to(x.device))", 'x = torch.nn.functional.interpolate(x.movedim(axis, -1).double().reshape(1, -1, x.shape[axis]), m, mode="linear").reshape(*x.movedim(axis, -1).shape[:-1], m).movedim(-1, axis).to(x.dtype)', "labels are resized bilinearly", "test_sampling::test_resample_indexes_each_axis", "test_dice::test_labels_come_to_the_level_by_index")
fault("sampling", "return -(-size // stride)", "return max(size // stride, 1)", "the last, smaller cell of a stride is lost", "test_sampling::test_features_and_labels_hold_the_same_place", "test_heads::test_gradients_reach_only_the_points_taken", "test_functional::test_stride_is_sampling_first", "test_sampling::test_resample_indexes_each_axis")
fault("sampling", "scaled = x / torch.where(largest == 0, torch.inf, largest)", "scaled = x + 0 * largest", "norms of huge and tiny vectors overflow and vanish", "test_sampling::test_normalise_at_any_length")
fault("sampling", "scaled = x / torch.where(largest == 0, torch.inf, largest)", "scaled = x / torch.where(largest == 0, 1.0, largest)", "the gradient of a zero vector is not zero", "test_sampling::test_normalise_of_zero_is_zero_with_zero_gradient")
fault("sampling", "    x = x if x.dtype == torch.float64 else x.float()\n    largest", "    largest", "half precision is normalised in half precision", f"{LAWS}::test_half_precision_is_widened_first")
fault("sampling", "count = torch.where(last, n + 1, count)", "count = count", "foreground sampling takes background", "test_sampling::test_foreground_places_keep_what_a_cell_holds")

# Dice
fault("dice", "predicted + true + smooth", "predicted + true", "smoothing in the numerator alone", "test_dice::test_matches_loops")
fault("dice", "(sums - smooth).sum(1, keepdim=True)", "sums.sum(1, keepdim=True)", "smoothing grows with the batch", "test_dice::test_matches_loops")
fault("dice", "2 * hit + smooth", "hit + smooth", "the 2 of the numerator is lost", "test_dice::test_matches_loops")
fault("dice", "p.square() if squared else p", "p", "squared is not looked at", "test_dice::test_matches_loops")
fault("dice", "0 if include_background else 1 :", "1 if include_background else 0 :", "include_background means its opposite", "test_dice::test_matches_loops")
fault("dice", "torch.where(keep[:, None], wide, 0.0)", "wide * keep[:, None]", "ignored logits are multiplied by 0: NaN leaks", "test_dice::test_ignored_pixels_may_hold_nan")
fault("dice", "torch.where(counted, 1 - dice, 0.0).sum(), counted.sum()", "torch.where(counted, 1 - dice, 0.0).sum(), torch.ones_like(counted).sum()", "samples that are all ignored count in the mean", "test_dice::test_a_sample_that_is_all_ignored_is_as_if_left_out")
fault("dice", "loss = (1 - cross_entropy) * loss - cross_entropy", "loss = cross_entropy * loss - (1 - cross_entropy)", "shares of Dice and cross-entropy swapped", "test_dice::test_cross_entropy_is_torch_s")

# Levels
fault("checks/weights", "zip(items, weights, strict=True)", "zip(items, weights[::-1], strict=True)", "weights meet the levels the wrong way round", "test_losses::test_is_the_weighted_sum")
fault("multiscale", "loss(level) for _, level, weight in levels if weight]", "loss(level) for _, level, weight in levels]", "a level of weight 0 leaks NaN", "test_losses::test_weight_zero_skips_the_level")
fault("functional", "means.new_full((), weight)", "means.new_full((), 1.0)", "the weights of the levels are not looked at", "test_halves::test_is_the_general_way")
fault("losses", "            if weight:\n                yield name, level, key, weight", "            if True:\n                yield name, level, key, weight", "a level of weight 0 is looked at", "test_halves::test_is_the_general_way")
fault("losses", "kind = (level.shape, level.dtype,", "kind = (level.dtype,", "levels of two widths are stacked", "test_halves::test_is_the_general_way")
fault("checks/weights", "if all(a < b for a, b in pairwise(points)):", "if all(a <= b for a, b in pairwise(points)):", "levels of one size are taken in any order", BAD)
fault("multiscale", "    def extra_repr(self) -> str:\n        \"\"\"The configuration, as it was given.\"\"\"\n", "    def extra_repr(self) -> str:\n        return \"\"\n", "repr hides the configuration", "test_losses::test_has_no_state_and_travels")

# The primitive: the sorted form
fault("contrast/__init__", "_select(wide, used) * (temperature**-0.5)", "_select(wide, used) * (temperature**-1)", "a wrong power of the temperature", LOOPS)
fault("contrast/__init__", "_select(wide, used) * (temperature**-0.5)", "_select(wide, used) * (torch.as_tensor(temperature, dtype=wide.dtype).detach() ** -0.5)", "the gradient of the temperature is dropped", "test_contrast::test_gradcheck")
fault("contrast/pairs", "torch.searchsorted(other, high, right=True)", "torch.searchsorted(other, high, right=not tolerance)", "a strict tolerance", "test_known_pairs::test_ids_exactly_as_far_apart_as_the_tolerance_are_positives")
fault("contrast/pairs", "return torch.where(column < count[:, None], ids, largest)", "return ids", "keys that take no part upset the order of the others", LOOPS)
fault("contrast/pairs", "count = key_mask.sum(1)\n", "count = key_mask.sum(1) * 0 + key_mask.shape[1]\n", "the key mask is not looked at", LOOPS)
fault("contrast/pairs", "torch.where(chosen >= 0, place", "torch.where(chosen >= 1, place", "key 0 is never an anchor itself", LOOPS)
fault("contrast/__init__", "torch.as_tensor(bound / temperature", "torch.as_tensor(bound * temperature", "the range of the logits is wrong", "test_contrast::test_no_overflow_at_tiny_temperatures")
fault("contrast/sums", "return total.sub_(key * positive[..., None])", "return total", "the self pair stays in the sum of positives", LOOPS)
fault("contrast/sums", "keys, 0.0).double().cumsum(1)", "keys, 0.0).cumsum(1)", "running sums in float32", "test_precision::test_running_sums_keep_their_digits")
fault("contrast/pairs", "positives - positive.long()", "positives", "the anchor is counted as its own positive", LOOPS)
fault("contrast/__init__", "return x if mask is None else torch.where(mask[..., None], x, 0.0)", "return x if mask is None else x * mask[..., None]", "masked rows are multiplied by 0: NaN leaks", "test_contrast::test_rows_that_take_no_part_may_hold_nan")
fault("contrast/pairs", "ranges=tolerance is not None", "ranges=False", "ranges of ids are summed as classes", "test_known_pairs::test_ids_exactly_as_far_apart_as_the_tolerance_are_positives")

# The primitive: dense, tiled, and what is made of both
fault("contrast/reference", "pairs = pairs & (column != column[:, None])", "pairs = pairs & (column >= 0)", "the self pair is not left out", LOOPS)
fault("contrast/reference", "logits = logits + key_log_weights[:, None, :]", "logits = logits - key_log_weights[:, None, :]", "the sign of log-weights", LOOPS)
fault("contrast/reference", ".abs() <= tolerance", ".abs() < tolerance", "the dense one: a strict tolerance", LOOPS)
fault("contrast/tiled", "return positives.log_().add_(shift), negatives.log_().add_(shift)", "return positives.log_().add_(shift), negatives.log_()", "the shift is dropped from the negatives", "test_known_pairs::test_many_equal_vectors_do_not_overflow")
fault("contrast/tiled", "(column < self.hi[rows, None])", "(column <= self.hi[rows, None])", "off by one at the last positive of a mixed segment", LOOPS)
fault("contrast/tiled", "sums[mirror:b] += beyond.sum(0)", "pass", "a mirrored tile does not credit its columns", "test_known_pairs::test_gradients_of_every_result_in_many_parts")
fault("contrast/tiled", "return outer + weight[", "return outer - weight[", "the sign of the transposed share of weighted gradients", "test_known_pairs::test_weighted_keys_among_themselves_in_many_tiles")
fault("contrast/tiled", "edges = [0, lo[top], lo[end - 1], hi[top], hi[end - 1], count]", "edges = [0, lo[top], lo[end - 1], hi[end - 1], hi[end - 1], count]", "a segment taken for pure that is mixed", "test_contrast::test_tiles_cover_every_pair_once", LOOPS)
fault("contrast/tiled", "least = max(0.0, reach", "least = max(0.0, 0 * reach", "no shift where exp overflows", "test_known_pairs::test_many_equal_vectors_do_not_overflow")
fault("contrast/operation", "results = [x.masked_fill_(~mask, 0) for x in results]", "pass", "anchors that are masked count", LOOPS)
fault("contrast/__init__", "wide.square().sum(-1) / temperature", "wide.square().sum(-1)", "the self logit without its temperature", GLOBAL)
fault("contrast/__init__", "return x if x.dtype == torch.float64 else x.float()", "return x", "logits are summed in half precision", "test_contrast::test_half_precision_is_summed_in_float32")
fault("contrast/operation", "[lse.masked_fill(mask, torch.inf) for lse, mask", "[lse for lse, mask", "rows without pairs have a gradient of NaN", LOOPS)
fault("contrast/operation", "layout.pairs(anchors, keys), above.at(layout.order)", "layout.pairs(anchors, keys), above", "upstream gradients in the caller's order meet sorted rows", LOOPS)
STRIPS = "test_known_pairs::test_few_classes_in_many_strips"
fault("contrast/tiled/strips", "_clear(values.exp2_(), top - first)", "values.exp2_()", "strips: the self pair is not left out", STRIPS)
fault("contrast/tiled/strips", "torch.where(own > 0, positive[:, None], negative[:, None])", "torch.where(own > 0, negative[:, None], positive[:, None])", "strips: factors of P and N swapped", STRIPS)
fault("contrast/tiled/strips", "sums[some, :, block.beyond : last] += torch.bmm(keys[some, :, top:end], mirrored)", "pass", "strips: a block does not credit its columns", STRIPS)
fault("contrast/tiled/strips", "grad[some, block.beyond : last].baddbmm_(mirrored.mT, features[some, top:end])", "pass", "strips: columns have no gradient", STRIPS)
fault("contrast/tiled/strips", "for mask in (own, 1 - own))", "for mask in (1 - own, own))", "strips: sums of P and N swapped", STRIPS)
fault("contrast/classes", "above = above.at(arranged.order[:, : arranged.own.shape[2]])", "pass", "classes: upstream gradients in another order than the points", "test_known_pairs::test_gradients_of_every_result_in_many_parts")
fault("contrast/tiled/tiles", "share = torch.add(row, total[a:b], out=group.matrix(1, len(row), b - a)) if tile.mirrored else row", "share = row", "tiles: the sum of positives has half of its gradient", "test_known_pairs::test_gradients_of_every_result_in_many_parts")
fault("contrast/sums", "return anchors.add_(keys), None", "return anchors, None", "the sum of positives has half of its gradient", INTERPRETED, TRITON_INTERPRET="1")

# Processes
ONE = "test_gather::test_processes_are_one"
fault("distributed", "x if world() == 1 else _total(x)", "x", "sums are those of this process", ONE)
fault("distributed", "dist.reduce_scatter(own, padded)", "own = padded[dist.get_rank()]", "gradients from other processes are dropped", ONE)
fault("formulas", "sums, count = sums * world(), total(count)", "count = total(count)", "a process's share is not multiplied by their number", ONE)

# Two halves
QUICK = f"{LAWS}::test_two_halves_are_their_instances"
fault("contrast/halves", "() if itself else (own,)", "()", "halves: the self pair is a negative", QUICK)
fault("contrast/halves", "inverse[:, :, None] + inverse[:, None, :]", "2 * inverse[:, :, None]", "halves: the keys' share of the gradient", QUICK)
fault("contrast/halves", "beta=-2 * scale", "beta=-scale", "halves: half of the positive's pull", QUICK)
fault("contrast/halves", "force.addcmul_(z, (force * z).sum(2, keepdim=True), value=-1)", "force", "halves: the gradient along the embedding", QUICK)
fault("contrast/halves", "weight / (2 * half)", "1 / (2 * half)", "halves: levels without their weights", "test_halves::test_is_the_general_way")

# Diagnostics
fault("diagnostics", "_uniform(terms, 1 / temperature, -1 / temperature)", "_uniform(terms, -1 / temperature, 1 / temperature)", "the floor is the worst, not the best", "test_losses::test_diagnostics_of_local_features")
fault("diagnostics", "sum(level.weight * level.progress for level in known) / weight", "sum(level.progress for level in known) / len(known)", "progress forgets the weights", "test_losses::test_progress_is_weighted")
fault("diagnostics", "if not math.isfinite(level.loss)", "if False", "NaN is called nothing to learn from", f"{BAD}::test_what_is_not_finite_is_not_hidden")

# Heads and the network
fault("heads", "x.flatten(2).mean(2)", "x.flatten(2).amax(2)", "the global head takes the maximum", "test_heads::test_global_head_is_pooling_and_two_layers")
fault("heads", "sampling.subsample(x, self.stride)", "x[(..., *[slice(None, None, self.stride)] * (x.ndim - 2))]", "the local head takes the corners of the cells", "test_heads::test_local_head_is_two_convolutions_then_sampling")
fault("heads", "rows = self.norm(rows.flatten(0, -2)).view(rows.shape)", "rows = self.norm(rows.flatten(0, -2)).view(rows.shape[::-1]).permute(*range(rows.ndim)[::-1])", "a norm mixes up points and channels", "test_heads::test_batch_norm_in_a_local_head_is_batch_norm_of_the_map")
fault("unet", "x = block(torch.cat([skip, x], 1))", "x = block(torch.cat([x, skip], 1))", "skip connections join the other way round", "test_unet::test_is_the_network_written_out")
fault("unet", "for p in (0, m)]", "for p in (m, 0)]", "an odd size is padded in front", "test_unet::test_an_element_lost_on_the_way_down_is_a_zero_at_the_end")
fault("unet", "nn.LeakyReLU(0.01", "nn.LeakyReLU(0.1", "another slope", "test_unet::test_is_the_network_written_out")

# Taps, passes and stages
fault("taps", "        while self._handles:\n            self._handles.pop().remove()\n        for tap", "        for tap", "hooks stay after the block", "test_taps::test_hooks_go")
fault("taps", "model does not work any more.\"\"\"\n        while self._handles:\n            self._handles.pop().remove()", "model does not work any more.\"\"\"", "hooks stay after close", "test_taps::test_hooks_go")
fault("taps", "            for tap in self._taps.values():\n                tap.stop()", "            pass", "features are kept between passes", "test_taps::test_nothing_is_kept")
fault("taps", "return output if self.output else None, embeddings", "return output, embeddings", "output=False is not looked at", "test_taps::test_output_can_be_left_out")
fault("taps", "if id(parameter) not in used]", "if id(parameter) in used]", "what the loss reaches is frozen", "test_taps::test_freezing_leaves_exactly_what_the_loss_reaches")
fault("hooks", "if not self.open or self.task != _graph_task():", "if not self.open:", "recomputation in backward counts as a second run", "test_taps::test_recomputation_in_backward_is_not_a_second_run")
fault("hooks", "if version(feature) != before:", "if version(feature) < before:", "features that are overwritten in place pass", "test_taps::test_misuse_is_named_everywhere")
fault("hooks", "if detached and _trained(", "if False and _trained(", "detached features pass", "test_taps::test_reentrant_checkpointing_is_refused_unless_nothing_is_trained")
fault("dryrun", "_uncompiled(net), _random_state(net), torch.no_grad()", "_uncompiled(net), torch.no_grad()", "the random state is not restored", "test_taps::test_a_network_that_needs_values_runs_once_for_real_and_is_put_back")
fault("dryrun", "buffer, buffer.clone(), version(buffer)", "buffer, buffer, version(buffer)", "the state to restore is not cloned", "test_taps::test_a_network_that_needs_values_runs_once_for_real_and_is_put_back")
fault("dryrun", "buffer.copy_(kept)", "pass", "buffers are not restored", "test_taps::test_a_network_that_needs_values_runs_once_for_real_and_is_put_back")
fault("dryrun", "            module.training = training\n", "            pass\n", "modes are not restored", "test_taps::test_a_network_that_needs_values_runs_once_for_real_and_is_put_back")
fault("dryrun", "getattr(module, hooks).clear()", "pass", "the user's hooks run on fake tensors", "test_taps::test_attaching_touches_nothing_but_hooks")
fault("stages", "usable = times[call.name] == 1", "usable = times[call.name] >= 1", "modules that run twice are offered", "test_stages::test_what_cannot_be_tapped_is_not_offered")
fault("valley", "math.prod(a) > 1.4 * math.prod(b)", "math.prod(a) > 1.0 * math.prod(b)", "unpadded convolutions are taken for levels", "test_stages::test_unpadded_convolutions_stay_on_their_level")
PICTURE = "test_stages::test_the_picture_shows_every_stage_where_it_belongs"
fault("stages", "find_valley([mark for mark in marks if mark not in heads])", "find_valley(marks)", "heads are taken for decoder stages", "test_stages")
fault("stages", '{role: tuple(row.name for row in rows if row.role == role)', '{role: tuple(row.name for row in rows[::-1] if row.role == role)', "stages are listed from the end", "test_stages::test_the_printed_report")
fault("picture", "math.log2(math.prod(row.stride)) / len(row.stride)", "math.log2(math.prod(row.stride))", "a picture takes the volume of a stride for its depth", PICTURE)
fault("picture", "ax.set_ylim(max(depths) + 0.75, min(depths) - 0.75)", "ax.set_ylim(min(depths) - 0.75, max(depths) + 0.75)", "a picture stands on its head", PICTURE)
fault("picture", "if row.name in tapped:", "if row.name not in tapped:", "a picture dots what is not tapped", PICTURE)
fault("picture", "if len(name) <= _LONGEST:", "if True:", "long names are not shortened", "test_stages::test_the_picture_of_long_names_and_uneven_strides")
fault("report", "times(row.size), times(row.stride)", "times(row.stride), times(row.size)", "the table swaps size and stride", "test_stages::test_the_printed_report")
fault("report", "cell.rjust(width) if i == 2", "cell.rjust(width) if i == 0", "the table aligns another column", "test_stages::test_the_printed_report")

# Names, and checks
fault("plugins", "if point.name in owners:", "if point.name in found and False:", "a duplicate of a plug-in is ignored", "test_plugins::test_two_distributions_with_one_name", "test_plugins::test_a_name_of_the_package_cannot_be_replaced")
fault("plugins", "if name in available(kind):", "if name in _BUILT_IN:", "a name that is taken is taken over", BAD)
fault("checks/values", "if not (math.isfinite(value) and least <= value <= most and value > above):", "if math.isinf(value) or value < least or value > most or value <= above:", "NaN passes for a number", BAD)
fault("checks/values", "    if isinstance(value, bool) or not isinstance(value, int):\n        raise TypeError(message(f\"`{name}` to be {wanted}\", typed(value)))", "    if not isinstance(value, int):\n        raise TypeError(message(f\"`{name}` to be {wanted}\", typed(value)))", "True passes for 1", BAD)
fault("checks/tensors", "wrong = (labels < 0) | (labels >= classes)", "wrong = (labels < 0) | (labels > classes)", "a label beyond the last class passes", BAD)
fault("checks/primitive", "lost = value.isnan() & mask if isinstance(mask, Tensor) else value.isnan()", "lost = value.isinf()", "NaN ids pass", BAD)

# The kit for plug-ins
fault("testing/formulas", "if (slopes < -1e-6).any():", "if (slopes < -1e6).any():", "a formula that repels positives passes", "test_testing")

# Fused kernels, in the interpreter
fault("contrast/fused/forward", "m_positive = (o_y >= lo) & (o_y < hi)\n            b_p", "m_positive = (o_y > lo) & (o_y < hi)\n            b_p", "fused: off by one at the first positive", INTERPRETED, TRITON_INTERPRET="1")
fault("contrast/fused/forward", "if mutual & (i_x != i_y):", "if mutual & (i_x > i_y):", "fused: tiles do not credit their columns", INTERPRETED, TRITON_INTERPRET="1")
