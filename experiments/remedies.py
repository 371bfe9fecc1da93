"""What all remedies at once do for a trained network; spectral/experiments/remedies.py. See --help."""

from spectral.experiments.remedies import main

if __name__ == "__main__":
    main()
