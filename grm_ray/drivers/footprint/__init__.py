"""What `--dry-run` tells of memory and speed: `roles` lists them, `text` prints them."""
