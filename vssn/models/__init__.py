"""Whole models: embeddings, a layer, an emission density and its objectives."""
