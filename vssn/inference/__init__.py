"""What is done with a trained model: scores, bounds from weighted particles, filtering and predictions."""
