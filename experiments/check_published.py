"""Whether published weights reach their published accuracy; spectral/experiments/published.py. See --help."""

from spectral.experiments.published import main

if __name__ == "__main__":
    main()
