"""
Which cause, and how much of it
===============================

Instability under shifts has three causes that can be made ideal: decimation, nonlinearities and
borders. Their shares are Shapley values, so they add up with what stays unexplained.
"""

import spectral

model = spectral.load_model("bundled/resnet20")
images = spectral.load_images("samples", size=32, limit=6)
for cause in spectral.find_causes(model, 32)[:6]:
    print(f"{cause.source:13s} {cause.name} ({cause.op})")

# %%
table = spectral.measure_instability_budget(model, images, factor=2, progress=False)
summary = spectral.summarize_instability_budget(table)
own = summary[(summary["metric"] == "logit_jitter") & (summary["site"] == "")]
print(
    own[["source", "value", "share", "share_ci_low", "share_ci_high", "agreement"]]
    .round(3)
    .to_string(index=False)
)

# %%
# Six photographs give wide intervals; ``spectral budget MODEL --images DIR`` does the same for as
# many as there are.

figure = spectral.figures.plot_table(summary)[1]
