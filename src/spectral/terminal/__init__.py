"""What a command does in a terminal: its lines, and one sentence for what goes wrong."""
