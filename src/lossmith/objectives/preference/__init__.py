"""Preference objectives: `margin`, `label_noise`, `sides`, `reference_free`, `sorting`, `discovered` and `discovered_batch`."""
