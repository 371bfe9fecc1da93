"""
AVR in ten lines
================

The alias violation ratio is the share of a map's power above the Nyquist limit of the decimation
that comes next. It needs no network: any map will do.
"""

import torch
from matplotlib.figure import Figure
from matplotlib.patches import Circle

import spectral

ramp = torch.arange(64.0).expand(64, 64)
board = spectral.make_checkerboard_image(64, amplitude=1, mean=0)[0]
noise = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
maps = {"ramp": ramp, "noise": noise, "checkerboard": board}
for name, image in maps.items():
    power = spectral.compute_power_spectrum(image)
    print(f"{name:13s}{float(spectral.compute_avr(power, stride=2)):.3f}")

# %%
# The ramp is as smooth as can be and still isn't at zero: a map isn't periodic, and the jump from
# its right border to its left one has power at all frequencies. Without that part nothing is left.

periodic, _ = spectral.split_border(ramp)
print(f"{float(spectral.compute_avr(spectral.compute_power_spectrum(periodic), stride=2)):.4f}")

# %%
# White noise has its power evenly over the square of frequencies. The limit of a decimation by two
# is a circle of radius ½ in it, which leaves 1 − π/16 outside: 0.80.

print(f"{1 - torch.pi / 16:.3f}")

# %%
# The three spectra, in decibels, with that circle: what lies outside it is what AVR counts. All of the
# checkerboard's power is in one bin, in the corner.

figure = Figure(figsize=(7, 2.5), layout="constrained")
for ax, (name, image) in zip(figure.subplots(1, 3), maps.items(), strict=True):
    power = spectral.compute_power_spectrum(image)
    level = 10 * torch.log10(power / power.max() + 1e-12)
    ax.imshow(level, cmap="cividis", vmin=-60, vmax=0, extent=(-0.5, 0.5, 0.5, -0.5))
    ax.add_patch(Circle((0, 0), 0.25, fill=False, color="white", linestyle="--"))
    ax.set(title=name, xlabel="cycles per pixel")
