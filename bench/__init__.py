"""Measure speed: benchmarks write results/*.json, the report makes tables and charts of them. Nothing is asserted."""
