"""Real programs working in volumes: container runtimes, databases, version control, tools."""
