"""The embedded demo data and the prompts they were made from."""
