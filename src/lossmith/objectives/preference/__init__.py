"""Preference objectives: `margin`, `sides`, `reference_free`, `sorting` and `discovered`."""
