"""Tune one network with each anti-aliasing layer; the work is in spectral/study/tuning.py. See --help."""

from spectral.study.tuning import main

if __name__ == "__main__":
    main()
