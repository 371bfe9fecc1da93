"""
A three-dimensional network
===========================

Videos and volumes: strides differ between time and space, and an axis of stride 1 isn't decimated,
so nothing on it counts as aliasing.
"""

import pandas as pd
import torch
from torch import nn

import spectral

torch.manual_seed(0)
net = nn.Sequential(
    nn.Conv3d(3, 8, 3, stride=(1, 2, 2), padding=1), nn.BatchNorm3d(8), nn.ReLU(),
    nn.Conv3d(8, 16, 3, stride=2, padding=1), nn.ReLU(), nn.AdaptiveAvgPool3d(1),
    nn.Flatten(), nn.Linear(16, 5),
).eval()  # fmt: skip
clips = torch.rand(2, 3, 8, 32, 32)

for site in spectral.find_sites(net, clips):
    print(site.name, site.op, site.stride, site.input_size, "→", site.output_size)

# %%
table = spectral.measure(
    net, clips, ("avr_separable", "alias_power_ratio"), taps=("dense", "signal"), progress=False
)
summary = spectral.summarize_measurements(table)
print(summary[["site", "tap", "metric", "mean"]].round(3).to_string(index=False))

# %%
# Converted, ideally: no frequency above the limit of each site's own axes is left, in time or
# space.

ideal = spectral.convert(net, "ideal", example=clips)
again = spectral.measure(ideal, clips, ("alias_power_ratio",), taps=("dense",), progress=False)
means = spectral.summarize_measurements(again)
print(means[["site", "op", "mean"]].to_string(index=False))

# %%
# Both in one picture; what stands before a site in the converted network is named after it.

means["site"] = means["site"].str.removesuffix(".antialias")
both = pd.concat([summary.assign(model="strided"), means.assign(model="ideal")])
figure = spectral.figures.plot_summary(
    both[(both["metric"] == "alias_power_ratio") & (both["tap"] == "dense") & (both["reason"] == "")]
)
