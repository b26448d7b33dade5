"""The benchmark behind scripts/bench: volfs beside its peers and the bare directory."""
