"""What a run is asked to do: schema, loading with overrides, and the registry of names.

Imports no torch and no Ray, so that a mistake in a config costs milliseconds.
"""
