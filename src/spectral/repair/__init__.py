"""What a conversion costs, won back: weights and statistics fitted again, distilled or averaged."""
