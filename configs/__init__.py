"""Recipes (YAML), the schema they are checked against, and the run folder a recipe leaves behind."""
