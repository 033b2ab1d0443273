"""A package that is mounted."""
