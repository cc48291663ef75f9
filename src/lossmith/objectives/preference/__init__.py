"""Preference objectives: `margin`, `label_noise`, `sides`, `reference_free`, `sorting` and the `discovered*` ones."""
