"""``python -m spectral`` is the command ``spectral``."""

from spectral.cli import main

if __name__ == "__main__":
    main(prog_name="spectral")
