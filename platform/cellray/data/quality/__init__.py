"""Quality control: which cells are sound, and why others are not."""
