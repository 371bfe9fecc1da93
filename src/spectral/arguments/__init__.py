"""What a public call is given: what it may be, and how it is read."""
