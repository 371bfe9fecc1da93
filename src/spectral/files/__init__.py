"""Files that are whole or not there, and who writes to them."""
