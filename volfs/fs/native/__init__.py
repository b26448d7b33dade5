"""Structures in C."""
