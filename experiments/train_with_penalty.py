"""Training with a penalty on aliasing; the work is in spectral/study/penalty.py. See --help."""

from spectral.study.penalty import main

if __name__ == "__main__":
    main()
