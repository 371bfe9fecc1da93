"""What a process shares: with other ranks, between threads, with signals, and with whoever called it."""
