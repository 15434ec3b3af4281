"""Proofs that a tied model computes what it must."""
