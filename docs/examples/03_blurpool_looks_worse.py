"""
Why BlurPool "looks worse"
==========================

Measured at what *enters* each downsampling site, an anti-aliased network doesn't look better than a
strided one. That was published, and it is true. It is the wrong tensor: a blur pool does its work
behind its input.
"""

import pandas as pd

import spectral

names = {"strided": "bundled/resnet20", "blurpool": "bundled/resnet20-blurpool"}
images = spectral.load_images("samples", size=32, limit=12)
tables = {
    kind: spectral.measure(
        spectral.load_model(name),
        images,
        ("avr", "alias_power_ratio"),
        taps=("input", "signal"),
        progress=False,
    )
    for kind, name in names.items()
}

# %%
# At the tap ``input`` AVR compares the map before the blur with the map before a strided
# convolution; at ``signal`` it compares the maps whose samples are dropped, at the same place of
# both networks' computation.

for tap in ("input", "signal"):
    for kind, table in tables.items():
        summary = spectral.summarize_measurements(table)
        rows = summary[(summary["tap"] == tap) & (summary["metric"] == "avr") & (summary["op"] != "")]
        print(f"AVR at {tap:7s}{kind:9s}mean over sites {rows['mean'].mean():.3f}")

# %%
# What reaches the next layer as aliases, in dB of its power:

for kind, table in tables.items():
    summary = spectral.summarize_measurements(table)
    rows = summary[(summary["metric"] == "alias_power_ratio") & (summary["tap"] == "signal")]
    print(kind)
    print(rows[["site", "db", "db_ci_low", "db_ci_high"]].round(1).to_string(index=False))

# %%
# The same, site by site and with intervals. The two taps tell two stories of one network.

both = pd.concat([spectral.summarize_measurements(t) for t in tables.values()])
rows = both[(both["metric"] == "avr") & both["tap"].isin(["input", "signal"])]
figure = spectral.figures.plot_summary(rows)
