"""Fourier heatmaps of networks; the work is in spectral/experiments/heatmap.py. See --help."""

from spectral.experiments.heatmap import main

if __name__ == "__main__":
    main()
