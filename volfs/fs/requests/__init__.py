"""Requests."""

from volfs.fs.requests.requests import Later, Requests

__all__ = ["Later", "Requests"]
