"""Benchmarks: what this machine does with the product as it is shipped, as one JSON object per benchmark.

They report and assert nothing. Each drives the product through the doors a partner uses; no setting exists only for
them. References are measured in the same run, interleaved.
"""
