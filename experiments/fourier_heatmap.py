"""Fourier heatmaps of networks; the work is in spectral/study/heatmap.py. See --help."""

from spectral.study.heatmap import main

if __name__ == "__main__":
    main()
