"""Measurements: cases -> results/*.json -> tables and pictures. Measures, never asserts."""
