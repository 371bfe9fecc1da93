"""Downsampling sites across architectures; the work is in spectral/study/coverage.py. See --help."""

from spectral.study.coverage import main

if __name__ == "__main__":
    main()
