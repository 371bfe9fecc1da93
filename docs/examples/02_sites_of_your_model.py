"""
Where your model loses resolution
=================================

Any ``torch.nn.Module`` will do. Discovery follows where the image's samples go; names and types of
modules say nothing to it, so a stride hidden in a view is found like one in a convolution.
"""

from torch import nn

import spectral


class Net(nn.Module):
    """Four ways to halve a map, and one that only looks like it."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Linear(8 * 4, 10)

    def forward(self, x):
        x = self.pool(self.conv(x).relu())
        x = x[:, :, ::2, 1::2]  # a slice
        b, c, h, w = x.shape
        x = x.reshape(b, c, h // 2, 2, w // 2, 2).mean((3, 5))  # windows, by view
        x = x[:, ::2].repeat_interleave(2, 1)  # channels: no resolution is lost
        return self.head(nn.functional.adaptive_avg_pool2d(x, 2).flatten(1))


# %%
sites = spectral.find_sites(Net(), 64)
print(sites)

# %%
# The last column says what each would give with stride 1, its *dense map*. What that contains above the
# new limit is what aliases, and only there a place can be measured. A pool to 1×1 keeps no lattice
# and is listed apart.

for pool in spectral.find_global_pools(nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1)), 32):
    print(pool.name, pool.input_size, pool.reason)

# %%
# What the first of them does to two photographs: their spectrum before and after the decimation, and what
# of it is aliases. With weights of no training, as here, that is the architecture's own doing.

images = spectral.load_images("samples", size=64, limit=2)
details = spectral.inspect_sites(Net().eval(), images, preprocessing="none")
first = details[sites[0].name]
spectra = {name: getattr(first, name) for name in ("before", "after", "aliases")}
figure = spectral.figures.plot_site_detail(spectra, first.profile)
