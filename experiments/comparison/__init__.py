"""What makes results comparable: scenarios, the same windows for every policy, intervals. Knows nothing of Hydra."""
