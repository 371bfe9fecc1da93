"""Third-party models looked at, measured, converted; the work is in spectral/study/survey. See --help."""

from spectral.study.survey.run import main

if __name__ == "__main__":
    main()
