"""Pages: what was found, as one HTML file that needs nothing else."""

from spectral.page.render import write_page
from spectral.page.results import write_report
from spectral.page.words import write_headline

__all__ = ["write_headline", "write_page", "write_report"]
