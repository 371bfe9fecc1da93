"""Third-party models looked at, measured, converted; spectral/experiments/survey. See --help."""

from spectral.experiments.survey.run import main

if __name__ == "__main__":
    main()
