"""Experiments on any networks, each with a command of its own: the scripts of ``experiments/`` call them.

Coverage of libraries, a survey that looks, measures and converts, Fourier heatmaps, published accuracies,
repair, remedies, and training: of layers, of the zoo, and with a penalty. The study's phases stand above.
"""
