"""Reports: one self-contained page from the evidence store, tables, pictures, and what the terminal shows."""
