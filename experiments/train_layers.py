"""Tune one network with each anti-aliasing layer; spectral/experiments/tuning.py. See --help."""

from spectral.experiments.tuning import main

if __name__ == "__main__":
    main()
