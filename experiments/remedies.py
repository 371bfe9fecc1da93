"""What all remedies at once do for a trained network's stability; spectral/study/remedies.py. See --help."""

from spectral.study.remedies import main

if __name__ == "__main__":
    main()
