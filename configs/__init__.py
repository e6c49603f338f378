"""Recipes (YAML), the schema that they are checked against, and how they are loaded."""
