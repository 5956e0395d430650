"""The public ops: arguments, registration with torch.library, autograd."""
