"""What can be known of a config before a worker starts: `check` is the way in."""
