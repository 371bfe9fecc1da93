"""
Convert and compare
===================

An anti-aliasing layer for every stride, with the weights kept; then the same images through both
networks.
"""

import spectral

model = spectral.load_model("bundled/resnet20")
images = spectral.load_images("samples", size=32, limit=12)
smooth = spectral.convert(model, "flc")
print(spectral.conversion_report(smooth))

# %%
# Norms behind the new layers still expect the old maps; measured again they do not.

tuned = spectral.recalibrate(smooth, images)
for name, net in {"as it is": model, "converted": smooth, "recalibrated": tuned}.items():
    stable = spectral.measure_stability(net, images, comb=False, progress=False)
    table = spectral.summarize_stability(stable)
    chosen = table[table["metric"].isin(["sis", "logit_jitter"])]
    print(name, dict(zip(chosen["metric"], chosen["mean"].astype(float).round(4), strict=True)))

# %%
# Which layer? Several can be tried at once; each is measured on this network and these images, without
# training. Six photographs tell a direction at most: ``spectral diagnose`` takes more, tries each site
# alone too, and gives intervals and tests.

fixes = spectral.measure_fixes(model, images.take(6), ["blurpool", "flc"], singly=[], progress=False)
print(fixes[["method", "sis", "delta_sis", "agreement", "macs"]].round(4).to_string(index=False))
figure = spectral.figures.plot_fixes(fixes)
