"""The mount."""
