"""The simulated cluster: what it is made of, two engines with one semantics, and the metrics."""
