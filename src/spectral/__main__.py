"""The command ``spectral``, which is ``python -m spectral`` too."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command; one that is interrupted while its code is still read ends as it does later."""
    try:
        from spectral.cli import main as command

        command(prog_name="spectral")
    except KeyboardInterrupt:
        print("\nInterrupted before it began.", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
