"""One forward pass followed: operators, calls and tensors; of a copy, without data where it can."""
