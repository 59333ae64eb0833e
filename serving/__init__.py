"""The server: models behind HTTP, on Ray Serve."""
