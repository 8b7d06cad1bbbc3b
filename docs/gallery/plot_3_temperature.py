r"""
What a temperature does
=======================

In the gradient of a contrastive loss each negative has a weight, its share of the denominator. The temperature decides
how the weight is spread over the negatives. The formula decides what else is in the denominator.
"""

# %%
# Take an anchor, a positive at cosine 0.6, and 200 negatives with random cosines. At a high temperature all negatives
# push about equally. At a low temperature the few nearest do all the pushing.

import matplotlib.pyplot as plt
import torch

torch.manual_seed(0)
negatives = (0.15 + 0.25 * torch.randn(200)).clamp(-1, 0.95).sort().values
positive = torch.tensor([0.6])

fig, axis = plt.subplots(figsize=(7, 3), layout="constrained")
for temperature, colour in ((0.5, "#56b4e9"), (0.2, "#009e73"), (0.07, "#d55e00")):
    weight = (torch.cat([positive, negatives]) / temperature).softmax(0)[1:]
    axis.plot(
        negatives,
        weight / weight.sum(),
        ".",
        color=colour,
        markersize=4,
        label=f"τ = {temperature}",
    )
axis.set_xlabel("cosine of the negative")
axis.set_ylabel("share of the repulsion")
axis.set_yscale("log")
axis.legend(frameon=False)
plt.show()

# %%
# The equation printed in the MMGL paper keeps the anchor's product with itself, :math:`e^{1/\tau}`, in the denominator.
# At the paper's temperature of 0.07 that is 1.6 million. So the negatives get almost no weight, unless one of them
# nearly equals the anchor.
#
# The next picture shows the weight of all negatives together in the gradient, measured through the formulas of this
# package. The hard negatives are those above, and the easy ones have half their cosine.

from mmgl_losses import PairTerms
from mmgl_losses.losses.formulas import GLOBAL_FORMULAS


def repulsion(name: str, temperature: float, cosines: torch.Tensor) -> float:
    """The derivative of an anchor's loss by a common shift of its negatives' logits."""
    shift = torch.zeros((), requires_grad=True)
    terms = PairTerms(
        positive_lse=positive / temperature,
        negative_lse=(cosines / temperature).logsumexp(0, keepdim=True) + shift,
        positive_sum=positive / temperature,
        self_logit=torch.tensor([1 / temperature]),
        n_positives=torch.tensor([1]),
        n_negatives=torch.tensor([len(cosines)]),
    )
    return torch.autograd.grad(GLOBAL_FORMULAS[name](terms).sum(), shift)[0].item()


temperatures = torch.logspace(-1.6, 0, 40).tolist()
fig, axes = plt.subplots(1, 2, figsize=(7, 3), sharey=True, layout="constrained")
for axis, cosines, title in (
    (axes[0], negatives, "hard negatives"),
    (axes[1], negatives / 2, "easy negatives"),
):
    for name, colour in (("decoupled", "#009e73"), ("nt_xent", "#0072b2"), ("mmgl", "#d55e00")):
        weights = [repulsion(name, t, cosines) for t in temperatures]
        axis.plot(temperatures, weights, color=colour, label=f'"{name}"')
        print(f"{title}, {name:>9}: {repulsion(name, 0.07, cosines):.4f} at τ = 0.07")
    axis.axvline(0.07, color="0.7", linewidth=1, linestyle=":")
    axis.set(xscale="log", xlabel="temperature", title=title)
axes[0].set_ylabel("weight of all negatives")
axes[1].annotate("τ = 0.07", (0.075, 0.9), color="0.4")
axes[1].legend(frameon=False, loc="center right")
plt.show()
