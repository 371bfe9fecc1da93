"""Phase 10 of the study on its own; the science is in spectral/study/phase10.py. See --help."""

from spectral.study import run_phase_script

if __name__ == "__main__":
    run_phase_script(10)
