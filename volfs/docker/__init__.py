"""The store as a Docker volume plugin: a face for dockerd and podman."""
