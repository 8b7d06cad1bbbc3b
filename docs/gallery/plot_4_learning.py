"""
Is it learning?
===============

A contrastive loss does not fall to zero, and where it stops depends on the batch. ``diagnose`` gives the two numbers
that make a curve readable: the floor, and the value at chance.
"""

# %%
# A small network and two levels of features; one slice of the phantom, over and over. The loss of each level in
# colour, its floor dotted, and the share of the way from chance to floor.

import matplotlib.pyplot as plt
import torch
from scene import heart

from mmgl_losses import LocalHead, MultiScaleLocalSupCon, UNet, attach_heads

torch.manual_seed(0)
image, labels = (x[None] for x in heart())
images = torch.stack([image, image.flip(2)])
labels = torch.cat([labels, labels.flip(2)])

net = UNet(1, 8, channels=(8, 16, 32, 32, 64))
names = ("decoder.blocks.1", "decoder.blocks.2")
tapped = attach_heads(net, images, {name: LocalHead for name in names}, output=False)
loss = MultiScaleLocalSupCon(weights=(0.4, 0.6))
optimiser = torch.optim.Adam(tapped.parameters(), lr=3e-3)

history = []
for _ in range(60):
    _, features = tapped(images)
    optimiser.zero_grad()
    loss(features, labels).backward()
    optimiser.step()
    history.append(loss.diagnose(features, labels))

fig, axes = plt.subplots(1, 2, figsize=(7, 3), layout="constrained")
for i, colour in enumerate(("#0072b2", "#d55e00")):
    levels = [step.levels[i] for step in history]
    axes[0].plot([level.loss for level in levels], color=colour, label=names[i])
    axes[0].axhline(levels[0].floor, color=colour, linestyle=":")
    axes[0].annotate("floor", (45, levels[0].floor + 0.05), color=colour)
    axes[1].plot([level.progress for level in levels], color=colour)
axes[0].set(xlabel="step", title="loss")
axes[0].legend(frameon=False)
axes[1].set(xlabel="step", title="from chance (0) to floor (1)", ylim=(-1, 1.05))
axes[1].axhline(0, color="0.8", linewidth=1)
plt.show()

# %%
# The finer level has more positives for each anchor, so its floor is higher: its loss is larger although it has
# learnt nearly as much. (Before the first step both are worse than chance, which is all embeddings being equal:
# random ones are spread without regard to their labels.) The last report:

print(history[-1])

# %%
# The floor of the supervised contrast is the logarithm of the number of positives, whatever the network does:

count = torch.logspace(0, 3.5, 50)
fig, axis = plt.subplots(figsize=(7, 2.6), layout="constrained")
axis.plot(count, count.log(), color="#0072b2", label='"supcon": log |P|')
axis.plot(
    count,
    -(2 / 0.07 + (count / 500).log()) / count,
    color="#d55e00",
    label='"mmgl": −(2/τ + log(|P|/|N|)) / |P|, |N| = 500',
)
axis.set(xscale="log", xlabel="positives of an anchor", ylabel="floor", ylim=(-10, 10))
axis.legend(frameon=False)
plt.show()
