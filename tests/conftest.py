"""What holds for every test."""

import torch

# The maps of the tests are small: on a busy machine several threads mostly wait for each other.
torch.set_num_threads(1)
