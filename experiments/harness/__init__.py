"""What every command shares: composing and checking its config, its run folder, its loggers, its exit code."""
