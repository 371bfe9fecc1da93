"""Train the networks that phase 9 compares; the work is in spectral/study/zoo.py. See --help."""

from spectral.study.zoo import main

if __name__ == "__main__":
    main()
