"""
Resampling, patterns and attacks
================================

What is done to an image's sampling is a linear map with a null space: whatever lies in it, no
network behind it can see. What lies outside is measured.
"""

from matplotlib.figure import Figure

import spectral

model = spectral.load_model("bundled/nula-w32")
images = spectral.load_images("samples", size=32, limit=32)
seen = spectral.measure_predictions(
    model, images, ["resize-0.5", "decimate-2", "blur-decimate-2", "checkerboard-0.05"], progress=False
)
print(seen.groupby("perturbation", sort=False)["agree"].mean().round(3))

# %%
# Decimation by two keeps a quarter of the samples: three quarters of all patterns are invisible
# behind it.

for name in ("decimate-2", "resize-0.5"):
    operator = spectral.make_perturbation(name)
    print(f"{name}: rank {operator.rank((32, 32))}, null space {operator.null_dimension((32, 32))} of 1024")

# %%
# An attack that knows the weights (foolbox), for comparison: FGSM with ε = 2/255.

hit = spectral.measure_robustness(model, images.take(16), ["fgsm"], epsilon=2 / 255, progress=False)
print(f"predictions that stay: {hit['robust'].mean():.2f}")

# %%
# Images that keep their prediction, with 95 % intervals: the photograph is the unit, not its crops.

kinds = {**dict(iter(seen.groupby("perturbation", sort=False))), "fgsm": hit.assign(agree=hit["robust"])}
figure = Figure(figsize=(7, 2.2), layout="constrained")
ax = figure.subplots()
for row, table in enumerate(kinds.values()):
    share = spectral.stats.summarize_share(table["agree"].astype(float), table["cluster"])
    ax.hlines(row, share.ci_low, share.ci_high)
    ax.plot(share.share, row, "o", color="C0")
ax.set(yticks=range(len(kinds)), yticklabels=list(kinds), xlim=(0, 1), xlabel="share that agrees")
ax.invert_yaxis()
