"""Whether published weights reach their published accuracy; spectral/study/published.py. See --help."""

from spectral.study.published import main

if __name__ == "__main__":
    main()
