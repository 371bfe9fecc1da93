"""Training with a penalty on aliasing; the work is in spectral/experiments/penalty.py. See --help."""

from spectral.experiments.penalty import main

if __name__ == "__main__":
    main()
