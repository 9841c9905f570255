"""The machine: settings, memory, threads, files."""
