"""
An audio network
================

Signals have one axis; everything else is the same: sites, dense maps, AVR, shifts, layers.
"""

import torch
from torch import nn

import spectral

torch.manual_seed(0)
net = nn.Sequential(
    nn.Conv1d(1, 16, 9, stride=4, padding=4), nn.ReLU(), nn.Conv1d(16, 32, 5, stride=2, padding=2), nn.ReLU(),
    nn.MaxPool1d(2), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(32, 4),
).eval()  # fmt: skip

# %%
# Chirps, from low to high: what a stride of four can't represent is in their second half.

time = torch.arange(1024) / 1024
waves = torch.stack([torch.sin(2 * torch.pi * f * time**2) for f in (60, 120, 180, 240)])[:, None]
table = spectral.measure(net, waves, ("avr", "alias_power_ratio", "sis"), taps=("dense",), progress=False)
summary = spectral.summarize_measurements(table)
print(summary[["site", "op", "stride", "metric", "mean"]].round(4).to_string(index=False))

# %%
# The same layers, with one axis:

smooth = spectral.convert(net, "blurpool", example=waves, kernel_size=5)
print(spectral.conversion_report(smooth))
before, after = (float(spectral.compute_sis(one, waves).mean()) for one in (net, smooth))
print(f"SIS {before:.2e} → {after:.2e}")

# %%
# Site by site: of four chirps the intervals are wide.

figure = spectral.figures.plot_summary(summary[summary["metric"] == "alias_power_ratio"])
