"""Pictures, from any source to tensors."""
