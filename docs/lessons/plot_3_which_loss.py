r"""
Which loss am I training?
=========================

A contrastive loss does not fall to zero, and its value depends on the batch. So how do you know whether it is learning?
``diagnose`` compares the value with two others that can be computed: the lowest possible one, and the one at chance.

`Open this page in Colab
<https://colab.research.google.com/github/mmgl-losses/mmgl-losses/blob/main/examples/notebooks/which_loss.ipynb>`_.
"""

# %%
# A value, and what it means
# --------------------------
#
# Two images with blocks of four classes, and two levels of random features. Nothing has been learned yet.

import matplotlib.pyplot as plt
import torch

from mmgl_losses import MultiScaleLocalSupCon

torch.manual_seed(0)
labels = torch.randint(4, (2, 8, 8)).repeat_interleave(8, 1).repeat_interleave(8, 2)
features = [torch.randn(2, 16, 8, 8), torch.randn(2, 16, 16, 16)]
loss = MultiScaleLocalSupCon(weights=(0.4, 0.6))
print(loss.diagnose(features, labels))

# %%
# ``floor`` is the loss of perfect features with these labels. ``chance`` is the loss when all features are equal.
# Random features are worse than chance, because they are spread out without any relation to the labels.
#
# Now train the features themselves, without a network. Both levels move from chance to the floor. Their progress is
# alike, but the values of their losses are not.

points = [torch.nn.Parameter(feature) for feature in features]
optimiser = torch.optim.Adam(points, lr=0.05)
history = []
for _ in range(100):
    optimiser.zero_grad()
    loss(points, labels).backward()
    optimiser.step()
    history.append(loss.diagnose(points, labels))

fig, axes = plt.subplots(1, 2, figsize=(7, 3), layout="constrained")
for i, colour in enumerate(("#0072b2", "#d55e00")):
    levels = [report.levels[i] for report in history]
    axes[0].plot([level.loss for level in levels], color=colour, label=f"level {i}")
    axes[0].axhline(levels[0].floor, color=colour, linestyle=":")
    axes[0].axhline(levels[0].chance, color=colour, linestyle="--", linewidth=0.8)
    axes[1].plot([level.progress for level in levels], color=colour)
axes[0].set(xlabel="step", title="loss; floor dotted, chance dashed")
axes[0].legend(frameon=False)
axes[1].set(xlabel="step", title="progress: 0 at chance, 1 at the floor", ylim=(-0.6, 1.05))
axes[1].axhline(0, color="0.8", linewidth=1)
plt.show()

# %%
# This is the last report. Log ``report.progress``: unlike the loss, it can be compared between levels, batches and
# runs.

print(history[-1])

# %%
# The same features, other formulas
# ---------------------------------
#
# A formula says how positives and negatives make a loss. The values of two formulas cannot be compared, but their
# progress can.

for formula in ("supcon", "supcon_in", "mmgl"):
    other = MultiScaleLocalSupCon(weights=(0.4, 0.6), formula=formula)
    progress = other.diagnose(points, labels).progress
    print(f"{formula:>9}: loss {other(points, labels).item():8.4f}, progress {progress:.2f}")

# %%
# Which points are compared
# -------------------------
#
# The options ``pairs`` and ``background`` decide which points are compared. The numbers of anchors and positives show
# it.

for pairs in ("image", "batch"):
    for background in ("anchor", "key", "ignore"):
        options = MultiScaleLocalSupCon(weights=(1.0,), pairs=pairs, background=background)
        level = options.diagnose(points[1:], labels).levels[0]
        anchors, each = sum(level.valid.values()), level.positives
        print(f"{pairs:>6} {background:>7}: {anchors:4} anchors, {each:6.1f} positives each")

# %%
# When there is nothing to learn
# ------------------------------
#
# With a single class there are no negatives. The report says so. The gradient is zero, not NaN.

print(loss.diagnose(features, torch.zeros_like(labels)).sentence)

# %%
# `Is it learning? <https://mmgl-losses.github.io/mmgl-losses/learning.html>`_ says what to do about each of these
# sentences. `The guide to the options <https://mmgl-losses.github.io/mmgl-losses/choices.html>`_ helps to choose them.
