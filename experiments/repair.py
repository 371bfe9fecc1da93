"""What surgery costs a network and what repair gives back; spectral/experiments/repair.py. See --help."""

from spectral.experiments.repair import main

if __name__ == "__main__":
    main()
