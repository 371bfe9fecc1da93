"""
Resampling, patterns and attacks
================================

What is done to an image's sampling is a linear map with a null space: whatever lies in it, no
network behind it can see. What lies outside is measured.
"""

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
