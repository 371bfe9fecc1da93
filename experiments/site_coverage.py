"""Downsampling sites across architectures; the work is in spectral/experiments/coverage.py. See --help."""

from spectral.experiments.coverage import main

if __name__ == "__main__":
    main()
