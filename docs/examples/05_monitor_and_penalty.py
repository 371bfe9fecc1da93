"""
Monitor and penalty in training
===============================

``AliasingMonitor`` measures batches that pass through the network anyway; ``AliasingPenalty`` makes
their aliasing a term of the loss. Here on a toy task: bright or dark, with noise on top.
"""

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import nn

import spectral


def train(weight):
    """Train for a few steps; return the aliasing and the loss at each."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 5, 2, 2), nn.ReLU(), nn.Conv2d(16, 16, 3, 2, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 2),
    )  # fmt: skip
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    sites = spectral.find_sites(net, 16)
    rows = []
    with spectral.AliasingMonitor(net, sites) as monitor, spectral.AliasingPenalty(net, sites) as penalty:
        for _ in range(30):
            labels = torch.randint(2, (16,))
            images = 0.1 * labels.view(-1, 1, 1, 1) + torch.rand(16, 3, 16, 16)
            loss = nn.functional.cross_entropy(net(images), labels)
            optimizer.zero_grad()
            (loss + weight * penalty.value()).backward()
            optimizer.step()
            rows.append({"loss": float(loss), "am_relative": monitor.values()["mean/dense/am_relative"]})
    return pd.DataFrame(rows)


# %%
# The first and the last ten steps, without and with the penalty:

courses = {weight: train(weight) for weight in (0.0, 1.0)}
for weight, course in courses.items():
    print(f"weight {weight}: first", course.head(10).mean().round(3).to_dict())
    print("           last ", course.tail(10).mean().round(3).to_dict())

# %%
# The keys are flat (``site/tap/metric``), so any logger takes them. Lightning and transformers have
# callbacks.

figure = Figure(figsize=(7, 2.5), layout="constrained")
for ax, name in zip(figure.subplots(1, 2), ("loss", "am_relative"), strict=True):
    for weight, course in courses.items():
        ax.plot(course[name], "--" if weight else "-", label=f"penalty × {weight:g}")
    ax.set(xlabel="step", ylabel=name)
    ax.legend()
