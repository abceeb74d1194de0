"""The mathematics of flow matching: pure functions on tensors, one function for each equation."""
