"""Place of what pyfuse3 lacks; the tree is correct without it."""
