"""Where requests come from: production traces, generators, arrival processes."""
