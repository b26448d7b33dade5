"""All workloads, in the order in which they are run and shown."""

from __future__ import annotations

from benchmarks import data, durable, metadata, trees

WORKLOADS = [*data.WORKLOADS, *durable.WORKLOADS, *metadata.WORKLOADS, *trees.WORKLOADS]
