"""Train the networks that phase 9 compares; the work is in spectral/experiments/zoo.py. See --help."""

from spectral.experiments.zoo import main

if __name__ == "__main__":
    main()
