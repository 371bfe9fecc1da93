"""What surgery costs a trained network and what repair gives back; spectral/study/repair.py. See --help."""

from spectral.study.repair import main

if __name__ == "__main__":
    main()
