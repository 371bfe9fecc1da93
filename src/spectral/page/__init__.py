"""Pages: what was found, as one HTML file that needs nothing else."""

from spectral.page.render import write_page
from spectral.page.results import write_report

__all__ = ["write_page", "write_report"]
