"""Layers: the GRU that stands for torch.nn.GRU, the stochastic layer, and the blocks that both are made of."""
